"""`Job`: one checkpoint while a thread writes it: `OwnJob` of a process alone, `SharedJob` for one rank's part.

`BackgroundWriter` makes it, looks at it between two turns and ends it, on the thread that drives the run. The thread
`heptad-checkpoint` has the copy, the store and its job, and touches nothing of the run; nor does it exchange anything
with other ranks. It is no daemon: the interpreter does not exit before the files are durable.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from heptad.checkpoints.copies import Keep
from heptad.checkpoints.entry import Entry
from heptad.checkpoints.saving import Saving
from heptad.checkpoints.store import Store, WrittenPart
from heptad.errors import add_note
from heptad.run.run import Run


class Job(ABC):
    """A checkpoint that a thread writes.

    Args:
        run: The run that it is of.
        store: Where it is written.
        keep: What stays beside it.

    Attributes:
        run: See above.
        began: When the thread was started, in monotonic nanoseconds.
        written: When the checkpoint was durable; 0 before.
        entry: The checkpoint, once it is durable.
        error: What writing it, or removing older ones, raised; until that is raised in the run.
        taken: Taken by the thread, or by whoever could not start it.
        ended: Set when the thread writes nothing more.
        process: The process that has the thread: a forked child has not.
    """

    def __init__(self, run: Run, store: Store, keep: Keep) -> None:
        self.run = run
        self.began, self.written = monotonic_ns(), 0
        self.entry: Entry | None = None
        self.error: BaseException | None = None
        self.taken, self.ended = threading.Lock(), threading.Event()
        self.process = os.getpid()
        self._store, self._keep = store, keep
        self._place = f"epoch {run.epoch}, step {run.step}, update {run.update}"
        self._lock = threading.Lock()
        self._last: list[Callable[[], object]] = []

    # -- what differs

    @abstractmethod
    def work(self, write: Callable[[], Any]) -> None:
        """Do what the thread does."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether `finish` does not wait."""

    @property
    @abstractmethod
    def may_fail(self) -> bool:
        """Whether `finish` may raise something, as far as is known."""

    @abstractmethod
    def look(self) -> None:
        """Look whether the thread has ended; called between two turns."""

    @abstractmethod
    def finish(self) -> None:
        """End it, when the thread has ended.

        Raises:
            BaseException: What the thread raised.
        """

    @abstractmethod
    def give_up(self) -> bool:
        """Give it up where it takes other ranks to end it, which may be gone; return whether it is given up."""

    # -- the thread

    def start(self, write: Callable[[], Any]) -> None:
        """Start the thread.

        Args:
            write: Writes what was copied; nobody else holds it, so that the copy is dropped when the thread ends.
        """
        threading.Thread(target=self._run, args=(write,), name="heptad-checkpoint", daemon=False).start()

    def _run(self, write: Callable[[], Any]) -> None:
        if not self.taken.acquire(blocking=False):
            return
        try:
            self.work(write)
        except BaseException as error:  # of every kind: it is raised on the other thread
            self.fail(error)
        finally:
            with self._lock:
                self.ended.set()
            for call in self._last:
                call()

    def fail(self, error: BaseException) -> None:
        """Keep an error until it is raised in the run; it is shown when the interpreter exits before."""
        self.error = error
        add_note(error, self.note)
        atexit.register(self._report)  # for a script that ends without asking

    @property
    def note(self) -> str:
        """Which checkpoint it is, for a note on an error."""
        return f"in the background, of the checkpoint that was taken at {self._place}"

    def after(self, call: Callable[[], object]) -> None:
        """Call a function when nothing more is written: now, or at the end of the thread."""
        with self._lock:
            if not self.ended.is_set():
                self._last.append(call)
                return
        call()

    def raise_error(self) -> None:
        """Raise what the thread raised, once."""
        error = self._take_error()
        try:
            if error is not None:
                raise error
        finally:
            del error  # break a reference cycle: its traceback holds this frame

    def _take_error(self) -> BaseException | None:
        error, self.error = self.error, None
        if error is not None:
            atexit.unregister(self._report)
        return error

    def _report(self) -> None:
        """Show an error that nobody has raised when the interpreter exits, as it shows one that nobody has caught."""
        error = self.error
        if error is not None and self.process == os.getpid():
            sys.excepthook(type(error), error, error.__traceback__)


class OwnJob(Job):
    """A checkpoint of a process alone: the thread makes all of it."""

    def work(self, write: Callable[[], Entry]) -> None:
        """Write the checkpoint, then remove those that need not be kept."""
        self.entry = write()
        self.written = monotonic_ns()
        self._store.rotate(*self._keep, wait=False)

    @property
    def done(self) -> bool:
        """Whether the thread has ended."""
        return self.ended.is_set()

    @property
    def may_fail(self) -> bool:
        """Whether the thread raised something."""
        return self.error is not None

    def look(self) -> None:
        """Do nothing: `done` says all."""

    def finish(self) -> None:
        """Raise what the thread raised."""
        self.raise_error()

    def give_up(self) -> bool:
        """Return False: the thread ends it."""
        return False


class SharedJob(Job):
    """A rank's part of a checkpoint: its thread writes its files, and all ranks commit them on their main threads.

    A rank asks for `request` while its thread writes. It takes that back between two turns, so the first agreement at
    which no rank asks for it says, to all in the same turn, that all have written. A rank reads what is agreed only
    when an agreement was made since it last looked: taking a request back removes that too.

    Args:
        run: As for `Job`.
        store: As for `Job`.
        keep: As for `Job`.
        saving: What the ranks have begun.
        request: What a rank asks for while it writes, see `Run.ask`.
    """

    def __init__(self, run: Run, store: Store, keep: Keep, saving: Saving, request: str) -> None:
        super().__init__(run, store, keep)
        self._saving, self._request = saving, request
        self._part: WrittenPart = {}
        self._agreements = self._agreements_now()
        self._all_have_written = False
        run.ask(request)

    def start(self, write: Callable[[], WrittenPart]) -> None:
        """Start the thread; where it cannot be started, all ranks raise that in the end, as what a thread raises."""
        try:
            super().start(write)
        except Exception as error:
            if self.taken.acquire(blocking=False):
                self.fail(error)
                self.ended.set()

    def work(self, write: Callable[[], WrittenPart]) -> None:
        """Write the files of this rank."""
        self._part = write()

    @property
    def done(self) -> bool:
        """Whether all ranks have agreed that all have written."""
        return self._all_have_written

    @property
    def may_fail(self) -> bool:
        """True: what the threads of other ranks raised is known only when it is committed."""
        return True

    def look(self) -> None:
        """Take note of an agreement since the last look; then say for the next one if the thread has ended."""
        if self._agreements != (now := self._agreements_now()):
            self._agreements = now
            self._all_have_written = not self.run.agreed(self._request)
        if self.ended.is_set():
            self.run.ask(self._request, wanted=False)

    def finish(self) -> None:
        """Commit it with the other ranks, and remove older ones; all of them are here, and their threads have ended.

        Raises:
            CheckpointError: What a thread, the commit or the removal raised: the same on all ranks.
        """
        self.run.ask(self._request, wanted=False)
        try:
            self.entry = self._store.commit(self._saving, self._written)
            self.written = monotonic_ns()
            self._store.rotate(*self._keep, wait=False)
        except Exception as error:
            add_note(error, self.note)
            raise

    def give_up(self) -> bool:
        """Stop the thread, and leave what it has written to the next sweep; what it raised before that stays."""
        if not self.ended.is_set():
            self._saving.given_up.set()
            self.ended.wait()
            self._take_error()
        self._store.drop(self._saving)
        return True

    def _written(self) -> WrittenPart:
        self.raise_error()
        return self._part

    def _agreements_now(self) -> int:
        agreed = self.run._position.agreed
        return 0 if agreed is None else agreed.number
