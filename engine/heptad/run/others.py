"""Which runs are driven in this process at this moment: they share the global random generators.

So does an evaluation in another thread. One of the very network that a run trains would switch its mode in mid-step.

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

from torch import nn

from heptad.data.feed import Feed
from heptad.errors import EngineError
from heptad.record.buffer import PackedChunk
from heptad.record.events import Event, SharedGenerators
from heptad.record.forks import know_forks
from heptad.run.run import Run


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Driver:
    """A run that is being driven, or an evaluation.

    Attributes:
        network: Its network.
        run: The run; `None` for an evaluation or a prediction, which has no log that is kept.
        thread: The thread that drives it.
        process: The process; a forked child has a copy of its parent's list.
        met: The threads that began to drive another run meanwhile.
    """

    network: nn.Module
    run: Run | None
    thread: threading.Thread = field(default_factory=threading.current_thread)
    process: int = field(default_factory=os.getpid)
    met: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def disown(self) -> None:
        """Stop the copy of the run in a forked child at the end of this turn, and touch nothing of the parent's."""
        if self not in _DRIVERS:
            return  # it is not driven any more
        _DRIVERS.remove(self)
        if (run := self.run) is not None:
            run._position.halt = True
            run._buffer.leave_all()
            run.follow(_ParentsLog())
            _KEPT.append(run._runtime.feed)
            run._runtime.feed = cast("Feed", _ParentsFeed(run._runtime.feed))


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


@contextmanager
def beside_others(run: Run) -> Generator[None]:
    """Drive a run for the length of a block; note in its log that another one is driven in this process too.

    The run that began later says so at once, the one before it when this block ends.

    Raises:
        EngineError: If the network is being evaluated in another thread.
    """
    with _listed(_Driver(run.network, run)) as others:
        if others:
            _note_shared(run, run.seq, others[0].thread)
        yield


@contextmanager
def evaluated_beside(network: nn.Module, verb: str) -> Generator[None]:
    """Evaluate a network for the length of a block; runs that other threads drive meanwhile say so in their logs.

    Raises:
        EngineError: If one of them trains this network.
    """
    with _listed(_Driver(network, None), verb):
        yield


@contextmanager
def _listed(own: _Driver, verb: str = "") -> Generator[list[_Driver]]:
    """List what is driven for the length of a block, and yield what is listed beside it."""
    know_forks(own)
    _DRIVERS.append(own)  # first: of two that begin together each finds the other
    try:
        others = [one for one in tuple(_DRIVERS) if _is_beside(own, one)]
        for other in others:
            _refuse_one_network(own, other, verb)
            other.met.append(own.thread)
        yield others
    finally:
        if own in _DRIVERS:  # not in a forked child
            _DRIVERS.remove(own)
        if own.met and own.run is not None:
            _note_shared(own.run, max(own.run._buffer.seq - 1, 0), own.met[0])


def _is_beside(own: _Driver, other: _Driver) -> bool:
    """Return whether another one may draw between two draws of this one: an evaluation in a handler restores all."""
    if other is own or other.process != own.process:
        return False
    return other.thread is not own.thread or (own.run is not None is not other.run)


def _refuse_one_network(own: _Driver, other: _Driver, verb: str) -> None:
    if own.thread is other.thread or (own.run is None) is (other.run is None):
        return
    if {*own.network.modules()}.isdisjoint(other.network.modules()):
        return
    if own.run is None:
        raise EngineError(
            f"{verb} was called in the thread {own.thread.name} while the thread {other.thread.name} trains this "
            "network: its steps would be made in evaluation mode; evaluate in a handler, while the run is paused, or "
            "a copy of the network in an engine of its own"
        )
    raise EngineError(
        f"the thread {other.thread.name} is evaluating this network: steps would be made in evaluation mode; run when "
        "the evaluation has ended"
    )


def _note_shared(run: Run, seq: int, thread: threading.Thread) -> None:
    if not any(isinstance(event, SharedGenerators) for event in run._buffer.events(0)):
        here = thread is threading.current_thread()
        run._buffer.emit(SharedGenerators, seq, "this thread" if here else f"the thread {thread.name}")
