"""Asking a log: `TransitionLog` is what users hold. The answers are worked out in the modules beside this one.

All of them read a `Source`, the memory of a live run or a file, a chunk or a block of chunks at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, cast, overload

from heptad.errors import EngineError, a_kind, counted, kind, nearest
from heptad.history import diff, explain, summary, waiting
from heptad.history.decode import Decoder, blocks, ints
from heptad.history.export import frames, jsonl, timeline
from heptad.history.html import table
from heptad.history.journal.family import named_journal
from heptad.history.journal.reader import FileSource
from heptad.history.judge import judge
from heptad.history.ranks import Ranks
from heptad.history.select import Conditions, selected
from heptad.history.source import Source
from heptad.history.transition import Transition
from heptad.history.verdict import Verdict
from heptad.record.chunk import Call, View
from heptad.record.event_codec import EVENTS
from heptad.record.events import Event, RecordedArray
from heptad.record.values import Recorded

if TYPE_CHECKING:
    import pandas

_EVER = 1 << 62
_SHOWN = 10
"""Transitions in the table that a notebook shows."""


class TransitionLog(Sequence[Transition]):
    """The transitions of a run, oldest first: iterate, index, and ask.

    Of a live run only the newest `RunConfig.log_capacity` transitions are kept; `log[0]` is the oldest of them and says
    so by its `seq`. Reading takes a snapshot and may be done at any time, in a handler or from another thread. A log
    that was loaded from a file answers the same questions; of a journal only what a question needs is in memory.

    A run of several ranks has one path, and each rank its own times, events and recorded values. A log that was loaded
    from rank 0's journal holds those of all: its transitions are rank 0's, `notes`, `values` and `arrays` return each
    rank's with their `rank`, exports and data frames have a column `rank`. `of_rank` returns the log of one.

    Attributes:
        source: What it reads; with several ranks the log of rank 0.
    """

    # The commands ask the attribute `all_ranks` for what each rank has of its own.

    def __init__(self, source: Source, ranks: Ranks | None = None) -> None:
        self.source = source
        self.all_ranks = ranks or Ranks(source)
        self._decoder = Decoder(source)

    @classmethod
    def load(cls, path: str | Path) -> TransitionLog:
        """Return the log in a file that `Journal` wrote, or is writing: all questions work on it as on `run.log`.

        Nothing is read whole: each question reads what it needs, at the moment it is asked. The file is not altered.
        With rank 0's journal come those of the other ranks of its run, which lie beside it (`….rank1`); a journal of
        another rank is read alone. `missing` says which of them cannot be read. A run folder stands for the
        `log.journal` in it.

        Raises:
            EngineError: If it is no path.
            LogError: If the file is missing, empty, of another program, damaged, or of a newer version. One that is
                damaged further in says so when a question comes to that place.
        """
        if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise EngineError(f"TransitionLog.load takes the path of a journal, got {a_kind(path)}")
        file = named_journal(path)
        source = FileSource(file)
        return cls(source, Ranks(source, file))

    # -- ranks

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run was asked for and is made of, as plain data; `rank` and `world` among them once it has begun."""
        return self.source.facts

    @property
    def rank(self) -> int:
        """The rank whose transitions these are; 0 where there is one process."""
        return self.all_ranks.rank

    @property
    def world(self) -> int:
        """How many ranks the run has; 1 where there is one process."""
        return self.all_ranks.world

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks whose logs are here."""
        return tuple(self.all_ranks.sources())

    @property
    def missing(self) -> dict[int, str]:
        """The ranks whose journals are missing, damaged or of another run, each with what was found."""
        return self.all_ranks.missing()

    def of_rank(self, rank: int) -> TransitionLog:
        """Return the log of one rank, with its own times, events and values.

        Raises:
            EngineError: If it is no number of a rank.
            LogError: If its journal is not here, or cannot be read.
        """
        try:
            number = index(rank)
        except TypeError:
            raise EngineError(f"of_rank takes the number of a rank, got {kind(rank)}") from None
        if not 0 <= number < self.world:
            raise EngineError(f"there is no rank {number}: the run has {self.world}, numbered from 0")
        return TransitionLog(self.all_ranks.source(number))

    def slowest_ranks(self) -> dict[str, waiting.SlowestRank]:
        """Return for each state which rank took the longest in it, and how long the others waited for that one.

        Empty where this is the log of one rank. See `SlowestRank` for what counts as waiting.
        """
        return waiting.slowest_ranks(self.all_ranks.sources())

    def diff_ranks(self) -> dict[int, diff.Diff]:
        """Find where the paths of the ranks part: transitions, guards, counters, and facts of the run.

        Times, events and recorded values are each rank's own and are not compared (`of_rank(0).diff(of_rank(1))`
        compares them), nor does a log count that ends before the other: the rank may have been killed first.

        Returns:
            For each rank whose path, or whose facts, differ from rank 0's, what differs; here is rank 0, there the
            other. Empty where all ranks agree.
        """
        others = {rank: source for rank, source in self.all_ranks.sources().items() if rank != self.rank}
        found = {rank: diff.diff_path(self.source, source) for rank, source in others.items()}
        return {rank: parted for rank, parted in found.items() if parted}

    # -- a sequence

    def __len__(self) -> int:
        view = self.source.view()
        return view.end - view.first

    @overload
    def __getitem__(self, index: int) -> Transition: ...
    @overload
    def __getitem__(self, index: slice) -> list[Transition]: ...
    def __getitem__(self, index: int | slice) -> Transition | list[Transition]:
        view = self.source.view()
        try:
            seqs = range(view.first, view.end)[index]
        except IndexError:
            raise IndexError(f"there is no log[{index}]: {_held(view)}; log[0] is the oldest of them") from None
        if isinstance(seqs, int):
            return self._decoder.at(view, [seqs])[0]
        return self._decoder.at(view, seqs)

    def __iter__(self) -> Iterator[Transition]:
        return self._decoder.all(self.source.view())

    def __repr__(self) -> str:
        view = self.source.view()
        last = ""
        if view.end > view.first:
            newest = self._decoder.at(view, [view.end - 1])[0]
            last = f", last {newest.source} -> {newest.dest}"
        return f"<TransitionLog: {counted(view.end - view.first, 'transition')} from #{view.first}{last}>"

    def _repr_html_(self) -> str:
        rows = self.tail(_SHOWN)
        return table(repr(self)[1:-1], Transition.COLUMNS, (row.cells() for row in rows))

    # -- questions

    def tail(self, n: int = 10) -> list[Transition]:
        """Return the last `n` transitions, oldest first."""
        return self[-n:] if n > 0 else []

    def where(
        self,
        *,
        source: str | None = None,
        dest: str | None = None,
        epoch: int | range | None = None,
        batch_index: int | range | None = None,
        step: int | range | None = None,
        update: int | range | None = None,
        limit: int | None = None,
    ) -> list[Transition]:
        """Return the transitions that match all of what is given; counters match a number or a `range`.

        Of a file only the parts are read in which `epoch`, `step` and `update` can be what they are to be.

        Args:
            source: The state that was left.
            dest: The state that was entered.
            epoch: Complete epochs.
            batch_index: Complete steps in the epoch.
            step: Complete steps.
            update: Complete updates.
            limit: At most so many: the first ones or, where it is negative, the last ones. They are in order either
                way, and reading ends with the last that is needed.

        Raises:
            EngineError: If a state is not one of the table's, or a counter is neither a number nor a range.
        """
        counters = {"epoch": epoch, "batch_index": batch_index, "step": step, "update": update}
        given = {name: _number_or_range(name, value) for name, value in counters.items() if value is not None}
        asked = Conditions(source, dest, given)
        backwards = limit is not None and limit < 0
        found: list[list[Transition]] = []
        missing = None if limit is None else abs(limit)
        for chunk, places in selected(self.source, self.source.view(), asked, backwards):
            if missing is not None:
                places = places[-missing:] if backwards else places[:missing]  # noqa: PLW2901 - fewer of them
                missing -= len(places)
            found.append(self._decoder.decode(chunk, places))
            if missing == 0:
                break
        return [row for rows in (reversed(found) if backwards else found) for row in rows]

    def path(self) -> list[str]:
        """Return the states in the order in which the run was in them, the first source included."""
        states, effects = self.source.table.states, self.source.effects
        names: list[str] = []
        for block in blocks(self.source.view()):
            if not names:
                names.append(states[int(effects.sources[block.arcs[0]])].shown)
            names += [states[node].shown for node in ints(effects.dests[block.arcs])]
        return names

    def verdict(self) -> Verdict:
        """Return how the run went: how it ended and why, times, values, speed, what was unusual, what to look at next.

        Its `lines` are the ten lines that `heptad summary` prints, and so is its text.
        """
        return judge(self.source, self.all_ranks)

    def counts(self) -> Counter[str]:
        """Return how often each state was entered; one that never was counts 0."""
        return summary.counts(self.source, self.source.view())

    def durations(self) -> dict[str, summary.Duration]:
        """Return for each state how long the run stayed in it, for every stay that has ended."""
        return summary.stays(self.source, self.source.view())

    def call_durations(self) -> dict[str, summary.Duration]:
        """Return for each handler how long its calls took, the one with the most time first.

        Empty where calls were not traced: see `RunConfig.trace_handlers`.
        """
        return summary.calls(self.source, self.source.view())

    def notes(self, kind: str | None = None) -> list[Event]:
        """Return the events of the transitions that are kept, or those of one kind, oldest first.

        With several ranks those of all, each with its `rank`.

        Args:
            kind: Such as `"stop"`, `"pause"`, `"skip"`, `"extend"`, `"drop"`, `"detach"`, `"resume"`, `"redo"`,
                `"untrained"`, `"shared"`, `"accumulation"`, `"array"`, `"failure"`, or `"note"` for what `Run.note` was
                given.

        Raises:
            EngineError: If there is no such kind.
        """
        known = {event.kind for event in EVENTS.values()}
        if kind is not None and kind not in known:
            raise EngineError(f"there is no event of the kind {kind!r}{nearest(str(kind), sorted(known))}")
        events = self.all_ranks.events(self.source.view().first)
        return [event for event in events if kind is None or event.kind == kind]

    def values(self, name: str | None = None) -> list[Recorded]:
        """Return all recorded values, or those of one name; waits for those that are still on their device.

        With several ranks those of all, each with its `rank`.
        """
        return [value for value in self.all_ranks.values() if name is None or value.name == name]

    def arrays(self, name: str | None = None) -> list[RecordedArray]:
        """Return the arrays that were recorded in the transitions that are kept, or those of one name, oldest first.

        Each is an event with its `name`, its `array` and its transition, `seq`.
        """
        events = (event for event in self.notes("array") if isinstance(event, RecordedArray))
        return [event for event in events if name is None or event.name == name]

    def calls(self, first: int = 0, end: int | None = None) -> list[Call]:
        """Return the calls of handlers in the turns of some transitions, where they were traced.

        Args:
            first: The number of the first transition, of those that are kept.
            end: The number of the one after the last; `None` for all that follow.
        """
        return self.source.calls(max(first, self.source.view().first), _EVER if end is None else end)

    def explain(self, seq: int) -> explain.Explanation:
        """Return why a transition took its arc, and who was called.

        Args:
            seq: The transition's number.

        Returns:
            The arcs tried from top to bottom, the guards asked and what they said, with the values that the engine's
            own guards looked at; the handlers of both moments, and how long each took where that was traced; what was
            noted and recorded in that turn. With several ranks this is rank 0's turn, and what the others noted.

        Raises:
            EngineError: If the log does not hold this transition.
        """
        try:
            number = index(seq)
        except TypeError:
            raise EngineError(
                f"explain takes the number of a transition, such as log[-1].seq, got {kind(seq)}"
            ) from None
        view = self.source.view()
        if not view.first <= number < view.end:
            raise EngineError(f"the log does not hold transition #{number}; {_held(view)}")
        found = explain.explain(self.source, view, number)
        if not self.all_ranks.several:
            return found
        return replace(found, notes=tuple(note for note in self.all_ranks.events(number) if note.seq == number))

    def diff(self, other: TransitionLog, ignore: Iterable[str] = (), *, strict: bool = False) -> diff.Diff:
        """Find where this run and another one part, and which facts of them differ.

        Args:
            other: The log of the other run; that of a live run and one from a file may be compared.
            ignore: Patterns such as `"gradient_*"`: recorded values of these names and events of these kinds are
                ignored.
            strict: Compare also what a run that was killed and resumed differs in from one that nothing disturbed: the
                events that say that it was paused or resumed, and the recorded values that measure the clock or the
                machine (those of `Throughput` and `DeviceMonitor`).

        Returns:
            What differs; it is false where nothing does but times.

        Raises:
            EngineError: If the other one is no log.
        """
        if not isinstance(other, TransitionLog):  # pyright: ignore[reportUnnecessaryIsInstance] - not everybody checks types
            raise EngineError(
                f"diff takes the other run's TransitionLog, got {kind(other)}; that of a run is run.log, that in a "
                "file TransitionLog.load(path)"
            )
        return diff.diff(self.source, other.source, ignore, strict)

    # -- other forms

    def to_jsonl(self, path: str | Path) -> Path:
        """Write the log as JSON lines for other programs: first a header, then an object for each transition.

        A line holds the fields of `Transition`, and `notes`: kind, text and time of each. If there are any it also
        holds `values`, those recorded in that turn, and `calls`, those traced. Only the header has the key `format`.
        With several ranks a line has its `rank`, and those of rank 1 follow those of rank 0.
        This is an export: what is read back is the journal that the `Journal` plugin writes.

        Returns:
            The path.

        Raises:
            OSError: If the file cannot be written; one that was there is as it was.
        """
        jsonl.write(self.all_ranks.sources(), path)
        return Path(path)

    def to_trace(self, path: str | Path) -> Path:
        """Write the log in the Chrome trace format, which https://ui.perfetto.dev and chrome://tracing open.

        Epochs, windows, steps, states and traced handlers lie within each other; recorded values are counters. Each
        rank is a process of its own, on one time line: that of the clocks of their hosts.

        Returns:
            The path.

        Raises:
            OSError: If the file cannot be written; one that was there is as it was.
        """
        timeline.write(self.all_ranks.sources(), path)
        return Path(path)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with a row for each transition, in the columns of `Transition`.

        States and guards are categories; guards are words, such as `"update_due=no batches_remain=yes"`. Recorded
        values make a frame as they are: `pandas.DataFrame(log.values())`. With several ranks the first column is
        `rank`, and the rows of rank 1 follow those of rank 0.

        Raises:
            LogError: If pandas is not installed.
        """
        return frames.frame(self.all_ranks.sources())


def _held(view: View) -> str:
    return f"it holds #{view.first} to #{view.end - 1}" if view.end > view.first else "it holds none yet"


def _number_or_range(name: str, value: object) -> int | range:
    """Return the number or the range that a counter must match.

    Raises:
        EngineError: If it is something else.
    """
    if isinstance(value, range):
        return value
    try:
        return index(cast("SupportsIndex", value))
    except TypeError:
        raise EngineError(
            f"where({name}=…) takes a number, or a range such as range(1, 3) for 1 and 2; got {value!r}"
        ) from None
