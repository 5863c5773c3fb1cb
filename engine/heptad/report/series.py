"""Recorded values as curves: every value where there are few, else the least and the greatest of each pixel bucket.

It owns what is drawn of `run.record`. `page` calls it once for a run; nothing here draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from heptad.history.collected import Collected, Floats, by_name
from heptad.history.source import Source
from heptad.record.chunk import Ints, View
from heptad.record.values import Recorded

RAW = 2_400
"""Values of a name that are all drawn."""

WIDE = 1_200
"""Buckets of a longer curve, of as many turns each: two points in each are one or two pixels on any screen."""

CURVES = 120
"""Names that are drawn; of further ones the table has the last and the best values."""

ODD = 200
"""Values that are not finite, of each name, that are marked."""

SEQ, EPOCH, STEP, UPDATE = range(4)


@dataclass(slots=True)
class Curve:
    """The values of one name.

    Attributes:
        name: The name.
        found: The last value, the lowest, the highest, and those that are not finite.
        place: For each point four numbers: seq, epoch, step and update.
        value: The points.
        smooth_place: Likewise for the smoothed curve.
        smooth: Its points.
        odd: Values that are not finite, the first of them.
        whole: Whether every value is a point.
    """

    name: str
    found: Collected
    place: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    value: Floats = field(default_factory=lambda: np.zeros(0))
    smooth_place: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    smooth: Floats = field(default_factory=lambda: np.zeros(0))
    odd: list[Recorded] = field(default_factory=list[Recorded])
    whole: bool = True


class _Growing:
    """A curve while values are added: all of them, then only the extremes of each bucket."""

    def __init__(self, name: str, drawn: bool) -> None:
        self.curve = Curve(name, Collected(name))
        self._drawn = drawn
        self._raw: list[tuple[Floats, Floats]] | None = [] if drawn else None
        self._kept = 0
        self._least: Floats | None = None  # a row for each bucket: the value and its place
        self._most: Floats | None = None
        self._sums: Floats | None = None  # how many, their sum, and the sums of their places

    def add(self, value: Floats, place: Ints, bucket: Ints) -> None:
        """Add some values, in order."""
        found, finite = self.curve.found, np.isfinite(value)
        found.add(value, place)
        if not self._drawn:
            return
        odd = np.flatnonzero(~finite)[: max(0, ODD - len(self.curve.odd))]
        self.curve.odd += [found.row(value, place, int(row)) for row in odd]
        if finite.any():
            self._draw(value[finite], place[finite].astype(np.float64), bucket[finite])

    def _draw(self, value: Floats, place: Floats, bucket: Ints) -> None:
        """Add some finite values to what is drawn."""
        if self._raw is not None:
            self._raw.append((np.column_stack((value, place)), bucket.astype(np.float64)))
            self._kept += len(value)
            if self._kept <= RAW:
                return
            rows, buckets = (np.concatenate([pair[number] for pair in self._raw]) for number in (0, 1))
            self._raw, self.curve.whole = None, False
            self._least, self._most = np.full((WIDE, 5), np.nan), np.full((WIDE, 5), np.nan)
            self._sums = np.zeros((WIDE, 6))
            self._reduce(rows[:, 0], rows[:, 1:], buckets.astype(np.int64))
            return
        self._reduce(value, place, bucket)

    def _reduce(self, value: Floats, place: Floats, bucket: Ints) -> None:
        assert self._least is not None
        assert self._most is not None
        assert self._sums is not None
        order = np.lexsort((value, bucket))
        starts = np.flatnonzero(np.diff(bucket[order], prepend=-1))
        ends = np.append(starts[1:], len(order)) - 1
        rows = bucket[order[starts]]
        low, high = order[starts], order[ends]
        for kept, found, better in ((self._least, low, np.less), (self._most, high, np.greater)):
            with np.errstate(invalid="ignore"):
                wins = np.isnan(kept[rows, 0]) | better(value[found], kept[rows, 0])
            kept[rows[wins]] = np.column_stack((value[found[wins]], place[found[wins]]))
        for column, numbers in enumerate((np.ones(len(value)), value, *place.T)):
            self._sums[:, column] += np.bincount(bucket, numbers, WIDE)

    def finish(self) -> Curve:
        """Return the curve."""
        curve = self.curve
        if self._raw:
            rows = np.concatenate([row for row, _ in self._raw])
            curve.value, curve.place = rows[:, 0], rows[:, 1:]
            curve.smooth, curve.smooth_place = curve.value, curve.place
        elif self._least is not None and self._most is not None and self._sums is not None:
            filled = self._sums[:, 0] > 0
            both = np.concatenate((self._least[filled], self._most[filled]))
            rows = both[np.argsort(both[:, 1 + SEQ], kind="stable")]
            rows = rows[np.append(True, np.any(np.diff(rows, axis=0) != 0, axis=1))]
            curve.value, curve.place = rows[:, 0], rows[:, 1:]
            sums = self._sums[filled]
            mean = sums[:, 1] / sums[:, 0]
            curve.smooth = mean.clip(self._least[filled, 0], self._most[filled, 0])  # where rounding put it beyond
            curve.smooth_place = sums[:, 2:] / sums[:, :1]
        curve.smooth = smoothed(curve.smooth)
        return curve


def smoothed(value: Floats) -> Floats:
    """Return an exponential mean whose weights fall to a third over a fiftieth of the curve, from its first value on.

    The weights of the first values are corrected as Adam corrects its moments, https://arxiv.org/abs/1412.6980.
    """
    keep = np.exp(-50 / len(value)) if len(value) > 50 else 0.0
    found = np.empty_like(value)
    mean = weight = 0.0
    for number, one in enumerate(value.tolist()):
        mean, weight = keep * mean + (1 - keep) * one, keep * weight + (1 - keep)
        found[number] = mean / weight
    return found.clip(value.min(), value.max()) if len(value) else found  # rounding aside, a mean is between them


def curves(source: Source, view: View) -> list[Curve]:
    """Return the curve of each name, in the order in which they were first recorded.

    Args:
        source: The log.
        view: The turns that buckets are cut from.
    """
    found: dict[str, _Growing] = {}
    turns = max(view.end - view.first, 1)
    for name, value, place in by_name(source):
        growing = found.get(name)
        if growing is None:
            growing = found[name] = _Growing(name, len(found) < CURVES)
        growing.add(value, place, ((place[:, SEQ] - view.first) * WIDE // turns).clip(0, WIDE - 1))
    return [one.finish() for one in found.values()]
