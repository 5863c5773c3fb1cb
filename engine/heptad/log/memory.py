"""Where a run writes its log: two plain lists that are packed, a chunk at a time, into 10 bytes a transition.

The machine appends an arc's number and the time to `arcs` and `times`; nothing else is done while training goes on.
Guards, states and counters are not stored: the arc says which guards were asked and what they said, and the counters
follow from the path. `query.py` derives them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns, time_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from heptad.errors import TableError
from heptad.log.record import Counters, Note
from heptad.states import Table

CHUNK = 1024
"""Transitions that are packed at once. While a chunk is open each of its transitions costs about 50 bytes."""

_MOST_ARCS = 1 << 16

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive transitions: their arcs and times, and what was true before the first of them.

    Attributes:
        seq: The number of the first.
        clock: When the transition before it was made, or the run begun, in monotonic nanoseconds.
        counters: What the counters stood at then.
        skipped: The places of those whose update was skipped.
        gaps: The time that the run was parked before a transition: its place, and nanoseconds.
    """

    seq: int
    clock: int
    counters: Counters
    skipped: tuple[int, ...]
    gaps: tuple[tuple[int, int], ...]
    _arcs: array[int]
    _times: array[int]

    def __len__(self) -> int:
        return len(self._times)

    def arcs(self) -> Ints:
        """Returns the number of the arc taken, for each transition."""
        return np.frombuffer(self._arcs, dtype=np.uint16).astype(np.int64)

    def times(self) -> Ints:
        """Returns monotonic nanoseconds, for each transition."""
        return np.frombuffer(self._times, dtype=np.int64)


class OpenChunk:
    """The chunk that is being written. Once it is packed nothing touches it again, so a reader may still hold it."""

    __slots__ = ("arcs", "clock", "counters", "gaps", "seq", "skipped", "times")

    def __init__(self, seq: int, clock: int, counters: Counters) -> None:
        self.seq = seq
        self.clock = clock
        self.counters = counters
        self.arcs: list[int] = []
        self.times: list[int] = []
        self.skipped: list[int] = []
        self.gaps: list[tuple[int, int]] = []

    def packed(self) -> Chunk:
        """Returns what stands in it now."""
        times = array("q", self.times)  # first: an arc is appended before its time, so there is one for each
        arcs = array("H", self.arcs[: len(times)])
        skipped = tuple(place for place in self.skipped if place < len(times))
        gaps = tuple(gap for gap in self.gaps if gap[0] < len(times))
        return Chunk(self.seq, self.clock, self.counters, skipped, gaps, arcs, times)


@dataclass(frozen=True, slots=True)
class View:
    """The log at one moment: the chunks, and the numbers of the first transition kept and of the one after the last."""

    chunks: tuple[Chunk, ...]
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a run failed.

    Attributes:
        seq: The number of the transition to `failed`, the log's last.
        state: The state in which it happened.
        edge: `"body"`, `"exit"`, `"guard"` or `"enter"`.
        who: The plugin and method that raised; empty for the engine itself.
        guard: The guard that raised, if it was one.
        error: The exception in a line.
        counters: What the counters stood at, the body perhaps half done.
        guards: What the guards had answered by then, those asked.
    """

    seq: int
    state: str
    edge: str
    who: str
    guard: str
    error: str
    counters: Counters
    guards: dict[str, bool]

    def __str__(self) -> str:
        place = {
            "body": f"in the body of {self.state}",
            "exit": f"on exit of {self.state}",
            "guard": f"in the guard {self.guard} asked in {self.state}",
            "enter": f"on entry to {self.state}",
        }[self.edge]
        at = self.counters
        who = f"in {self.who} " if self.who else ""
        return f"{who}{place} (epoch {at.epoch}, batch {at.batch_index}, step {at.step}, update {at.update})"


class Effects:
    """What leaving each state does to the counters, as arrays over the arcs of a table."""

    def __init__(self, table: Table) -> None:
        # A failure is no arc of the table. Its number is that of the state it happened in, counted on from the arcs.
        sources = [arc.source for arc in table.arcs] + [state.name for state in table.states]
        self.sources = np.array([table.index[name] for name in sources], dtype=np.int64)
        self.dests = np.array(
            [table.index[arc.dest] for arc in table.arcs] + [table.index["failed"]] * len(table.states), dtype=np.int64
        )
        counted = len(table.arcs)

        def leaving(name: str) -> npt.NDArray[np.bool_]:
            return np.array([place < counted and source == name for place, source in enumerate(sources)])

        self.counts_step = leaving("after_step")
        self.counts_update = leaving("optimizer_update")
        self.counts_epoch = leaving("after_epoch")
        self.opens_epoch = leaving("before_epoch")
        self.closes_window = self.counts_update | self.counts_epoch | self.opens_epoch


class Memory:
    """The part of the log that is written: chunks, the open chunk, notes, parked time, the failure.

    What is written last is one assignment of `_written`, so that a reader, in another thread or in a signal handler,
    sees the log before or after it and never between.
    """

    def __init__(self, table: Table, capacity: int) -> None:
        if len(table.arcs) + len(table.states) > _MOST_ARCS:
            raise TableError(f"the log tells {_MOST_ARCS} arcs and states apart, this table has {len(table.arcs)} arcs")
        self.table = table
        self.effects = Effects(table)
        self.capacity = capacity
        self.facts: dict[str, Any] = {}
        self.windows: list[tuple[int, int]] = []
        """From which transition on windows hold how many steps."""
        self.stops: list[int] = []
        """The transitions whose guards are the first to see that a stop was asked for."""
        self.failure: Failure | None = None
        self._notes: list[Note] = []
        self._offset = time_ns() - monotonic_ns()
        self._parked_at: int | None = monotonic_ns()
        self._node = table.index[table.start.name]
        packed: tuple[Chunk, ...] = ()
        self._written = packed, OpenChunk(0, self._parked_at, Counters())

    @property
    def arcs(self) -> list[int]:
        """Numbers of the arcs of the open chunk; the machine appends to it."""
        return self._written[1].arcs

    @property
    def times(self) -> list[int]:
        """Monotonic nanoseconds of each of them; appended to last."""
        return self._written[1].times

    @property
    def seq(self) -> int:
        """The number that the next transition will have."""
        chunk = self._written[1]
        return chunk.seq + len(chunk.times)

    @property
    def room(self) -> int:
        """How many transitions the open chunk still takes; at least 1."""
        return max(1, CHUNK - len(self.times))

    def go(self) -> None:
        """Starts the clock, at the beginning or after parking: the time since then belongs to no state."""
        if self._parked_at is None:
            return
        now, chunk = monotonic_ns(), self._written[1]
        if self.seq == 0:
            chunk.clock = now
        else:
            chunk.gaps.append((len(chunk.times), now - self._parked_at))
        self._parked_at = None

    def park(self) -> None:
        """Stops the clock."""
        if self._parked_at is None:
            self._parked_at = monotonic_ns()

    def note(self, kind: str, text: str, seq: int) -> None:
        """Binds a note to a transition, which may be the one under way."""
        self._notes.append(Note(seq, kind, text, monotonic_ns() + self._offset))

    def skip(self) -> None:
        """Says that the update of the turn under way is skipped, so that reading does not count it."""
        chunk = self._written[1]
        chunk.skipped.append(len(chunk.times))

    def mend(self) -> int:
        """Drops a record that a second Ctrl-C cut in two, and returns the state that the log ends in."""
        arcs = self.arcs
        del arcs[len(self.times) :]
        return int(self.effects.dests[arcs[-1]]) if arcs else self._node

    def fail(self, failure: Failure, node: int) -> None:
        """Records the transition from a node to `failed`."""
        self.failure = failure
        self.arcs.append(len(self.table.arcs) + node)
        self.times.append(monotonic_ns())
        self.note("failure", f"{failure.error} {failure}", failure.seq)

    def settle(self, counters: Callable[[], Counters]) -> None:
        """Packs the open chunk if it is full, and lets the oldest go.

        Args:
            counters: Tells what they stand at, between two turns.
        """
        packed, chunk = self._written
        if len(chunk.times) < CHUNK:
            return
        end = chunk.seq + len(chunk.times)
        self._node = int(self.effects.dests[chunk.arcs[-1]])
        kept = tuple(old for old in (*packed, chunk.packed()) if end - old.seq - len(old) < self.capacity)
        self._written = kept, OpenChunk(end, chunk.times[-1], counters())
        if self._notes and self._notes[0].seq < kept[0].seq:
            self._notes = [note for note in self._notes if note.seq >= kept[0].seq]

    def view(self) -> View:
        """Returns the log as it stands; at any time, from any thread."""
        packed, chunk = self._written
        last = chunk.packed()
        end = last.seq + len(last)
        oldest = packed[0].seq if packed else last.seq
        chunks = (*packed, last) if len(last) else packed
        return View(chunks, max(oldest, end - self.capacity), end)

    def counters(self, chunk: Chunk) -> dict[str, Ints]:
        """Replays a chunk: for each transition the counters after the body of its source."""
        effects, base = self.effects, chunk.counters
        arcs = chunk.arcs()
        steps = base.step + np.cumsum(effects.counts_step[arcs])
        counted = effects.counts_update[arcs]
        counted[list(chunk.skipped)] = False
        columns = {
            "epoch": base.epoch + np.cumsum(effects.counts_epoch[arcs]),
            "batch_index": steps - _latest(effects.opens_epoch[arcs], steps, base.step - base.batch_index),
            "step": steps,
            "update": base.update + np.cumsum(counted),
            "window": steps - _latest(effects.closes_window[arcs], steps, base.step - base.window),
        }
        failure = self.failure
        if failure is not None and chunk.seq <= failure.seq < chunk.seq + len(arcs):
            for name, value in failure.counters._asdict().items():
                columns[name][failure.seq - chunk.seq] = value
        return columns

    def durations(self, chunk: Chunk) -> Ints:
        """Returns nanoseconds spent in the source of each transition, parked time left out."""
        spent = np.diff(chunk.times(), prepend=chunk.clock)
        for place, parked in chunk.gaps:
            spent[place] -= parked
        return spent

    def wall(self, times: Ints) -> Ints:
        """Turns monotonic into Unix time."""
        return times + self._offset

    def notes(self, first: int) -> list[Note]:
        """Returns the notes of the transitions from that number on, oldest first."""
        return [note for note in self._notes if note.seq >= first]


def _latest(where: npt.NDArray[np.bool_], values: Ints, before: int) -> Ints:
    """Returns at each place the value at the last place where `where` held (values never fall), `before` at first."""
    return np.maximum.accumulate(np.where(where, values, before))
