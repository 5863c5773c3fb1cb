"""`Collected`: what became of the recorded values of a name, worked out block by block; no value is kept but a few.

`figures` makes it of a log, and a report's curves as they are read; it owns the rule which value is the last, the
lowest, the highest, and which are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from heptad.history.source import Source
from heptad.record.chunk import Ints
from heptad.record.values import Recorded

Floats = npt.NDArray[np.float64]

BLOCK = 1 << 16
"""Recorded values that are read together."""


@dataclass(slots=True)
class Collected:
    """What is known of the values of a name so far.

    Attributes:
        name: The name.
        count: How many there are.
        last: The last of them; `None` before there is one.
        lowest: The lowest that is finite, the first of equal ones; `None` where none is finite.
        highest: The highest likewise.
        not_finite: How many are NaN or infinite.
        first_not_finite: The first of those.
    """

    name: str
    count: int = 0
    last: Recorded | None = None
    lowest: Recorded | None = None
    highest: Recorded | None = None
    not_finite: int = 0
    first_not_finite: Recorded | None = None

    def add(self, value: Floats, place: Ints) -> None:
        """Add some values, one at least, in order.

        Args:
            value: The values, of shape [n].
            place: For each of them seq, epoch, step and update: shape [n, 4].
        """
        self.count += len(value)
        self.last = self.row(value, place, -1)
        finite = np.isfinite(value)
        odd = np.flatnonzero(~finite)
        if len(odd):
            if not self.not_finite:
                self.first_not_finite = self.row(value, place, int(odd[0]))
            self.not_finite += len(odd)
            value, place = value[finite], place[finite]
        if not len(value):
            return
        low, high = int(value.argmin()), int(value.argmax())
        if self.lowest is None or value[low] < self.lowest.value:
            self.lowest = self.row(value, place, low)
        if self.highest is None or value[high] > self.highest.value:
            self.highest = self.row(value, place, high)

    def row(self, value: Floats, place: Ints, at: int) -> Recorded:
        """Return one of some values with its place."""
        return Recorded(self.name, float(value[at]), *place[at].tolist())


def by_name(source: Source) -> Iterator[tuple[str, Floats, Ints]]:
    """Yield the recorded values of a log by name, a block after the other, as `Collected.add` takes them.

    Within a block names come in the order in which they come up.
    """
    first = 0
    while len(block := source.value_block(first, BLOCK)):
        first += len(block)
        value = np.array(block.value, dtype=np.float64)
        place = np.array(block.place, dtype=np.int64).reshape(-1, 4)
        numbers = np.array(block.name, dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        edges = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=-1))
        parts = sorted((order[low:high] for low, high in pairwise(edges.tolist())), key=lambda part: part[0])
        for part in parts:
            yield block.names[int(numbers[part[0]])], value[part], place[part]


def collected(source: Source) -> list[Collected]:
    """Return what became of the values of each name, in the order in which they were first recorded."""
    found: dict[str, Collected] = {}
    for name, value, place in by_name(source):
        found.setdefault(name, Collected(name)).add(value, place)
    return list(found.values())
