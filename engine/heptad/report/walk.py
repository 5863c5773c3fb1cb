"""One walk over a log: what the page shows of all turns, in memory that hardly grows with their number.

It owns the sums over turns: by arc, by pixel bucket, by stretch of epochs. `page` calls it once for a run.

Spikes survive: each bucket keeps its shortest and its longest stay, with the number of the turn that ended the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from heptad.history.decode import Block, blocks, ints
from heptad.history.source import Source
from heptad.history.summary import Duration
from heptad.record.chunk import Ints, View

Floats = npt.NDArray[np.float64]

STRIP = 300
"""Buckets of the strip that shows the whole run by state."""

BUCKETS = 16_384
"""Buckets of the envelope that one can look into: at 10 million turns each holds 611 of them."""

BANDS = 60
"""Stretches in which the median and the 99th percentile are taken; an epoch each where there are no more."""

SLOWEST = 20
"""Turns that are listed as the slowest."""

_SAMPLE = 1 << 24
"""Stays that percentiles of stretches are taken from at most; of a longer run every second, third, … one."""


@dataclass(frozen=True, slots=True)
class Band:
    """Stays in each state over a stretch of the run.

    Attributes:
        label: Which epochs or turns.
        median_ns: By the name of a state.
        p99_ns: Likewise.
    """

    label: str
    median_ns: dict[str, float]
    p99_ns: dict[str, float]


@dataclass(slots=True)
class Walk:
    """What is known of a run's turns after the walk.

    Attributes:
        first: The number of the first turn.
        end: That of the one after the last.
        names: The states as users see them, those that were never entered included.
        taken: How often each arc was taken; failures are behind the arcs of the table.
        spent: Nanoseconds spent in the source of each.
        shares: For each bucket of the strip (a row) the nanoseconds in each state.
        least: For each bucket of the envelope the shortest stay in nanoseconds.
        most: The longest.
        longest: The turn that ended it.
        slowest: Pairs of a turn and its nanoseconds, the slowest first.
        ends: The turns with which epochs ended.
        epoch: The number of epochs that were complete before the first turn.
        pauses: Pairs of a turn and the nanoseconds that the run was paused before it.
        driven_ns: How long the run was driven in all, pauses left out.
        bands: Medians and percentiles by stretch.
        durations: As `TransitionLog.durations` returns them; of a very long run median and percentile are of a sample.
        sampled: Of how many turns one was looked at for the percentiles.
        marked: Turns whose time was wanted, ascending.
        driven: How long the run had been driven when they were made, in nanoseconds.
    """

    first: int
    end: int
    names: list[str]
    taken: Ints
    spent: Ints
    shares: Floats
    least: Ints
    most: Ints
    longest: Ints
    slowest: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    ends: list[int] = field(default_factory=list[int])
    epoch: int = 0
    pauses: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    driven_ns: int = 0
    bands: list[Band] = field(default_factory=list[Band])
    durations: dict[str, Duration] = field(default_factory=dict[str, Duration])
    sampled: int = 1
    marked: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    driven: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def driven_until(self, seqs: Ints) -> Floats:
        """Return how long the run had been driven when these turns, of those that were marked, were made: seconds."""
        if not len(self.marked):
            return np.zeros(len(seqs))
        places = np.searchsorted(self.marked, seqs).clip(0, len(self.marked) - 1)
        return self.driven[places] / 1e9

    def epochs_at(self, seqs: Ints) -> Floats:
        """Return the epochs that were complete at these turns, and how far the one under way had come in turns."""
        known = [self.first, *self.ends]
        complete = [self.epoch + number for number in range(len(known))]
        if len(known) > 1:  # the one under way, as if it were as long as the one before
            known.append(2 * known[-1] - known[-2] + 1)
            complete.append(complete[-1] + 1)
        return np.interp(seqs.astype(np.float64), known, complete)


def walk(source: Source, view: View, marks: Ints) -> Walk:
    """Read all turns of a view once.

    Args:
        source: The log.
        view: The part of it.
        marks: Turns whose time is wanted, ascending.
    """
    names = list(dict.fromkeys(state.shown for state in source.table.states))
    shown = np.array([names.index(state.shown) for state in source.table.states])
    count = max(view.end - view.first, 0)
    strip, buckets = max(min(STRIP, count), 1), max(min(BUCKETS, count), 1)
    arcs = len(source.effects.sources)
    found = Walk(
        view.first,
        view.end,
        names,
        np.zeros(arcs, np.int64),
        np.zeros(arcs, np.int64),
        np.zeros((strip, len(names))),
        np.full(buckets, np.iinfo(np.int64).max),
        np.full(buckets, -1, np.int64),
        np.zeros(buckets, np.int64),
    )
    found.marked, found.driven = marks, np.zeros(len(marks), np.int64)
    stays = _Stays(count, len(names))
    for block in blocks(view):
        _add(found, source, block, shown, count)
        stays.add(shown[source.effects.sources[block.arcs]], block.spent(), block.seq, view.first)
    if view.chunks:
        found.epoch = _epochs_before(source, view)
    found.slowest = sorted(found.slowest, key=lambda stay: (-stay[1], stay[0]))[:SLOWEST]
    found.sampled = stays.stride
    found.bands = stays.bands(found)
    states = shown[source.effects.sources]
    found.durations = stays.durations(
        names,
        np.bincount(states, found.taken, len(names)).astype(np.int64),
        np.bincount(states, found.spent, len(names)).astype(np.int64),
    )
    return found


def _epochs_before(source: Source, view: View) -> int:
    """Return how many epochs were complete before the first turn that is kept."""
    chunk = view.chunks[0]
    gone = max(view.first - chunk.seq, 0)
    return chunk.counters.epoch + int(source.effects.counts_epoch[chunk.arcs()[:gone]].sum())


def _add(found: Walk, source: Source, block: Block, shown: Ints, count: int) -> None:
    """Add the turns of a block."""
    spent, arcs = block.spent(), block.arcs
    places = np.arange(block.seq - found.first, block.seq - found.first + len(arcs))
    found.taken += np.bincount(arcs, minlength=len(found.taken))
    found.spent += np.bincount(arcs, spent, len(found.taken)).astype(np.int64)
    states = shown[source.effects.sources[arcs]]
    rows, width = found.shares.shape
    cells = places * rows // count * width + states
    low = int(cells[0]) // width
    some = np.bincount(cells - low * width, spent)
    some = np.pad(some, (0, -len(some) % width)).reshape(-1, width)
    found.shares[low : low + len(some)] += some
    _add_extremes(found, places, spent, count)
    found.ends += (np.flatnonzero(source.effects.counts_epoch[arcs]) + block.seq).tolist()
    _add_slowest(found, block.seq, spent)
    for chunk in block.chunks:
        found.pauses += [(chunk.seq + place, paused) for place, paused in chunk.gaps if chunk.seq + place >= block.seq]
    if len(found.marked):
        low, high = np.searchsorted(found.marked, [block.seq, block.seq + len(arcs)])
        if high > low:
            passed = found.driven_ns + np.cumsum(spent)
            found.driven[low:high] = passed[found.marked[low:high] - block.seq]
    found.driven_ns += int(spent.sum())


def _add_extremes(found: Walk, places: Ints, spent: Ints, count: int) -> None:
    """Keep the shortest and the longest stay of each bucket of the envelope."""
    bucket = places * len(found.most) // count
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    rows = bucket[starts]
    least, most = np.minimum.reduceat(spent, starts), np.maximum.reduceat(spent, starts)
    found.least[rows] = np.minimum(found.least[rows], least)
    longer = most > found.most[rows]
    # the first turn of the bucket that is as long as its longest
    sizes = np.diff(starts, append=len(spent))
    hits = np.flatnonzero(spent == np.repeat(most, sizes))
    where = hits[np.searchsorted(hits, starts)] + int(places[0]) + found.first
    found.longest[rows] = np.where(longer, where, found.longest[rows])
    found.most[rows] = np.maximum(found.most[rows], most)


def _add_slowest(found: Walk, seq: int, spent: Ints) -> None:
    many = min(SLOWEST, len(spent))
    top = np.argpartition(spent, -many)[-many:]
    rows = [*found.slowest, *zip(ints(top + seq), ints(spent[top]), strict=True)]
    found.slowest = sorted(rows, key=lambda stay: (-stay[1], stay[0]))[:SLOWEST]


class _Stays:
    """Stays and their states, 6 bytes each, for medians and percentiles; and the longest in each state."""

    def __init__(self, count: int, states: int) -> None:
        self.stride = -(-count // _SAMPLE) or 1
        size = -(-count // self.stride)
        self._spent = np.zeros(size, np.float32)
        self._states = np.zeros(size, np.uint16)
        self._most = np.full(states, -1, np.int64)
        self._at = np.zeros(states, np.int64)

    def add(self, states: Ints, spent: Ints, seq: int, first: int) -> None:
        """Add the stays that the transitions from `seq` on ended."""
        skip = -(seq - first) % self.stride
        begin = (seq - first + skip) // self.stride
        some = spent[skip :: self.stride]
        self._spent[begin : begin + len(some)] = some
        self._states[begin : begin + len(some)] = states[skip :: self.stride]
        before = self._most.copy()
        np.maximum.at(self._most, states, spent)
        for state in ints(np.flatnonzero(self._most > before)):
            self._at[state] = seq + int(np.flatnonzero((states == state) & (spent == self._most[state]))[0])

    def durations(self, names: Sequence[str], counts: Ints, totals: Ints) -> dict[str, Duration]:
        """Return the summary of each state that was left."""
        order = np.argsort(self._states, kind="stable")
        spent, edges = self._spent[order], np.searchsorted(self._states[order], np.arange(len(names) + 1))
        rows: dict[str, Duration] = {}
        for number, name in enumerate(names):
            count, total, most = int(counts[number]), int(totals[number]), int(self._most[number])
            if count:
                mine = spent[edges[number] : edges[number + 1]]
                median, p99 = _median_and_p99(mine if len(mine) else np.array([most]))
                rows[name] = Duration(count, total, total / count, median, p99, most, ((int(self._at[number]), most),))
        return rows

    def bands(self, found: Walk) -> list[Band]:
        """Return median and 99th percentile of each state by stretch."""
        rows: list[Band] = []
        for label, low, high in stretches(found):
            part = slice(-(-(low - found.first) // self.stride), -(-(high - found.first) // self.stride))
            spent, states = self._spent[part], self._states[part]
            order = np.argsort(states, kind="stable")  # by radix: these are small numbers
            spent, edges = spent[order], np.searchsorted(states[order], np.arange(len(found.names) + 1))
            median: dict[str, float] = {}
            p99: dict[str, float] = {}
            for number, name in enumerate(found.names):
                mine = spent[edges[number] : edges[number + 1]]
                if len(mine):
                    median[name], p99[name] = _median_and_p99(mine)
            rows.append(Band(label, median, p99))
        return rows


def _median_and_p99(spent: npt.NDArray[Any]) -> tuple[float, float]:
    both = cast("list[float]", np.percentile(spent.astype(np.float64), [50, 99]).tolist())
    return both[0], both[1]


def stretches(found: Walk) -> list[tuple[str, int, int]]:
    """Return the stretches of the bands, each with its label, its first turn and the one after its last.

    Epochs, several together where there are many. Where fewer than two have ended, equal numbers of turns.
    """
    ends = [end + 1 for end in found.ends]
    if len(ends) >= 2:
        each = -(-len(ends) // BANDS)
        edges = [found.first, *ends[each - 1 :: each]]
        if edges[-1] < found.end and found.end - edges[-1] > (edges[-1] - edges[-2]) // 20:
            edges.append(found.end)  # what follows, where it is more than the end of the run
        words = "epoch" if each == 1 else "epochs from"
        labels = [f"{words} {found.epoch + number * each + 1}" for number in range(len(edges) - 1)]
    else:
        count = found.end - found.first
        many = min(BANDS, max(count // 50, 1))
        edges = [found.first + count * number // many for number in range(many + 1)]
        labels = [f"turns from #{edge}" for edge in edges[:-1]]
    return [(label, low, high) for label, low, high in zip(labels, edges, edges[1:], strict=False) if high > low]
