"""Which transitions meet a condition. Chunks that cannot hold one are passed over unread, found by bisection."""

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
"""Counters that only grow, so that a chunk's first and the next one's first say what lies between."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a transition must be like.

    Attributes:
        source: The state that was left; any where it is `None`.
        dest: The state that was entered.
        counters: For a counter's name a number or a range.
    """

    source: str | None
    dest: str | None
    counters: Mapping[str, int | range]

    def arcs(self, source: Source) -> npt.NDArray[np.bool_] | None:
        """Returns which arcs, failures behind them, lead as asked; `None` where all do.

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
    """Yields chunk after chunk the places of the transitions that meet the conditions.

    Args:
        source: The log.
        view: What of it is looked at.
        conditions: What they must be like.
        backwards: Begins with the last chunk; places within a chunk are in order either way.

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
    """Returns which chunks can hold a transition with these counters."""
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
    """Returns what tells a counter before the first transition of a chunk."""
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
