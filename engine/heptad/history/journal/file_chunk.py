"""`FileChunk`: a chunk in the file of a log, of which only the head is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from heptad.history.journal import schema
from heptad.record.buffer import CHUNK
from heptad.record.chunk import Ints
from heptad.record.counters import Counters

HEAD = 'seq, count, clock, "offset", epoch, batch_index, step, "update", "window", skipped, gaps, crc'
"""The columns of the head, in the table `chunk`."""


_EVER = 1 << 62
"""What no number of a head reaches: sums of two fit into 64 bits."""


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
        _check(head)
        self._read = read
        self.seq, self._count, self.clock, self.offset = cast("list[int]", head[:4])
        self.counters = Counters(*head[4:9])
        self.skipped: Sequence[int] = schema.parsed_json(head[9]) if head[9] else ()
        gaps: list[list[int]] = schema.parsed_json(head[10]) if head[10] else []
        self.gaps: Sequence[tuple[int, int]] = [(place, paused) for place, paused in gaps]
        places = [*self.skipped, *(place for place, _ in self.gaps)]
        if not all(type(place) is int and 0 <= place < self._count for place in places) or not all(
            type(paused) is int for _, paused in self.gaps
        ):
            raise ValueError(f"the head of the chunk at transition {self.seq} names places that it lacks")
        if sum(abs(paused) for _, paused in self.gaps) >= _EVER:
            raise ValueError(f"the head of the chunk at transition {self.seq} says that it was paused beyond all time")

    def __len__(self) -> int:
        return self._count

    def arcs(self) -> Ints:
        """Return the number of the arc taken, for each transition."""
        return self._read(self)[0]

    def times(self) -> Ints:
        """Return monotonic nanoseconds of the process that made it, for each transition."""
        return self._read(self)[1]


def _check(head: Sequence[Any]) -> None:
    """Refuse a head whose numbers no run has.

    Raises:
        ValueError: If there is one.
    """
    numbers = schema.whole(head[:9], "the head of a chunk")
    _, count, clock, offset, *counters = numbers
    if not 0 < count <= CHUNK or numbers[0] < 0 or min(counters) < 0 or max(map(abs, numbers)) >= _EVER:
        raise ValueError(
            f"the head of the chunk at transition {numbers[0]} says {count} transitions, clock {clock}, "
            f"offset {offset}, counters {counters}"
        )
