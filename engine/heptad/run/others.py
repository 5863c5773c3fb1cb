"""Which runs are driven in this process at this moment: they share the global random generators.

A child that a handler forks has copies of them. Files, locks and workers are the parent's, so the child's copy of a run
makes no further turn.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from heptad.data.feed import Feed
from heptad.errors import EngineError
from heptad.record.buffer import PackedChunk
from heptad.record.events import Event, SharedGenerators
from heptad.run.run import Run


@dataclass(slots=True, eq=False)
class _Driver:
    """A run that is being driven.

    Attributes:
        run: The run.
        thread: The thread that drives it.
        process: The process; a forked child has a copy of its parent's list.
        met: The threads that began to drive another run meanwhile.
    """

    run: Run
    thread: threading.Thread = field(default_factory=threading.current_thread)
    process: int = field(default_factory=os.getpid)
    met: list[threading.Thread] = field(default_factory=list[threading.Thread])


_DRIVERS: list[_Driver] = []
"""Those of this process, in the order in which they began. One list operation at a time needs no lock."""

_KEPT: list[Feed] = []
"""In a forked child the data of its parent: an iterator that is dropped there would end the parent's workers."""


class _ParentsLog:
    """Follows the log of a run in a forked child, and refuses the next turn."""

    limit = 1

    def packed(self, chunk: PackedChunk) -> None:
        """Take nothing."""

    def noted(self, event: Event) -> None:
        """Take nothing."""

    def settled(self) -> None:
        """Refuse to make a further turn.

        Raises:
            EngineError: Always.
        """
        raise EngineError(
            f"this process ({os.getpid()}) is a fork of the one that drives the run ({os.getppid()}): the run, its "
            "files and its worker processes belong to that one; end the child in the handler that forks it, with "
            "os._exit(), or start processes with the method spawn"
        )


class _ParentsFeed:
    """Data that the child may not take: its copy of a worker's pipe would take batches from the parent."""

    def __init__(self, feed: Feed) -> None:
        self.batches = feed.batches

    def more(self) -> bool:
        """Return True, without reading: no further turn is made."""
        return True

    def end(self) -> None:
        """Do nothing."""

    rest = close = end


def _know_forks() -> None:
    """Have `_disown` called in forked children, from the first run on."""
    if not _FORKS_KNOWN and hasattr(os, "register_at_fork"):
        _FORKS_KNOWN.append(True)
        os.register_at_fork(after_in_child=_disown)


_FORKS_KNOWN: list[bool] = []


def _disown() -> None:
    """Stop the copies of runs in a forked child at the end of this turn, and touch nothing of the parent's."""
    for driver in _DRIVERS:
        run = driver.run
        run.position.halt = True
        run.buffer.leave_all()
        run.follow(_ParentsLog())
        _KEPT.append(run.runtime.feed)
        run.runtime.feed = cast("Feed", _ParentsFeed(run.runtime.feed))
    _DRIVERS.clear()


@contextmanager
def beside_others(run: Run) -> Generator[None]:
    """Drive a run for the length of a block; note in its log that another one is driven in this process too.

    The run that began later says so at once, the one before it when this block ends.
    """
    own = _Driver(run)
    _know_forks()
    _DRIVERS.append(own)  # first: of two that begin together each finds the other
    try:
        others = [one for one in tuple(_DRIVERS) if one is not own and one.process == own.process]
        for other in others:
            other.met.append(own.thread)
        if others:
            _note_shared(run, run.seq, others[0].thread)
        yield
    finally:
        if own in _DRIVERS:  # not in a forked child
            _DRIVERS.remove(own)
        if own.met:
            _note_shared(run, max(run.buffer.seq - 1, 0), own.met[0])


def _note_shared(run: Run, seq: int, thread: threading.Thread) -> None:
    if not any(isinstance(event, SharedGenerators) for event in run.buffer.events(0)):
        here = thread is threading.current_thread()
        run.buffer.emit(SharedGenerators, seq, "this thread" if here else f"the thread {thread.name}")
