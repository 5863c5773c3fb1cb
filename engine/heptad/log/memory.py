"""Where a run writes its log: two plain lists that are packed, a chunk at a time, into 10 bytes a transition.

The machine appends an arc's number and the time to `arcs` and `times`; nothing else is done while training goes on.
Guards, states and counters are not stored: the arc says which guards were asked and what they said, and the counters
follow from the path. `query.py` derives them.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
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
    """Consecutive transitions: their arcs and times, and what was true before the first of them."""

    seq: int
    clock: int
    counters: Counters
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

    Attributes:
        arcs: Numbers of the arcs of the open chunk; the machine appends to it.
        times: Monotonic nanoseconds of each of them.
    """

    def __init__(self, table: Table, capacity: int) -> None:
        if len(table.arcs) + len(table.states) > _MOST_ARCS:
            raise TableError(f"the log tells {_MOST_ARCS} arcs and states apart, this table has {len(table.arcs)} arcs")
        self.table = table
        self.effects = Effects(table)
        self.capacity = capacity
        self.arcs: list[int] = []
        self.times: list[int] = []
        self.chunks: deque[Chunk] = deque()
        self.facts: dict[str, Any] = {}
        self.windows: list[tuple[int, int]] = []
        """From which transition on windows hold how many steps."""
        self.stops: list[int] = []
        """The transitions in whose turn a stop was asked for."""
        self.failure: Failure | None = None
        self._notes: list[Note] = []
        self._skipped: list[int] = []
        self._gap_seqs = array("q")
        self._gap_times = array("q")
        self._packed = 0
        self._base = Counters()
        self._node = table.index[table.start.name]
        self._offset = time_ns() - monotonic_ns()
        self._clock = monotonic_ns()
        self._parked_at: int | None = self._clock
        self._lock = Lock()  # between packing and a reader in another thread; appends need none

    @property
    def seq(self) -> int:
        """The number that the next transition will have."""
        return self._packed + len(self.times)

    @property
    def room(self) -> int:
        """How many transitions the open chunk still takes; at least 1."""
        return max(1, CHUNK - len(self.times))

    def go(self) -> None:
        """Starts the clock, at the beginning or after parking: the time since then belongs to no state."""
        if self._parked_at is None:
            return
        now = monotonic_ns()
        if self.seq == 0:
            self._clock = now
        else:
            self._gap_seqs.append(self.seq)
            self._gap_times.append(now - self._parked_at)
        self._parked_at = None

    def park(self) -> None:
        """Stops the clock."""
        if self._parked_at is None:
            self._parked_at = monotonic_ns()

    def note(self, kind: str, text: str, seq: int) -> None:
        """Binds a note to a transition, which may be the one under way."""
        self._notes.append(Note(seq, kind, text, monotonic_ns() + self._offset))

    def skip(self, seq: int) -> None:
        """Says that the update of this turn was skipped, so that reading does not count it."""
        self._skipped.append(seq)

    def mend(self) -> int:
        """Drops a record that a second Ctrl-C cut in two, and returns the state that the log ends in."""
        del self.arcs[len(self.times) :]
        return int(self.effects.dests[self.arcs[-1]]) if self.arcs else self._node

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
        if len(self.times) < CHUNK:
            return
        chunk = self._open_chunk()
        with self._lock:
            self.chunks.append(chunk)
            self._clock = self.times[-1]
            self._base = counters()
            self._node = int(self.effects.dests[self.arcs[-1]])
            self._packed += len(chunk)
            self.arcs.clear()
            self.times.clear()
            while self._packed - self.chunks[0].seq - len(self.chunks[0]) >= self.capacity:
                self.chunks.popleft()
        self._forget(self.chunks[0].seq)

    def read(self) -> list[Chunk]:
        """Returns all chunks, the open one packed for the occasion; from any thread."""
        with self._lock:
            chunks = list(self.chunks)
            if self.times:
                chunks.append(self._open_chunk())
        return chunks

    def first(self) -> int:
        """Returns the number of the oldest transition that is kept."""
        oldest = self.chunks[0].seq if self.chunks else self._packed
        return max(oldest, self.seq - self.capacity)

    def counters(self, chunk: Chunk) -> dict[str, Ints]:
        """Replays a chunk: for each transition the counters after the body of its source."""
        effects, base = self.effects, chunk.counters
        arcs = chunk.arcs()
        steps = base.step + np.cumsum(effects.counts_step[arcs])
        counted = effects.counts_update[arcs]
        skipped = [seq - chunk.seq for seq in self._skipped if 0 <= seq - chunk.seq < len(arcs)]
        counted[skipped] = False
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
        times = chunk.times()
        spent = np.diff(times, prepend=chunk.clock)
        if self._gap_seqs:
            seqs, gaps = np.array(self._gap_seqs), np.array(self._gap_times)
            here = (seqs >= chunk.seq) & (seqs < chunk.seq + len(times))
            np.subtract.at(spent, seqs[here] - chunk.seq, gaps[here])
        return spent

    def wall(self, times: Ints) -> Ints:
        """Turns monotonic into Unix time."""
        return times + self._offset

    def notes(self) -> list[Note]:
        """Returns the notes of the transitions that are kept, oldest first."""
        first = self.first()
        return [note for note in self._notes if note.seq >= first or note.seq < 0]

    def _open_chunk(self) -> Chunk:
        times = array("q", self.times)  # first: an arc is appended before its time, so there is one for each
        arcs = array("H", self.arcs[: len(times)])
        return Chunk(self._packed, self._clock, self._base, arcs, times)

    def _forget(self, first: int) -> None:
        """Drops what is bound to transitions that are gone."""
        if self._notes and 0 <= self._notes[0].seq < first:
            self._notes = [note for note in self._notes if note.seq >= first]
        if self._skipped and self._skipped[0] < first:
            self._skipped = [seq for seq in self._skipped if seq >= first]
        if self._gap_seqs and self._gap_seqs[0] < first:
            kept = sum(seq >= first for seq in self._gap_seqs)
            self._gap_seqs = self._gap_seqs[len(self._gap_seqs) - kept :]
            self._gap_times = self._gap_times[len(self._gap_times) - kept :]


def _latest(where: npt.NDArray[np.bool_], values: Ints, before: int) -> Ints:
    """Returns at each place the value at the last place where `where` held (values never fall), `before` at first."""
    return np.maximum.accumulate(np.where(where, values, before))
