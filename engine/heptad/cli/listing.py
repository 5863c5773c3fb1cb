"""What `heptad show` lists: transitions, notes, or recorded values; each selected by the same conditions.

A `Listing` reads its rows a chunk of the log at a time, and says how a row looks in a table and as JSON.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

from heptad.cli.arguments import COUNTERS, any_given
from heptad.cli.grid import Column
from heptad.history.decode import Decoder, by_seq
from heptad.history.export.rows import note_row, rank_column, transition_row, value_row
from heptad.history.query import TransitionLog
from heptad.history.select import Conditions, selected
from heptad.history.transition import Transition
from heptad.history.wording import readable_time
from heptad.record.chunk import Chunk, View
from heptad.record.events import Event
from heptad.record.values import Recorded

Row = TypeVar("Row")
Noted = tuple[Transition, Sequence[Event]]

END = sys.maxsize
"""Beyond every transition: includes the rows of the turn that is under way."""


class Listing(ABC, Generic[Row]):
    """Rows of one kind.

    Args:
        log: The log.
        asked: The conditions on the transitions that the rows belong to.

    Attributes:
        ranks: The ranks whose notes and values are listed.
        rank_columns: The column that says of which rank a row is; none where there is one.
    """

    def __init__(self, log: TransitionLog, asked: Conditions) -> None:
        self.log, self.source, self.asked = log, log.source, asked
        self.ranks = log.ranks
        self.rank_columns = (Column("rank", 4, right=True),) if len(self.ranks) > 1 else ()

    def numbers(self) -> tuple[Column, ...]:
        """Return the columns of a row's number and counters, as wide as those of the last transition are."""
        last = self.log.tail(1)
        at = last[0] if last else None
        widths = {"seq": at.seq, "epoch": at.epoch, "step": at.step, "update": at.update} if at else {"seq": 0}
        return tuple(Column(name, len(str(widths.get(name, 0))), right=True) for name in ("seq", *COUNTERS))

    @property
    @abstractmethod
    def columns(self) -> Sequence[Column]:
        """The columns of its table."""

    @abstractmethod
    def between(self, first: int, end: int, only: int | None = None) -> Iterator[Sequence[Row]]:
        """Yield the rows of the transitions from `first` to before `end` that match, a chunk at a time.

        Args:
            first: The number of the first transition.
            end: The number of the one after the last.
            only: The one rank whose rows are asked for; `None` for all.
        """

    def last(self, number: int, end: int) -> Sequence[Row]:
        """Return the last rows before `end` that match."""
        return list(deque((row for page in self.between(0, end) for row in page), maxlen=number))

    @abstractmethod
    def place(self, row: Row) -> tuple[int, int]:
        """Return the rank and the number of the transition that a row belongs to."""

    @abstractmethod
    def cells(self, row: Row) -> Sequence[str]:
        """Return a row of the table."""

    @abstractmethod
    def plain(self, row: Row) -> Mapping[str, Any]:
        """Return a row as data for JSON."""

    def rank_cells(self, row: Event | Recorded) -> Sequence[str]:
        """Return the cell of the rank, where there are several."""
        return (str(row.rank),) if self.rank_columns else ()

    def _selected(self, first: int, end: int) -> Iterator[tuple[Chunk, Any]]:
        """Yield each chunk with the places of the transitions that match."""
        view = self.source.view()
        view = View(view.chunks, max(view.first, first), view.end)
        for chunk, places in selected(self.source, view, self.asked):
            yield chunk, places[places + chunk.seq < end]


class TransitionListing(Listing[Noted]):
    """The transitions, each with its notes."""

    @property
    def columns(self) -> Sequence[Column]:
        """The states, counters and time; guards and notes stand below where there is no room for them."""
        seq, epoch, step, update = self.numbers()
        batch, took, time = Column("batch", right=True), Column("took", 8, right=True), Column("time", 12)
        words = (Column("guards", wraps=True, below=True), Column("notes", wraps=True, below=True))
        return (seq, Column("from"), Column("to"), step, update, took, epoch, batch, time, *words)

    def between(self, first: int, end: int, only: int | None = None) -> Iterator[Sequence[Noted]]:
        """Yield transitions, of the log's own rank."""
        if only not in (None, self.log.rank):
            return
        decoder = Decoder(self.source)
        notes = by_seq(self.log.all_ranks.events(max(first, self.source.view().first)))
        for chunk, places in self._selected(first, end):
            yield [(turn, notes.get(turn.seq, ())) for turn in decoder.decode(chunk, places)]

    def last(self, number: int, end: int) -> Sequence[Noted]:
        """Return the last transitions; the log is read from its end, and no further than needed."""
        asked = self.asked
        rows = self.log.where(source=asked.source, dest=asked.dest, **asked.counters, limit=-number)
        notes = by_seq(self.log.all_ranks.events(rows[0].seq)) if rows else {}
        return [(row, notes.get(row.seq, ())) for row in rows if row.seq < end]  # more may have been written since

    def place(self, row: Noted) -> tuple[int, int]:
        """Return those of the transition."""
        return self.log.rank, row[0].seq

    def cells(self, row: Noted) -> Sequence[str]:
        """Return the transition in words."""
        turn, notes = row
        states = (str(turn.seq), turn.source, turn.dest)
        counted = (str(turn.step), str(turn.update), readable_time(turn.duration_ns))
        words = "; ".join(f"{self._whose(note)}{note.kind}: {note.text}" for note in notes)
        place = (str(turn.epoch), str(turn.batch_index), time_of_day(turn.time_ns))
        return (*states, *counted, *place, turn.answers(), words)

    def _whose(self, note: Event) -> str:
        return "" if note.rank == self.log.rank else f"rank {note.rank} "

    def plain(self, row: Noted) -> Mapping[str, Any]:
        """Return the fields of the transition, and `notes`."""
        turn, notes = row
        return transition_row(turn) | {"notes": [rank_column(self.ranks, note.rank) | note_row(note) for note in notes]}


class NoteListing(Listing[Event]):
    """The notes."""

    @property
    def columns(self) -> Sequence[Column]:
        """The text wraps."""
        return (
            self.numbers()[0],
            *self.rank_columns,
            Column("kind"),
            Column("time"),
            Column("text", wraps=True, below=True),
        )

    def between(self, first: int, end: int, only: int | None = None) -> Iterator[Sequence[Event]]:
        """Yield notes."""
        notes = [note for note in self.log.all_ranks.events(first, only) if note.seq < end]
        if not any_given(self.asked):
            yield notes
            return
        of_turn = by_seq(notes)
        for chunk, places in self._selected(first, end):
            yield [note for seq in (places + chunk.seq).tolist() for note in of_turn.get(seq, ())]

    def place(self, row: Event) -> tuple[int, int]:
        """Return those of the note."""
        return row.rank, row.seq

    def cells(self, row: Event) -> Sequence[str]:
        """Return the note in words."""
        return (str(row.seq), *self.rank_cells(row), row.kind, time_of_day(row.time_ns), row.text)

    def plain(self, row: Event) -> Mapping[str, Any]:
        """Return the fields of the note."""
        return {"seq": row.seq} | rank_column(self.ranks, row.rank) | note_row(row)


class ValueListing(Listing[Recorded]):
    """The recorded values."""

    @property
    def columns(self) -> Sequence[Column]:
        """Name and value stand before the counters."""
        seq, *counters = self.numbers()
        return (seq, *self.rank_columns, Column("name", wraps=True), Column("value", right=True), *counters)

    def between(self, first: int, end: int, only: int | None = None) -> Iterator[Sequence[Recorded]]:
        """Yield values."""
        for chunk, places in self._selected(first, end):
            seqs = set((places + chunk.seq).tolist())
            last = min(end, chunk.seq + len(chunk))
            values = self.log.all_ranks.values_between(max(first, chunk.seq), last, only)
            yield [value for value in values if value.seq in seqs]
        if not any_given(self.asked):  # the turn under way has no transition yet that could be selected
            yield self.log.all_ranks.values_between(max(first, self.source.view().end), end, only)

    def place(self, row: Recorded) -> tuple[int, int]:
        """Return those of the value."""
        return row.rank, row.seq

    def cells(self, row: Recorded) -> Sequence[str]:
        """Return the value in words."""
        counters = map(str, (row.epoch, row.step, row.update))
        return (str(row.seq), *self.rank_cells(row), row.name, f"{row.value:.6g}", *counters)

    def plain(self, row: Recorded) -> Mapping[str, Any]:
        """Return the fields of the value."""
        return value_row(row) | {"seq": row.seq} | rank_column(self.ranks, row.rank)


def time_of_day(time_ns: int) -> str:
    """Return a time of day, local."""
    return datetime.fromtimestamp(time_ns / 1e9).strftime("%H:%M:%S.%f")[:-3]
