"""Ctrl-C: the first one parks the run, a second one raises at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from heptad.errors import SecondInterrupt
from heptad.run import Run

CTRL_C = "Ctrl-C"


@contextmanager
def parking_on_ctrl_c(run: Run) -> Generator[None]:
    """Turns the first Ctrl-C into an interrupt of the run for as long as the block runs, then puts the handler back.

    Only the main thread can have signal handlers; elsewhere, and where Ctrl-C is ignored or handled outside of Python,
    nothing is changed.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        if run.ended:
            return
        if run.position.asked_to_park == CTRL_C:
            raise SecondInterrupt("Ctrl-C was pressed a second time")
        run.interrupt(CTRL_C)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
