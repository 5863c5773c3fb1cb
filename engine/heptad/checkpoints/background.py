"""`BackgroundWriter`: writes checkpoints on a thread of its own, one at a time, while the run continues.

A plugin that stores checkpoints owns one. All of its methods are called on the thread that drives the run, with several
ranks on all of them at the same place; what a thread does is a `Job`.

While a checkpoint is written, the writer follows the log, so that the loop returns to it after each turn: it learns
there that writing has ended, or failed, without a handler that every step would pay for. It is where ranks end one
too: between two turns, in the same one on all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import Any

from heptad.checkpoints.copies import Keep
from heptad.checkpoints.copying import copied
from heptad.checkpoints.job import Job, OwnJob, SharedJob
from heptad.checkpoints.packed import pack_snapshot
from heptad.checkpoints.store import Store
from heptad.errors import PluginError
from heptad.record.buffer import PackedChunk
from heptad.record.checkpoint_events import Written
from heptad.record.events import Event
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot

NO_LIMIT = 1 << 62

Take = Callable[[], Snapshot]


class BackgroundWriter:
    """Write the checkpoints of a store on a thread of its own, one at a time.

    Another thread, of the first rank, copies them to the mirror: neither the run nor the next checkpoint waits for it.

    With several ranks a thread of each writes its files, and they commit the checkpoint together, after the first
    agreement at which all have written.

    Args:
        store: The store, which has joined the run; its owner locks it, and `close` unlocks it.
        who: Names plugin and method in a failure.
        raises: Whether a failure ends the run after the turn in which it came. If not, `poll` and `finish` alone raise
            it, in a handler that may be detached.
        request: With several ranks, what one asks for while it writes, such as `"Checkpoint.writing"`: one of the
            plugin's `requests`, for nothing else.

    Raises:
        PluginError: If there are several ranks and no request.
    """

    def __init__(self, store: Store, who: str, raises: bool = True, request: str = "") -> None:
        self._store = store
        self._who = who
        self._raises = raises
        self._request = request
        self._together = store.shared
        if self._together and not request:
            raise PluginError("with several ranks BackgroundWriter needs request=…, one of the plugin's requests")
        self._job: Job | None = None
        self._around = sys.exception()
        self._run: Run | None = None  # the newest that was written for

    def save(self, run: Run, snapshot: Snapshot | Take, keep_last: int, keep_best: int = 0) -> None:
        """Copy what a snapshot holds, and write it as `Store.save` and `Store.rotate` do while the run continues.

        The one before is waited for, so that there is one copy at most.

        Raises:
            CheckpointError: If something cannot be stored, or copied.
            BaseException: What writing the one before failed with.
        """
        self._run = run
        take = snapshot if callable(snapshot) else lambda: snapshot
        begin = self._begin_together if self._together else self._begin_alone
        job, write = begin(run, take, (keep_last, keep_best))
        try:
            self._job = job
            run.follow(self)
            job.start(write)
        except BaseException:
            if job.taken.acquire(blocking=False):  # it has not begun, and now it does not any more
                job.ended.set()
                self._forget(job)
                job.give_up()
            raise

    def _begin_alone(self, run: Run, take: Take, keep: Keep) -> tuple[Job, Callable[[], Any]]:
        packed = pack_snapshot(take(), shards=run._runtime.shards)
        self._end_job()  # by now all but the tensors is text, and what cannot be stored is refused
        return OwnJob(run, self._store, keep), partial(self._store.save_packed, copied(packed))

    def _begin_together(self, run: Run, take: Take, keep: Keep) -> tuple[Job, Callable[[], Any]]:
        self._end_job()
        saving, write = self._store.begin(take)
        return SharedJob(run, self._store, keep, saving, self._request), write

    def poll(self) -> None:
        """End what nobody writes any more; say in the log what the mirror did meanwhile. Never waits."""
        if self._job is not None and self._job.done:
            self._end_job()
        elif self._run is not None:
            self._store.copies.tell(self._run)

    def finish(self) -> None:
        """Wait until nothing is being written, or copied to the mirror.

        Then say in the log when the checkpoint was written, and how long it took.

        Raises:
            BaseException: What writing it, or removing older ones, failed with. It is raised once.
        """
        try:
            self._end_job()
        finally:
            self._store.copies.finish()
            if self._run is not None:
                self._store.copies.tell(self._run)

    def _end_job(self) -> None:
        """Wait until nothing is being written, and say so; raises as `finish` does."""
        job = self._job
        if job is None:
            return
        if job.process != os.getpid():  # a forked child: its parent has the thread
            self._forget(job)
            return
        job.ended.wait()
        self._forget(job)
        try:
            job.finish()
        finally:
            if job.entry is not None:
                buffer = job.run._buffer
                buffer.emit(partial(_written, job), max(buffer.seq - 1, 0))
            self._store.copies.tell(job.run)

    def close(self) -> None:
        """Do what `finish` does, and unlock the store.

        After a failure of the run, or where an exception is passing by, other ranks may not be there: one that has
        parts of them is given up then. Nothing of it counts, and the next lock sweeps it away.

        Raises:
            BaseException: As `finish`.
        """
        job, fails = self._job, self._fails()
        try:
            if fails and job is not None and job.give_up():
                self._forget(job)
                job.raise_error()
            elif fails:
                self._end_job()
            else:
                self.finish()
        finally:
            if fails:
                self._store.copies.abandon()
            self.release()

    def _fails(self) -> bool:
        """Return whether the run has failed, or an exception is under way that was not when the writer was made."""
        passing = sys.exception()
        failed = self._run is not None and self._run.state == "failed"
        return failed or (passing is not None and passing is not self._around)

    def release(self) -> None:
        """Unlock the store; if something is still being written, because `finish` was interrupted, after that."""
        self._around = None
        if self._job is None:
            self._store.unlock()
        else:
            self._job.after(self._store.unlock)

    def _forget(self, job: Job) -> None:
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
        """End between two turns what is written; an error ends the run in `failed`."""
        job = self._job
        if job is None or job.run.ended:
            return
        job.look()
        if not job.done or (job.may_fail and not self._raises):
            return
        try:
            self._end_job()
        except BaseException as error:
            job.run.fail(error, "enter", self._who, "", {})
            raise


def _written(job: Job, seq: int, time_ns: int, **fields: Any) -> Written:
    """Return the event of a checkpoint, at the time at which it was durable."""
    assert job.entry is not None
    now = monotonic_ns()
    return Written(seq, time_ns - (now - job.written), job.entry.path.name, job.written - job.began)
