"""`ShortenedChunk`: the beginning of a chunk in a file, where a resumed run makes the rest of it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from heptad.history.journal.packing import unpack_turns
from heptad.record.chunk import Ints
from heptad.record.counters import Counters


class ShortenedChunk:
    """The first transitions of a `Chunk` in a file.

    Args:
        row: The row of the table `chunk`.
        count: How many transitions to keep.
    """

    def __init__(self, row: Sequence[Any], count: int) -> None:
        self.seq, held, self.clock, self.offset = cast("tuple[int, int, int, int]", tuple(row[:4]))
        self.counters = Counters(*row[4:9])
        self.skipped = [place for place in _decoded(row[9]) if place < count]
        self.gaps = [(place, paused) for place, paused in _decoded(row[10]) if place < count]
        arcs, times = unpack_turns(row[12], held, self.clock)
        self._arcs, self._times = arcs[:count], times[:count]

    def __len__(self) -> int:
        return len(self._times)

    def arcs(self) -> Ints:
        """Return the number of the arc taken, for each transition."""
        return self._arcs

    def times(self) -> Ints:
        """Return monotonic nanoseconds, for each transition."""
        return self._times


def _decoded(text: str) -> list[Any]:
    """Return a list of the head of a chunk; an empty one is stored as no text."""
    return cast("list[Any]", json.loads(text)) if text else []
