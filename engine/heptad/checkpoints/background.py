"""`BackgroundWriter`: writes checkpoints on a thread of its own, one at a time, while the run continues.

A plugin that stores checkpoints owns one. All of its methods are called on the thread that drives the run; the thread
`heptad-checkpoint` has the copy, the store and its `_Job`, and touches nothing of the run. It is no daemon: the
interpreter does not exit before the checkpoint is durable.

While a checkpoint is written, the writer follows the log, so that the loop returns to it after each turn: it learns
there that writing has ended, or failed, without a handler that every step would pay for.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic_ns
from typing import Any

from heptad.checkpoints.copying import copied
from heptad.checkpoints.entry import Entry
from heptad.checkpoints.packed import PackedSnapshot, pack_snapshot
from heptad.checkpoints.store import Store
from heptad.errors import add_note
from heptad.record.buffer import PackedChunk
from heptad.record.events import Event, Written
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot

NO_LIMIT = 1 << 62


@dataclass(eq=False)
class _Job:
    """One checkpoint that is written in the background.

    Attributes:
        run: The run that it is of.
        place: Where that stood, in words.
        began: When the thread was started, in monotonic nanoseconds.
        written: When the checkpoint was durable; 0 before.
        entry: The checkpoint, once it is durable.
        error: What writing it, or removing older ones, raised; until that is raised in the run.
        taken: Taken by the thread, or by whoever could not start it.
        ended: Set when nothing more is written.
        process: The process that has the thread: a forked child has not.
    """

    run: Run
    place: str
    began: int = field(default_factory=monotonic_ns)
    written: int = 0
    entry: Entry | None = None
    error: BaseException | None = None
    taken: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)
    process: int = field(default_factory=os.getpid)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _last: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])

    def write(self, packed: PackedSnapshot, store: Store, keep_last: int, keep_best: int) -> None:
        """Write the checkpoint, then remove those that need not be kept: what the thread does."""
        if not self.taken.acquire(blocking=False):
            return
        try:
            self.entry = store.save_packed(packed)
            self.written = monotonic_ns()
            store.rotate(keep_last, keep_best)
        except BaseException as error:  # of every kind: it is raised on the other thread
            self.error = error
            add_note(error, f"in the background, of the checkpoint that was taken {self.place}")
            atexit.register(self._report)  # for a script that ends without asking
        finally:
            with self._lock:
                self.ended.set()
            for call in self._last:
                call()

    def after(self, call: Callable[[], object]) -> None:
        """Call a function when nothing more is written: now, or at the end of the thread."""
        with self._lock:
            if not self.ended.is_set():
                self._last.append(call)
                return
        call()

    def take_error(self) -> BaseException | None:
        """Return what was raised, to be raised in the run."""
        error, self.error = self.error, None
        if error is not None:
            atexit.unregister(self._report)
        return error

    def _report(self) -> None:
        """Show an error that nobody has raised when the interpreter exits, as it shows one that nobody has caught."""
        error = self.error
        if error is not None and self.process == os.getpid():
            sys.excepthook(type(error), error, error.__traceback__)


class BackgroundWriter:
    """Write the checkpoints of a store on a thread of its own, one at a time.

    Args:
        store: The store; its owner locks it, and `release` unlocks it.
        who: Names plugin and method in a failure.
        raises: Whether a failure ends the run after the turn in which it came. If not, `poll` and `finish` alone raise
            it, in a handler that may be detached.
    """

    def __init__(self, store: Store, who: str, raises: bool = True) -> None:
        self._store = store
        self._who = who
        self._raises = raises
        self._job: _Job | None = None

    def save(self, run: Run, snapshot: Snapshot, keep_last: int, keep_best: int = 0) -> None:
        """Copy what a snapshot holds, and write it as `Store.save` and `Store.rotate` do while the run continues.

        The one before is waited for, so that there is one copy at most.

        Raises:
            CheckpointError: If something cannot be stored, or copied.
            BaseException: What writing the one before failed with.
        """
        packed = pack_snapshot(snapshot)  # all but the tensors is text from here on, and what cannot be stored refused
        self.finish()
        packed = copied(packed)
        job = _Job(run, f"at epoch {run.epoch}, step {run.step}, update {run.update}")
        given = (packed, self._store, keep_last, keep_best)
        try:
            self._job = job
            run.follow(self)
            threading.Thread(target=job.write, args=given, name="heptad-checkpoint", daemon=False).start()
        except BaseException:
            if job.taken.acquire(blocking=False):  # it has not begun, and now it does not any more
                self._forget(job)
            raise

    def poll(self) -> None:
        """Do what `finish` does if nothing is being written any more; return at once if it is."""
        if self._job is not None and self._job.ended.is_set():
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is being written; then say in the log when the checkpoint was, and how long it took.

        Raises:
            BaseException: What writing it, or removing older ones, failed with. It is raised once.
        """
        job = self._job
        if job is None:
            return
        if job.process == os.getpid():
            job.ended.wait()
        self._forget(job)
        if job.entry is not None:
            buffer = job.run._buffer
            buffer.emit(partial(_written, job), max(buffer.seq - 1, 0))
        self._store.mirror.tell(job.run)
        error = job.take_error()
        try:
            if error is not None:
                raise error
        finally:
            del error  # break a reference cycle: its traceback holds this frame

    def release(self) -> None:
        """Unlock the store; if something is still being written, because `finish` was interrupted, after that."""
        if self._job is None:
            self._store.unlock()
        else:
            self._job.after(self._store.unlock)

    def _forget(self, job: _Job) -> None:
        self._job = None
        job.run.unfollow(self)

    # -- as a follower of the log

    @property
    def limit(self) -> int:
        """One turn while something is being written."""
        return NO_LIMIT if self._job is None else 1

    def packed(self, chunk: PackedChunk) -> None:
        """Take nothing."""

    def noted(self, event: Event) -> None:
        """Take nothing."""

    def settled(self) -> None:
        """Do what `poll` does between two turns; an error ends the run in `failed`."""
        job = self._job
        if job is None or job.run.ended or not job.ended.is_set() or (job.error is not None and not self._raises):
            return
        try:
            self.finish()
        except BaseException as error:
            job.run.fail(error, "enter", self._who, "", {})
            raise


def _written(job: _Job, seq: int, time_ns: int, **fields: Any) -> Written:
    """Return the event of a checkpoint, at the time at which it was durable."""
    assert job.entry is not None
    now = monotonic_ns()
    return Written(seq, time_ns - (now - job.written), job.entry.path.name, job.written - job.began)
