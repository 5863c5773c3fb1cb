"""Select transitions by conditions. Chunks that cannot hold one are skipped unread; bisection finds them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heptad.errors import EngineError, nearest
from heptad.history.decode import kept, seq_of
from heptad.history.source import Source
from heptad.record.chunk import Chunk, Ints, View
from heptad.record.counters import Counters
from heptad.table import Table

_NEVER_FALL = ("epoch", "step", "update")
"""Counters that only grow, so that the first values of a chunk and of the next one bound what lies between."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions that a transition must meet.

    Attributes:
        source: The state that was left; any where it is `None`.
        dest: The state that was entered.
        counters: For a counter's name a number or a range.
    """

    source: str | None
    dest: str | None
    counters: Mapping[str, int | range]

    def arcs(self, source: Source) -> npt.NDArray[np.bool_] | None:
        """Return a mask of the arcs, then of the failures, that meet both states; `None` where all do.

        Raises:
            EngineError: If a state is not one of the table's.
        """
        if self.source is None and self.dest is None:
            return None
        fits = np.ones(len(source.effects.sources), dtype=np.bool_)
        for ends, shown in ((source.effects.sources, self.source), (source.effects.dests, self.dest)):
            if shown is not None:
                fits &= np.isin(ends, _nodes(source.table, shown))
        return fits


def selected(
    source: Source, view: View, conditions: Conditions, backwards: bool = False
) -> Iterator[tuple[Chunk, Ints]]:
    """Yield chunk after chunk the places of the transitions that meet the conditions.

    Args:
        source: The log.
        view: The part of the log to look at.
        conditions: What a transition must meet.
        backwards: Begin with the last chunk. Places within a chunk are in order either way.

    Raises:
        EngineError: If a state is not one of the table's.
    """
    arcs = conditions.arcs(source)
    span = _span(view, conditions.counters)
    for number in reversed(span) if backwards else span:
        chunk = view.chunks[number]
        keep = kept(chunk, view)
        if arcs is not None:
            keep &= arcs[chunk.arcs()]
        if conditions.counters and keep.any():
            columns = source.effects.counters(chunk, source.failure)
            for name, value in conditions.counters.items():
                keep &= _matches(columns[name], value)
        places = np.flatnonzero(keep)
        if len(places):
            yield chunk, places


def _span(view: View, counters: Mapping[str, int | range]) -> range:
    """Return the range of the chunks that can hold a transition with these counters."""
    begin, end = max(bisect_right(view.chunks, view.first, key=seq_of) - 1, 0), len(view.chunks)
    for name in _NEVER_FALL:
        wanted = counters.get(name)
        if wanted is None:
            continue
        if isinstance(wanted, int):
            wanted = range(wanted, wanted + 1)
        if not wanted:
            return range(0)
        before = _before(Counters._fields.index(name))
        begin = max(begin, bisect_left(view.chunks, min(wanted[0], wanted[-1]), key=before) - 1)
        end = min(end, bisect_right(view.chunks, max(wanted[0], wanted[-1]), key=before))
    return range(begin, end)


def _before(place: int) -> Callable[[Chunk], int]:
    """Return a function that reads a counter as it was before the first transition of a chunk."""
    return lambda chunk: chunk.counters[place]


def _matches(column: Ints, value: int | range) -> npt.NDArray[np.bool_]:
    if not isinstance(value, range):
        return column == value
    if not value:
        return np.zeros(len(column), dtype=np.bool_)
    low, high = min(value[0], value[-1]), max(value[0], value[-1])
    return (column >= low) & (column <= high) & ((column - low) % abs(value.step) == 0)


def _nodes(table: Table, shown: str) -> list[int]:
    nodes = [table.index[state.name] for state in table.named(shown)]
    if not nodes:
        raise EngineError(f"there is no state '{shown}'{nearest(shown, dict.fromkeys(table.shown.values()))}")
    return nodes
