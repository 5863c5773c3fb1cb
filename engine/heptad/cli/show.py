"""`heptad show`: transitions, notes, recorded values; once, or on and on while a run is writing them."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from heptad.cli.arguments import EVER, Commands, command, conditions, count, given, takes_conditions, takes_file
from heptad.cli.files import is_lines, open_log
from heptad.cli.output import Column, complain, data, duration, line, number, table
from heptad.errors import LogError
from heptad.history.decode import Decoder, by_seq
from heptad.history.export.jsonl import plain
from heptad.history.journal.reader import FileSource
from heptad.history.query import TransitionLog
from heptad.history.select import Conditions, selected
from heptad.history.transition import Transition
from heptad.record.chunk import View
from heptad.record.events import Note
from heptad.record.values import Recorded

TAIL = 20
"""Transitions that are shown where nobody says how many."""

POLL_SECONDS = 0.25
"""How often a file is looked at that is being followed."""

QUIET_SECONDS = 10.0
"""How long nothing may be written to it before something is said."""

Row = Transition | Note | Recorded


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "show", run, "show the last transitions, notes or recorded values")
    takes_file(parser)
    takes_conditions(parser)
    parser.add_argument("--tail", metavar="N", type=count, help=f"the last N that match; {TAIL} unless told otherwise")
    parser.add_argument("--all", action="store_true", help="all that match")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--notes", action="store_true", help="the notes of the transitions that match")
    what.add_argument("--values", action="store_true", help="the values recorded in their turns")
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    if arguments.follow and is_lines(arguments.file):
        raise LogError(f"{arguments.file} is lines of JSON, which nobody adds to; --follow takes a journal")
    log = open_log(arguments.file)
    tail = None if arguments.all else TAIL if arguments.tail is None else arguments.tail
    asked = conditions(arguments)
    show = _Show(log, asked, arguments.notes, arguments.values, arguments.json)
    show.first(tail)
    if arguments.follow:
        _follow(log, show)
    chosen = given(asked) or arguments.notes or arguments.values
    if chosen and not (show.begun or arguments.json or tail == 0):
        line("nothing matches")
    if not (arguments.json or arguments.notes or arguments.values):
        line(_where(log))
    return 0


def _follow(log: TransitionLog, show: _Show) -> None:
    """Prints what comes until the run has ended; says once each time that nothing has come for a while."""
    seen, since, told = log.source.view(), time.monotonic(), False
    while not _ended(log):
        time.sleep(POLL_SECONDS)
        show.further()
        view = log.source.view()
        if view is not seen:  # the file has changed
            seen, since, told = view, time.monotonic(), False
        elif not told and time.monotonic() - since >= QUIET_SECONDS:
            told = True
            absent = _absent(log)
            if absent:
                complain(
                    f"nothing has been written for {QUIET_SECONDS:g} s, and {absent}; if the run is resumed it goes on "
                    "here, Ctrl-C ends this"
                )


def _absent(log: TransitionLog) -> str:
    """Says why nothing may be coming any more; nothing where the process that writes is there.

    It is a guess: a process of another host cannot be seen, nor one in a container that shares this one's name, and
    another process may have been given the number of one that died.
    """
    assert isinstance(log.source, FileSource)
    writer = log.source.writer
    if writer is None:
        return "no process has the file open to write"
    pid, host = writer
    if host != platform.node():
        return f"the process that writes it ({pid} on {host}) cannot be seen from here"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return f"the process that wrote it ({pid} on {host}) is not there any more"
    except PermissionError:  # somebody else's, and there
        return ""
    return ""


class _Show:
    """Prints rows, page after page, each row once.

    Attributes:
        begun: Whether there was one that was printed as text.
    """

    def __init__(self, log: TransitionLog, asked: Conditions, notes: bool, values: bool, as_json: bool) -> None:
        self._log, self._asked = log, asked
        self._notes, self._values, self._json = notes, values, as_json
        self._decoder = Decoder(log.source)
        self._next = 0
        self.begun = False

    def first(self, tail: int | None) -> None:
        """Prints what is there, all of it or the last rows."""
        view = self._log.source.view()
        if tail is None:
            self._print(self._rows(view))
        elif self._notes or self._values:
            self._print([list(deque((row for page in self._rows(view) for row in page), maxlen=tail))])
        else:
            asked = self._asked
            self._print([self._log.where(source=asked.source, dest=asked.dest, **asked.counters, limit=-tail)])
        self._next = view.end

    def further(self) -> None:
        """Prints what has come since."""
        view = self._log.source.view()
        self._print(self._rows(View(view.chunks, max(view.first, self._next), view.end)))
        self._next = view.end
        sys.stdout.flush()

    def _rows(self, view: View) -> Iterator[Sequence[Row]]:
        """Yields all that matches, a chunk of the log at a time."""
        notes = by_seq(self._log.source.notes(view.first)) if self._notes else {}
        if (self._notes or self._values) and not given(self._asked):
            yield from self._without_conditions(view, [note for of_turn in notes.values() for note in of_turn])
            return
        for chunk, places in selected(self._log.source, view, self._asked):
            first = chunk.seq + int(places[0])
            seqs = {chunk.seq + place for place in places.tolist()}
            if self._notes:
                yield [note for seq in sorted(seqs & notes.keys()) for note in notes[seq]]
            elif self._values:
                values = self._log.source.values_between(first, chunk.seq + len(chunk))
                yield [value for value in values if value.seq in seqs]
            else:
                yield self._decoder.decode(chunk, places)

    def _without_conditions(self, view: View, notes: Sequence[Note]) -> Iterator[Sequence[Row]]:
        """Yields all notes or values from a transition on, those of the turn under way too."""
        if self._notes:
            yield notes
            return
        for chunk in view.chunks:
            end = chunk.seq + len(chunk)
            if end > view.first:
                yield self._log.source.values_between(max(chunk.seq, view.first), end)
        yield self._log.source.values_between(view.end, EVER)

    def _print(self, pages: Iterable[Sequence[Row]]) -> None:
        for page in pages:
            if self._json:
                self._print_data(page)
            elif page:
                cells = [self._cells(row) for row in page]
                notes = by_seq(self._notes_of(page))
                for row, filled in zip(page, cells, strict=True):
                    if isinstance(row, Transition):
                        filled.append("; ".join(f"{note.kind}: {note.text}" for note in notes.get(row.seq, [])))
                table(self._columns(), cells, header=not self.begun)
                self.begun = True

    def _print_data(self, page: Sequence[Row]) -> None:
        notes = by_seq(self._notes_of(page))
        for row in page:
            if isinstance(row, Transition):
                told = [
                    {"kind": note.kind, "text": note.text, "time_ns": note.time_ns} for note in notes.get(row.seq, [])
                ]
                data(plain(row) | {"notes": told})
            elif isinstance(row, Note):
                data({"seq": row.seq, "kind": row.kind, "text": row.text, "time_ns": row.time_ns})
            else:
                at = {"seq": row.seq, "epoch": row.epoch, "step": row.step, "update": row.update}
                data({"name": row.name, "value": number(row.value)} | at)

    def _notes_of(self, page: Sequence[Row]) -> list[Note]:
        if not page or not isinstance(page[0], Transition):
            return []
        return [note for note in self._log.source.notes(page[0].seq) if note.seq <= page[-1].seq]

    def _columns(self) -> list[Column]:
        if self._notes:
            return [Column("seq", 6, right=True), Column("time", 12), Column("kind", 12), Column("text", wraps=True)]
        places = [Column("seq", 6, right=True), *(Column(name, 6, right=True) for name in ("epoch", "step", "update"))]
        if self._values:
            return [*places, Column("name", 16), Column("value", 12, right=True)]
        longest = max(len(state.shown) for state in self._log.source.table.states)
        return [
            places[0],
            Column("time", 12),
            Column("from", longest),
            Column("to", longest),
            Column("epoch", 5, right=True),
            Column("batch", 5, right=True),
            *places[2:],
            Column("took", 10, right=True),
            Column("guards", wraps=True),
            Column("notes", wraps=True),
        ]

    def _cells(self, row: Row) -> list[str]:
        if isinstance(row, Note):
            return [str(row.seq), _clock(row.time_ns), row.kind, row.text]
        if isinstance(row, Recorded):
            return [*map(str, (row.seq, row.epoch, row.step, row.update)), row.name, f"{row.value:.6g}"]
        counters = map(str, (row.epoch, row.batch_index, row.step, row.update))
        ends = [str(row.seq), _clock(row.time_ns), row.source, row.dest]
        return [*ends, *counters, duration(row.duration_ns), row.answers()]


def _clock(time_ns: int) -> str:
    """Returns a time of day, here."""
    return datetime.fromtimestamp(time_ns / 1e9).strftime("%H:%M:%S.%f")[:-3]


def _ended(log: TransitionLog) -> bool:
    """Tells whether the run is finished or failed."""
    last = log.tail(1)
    ends = {state.shown for state in log.source.table.states if state.kind in ("end", "failed")}
    return bool(last) and last[0].dest in ends


def _where(log: TransitionLog) -> str:
    """Says where the run is, or how it ended."""
    last = log.tail(1)
    if not last:
        return "no transition yet"
    failure = log.source.failure
    if failure is not None:
        return f"failed: {failure.error} {failure}"
    if _ended(log):
        return last[0].dest
    since = datetime.fromtimestamp(last[0].time_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    paused = [note.text for note in log.source.notes(last[0].seq) if note.kind == "pause"]
    how = f"paused ({paused[-1]})" if paused else "it has not ended"
    return f"in {last[0].dest} since {since}: {how}"
