"""`Ranks`: the logs of the ranks of one run, behind one `TransitionLog`, which asks here what differs between ranks.

The path is the same on all ranks, so it is read of the first. Times, events and recorded values are each rank's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from heptad.errors import LogError
from heptad.history.journal.family import files_of_ranks, path_of_rank
from heptad.history.journal.reader import FileSource
from heptad.history.source import Source
from heptad.record.events import Event
from heptad.record.values import Recorded

T = TypeVar("T")
Row = TypeVar("Row", Event, Recorded)

_OPEN = 64
"""Files of other ranks that are held open. A process may have about 1,000 files open, and SQLite takes up to three."""


class Ranks:
    """The logs of the ranks of one run. Of a live run, and of another file than rank 0's, there is one.

    Which files belong to the run is looked up with each question, for a rank may begin its file later: those whose
    number is below the `world` of rank 0's newest session, and that hold the same run.

    Args:
        first: The log that answers what is one for all.
        path: Its file, if those of other ranks are read too.
    """

    def __init__(self, first: Source, path: Path | None = None) -> None:
        self._first = first
        self._path = path
        self._open: OrderedDict[int, FileSource] = OrderedDict()  # least recently used first
        self._damaged: dict[int, str] = {}
        """What the last question met in a file that could be opened."""

    @property
    def rank(self) -> int:
        """The rank of the first log."""
        return rank_of(self._first)

    @property
    def world(self) -> int:
        """How many ranks the run has."""
        return int(self._first.facts.get("world", 1))

    @property
    def several(self) -> bool:
        """Whether the logs of all ranks are asked, and not of one alone."""
        return self._path is not None and self.rank == 0 and self.world > 1

    def sources(self) -> dict[int, Source]:
        """Return the logs that can be read, by rank."""
        return dict(self.ask(lambda source: source))

    def missing(self) -> dict[int, str]:
        """Return the ranks whose log cannot be read, each with the reason."""
        there = self._files()
        found = {rank: self._lacks(rank, there) or self._damaged.get(rank, "") for rank in self._others()}
        return {rank: reason for rank, reason in found.items() if reason}

    def source(self, rank: int) -> Source:
        """Return the log of a rank.

        Raises:
            LogError: If it cannot be read.
        """
        if rank == self.rank:
            return self._first
        if reason := self._lacks(rank, self._files()):
            raise LogError(f"there is no log of rank {rank}: {reason}")
        return self._open[rank]

    def ask(self, question: Callable[[Source], T], only: int | None = None) -> list[tuple[int, T]]:
        """Return the answer of each log that can be read, with its rank; `missing` then names one that is damaged.

        Args:
            question: Called with a log.
            only: The one rank to ask; `None` for all.

        Raises:
            LogError: If the first log is damaged.
        """
        answers = [(self.rank, question(self._first))] if only in (None, self.rank) else []
        there = self._files()
        for rank in self._others() if only is None else [rank for rank in self._others() if rank == only]:
            if not self._lacks(rank, there):
                try:
                    answers.append((rank, question(self._open[rank])))
                    self._damaged.pop(rank, None)
                except LogError as error:
                    self._damaged[rank] = str(error)
        return answers

    def events(self, first: int, only: int | None = None) -> list[Event]:
        """Return the events of all ranks of the transitions from that number on, by transition, then by rank."""
        return _merged(self.ask(lambda source: source.events(first), only))

    def values(self) -> list[Recorded]:
        """Return the values that all ranks have recorded, by transition, then by rank."""
        return _merged(self.ask(lambda source: source.values()))

    def values_between(self, first: int, end: int, only: int | None = None) -> list[Recorded]:
        """Return those recorded in the turns of the transitions from `first` to before `end`."""
        return _merged(self.ask(lambda source: source.values_between(first, end), only))

    def ends(self) -> dict[int, int]:
        """Return for each rank the number of the first transition that it or the first log lacks."""
        end = self._first.view().end
        return {rank: min(own, end) for rank, own in self.ask(lambda source: source.view().end)}

    def _others(self) -> Sequence[int]:
        return range(1, self.world) if self.several else ()

    def _files(self) -> dict[int, Path]:
        return files_of_ranks(self._path) if self.several and self._path is not None else {}

    def _lacks(self, rank: int, there: Mapping[int, Path]) -> str:
        """Return why the log of another rank cannot be read; open it and return nothing where it can."""
        if not self.several or self._path is None or rank >= self.world:
            return f"this is the log of rank {self.rank} of {self.world}"
        if rank not in there:
            return f"{path_of_rank(self._path, rank)}: there is no such file"
        try:
            found = self._open.get(rank) or FileSource(there[rank])
            found.view()
        except LogError as error:
            return str(error)
        if not isinstance(self._first, FileSource) or found.run != self._first.run or rank_of(found) != rank:
            return f"{there[rank]} holds rank {rank_of(found)} of another run"
        self._open[rank] = found
        self._open.move_to_end(rank)
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return ""


def rank_of(source: Source) -> int:
    """Return the rank whose log it is; files that do not say so are of a single process."""
    return int(source.facts.get("rank", 0))


def stamped(rank: int, rows: list[Row]) -> list[Row]:
    """Return events or values with the rank that they are of."""
    return [replace(row, rank=rank) for row in rows] if rank else rows


def _merged(answers: Sequence[tuple[int, list[Row]]]) -> list[Row]:
    rows = [row for rank, found in answers for row in stamped(rank, found)]
    return sorted(rows, key=attrgetter("seq")) if len(answers) > 1 else rows
