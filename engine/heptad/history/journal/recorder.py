"""`JournalRecorder`: take the log on the thread that drives the run, and write it to a file on another.

Which thread may touch what:

- The thread that drives the run calls `start`, `flush`, `check`, `close` and the methods of `Follower`.
- The thread `heptad-journal` opens the file, and alone has the connection. It reads the log where `LogBuffer` says that
  any thread may: the packed chunks, the open chunk, recorded values, calls.
- `_wake` guards what both write: the chunks and the calls that wait, and the counts of `flush`.
- Events are taken without a lock, because a signal handler may emit one: a `deque` appends and pops atomically.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from heptad.errors import LogError, kind
from heptad.history.journal.forks import ForkedError
from heptad.history.journal.watch import JournalChangedError
from heptad.history.journal.writer import FileWriter
from heptad.record.buffer import LogBuffer, PackedChunk
from heptad.record.chunk import Call, Chunk
from heptad.record.events import Behind, Event
from heptad.record.forks import know_forks

INTERVAL = 0.25
"""Seconds after which everything is written, even if no chunk is full, and in the middle of a long body."""
TOGETHER = 8
"""Full chunks that are worth a transaction, which costs as much as some hundred transitions."""
AT_ONCE = 64
"""Full chunks in one transaction at most: rows are made of them, in 20 times their memory."""
MOST_BEHIND = 64 << 20
"""Bytes of the log that may wait to be written: some six million transitions. With more the run waits too."""

_NO_LIMIT = 1 << 62

_Bound = TypeVar("_Bound", Event, Call)

_PER_TRANSITION, _PER_CALL = 10, 240
"""Bytes that each takes while it waits: an arc and a time in two arrays, and a `Call` with its three numbers."""

_DISK_ERRORS = (OSError, sqlite3.OperationalError)
"""Errors of the disk. A damaged file raises a plain `sqlite3.DatabaseError`, whose subclasses are mistakes in calls."""


class JournalRecorder:
    """Write the log of a run to a file on a thread of its own. `JournalFile.record` starts one.

    A forked child has neither the thread nor a use for the connection: there `check` says whose file it is.

    Attributes:
        error: What writing raised. Nothing more is written then.
        end: The number of the first transition that is not in the file.
    """

    def __init__(
        self,
        log: LogBuffer,
        path: Path,
        adopt: Callable[[], FileWriter],
        flush_every: int | None = None,
        earlier: JournalRecorder | None = None,
    ) -> None:
        """Prepare to follow a log.

        Args:
            log: The log.
            path: The file, for messages.
            adopt: Opens the file. It is called once, on the thread that writes, while `start` waits.
            flush_every: Transitions that the file may lack after a kill; `None` for those of the last second.
            earlier: The recorder that wrote the same run to the file before it was paused.
        """
        self._log = log
        self._path = path
        self._adopt = adopt
        self._every = flush_every
        self._chunks: deque[Chunk] = deque()
        self._events: deque[Event] = deque()
        self._called: deque[Call] = deque()
        self._wake = threading.Condition()
        self._held = 0  # bytes of the chunks and calls that wait
        self._slowed = False
        self._asked = self._done = 0
        self._ending = self._finished = False
        self._flushed = log.seq
        self._raised = False
        self.error: BaseException | None = None
        self.end: int | None = None
        # What the recorder after the next pause continues from: the last event and the calls taken, and the session.
        self.last_event: Event | None = earlier.last_event if earlier else None
        self.calls = earlier.calls if earlier else 0
        self.session = earlier.session if earlier else 0
        self._thread = threading.Thread(target=self._work, name="heptad-journal", daemon=True)
        know_forks(self)

    def start(self, chunks: Sequence[Chunk], events: Sequence[Event]) -> None:
        """Open the file and follow the log.

        Args:
            chunks: What is written first: all chunks that the log has kept.
            events: The events among them that the file lacks.

        Raises:
            BaseException: What opening the file raised.
        """
        self._chunks.extend(chunks)
        self._held = sum(_bytes(chunk) for chunk in chunks)
        self._events.extend(events)
        self._log.follow(self)
        self._thread.start()
        self.flush()
        if self.error is not None:
            self._log.leave(self)
            raise self.error

    def close(self, finished: bool) -> None:
        """Write what is left and end the thread. What this raised is raised by `check`.

        Args:
            finished: Whether the run has ended, so that the file becomes one plain file.
        """
        self._log.leave(self)
        with self._wake:
            self._ending, self._finished = True, finished
            self._wake.notify_all()
        self._thread.join()

    def flush(self) -> None:
        """Wait until everything up to now is in the file, or until writing has failed."""
        seq = self._log.seq
        with self._wake:
            self._asked += 1
            mine = self._asked
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._done >= mine or self.error is not None)
        self._flushed = seq

    def check(self) -> None:
        """Raise what the thread has met, once, and stop following.

        Raises:
            LogError: If the file could not be written. The message says what is in it, and what to do.
        """
        if self.error is None or self._raised:
            return
        self._raised = True
        self._log.leave(self)
        raise LogError(f"{self._path} {self._failed(self.error)}") from self.error

    def disown(self) -> None:
        """Leave the file to the parent, in a forked child: neither the thread nor a use for the connection is there."""
        self._wake = threading.Condition()  # the one before may be held by the thread, for ever
        self._chunks.clear()
        self._log.leave(self)
        self.error = ForkedError()

    def _failed(self, error: BaseException) -> str:
        """Return what became of the file, and what to do."""
        if isinstance(error, ForkedError):
            return str(error)
        if isinstance(error, JournalChangedError):
            return (
                f"{error}. Some of what the run has written is lost, or is where the file is now. Leave a journal as "
                "it is until its run has ended"
            )
        if not self._path.exists():
            return (
                f"is gone: it was removed or renamed while the run was writing it ({error}). Leave a journal in its "
                "place until its run has ended"
            )
        held = f"the transitions before {self.end} are in it and can be read" if self.end else "it holds nothing"
        if isinstance(error, _DISK_ERRORS) or type(error) is sqlite3.DatabaseError:
            return f"cannot be written any more: {error}; {held}. Make room or name another disk"
        return (
            f"cannot be written any more: {kind(error)}: {error}; {held}. This is a fault in what was to be written, "
            "not of the disk: look at what is noted and recorded"
        )

    # -- following, on the thread that drives the run

    @property
    def limit(self) -> int:
        """Transitions after which `settled` must be called at the latest."""
        return _NO_LIMIT if self._every is None else self._every - (self._log.seq - self._flushed)

    def packed(self, chunk: PackedChunk) -> None:
        """Take a full chunk; wait while more than `MOST_BEHIND` is not yet written, and say so once."""
        with self._wake:
            slowed, self._slowed = self._slowed, self._held > (MOST_BEHIND // 2 if self._slowed else MOST_BEHIND)
            if self._slowed and not slowed:
                self._log.emit(Behind, chunk.seq + len(chunk), chunk.seq - (self.end or 0))
            self._wake.wait_for(lambda: self._held <= MOST_BEHIND or self.error is not None)
            if self.error is None:
                self._chunks.append(chunk)
                self._held += _bytes(chunk)
                self._take_calls()  # before the log drops those of its oldest chunk
                if len(self._chunks) >= TOGETHER:
                    self._wake.notify_all()

    def noted(self, event: Event) -> None:
        """Take a event."""
        self._events.append(event)

    def settled(self) -> None:
        """Flush if more transitions than `flush_every` allows would be missing."""
        if self._every is not None and self._log.seq - self._flushed >= self._every and self.error is None:
            self.flush()

    # -- writing, on a thread of its own

    def _work(self) -> None:
        writer: FileWriter | None = None
        try:
            writer = self._adopt()
            self.session = writer.session
            while self._turn(writer):
                pass
        except BaseException as error:  # of every kind: `check` raises it on the other thread
            if writer is not None:
                writer.abandon()
            with self._wake:
                self.error = error
                self._chunks.clear()
                self._called.clear()
                self._wake.notify_all()

    def _turn(self, writer: FileWriter) -> bool:
        """Wait for something to write, write it, and return whether there is more to come."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._asked > self._done or self._ending or len(self._chunks) >= TOGETHER, INTERVAL
            )
            asked, ending = self._asked, self._ending
        if not self._write(writer):
            return True  # and nobody's `flush` is answered yet
        if ending:
            writer.close(self._finished)
        with self._wake:
            self._done = asked
            self._wake.notify_all()
        return not ending

    def _write(self, writer: FileWriter) -> bool:
        """Write everything up to now, or as much of it as a transaction takes; return whether it was everything.

        Transitions are taken first. What belongs to them was logged before them, so it is in the same transaction.
        """
        writer.check_files()
        log = self._log
        newest = log.open_chunk()
        with self._wake:
            chunks = [self._chunks.popleft() for _ in range(min(len(self._chunks), AT_ONCE))]
            complete = not self._chunks
        taken = sum(_bytes(chunk) for chunk in chunks)
        if complete:
            chunks.append(newest)
        failure = log.failure if complete else None
        writer.transitions(chunks, failure)
        # what comes in the turns of later transitions waits for these
        end = _NO_LIMIT if complete else chunks[-1].seq + len(chunks[-1])
        events = _take_before(end, self._events)
        writer.events(events)
        writer.record(log.columns(writer.values, None if complete else end))
        with self._wake:
            self._take_calls()
            calls = _take_before(end, self._called)
        writer.calls(calls)
        writer.state(log.facts, log.windows, log.stops, failure)
        writer.commit()
        self.end = writer.end
        self.last_event = events[-1] if events else self.last_event
        with self._wake:
            self._held -= taken + _PER_CALL * len(calls)
            self._wake.notify_all()
        return complete

    def _take_calls(self) -> None:
        """Take the calls since the last time. Both threads do, so hold the lock."""
        calls = self._log.calls_since(self.calls)
        self.calls += len(calls)
        self._called.extend(calls)
        self._held += _PER_CALL * len(calls)


def _bytes(chunk: Chunk) -> int:
    """Return what a chunk takes while it waits."""
    return _PER_TRANSITION * len(chunk)


def _take_before(end: int, waiting: deque[_Bound]) -> list[_Bound]:
    """Take those of the turns of transitions before `end`; another thread may append meanwhile."""
    taken: list[_Bound] = []
    for _ in range(len(waiting)):
        if waiting[0].seq >= end:
            break
        taken.append(waiting.popleft())
    return taken
