"""Writing the log of a run to a file while it goes on: taken on the thread that drives it, written on another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from heptad.history.journal.writer import FileWriter
from heptad.record.buffer import LogBuffer, Packed
from heptad.record.chunk import Call, Chunk
from heptad.record.events import Event

INTERVAL = 0.25
"""Seconds after which what there is is written, also where nothing is full and in the middle of a long body."""
TOGETHER = 8
"""Chunks that are written at once while many come; a transaction costs as much as some hundred transitions."""
WAITING = 64
"""Chunks that may wait to be written. Where more come, the run waits: it makes 1,024 transitions in the time."""

_NO_LIMIT = 1 << 62


class Recorder:
    """Follows the log of a run and writes it on a thread of its own, which owns the connection to the file.

    A child that was forked has neither the thread nor, but in the memory of that thread, the connection: nothing in it
    can touch the file. Notes are taken without a lock, because a signal handler may make one.

    Args:
        memory: The log that is followed.
        adopt: Opens the file; called once, on the thread that writes, while `start` waits.
        flush_every: Transitions that may be missing in the file; `None` for no such limit.

    Attributes:
        error: What writing raised. Nothing more is written then.
        end: The number of the first transition that is not in the file.
        last_note: The last note that was taken.
        calls: How many calls of handlers were taken.
    """

    def __init__(self, memory: LogBuffer, adopt: Callable[[], FileWriter], flush_every: int | None) -> None:
        self._memory = memory
        self._adopt = adopt
        self._every = flush_every
        self._chunks: deque[Chunk] = deque()
        self._notes: deque[Event] = deque()
        self._called: deque[Call] = deque()
        self._wake = threading.Condition()
        self._asked = self._done = 0
        self._ending = self._finished = False
        self._flushed = memory.seq
        self.error: BaseException | None = None
        self.end: int | None = None
        self.last_note: Event | None = None
        self.calls = 0
        self._thread = threading.Thread(target=self._work, name="heptad-journal", daemon=True)

    def start(self, chunks: Sequence[Chunk], notes: Sequence[Event]) -> None:
        """Opens the file and begins to follow.

        Args:
            chunks: What the file is to be given first.
            notes: Likewise.

        Raises:
            BaseException: What opening the file raised.
        """
        self._chunks.extend(chunks)
        self._notes.extend(notes)
        self._memory.follow(self)
        self._thread.start()
        self.flush()
        if self.error is not None:
            self._memory.leave(self)
            raise self.error

    def close(self, finished: bool) -> None:
        """Writes what is left and ends the thread.

        Args:
            finished: Nothing more is to come.
        """
        self._memory.leave(self)
        with self._wake:
            self._ending, self._finished = True, finished
            self._wake.notify_all()
        self._thread.join()

    def flush(self) -> None:
        """Waits until all that has happened is in the file, or until writing has failed."""
        seq = self._memory.seq
        with self._wake:
            self._asked += 1
            mine = self._asked
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._done >= mine or self.error is not None)
        self._flushed = seq

    # -- following, on the thread that drives the run

    @property
    def limit(self) -> int:
        """Transitions after which `settled` must be called."""
        return _NO_LIMIT if self._every is None else self._every - (self._memory.seq - self._flushed)

    def packed(self, chunk: Packed) -> None:
        """Takes a chunk; waits for room."""
        with self._wake:
            self._wake.wait_for(lambda: len(self._chunks) < WAITING or self.error is not None)
            if self.error is None:
                self._chunks.append(chunk)
                self._take_calls()  # memory is about to let go of the oldest
                if len(self._chunks) >= TOGETHER:
                    self._wake.notify_all()

    def noted(self, event: Event) -> None:
        """Take an event."""
        self._notes.append(event)

    def settled(self) -> None:
        """Lets the file catch up where that was asked for."""
        if self._every is not None and self._memory.seq - self._flushed >= self._every and self.error is None:
            self.flush()

    # -- writing, on a thread of its own

    def _work(self) -> None:
        writer: FileWriter | None = None
        try:
            writer = self._adopt()
            while self._turn(writer):
                pass
        except BaseException as error:  # everything: it is raised where the run is driven
            if writer is not None:
                writer.abandon()
            with self._wake:
                self.error = error
                self._chunks.clear()
                self._wake.notify_all()

    def _turn(self, writer: FileWriter) -> bool:
        """Waits for something to write, and writes it; tells whether there is another turn."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._asked > self._done or self._ending or len(self._chunks) >= TOGETHER, INTERVAL
            )
            asked, ending = self._asked, self._ending
        self._write(writer)
        if ending:
            writer.close(self._finished)
        with self._wake:
            self._done = asked
            self._wake.notify_all()
        return not ending

    def _write(self, writer: FileWriter) -> None:
        """Writes all there is. The transitions are taken first: what belongs to them was there before them."""
        memory = self._memory
        newest = memory.open_chunk()
        with self._wake:
            chunks = [*self._chunks, newest]
            self._chunks.clear()
            self._wake.notify_all()
        failure = memory.failure
        writer.transitions(chunks, failure)
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        writer.events(notes)
        writer.record(memory.columns(writer.values))
        with self._wake:
            self._take_calls()
            calls = [self._called.popleft() for _ in range(len(self._called))]
        writer.calls(calls)
        writer.state(memory.facts, memory.windows, memory.stops, failure)
        writer.commit()
        self.end = writer.end
        self.last_note = notes[-1] if notes else self.last_note

    def _take_calls(self) -> None:
        """Takes the calls that were made since the last time; under the lock, since both threads do."""
        calls = self._memory.calls_since(self.calls)
        self.calls += len(calls)
        self._called.extend(calls)
