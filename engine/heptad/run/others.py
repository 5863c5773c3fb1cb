"""Which runs are driven in this process at this moment: they share the global random generators."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from heptad.record.events import SharedGenerators
from heptad.run.run import Run


@dataclass(slots=True, eq=False)
class _Driver:
    """A run that is being driven.

    Attributes:
        thread: The thread that drives it.
        process: The process; a forked child has a copy of its parent's list.
        met: The threads that began to drive another run meanwhile.
    """

    thread: threading.Thread = field(default_factory=threading.current_thread)
    process: int = field(default_factory=os.getpid)
    met: list[threading.Thread] = field(default_factory=list[threading.Thread])


_DRIVERS: list[_Driver] = []
"""Those of this process, in the order in which they began. One list operation at a time needs no lock."""


@contextmanager
def beside_others(run: Run) -> Generator[None]:
    """Drive a run for the length of a block; note in its log that another one is driven in this process too.

    The run that began later says so at once, the one before it when this block ends.
    """
    own = _Driver()
    _DRIVERS.append(own)  # first: of two that begin together each finds the other
    try:
        others = [one for one in tuple(_DRIVERS) if one is not own and one.process == own.process]
        for other in others:
            other.met.append(own.thread)
        if others:
            _note_shared(run, run.seq, others[0].thread)
        yield
    finally:
        _DRIVERS.remove(own)
        if own.met:
            _note_shared(run, max(run.buffer.seq - 1, 0), own.met[0])


def _note_shared(run: Run, seq: int, thread: threading.Thread) -> None:
    if not any(isinstance(event, SharedGenerators) for event in run.buffer.events(0)):
        here = thread is threading.current_thread()
        run.buffer.emit(SharedGenerators, seq, "this thread" if here else f"the thread {thread.name}")
