"""`LogBuffer`: the log while it is written. Two plain lists, packed a chunk at a time into 10 bytes a transition.

For each transition the machine appends the number of its arc to `arcs`, then the time to `times`, and that is all.

Which thread may touch what:

- The thread that drives the run appends, and calls whatever changes the log.
- Any thread may call `view`, `open_chunk`, `events`, `values`, `columns`, `calls` and so on, without a lock. Appending
  is atomic, an arc is appended before its time, and chunks are replaced by one assignment of `_written`.
- A signal handler may add an event in the middle of any of this: it appends to `_events` and nothing else.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic_ns, time_ns
from typing import Any, Concatenate, NoReturn, ParamSpec, Protocol

import numpy as np

from heptad.errors import EngineError, TableError
from heptad.record.calls import Calls
from heptad.record.chunk import Call, Effects, Failure, Ints, View
from heptad.record.counters import Counters
from heptad.record.events import Event, Failed
from heptad.record.values import Columns, Recorded, RecordedValues, read_each
from heptad.table import Table

P = ParamSpec("P")

CHUNK = 1024
"""Transitions that are packed together. In the open chunk each takes about 50 bytes: two pointers and an int object."""

_MOST_ARCS = 1 << 16


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A `Chunk` in memory: two bytes for the number of an arc, eight for a time in nanoseconds."""

    seq: int
    clock: int
    offset: int
    counters: Counters
    skipped: tuple[int, ...]
    gaps: tuple[tuple[int, int], ...]
    _arcs: array[int]
    _times: array[int]

    def __len__(self) -> int:
        return len(self._times)

    def arcs(self) -> Ints:
        """Return the number of the arc taken, for each transition."""
        return np.frombuffer(self._arcs, dtype=np.uint16).astype(np.int64)

    def times(self) -> Ints:
        """Return monotonic nanoseconds, for each transition."""
        return np.frombuffer(self._times, dtype=np.int64)


class OpenChunk:
    """The chunk that is being written. It is not changed once it is packed, so a reader may still hold it."""

    __slots__ = ("arcs", "clock", "counters", "gaps", "offset", "seq", "skipped", "times")

    def __init__(self, seq: int, clock: int, offset: int, counters: Counters) -> None:
        self.seq = seq
        self.clock = clock
        self.offset = offset
        self.counters = counters
        self.arcs: list[int] = []
        self.times: list[int] = []
        self.skipped: list[int] = []
        self.gaps: list[tuple[int, int]] = []

    def packed(self) -> PackedChunk:
        """Return its transitions up to now, from any thread."""
        times = array("q", self.times)  # times before arcs: an arc is appended first, so that each time has one
        arcs = array("H", self.arcs[: len(times)])
        skipped = tuple(place for place in self.skipped if place < len(times))
        gaps = tuple(gap for gap in self.gaps if gap[0] < len(times))
        return PackedChunk(self.seq, self.clock, self.offset, self.counters, skipped, gaps, arcs, times)


class Follower(Protocol):
    """Takes the log while it is written. All of it is called on the thread that drives the run."""

    @property
    def limit(self) -> int:
        """Transitions after which `settled` must be called at the latest."""
        ...

    def packed(self, chunk: PackedChunk) -> None:
        """Take a full chunk."""
        ...

    def noted(self, event: Event) -> None:
        """Take an event."""
        ...

    def settled(self) -> None:
        """Do what is due; called between two turns, after at most `limit` of them."""
        ...


class LogBuffer:
    """The log while it is written: packed chunks, the open chunk, events, paused time, the failure.

    Args:
        table: The table of the run.
        capacity: Transitions that are kept at least.
        read: Returns the numbers in 0-dim tensors that are not on the CPU, see `RecordedValues`.
    """

    def __init__(self, table: Table, capacity: int, read: Callable[[Sequence[Any]], list[float]] = read_each) -> None:
        if len(table.arcs) + len(table.states) > _MOST_ARCS:
            raise TableError(
                f"the log numbers at most {_MOST_ARCS} arcs and states, this table has {len(table.arcs)} arcs"
            )
        self.table = table
        self.effects = Effects(table)
        self.capacity = capacity
        self.facts: dict[str, Any] = {}
        self.windows: list[tuple[int, int]] = []
        """Pairs: from this transition on, windows hold that many steps."""
        self.stops: list[int] = []
        """The transitions whose guards are the first to see that a stop was asked for."""
        self.failure: Failure | None = None
        self.recorded = RecordedValues(read)
        self.traced = Calls()
        self._followers: tuple[Follower, ...] = ()
        self._events: list[Event] = []
        self._offset = time_ns() - monotonic_ns()
        self._paused_at: int | None = monotonic_ns()
        self._node = table.index[table.start.name]
        self._checked = 0
        packed: tuple[PackedChunk, ...] = ()
        # One assignment of both: a reader sees the log as it was before a chunk was packed or after, never in between.
        self._written = packed, OpenChunk(0, self._paused_at, self._offset, Counters())

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            "the log of a run can neither be pickled nor copied; add Journal(path) to the plugins, and read it with "
            "TransitionLog.load(path)"
        )

    def restore(self, seq: int, node: int, counters: Counters) -> None:
        """Begin an empty log where a checkpoint was taken.

        Args:
            seq: The number of the next transition.
            node: The number of the state that the run is in.
            counters: What they stand at.
        """
        self._paused_at = monotonic_ns()
        self._node = node
        self._written = (), OpenChunk(seq, self._paused_at, self._offset, counters)

    def follow(self, follower: Follower) -> None:
        """Hand all chunks and events from now on to a follower."""
        self._followers = (*self._followers, follower)

    def leave(self, follower: Follower) -> None:
        """Stop handing the log to a follower; one that does not follow is passed over."""
        self._followers = tuple(other for other in self._followers if other is not follower)

    def leave_all(self) -> None:
        """Stop handing the log to anybody."""
        self._followers = ()

    @property
    def arcs(self) -> list[int]:
        """Numbers of the arcs of the open chunk; the machine appends to the list."""
        return self._written[1].arcs

    @property
    def times(self) -> list[int]:
        """Monotonic nanoseconds of each; the machine appends here after `arcs`."""
        return self._written[1].times

    @property
    def seq(self) -> int:
        """The number that the next transition will have."""
        chunk = self._written[1]
        return chunk.seq + len(chunk.times)

    @property
    def entered_ns(self) -> int:
        """When the newest transition was made, or the log began: nanoseconds since the Unix epoch."""
        chunk = self._written[1]
        return (chunk.times[-1] if chunk.times else chunk.clock) + chunk.offset

    @property
    def now_ns(self) -> int:
        """The present time on the same clock."""
        return monotonic_ns() + self._offset

    @property
    def room(self) -> int:
        """How many transitions may be made before the next `settle`; at least 1."""
        room = CHUNK - len(self.times)
        return max(1, min((room, *(follower.limit for follower in self._followers))))

    def go(self) -> None:
        """Start the clock, at the beginning or after a pause. The time of the pause belongs to no state."""
        if self._paused_at is None:
            return
        now, chunk = monotonic_ns(), self._written[1]
        if self.seq == 0:
            chunk.clock = now
        else:
            chunk.gaps.append((len(chunk.times), now - self._paused_at))
        self._paused_at = None

    def pause(self) -> None:
        """Stop the clock."""
        if self._paused_at is None:
            self._paused_at = monotonic_ns()

    @contextmanager
    def running(self) -> Generator[None]:
        """Run the clock for the length of a block."""
        self.go()
        try:
            yield
        finally:
            self.pause()

    def emit(
        self, make: Callable[Concatenate[int, int, P], Event], seq: int, /, *args: P.args, **fields: P.kwargs
    ) -> None:
        """Make an event and bind it to a transition, which may be the one under way.

        Args:
            make: The class of the event.
            seq: The number of the transition.
            *args: The fields of the event behind `seq` and `time_ns`.
            **fields: The same by name.
        """
        self.put(make(seq, self.now_ns, *args, **fields))

    def put(self, event: Event) -> None:
        """Add an event that was made before, as one of a checkpoint."""
        self._events.append(event)
        for follower in self._followers:
            follower.noted(event)

    def skip(self) -> None:
        """Mark the update of the turn under way as skipped: who derives `update` from the path leaves it out."""
        chunk = self._written[1]
        chunk.skipped.append(len(chunk.times))

    def mend(self) -> int:
        """Drop an arc whose time is missing, which a second Ctrl-C leaves; return the state that the log ends in."""
        arcs = self.arcs
        del arcs[len(self.times) :]
        return int(self.effects.dests[arcs[-1]]) if arcs else self._node

    def fail(self, failure: Failure, node: int) -> None:
        """Record the transition from a node to `failed`, which has a number after those of the arcs."""
        self.failure = failure
        self.arcs.append(len(self.table.arcs) + node)
        self.times.append(monotonic_ns())
        self.emit(Failed, failure.seq, failure)

    def settle(self, counters: Callable[[], Counters]) -> None:
        """Pack the open chunk if it is full, drop the oldest chunks, and call the followers. Between two turns.

        Args:
            counters: Returns what the counters stand at.
        """
        if len(self.times) >= CHUNK:
            self._pack(counters())
        for follower in self._followers:
            follower.settled()

    def check(self, counters: Counters) -> None:
        """Compare counters with what the path counts; between two turns, or in a body that counts nothing.

        Raises:
            EngineError: If they differ, because a handler has written to what the engine keeps them in.
        """
        packed, newest = self._written
        odd = ["turn"] if len(newest.arcs) != len(newest.times) else []
        if not odd and newest.seq + len(newest.times) > self._checked:
            odd = _differing(
                self.effects, [*[one for one in packed if one.seq >= self._checked], newest.packed()], counters
            )
        if odd:
            raise EngineError(
                f"the run and its log differ in {', '.join(odd)}: a handler has written to run._position or "
                "run._buffer, which are the engine's; a handler acts through the run's verbs (stop, pause, "
                "skip_update, skip_batch, set_accumulation, record, note)"
            )
        self._checked = newest.seq

    def _pack(self, counters: Counters) -> None:
        packed, chunk = self._written
        end = chunk.seq + len(chunk.times)
        self._node = int(self.effects.dests[chunk.arcs[-1]])
        newest = chunk.packed()
        for follower in self._followers:
            follower.packed(newest)
        # Whole chunks are kept, so a little more than `capacity`: those without which less than that would be left.
        gone = 0
        while gone < len(packed) and end - packed[gone].seq - len(packed[gone]) >= self.capacity:
            gone += 1
        kept = (*packed[gone:], newest)
        self._written = kept, OpenChunk(end, chunk.times[-1], self._offset, counters)
        if self._events and self._events[0].seq < kept[0].seq:
            self._events = [event for event in self._events if event.seq >= kept[0].seq]
        if len(kept) <= len(packed):
            self.traced.drop(kept[0].seq)

    def view(self) -> View:
        """Return the log as it stands, at any time, from any thread."""
        packed, chunk = self._written
        last = chunk.packed()
        end = last.seq + len(last)
        oldest = packed[0].seq if packed else last.seq
        chunks = (*packed, last) if len(last) else packed
        return View(chunks, max(oldest, end - self.capacity), end)

    def open_chunk(self) -> PackedChunk:
        """Return the open chunk as it stands, at any time, from any thread."""
        return self._written[1].packed()

    def events(self, first: int) -> list[Event]:
        """Return the events of the transitions from that number on, oldest first."""
        return [event for event in self._events if event.seq >= first]

    def values(self, first: int = 0) -> list[Recorded]:
        """Return the recorded values from the one of that number on; syncs with the device of those still there."""
        return self.recorded.since(first)

    def columns(self, first: int, before: int | None = None) -> Columns:
        """Return them by column, up to those recorded in the turn of transition `before`."""
        return self.recorded.columns(first, before)

    def value_block(self, first: int, most: int) -> Columns:
        """Return at most so many values by column, from the one of that number on."""
        return self.recorded.block(first, most)

    def values_between(self, first: int, end: int) -> list[Recorded]:
        """Return the values recorded in the turns of these transitions; syncs with the device of those still there."""
        return self.recorded.between(first, end)

    def calls_since(self, number: int) -> list[Call]:
        """Return the calls of handlers that are kept, without the first `number` of the run."""
        return self.traced.since(number, self._offset)

    def calls(self, first: int, end: int) -> list[Call]:
        """Return the calls of handlers in the turns of these transitions, if they were traced."""
        return self.traced.between(first, end, self._offset)


def _differing(effects: Effects, chunks: Sequence[PackedChunk], counters: Counters) -> list[str]:
    """Return what differs between counters, those that each chunk begins with, and the path."""
    parts = [chunk.arcs() for chunk in chunks]
    arcs, ends = np.concatenate(parts), np.cumsum([len(part) for part in parts])
    updates = effects.counts_update[arcs]
    updates[[chunk.seq - chunks[0].seq + place for chunk in chunks for place in chunk.skipped]] = False
    paths = {"epoch": effects.counts_epoch[arcs], "step": effects.counts_step[arcs], "update": updates}
    after = [*[chunk.counters for chunk in chunks[1:]], counters]
    odd = ["turn"] if (effects.sources[arcs[1:]] != effects.dests[arcs[:-1]]).any() else []
    for name, counts in paths.items():
        counted = np.concatenate(([0], np.cumsum(counts)))[ends] + getattr(chunks[0].counters, name)
        if (counted != [getattr(one, name) for one in after]).any():
            odd.append(name)
    return odd
