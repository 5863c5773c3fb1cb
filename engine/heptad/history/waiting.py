"""Which rank is the slowest in each state, and how long the others waited for it: durations of the ranks side by side.

The ranks meet where they exchange something: in `process_batch` of a step that closes its window (the gradients), on
exit of `optimizer_update` and of `after_epoch` (the agreement). A rank that comes to such a state before the last one
waits in it. How long, follows from durations alone, so that the clocks of two hosts need not agree: all leave the
agreement at the same moment, and each rank's durations since then say when it came.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heptad.history.decode import Block, blocks, ints, seq_of
from heptad.history.source import Source
from heptad.record.chunk import Ints, View

_AGREED = ("optimizer_update", "after_epoch")
"""The states that all ranks leave together."""

_AT_ONCE = 1 << 16
"""Transitions that are compared at once, at least."""


@dataclass(frozen=True, slots=True)
class SlowestRank:
    """The rank that took the longest in a state, over the transitions that all ranks have.

    A rank's own time in a state is the time that it stayed there, less the time for which it waited there for a rank
    that had not come yet. A rank that is slow inside an exchange, as in the backward pass of a step that closes its
    window, cannot be found this way, since all ranks stay equally long.

    Attributes:
        rank: The rank with the most own time in the state.
        own_ns: The own time of each rank, in nanoseconds.
        waited_ns: How long each rank waited for the slowest: how much less own time it had.
        stood_ns: How long each rank stood in this state until the last one came to it; all 0 where nothing is
            exchanged.
    """

    rank: int
    own_ns: Mapping[int, int]
    waited_ns: Mapping[int, int]
    stood_ns: Mapping[int, int]

    def __str__(self) -> str:
        waits = ", ".join(f"rank {rank} {spent / 1e9:,.3f} s" for rank, spent in self.waited_ns.items() if spent)
        return f"rank {self.rank}, {self.own_ns[self.rank] / 1e9:,.3f} s{'; waited for it: ' + waits if waits else ''}"


def slowest_ranks(logs: Mapping[int, Source]) -> dict[str, SlowestRank]:
    """Return the slowest rank in each state that was left; nothing where there is one log.

    Args:
        logs: The logs by rank; their paths are the same as far as all of them go.
    """
    views = {rank: source.view() for rank, source in logs.items()}
    begin, end = max(view.first for view in views.values()), min(view.end for view in views.values())
    if len(logs) < 2 or begin >= end:
        return {}
    source, view = next(iter((logs[rank], views[rank]) for rank in logs))
    nodes = np.concatenate([source.effects.sources[block.arcs] for block in _between(view, begin, end)])[: end - begin]
    names = list(dict.fromkeys(state.shown for state in source.table.states))
    shown = np.array([names.index(state.shown) for state in source.table.states])[nodes]
    meets, agreed = _meetings(source, nodes)
    own = np.zeros((len(logs), len(names)))
    stood = np.zeros_like(own)
    for some in _slices(agreed):
        spent = np.stack([_spent(each, begin + some.start, begin + some.stop) for each in views.values()])
        waits = _standing(spent, meets[some], agreed[some])
        for row in range(len(logs)):
            own[row] += np.bincount(shown[some], spent[row] - waits[row], len(names))
            stood[row] += np.bincount(shown[some], waits[row], len(names))
    entered = np.bincount(shown, minlength=len(names))
    return {
        name: _slowest(list(logs), own[:, place], stood[:, place]) for place, name in enumerate(names) if entered[place]
    }


def _slowest(ranks: list[int], own: npt.NDArray[Any], stood: npt.NDArray[Any]) -> SlowestRank:
    most = own.max()

    def by_rank(column: npt.NDArray[Any]) -> dict[int, int]:
        return dict(zip(ranks, ints(column.round().astype(np.int64)), strict=True))

    return SlowestRank(ranks[int(own.argmax())], by_rank(own), by_rank(most - own), by_rank(stood))


def _meetings(source: Source, nodes: Ints) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return in which turns the ranks exchange something, and in which of these they agree.

    A step closes its window if an update comes before the next step.
    """
    number = source.table.index
    agreed = np.isin(nodes, [number[name] for name in _AGREED if name in number])
    steps_or_updates = np.isin(nodes, [number["process_batch"], number["optimizer_update"]])
    places = np.flatnonzero(steps_or_updates)
    is_update = nodes[places] == number["optimizer_update"]
    closing = places[:-1][~is_update[:-1] & is_update[1:]]
    meets = agreed.copy()
    meets[closing] = True
    return meets, agreed


def _slices(agreed: npt.NDArray[np.bool_]) -> Iterator[slice]:
    """Yield slices of many turns, each of which ends with one in which the ranks agree, or with the last turn."""
    ends = np.flatnonzero(agreed) + 1
    start = 0
    while start < len(agreed):
        later = int(np.searchsorted(ends, start + _AT_ONCE))
        stop = int(ends[later]) if later < len(ends) else len(agreed)
        yield slice(start, stop)
        start = stop


def _standing(spent: Ints, meets: npt.NDArray[np.bool_], agreed: npt.NDArray[np.bool_]) -> Ints:
    """Return how long each rank (a row) waited in each turn for the last one to come to its state.

    A rank comes to a state after the time that it spent since the last agreement. It waits there until the last one has
    come, and no longer than it stays.
    """
    left = np.cumsum(spent, axis=1)
    came = left - spent
    # what each rank had spent up to the last agreement before the turn: the value at the latest place that has one
    before = np.concatenate(([False], agreed[:-1]))
    latest = np.maximum.accumulate(np.where(before, np.arange(len(before)), 0))
    came -= came[:, latest]
    return np.where(meets, np.minimum(came.max(axis=0) - came, spent), 0)


def _spent(view: View, begin: int, end: int) -> Ints:
    """Return how long a rank spent in the source of each of these transitions."""
    return np.concatenate([block.spent() for block in _between(view, begin, end)])[: end - begin]


def _between(view: View, begin: int, end: int) -> Iterator[Block]:
    """Yield blocks from a transition on, and what of the last one lies beyond `end` too."""
    stop = bisect_right(view.chunks, end - 1, key=seq_of)
    start = max(bisect_right(view.chunks, begin, key=seq_of) - 1, 0)
    yield from blocks(View(view.chunks[start:stop], begin, end))
