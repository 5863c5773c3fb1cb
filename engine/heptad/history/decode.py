"""From chunks back to transitions: one at a time, or those of a chunk that are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from heptad.history.source import Source
from heptad.history.transition import Transition
from heptad.record.chunk import Call, Chunk, Ints, View, durations
from heptad.record.counters import Counters
from heptad.record.events import Event
from heptad.record.values import Recorded

Row = TypeVar("Row", Recorded, Call, Event)


class Decoder:
    """Makes `Transition` objects from what a source holds."""

    def __init__(self, source: Source) -> None:
        self._source = source
        table = source.table
        self._shown = [state.shown for state in table.states]
        self._guards = [table.asked(arc) for arc in table.arcs]

    def decode(self, chunk: Chunk, places: Ints) -> list[Transition]:
        """Return the transitions at these places of a chunk."""
        if not len(places):
            return []
        effects, shown = self._source.effects, self._shown
        arcs = chunk.arcs()[places]
        columns = effects.counters(chunk, self._source.failure)
        rows: Any = zip(
            (places + chunk.seq).tolist(),
            (chunk.times()[places] + chunk.offset).tolist(),
            durations(chunk)[places].tolist(),
            effects.sources[arcs].tolist(),
            effects.dests[arcs].tolist(),
            arcs.tolist(),
            *(columns[name][places].tolist() for name in ("epoch", "batch_index", "step", "update")),
            strict=True,
        )
        return [
            Transition(seq, time, spent, shown[int(source)], shown[int(dest)], self.guards(arc), *counters)
            for seq, time, spent, source, dest, arc, *counters in rows
        ]

    def at(self, view: View, seqs: Iterable[int]) -> list[Transition]:
        """Return the transitions of these numbers, in this order; all of them must be in the view."""
        order = list(seqs)
        wanted: dict[int, tuple[Chunk, list[int]]] = {}
        for seq in order:
            chunk = holding(view, seq)
            wanted.setdefault(chunk.seq, (chunk, []))[1].append(seq - chunk.seq)
        read = {t.seq: t for chunk, places in wanted.values() for t in self.decode(chunk, np.array(places))}
        return [read[seq] for seq in order]

    def all(self, view: View) -> Iterator[Transition]:
        """Yield all transitions of a view, a chunk in memory at a time."""
        for chunk in view.chunks:
            yield from self.decode(chunk, np.flatnonzero(kept(chunk, view)))

    def guards(self, arc: int) -> dict[str, bool]:
        """Return the guards that were asked for an arc, or for the failure of that number, with their answers."""
        if arc < len(self._guards):
            return dict(self._guards[arc])
        failure = self._source.failure
        return dict(failure.guards) if failure else {}

    def counters(self, chunk: Chunk, place: int) -> Counters:
        """Return the counters after the body of the source of one transition; at place -1 those before the first."""
        if place < 0:
            return chunk.counters
        columns = self._source.effects.counters(chunk, self._source.failure)
        return Counters(**{name: int(column[place]) for name, column in columns.items()})


def kept(chunk: Chunk, view: View) -> npt.NDArray[np.bool_]:
    """Return a mask of the transitions of a chunk that are kept."""
    return np.arange(chunk.seq, chunk.seq + len(chunk)) >= view.first


def holding(view: View, seq: int) -> Chunk:
    """Return the chunk that holds a transition."""
    return view.chunks[bisect_right(view.chunks, seq, key=seq_of) - 1]


def seq_of(chunk: Chunk) -> int:
    """Return the number of the first transition of a chunk, to search by."""
    return chunk.seq


def start_of(view: View) -> int:
    """Return when the first state of a log was entered, in nanoseconds since the Unix epoch; 0 for an empty one."""
    if not view.chunks:
        return 0
    chunk = view.chunks[0]
    place = view.first - chunk.seq
    return chunk.offset + (int(chunk.times()[place - 1]) if place else chunk.clock)


class Block:
    """Some consecutive chunks as arrays, what is no longer kept cut off: numpy is asked once for many of them.

    Attributes:
        seq: The number of the first transition.
        arcs: The number of the arc taken, for each.
        chunks: Where they come from.
    """

    __slots__ = ("_cut", "arcs", "chunks", "seq")

    def __init__(self, chunks: Sequence[Chunk], first: int) -> None:
        self.chunks = chunks
        self._cut = max(0, first - chunks[0].seq)
        self.seq = chunks[0].seq + self._cut
        self.arcs: Ints = self.of(chunk.arcs() for chunk in chunks)

    def __len__(self) -> int:
        return len(self.arcs)

    def of(self, columns: Iterable[Ints]) -> Ints:
        """Return a column of the block, given that of each chunk."""
        return np.concatenate(list(columns))[self._cut :]

    def spent(self) -> Ints:
        """Return nanoseconds spent in the source of each, paused time left out."""
        return self.of(durations(chunk) for chunk in self.chunks)

    def times(self) -> Ints:
        """Return when each was made, in nanoseconds since the Unix epoch."""
        return self.of(chunk.times() + chunk.offset for chunk in self.chunks)

    def counters(self, source: Source) -> dict[str, Ints]:
        """Return the counters after the body of the source of each."""
        columns = [source.effects.counters(chunk, source.failure) for chunk in self.chunks]
        return {name: self.of(column[name] for column in columns) for name in Counters._fields}


BLOCK = 64
"""Chunks in a block."""


def blocks(view: View) -> Iterator[Block]:
    """Yield a view in blocks: about 65,000 transitions, 2 MB, at a time."""
    for begin in range(0, len(view.chunks), BLOCK):
        end = min(begin + BLOCK, len(view.chunks))
        chunks = [view.chunks[place] for place in range(begin, end)]
        chunks = [chunk for chunk in chunks if chunk.seq + len(chunk) > view.first]
        if chunks:
            yield Block(chunks, view.first)


def ints(column: Ints) -> list[int]:
    """Return a column as Python's numbers."""
    return cast("list[int]", column.tolist())


def by_seq(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Return values, calls or events by the transitions that they belong to."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row.seq, []).append(row)
    return found
