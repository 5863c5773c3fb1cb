"""`Copies`: the mirror of a store, and the thread that brings it up to date while the run continues.

A store has one and calls it when a checkpoint is durable. The thread is no daemon: the interpreter does not exit before
the copies are there, or the mirror is given up. It touches nothing of the run, and exchanges nothing with other ranks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial

from heptad.checkpoints.entry import Entry
from heptad.checkpoints.mirroring import Mirrors, NoMirror
from heptad.checkpoints.together import OneRank, Together
from heptad.run.run import Run

Entries = Callable[[], Sequence[Entry]]
"""Returns what a directory holds."""

Keep = tuple[int, int]
"""How many of the newest checkpoints stay, and how many of the best, see `Store.rotate`."""


class Copies:
    """The copies of a directory, which the first rank makes; all ranks call the methods, but for `claim` and `abandon`.

    Args:
        mirror: What is done with them.

    Attributes:
        mirror: See above; that of another rank than the first does nothing.
        exist: Whether the first rank has a mirror, which it tells the others.
    """

    def __init__(self, mirror: Mirrors) -> None:
        self.mirror = mirror
        self.exist = not isinstance(mirror, NoMirror)
        self._ranks: Together = OneRank()
        self._started = False
        """Whether the first rank has started a thread since all last waited for it."""
        self._ended = threading.Event()
        """Set when nothing is copied by this process."""
        self._ended.set()
        self._process = os.getpid()

    def join(self, ranks: Together) -> None:
        """Act together with other ranks from now on."""
        self._ranks = ranks
        if ranks.rank:
            self.mirror, self.exist = NoMirror(), False

    def claim(self, run_id: str, resumed: bool, overwrite: bool) -> None:
        """See `Mirrors`; the first rank alone calls it."""
        self.mirror.claim(run_id, resumed, overwrite)

    def follow(self, entries: Entries, keep: Keep, *, wait: bool) -> None:
        """Bring the mirror up to date; no failure of it is raised.

        Args:
            entries: See `Entries`.
            keep: See `Keep`.
            wait: Whether it returns when that is done. If not, a thread does it, and `finish` waits for that; while
                one is at it, what is new waits for a later call.
        """
        work = partial(self.mirror.follow, entries, *keep)
        if wait:
            self._copy(work)
        elif self.exist and not self._is_under_way:
            self._start(work)

    def retry(self, entries: Entries, keep: Keep) -> None:
        """Try once more to copy what the mirror lacks, since the run pauses or ends, and wait for that."""
        self._copy(partial(self.mirror.retry, entries, *keep))

    def tell(self, run: Run) -> None:
        """See `Mirrors`."""
        self.mirror.tell(run)

    def finish(self) -> None:
        """Wait until nothing is being copied; the ranks wait together, however long it takes."""
        if self._started:
            self._ranks.await_first(self._ended)
        self._started = False

    def abandon(self) -> None:
        """Wait until this process copies nothing, where the other ranks may be gone."""
        if self._is_under_way:
            self._ended.wait()
        self._started = False

    def _copy(self, work: Callable[[], object]) -> None:
        """Do work on the mirror, and wait for it.

        With several ranks a thread does it: it may take longer than these wait for one another without a sign.
        """
        self.finish()
        if self.exist and self._ranks.others:
            self._start(work)
            self.finish()
        elif self.exist:
            work()

    # -- the thread

    @property
    def _is_under_way(self) -> bool:
        """Whether a thread of this process copies; a forked child has none."""
        if self._process != os.getpid():
            self._ended.set()
        return not self._ended.is_set()

    def _start(self, work: Callable[[], object]) -> None:
        """Start work that raises nothing on the first rank; where no thread can be started, do it here."""
        self._started = True
        if self._ranks.rank:
            return
        self._ended.clear()
        self._process = os.getpid()
        try:
            threading.Thread(target=self._run, args=(work,), name="heptad-checkpoint", daemon=False).start()
        except RuntimeError:
            self._run(work)

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        finally:
            self._ended.set()
