"""`LogPart`: consecutive transitions of a log as a log of their own, so that each export can write a range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heptad.history.select import Conditions, selected
from heptad.history.source import Source
from heptad.record.chunk import Call, Chunk, Effects, Failure, Ints, View
from heptad.record.counters import Counters
from heptad.record.events import Event
from heptad.record.values import Columns, Recorded
from heptad.table import Table


class CutChunk:
    """The beginning of a chunk.

    Args:
        whole: The chunk.
        length: How many of its transitions.
    """

    def __init__(self, whole: Chunk, length: int) -> None:
        self._whole, self._length = whole, length

    def __len__(self) -> int:
        return self._length

    @property
    def seq(self) -> int:
        """That of the whole; so are the next three."""
        return self._whole.seq

    @property
    def clock(self) -> int:
        """As above."""
        return self._whole.clock

    @property
    def offset(self) -> int:
        """As above."""
        return self._whole.offset

    @property
    def counters(self) -> Counters:
        """As above."""
        return self._whole.counters

    @property
    def skipped(self) -> Sequence[int]:
        """Those of its own transitions; so are the rest."""
        return [place for place in self._whole.skipped if place < self._length]

    @property
    def gaps(self) -> Sequence[tuple[int, int]]:
        """As above."""
        return [gap for gap in self._whole.gaps if gap[0] < self._length]

    def arcs(self) -> Ints:
        """Return the number of the arc taken, for each transition."""
        return self._whole.arcs()[: self._length]

    def times(self) -> Ints:
        """Return when each transition was made, in nanoseconds."""
        return self._whole.times()[: self._length]


class LogPart:
    """The transitions from `first` to before `end` of a log, with their events, values and calls; read as it is now.

    What belongs to the turn under way is in the part that reaches to the end of the log.
    """

    def __init__(self, source: Source, first: int, end: int) -> None:
        whole = source.view()
        first, end = max(first, whole.first), min(end, whole.end)
        self._source = source
        self._last = None if end == whole.end else end
        chunks = [chunk for chunk in whole.chunks if chunk.seq < end and chunk.seq + len(chunk) > first]
        if chunks and chunks[-1].seq + len(chunks[-1]) > end:
            chunks[-1] = CutChunk(chunks[-1], end - chunks[-1].seq)
        self._view = View(chunks, first, end)

    @property
    def table(self) -> Table:
        """That of the log; so are the next five."""
        return self._source.table

    @property
    def effects(self) -> Effects:
        """As above."""
        return self._source.effects

    @property
    def facts(self) -> Mapping[str, Any]:
        """As above."""
        return self._source.facts

    @property
    def windows(self) -> Sequence[tuple[int, int]]:
        """As above."""
        return self._source.windows

    @property
    def stops(self) -> Sequence[int]:
        """As above."""
        return self._source.stops

    @property
    def failure(self) -> Failure | None:
        """As above."""
        return self._source.failure

    def view(self) -> View:
        """Return the part."""
        return self._view

    def events(self, first: int) -> list[Event]:
        """Return the events of its transitions from that number on, oldest first."""
        events = self._source.events(max(first, self._view.first))
        return [event for event in events if self._last is None or event.seq < self._last]

    def values(self, first: int = 0) -> list[Recorded]:
        """Return the recorded values from the one of that number on, of those that the part holds, oldest first."""
        return self.values_between(self._view.first, 1 << 62)[first:]

    def value_block(self, first: int, most: int) -> Columns:
        """Return at most so many of these values by column, from the one of that number on, oldest first."""
        return Columns.of(self.values(first)[:most])

    def values_between(self, first: int, end: int) -> list[Recorded]:
        """Return the values recorded in the turns of the transitions from `first` to before `end`, oldest first."""
        return self._source.values_between(max(first, self._view.first), self._ended(end))

    def calls(self, first: int, end: int) -> list[Call]:
        """Return the handlers' calls in the turns of these transitions, where they were traced."""
        return self._source.calls(max(first, self._view.first), self._ended(end))

    def _ended(self, end: int) -> int:
        return end if self._last is None else min(end, self._last)


def range_of(source: Source, asked: Conditions) -> tuple[int, int]:
    """Return the first transition that matches, and the one after the last; twice the log's end where none does.

    Args:
        source: The log.
        asked: Conditions on counters that never fall (epoch, step, update): what matches is consecutive.
    """
    view = source.view()
    first = next((chunk.seq + int(places[0]) for chunk, places in selected(source, view, asked)), None)
    if first is None:
        return view.end, view.end
    last = next(chunk.seq + int(places[-1]) for chunk, places in selected(source, view, asked, backwards=True))
    return first, last + 1
