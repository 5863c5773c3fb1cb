"""`Source`: what a `TransitionLog` reads, the buffer of a live run or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from heptad.record.chunk import Call, Effects, Failure, View
from heptad.record.events import Event
from heptad.record.values import Columns, Recorded
from heptad.table import Table


class Source(Protocol):
    """What a `TransitionLog` reads: the memory of a live run, or a file."""

    @property
    def table(self) -> Table:
        """The table of the run."""
        ...

    @property
    def effects(self) -> Effects:
        """What its arcs do to the counters."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run was asked for and is made of: plain data."""
        ...

    @property
    def windows(self) -> Sequence[tuple[int, int]]:
        """From which transition on windows hold how many steps."""
        ...

    @property
    def stops(self) -> Sequence[int]:
        """The transitions whose guards are the first to see that a stop was asked for."""
        ...

    @property
    def failure(self) -> Failure | None:
        """Where the run failed."""
        ...

    def view(self) -> View:
        """Return the log as it is now; at any time, from any thread."""
        ...

    def events(self, first: int) -> list[Event]:
        """Return the events of the transitions from that number on, oldest first."""
        ...

    def values(self, first: int = 0) -> list[Recorded]:
        """Return the recorded values from the one of that number on, oldest first."""
        ...

    def value_block(self, first: int, most: int) -> Columns:
        """Return at most so many recorded values by column, from the one of that number on, oldest first."""
        ...

    def values_between(self, first: int, end: int) -> list[Recorded]:
        """Return the values recorded in the turns of the transitions from `first` to before `end`, oldest first."""
        ...

    def calls(self, first: int, end: int) -> list[Call]:
        """Return the handlers' calls in the turns of these transitions, where they were traced."""
        ...
