"""`heptad show`: transitions, notes or recorded values; once, or continuously while a run writes them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from heptad.cli.arguments import (
    any_given,
    conditions,
    count,
    load_log,
    takes_columns,
    takes_conditions,
    takes_journals,
    takes_rank,
)
from heptad.cli.follow import follow, has_ended
from heptad.cli.grid import Grid, print_text
from heptad.cli.listing import END, Listing, NoteListing, TransitionListing, ValueListing
from heptad.cli.output import print_json, print_line
from heptad.history.query import TransitionLog
from heptad.record.events import Pause

TAIL = 20
"""Rows that are shown by default."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file")
    takes_rank(parser, "transitions of rank 0, and notes and values of all")
    takes_conditions(parser)
    parser.add_argument("--tail", metavar="N", type=count, default=TAIL, help=f"the last N that match; {TAIL}")
    parser.add_argument("--all", action="store_true", help="all that match")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--notes", action="store_true", help="the notes of the transitions that match")
    what.add_argument("--values", action="store_true", help="the values recorded in their turns")
    takes_columns(parser)
    parser.add_argument("--follow", action="store_true", help="continue with what is written, until the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    log, asked = load_log(arguments), conditions(arguments)
    kind = NoteListing if arguments.notes else ValueListing if arguments.values else TransitionListing
    show = _Show(kind(log, asked), None if arguments.json else arguments.columns, arguments.json)
    show.first(None if arguments.all else arguments.tail, following=arguments.follow)
    if arguments.follow:
        follow(log, show.further)
    if arguments.json:
        return 0
    if not show.begun and (arguments.all or arguments.tail) and (any_given(asked) or kind is not TransitionListing):
        print_line("nothing matches")
    if kind is TransitionListing:
        print_text(_ending(log))
    return 0


class _Show:
    """Prints the rows of a listing, each once."""

    def __init__(self, listing: Listing[Any], columns: Sequence[str] | None, as_json: bool) -> None:
        self._listing, self._json = listing, as_json
        self._grid = Grid(listing.columns, columns)
        self._next: dict[int, int] = {}  # by rank: one may write its file later than another

    @property
    def begun(self) -> bool:
        """Whether a row was printed as text."""
        return self._grid.begun

    def first(self, tail: int | None, following: bool) -> None:
        """Print all rows or the last ones; those of the turn under way only if nothing follows."""
        self._next = self._listing.log.all_ranks.ends()
        end = self._listing.source.view().end if following else END
        pages = self._listing.between(0, end) if tail is None else [self._listing.last(tail, end)]
        for page in pages:
            self._print([row for row in page if not following or self._is_read(row)])

    def further(self) -> None:
        """Print the rows that are new."""
        for rank, end in self._listing.log.all_ranks.ends().items():
            for page in self._listing.between(self._next.get(rank, 0), end, rank):
                self._print(page)
            self._next[rank] = end
        sys.stdout.flush()

    def _is_read(self, row: Any) -> bool:
        """Return whether a row is before those that follow: one may have been written since."""
        rank, seq = self._listing.place(row)
        return seq < self._next.get(rank, 0)

    def _print(self, page: Sequence[Any]) -> None:
        if self._json:
            for row in page:
                print_json(self._listing.plain(row))
        elif page:
            self._grid.print([self._listing.cells(row) for row in page])


def _ending(log: TransitionLog) -> str:
    """Return how the run ended, or where it is."""
    last = log.tail(1)
    if not last:
        return "no transition yet"
    failure = log.source.failure
    if failure is not None:
        return f"failed: {failure.error} {failure}"
    if has_ended(log):
        return last[0].dest
    since = datetime.fromtimestamp(last[0].time_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    pauses = [event.reason for event in log.source.events(last[0].seq) if isinstance(event, Pause)]
    how = f"paused ({pauses[-1]})" if pauses else "it has not ended"
    return f"in {last[0].dest} since {since}: {how}"
