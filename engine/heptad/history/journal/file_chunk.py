"""`FileChunk`: a chunk in the file of a log, of which only the head is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from heptad.history.journal import schema
from heptad.record.chunk import Ints
from heptad.record.counters import Counters

HEAD = 'seq, count, clock, "offset", epoch, batch_index, step, "update", "window", skipped, gaps, crc'
"""The columns of the head, in the table `chunk`."""


class FileChunk:
    """A `Chunk` in a file.

    Args:
        row: The columns `HEAD`.
        read: Returns the arcs and times of a chunk; called whenever they are asked for.

    Raises:
        ValueError: If the head does not fit its checksum.
    """

    __slots__ = ("_count", "_read", "clock", "counters", "gaps", "offset", "seq", "skipped")

    def __init__(self, row: Sequence[Any], read: Callable[[FileChunk], tuple[Ints, Ints]]) -> None:
        head = schema.checked(row, f"the head of the chunk at transition {row[0]}")
        self._read = read
        self.seq, self._count, self.clock, self.offset = cast("list[int]", head[:4])
        self.counters = Counters(*head[4:9])
        self.skipped: Sequence[int] = json.loads(head[9]) if head[9] else ()
        gaps: list[list[int]] = json.loads(head[10]) if head[10] else []
        self.gaps: Sequence[tuple[int, int]] = [(place, paused) for place, paused in gaps]

    def __len__(self) -> int:
        return self._count

    def arcs(self) -> Ints:
        """Return the number of the arc taken, for each transition."""
        return self._read(self)[0]

    def times(self) -> Ints:
        """Return monotonic nanoseconds of the process that made it, for each transition."""
        return self._read(self)[1]
