"""Ctrl-C: the first one pauses the run, a second one raises at once.

Python installs no handler of Ctrl-C in a process that was started with SIGINT ignored (a job in the background,
`nohup`, some CI runners). Ctrl-C does nothing there, unless the script asks for it before it trains:
`signal.signal(signal.SIGINT, signal.default_int_handler)`.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from heptad.errors import SecondInterrupt
from heptad.run.run import Run

CTRL_C = "Ctrl-C"


class CtrlC:
    """Listen for Ctrl-C for the length of a `with` block, then put the handler before it back.

    Only the main thread can have signal handlers. Elsewhere nothing is changed, nor is it where SIGINT is ignored or
    handled outside of Python.

    Attributes:
        pressed: Whether Ctrl-C was pressed.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._before: Any = None
        self._process = os.getpid()
        self.pressed = False

    def __enter__(self) -> CtrlC:
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and before not in (None, signal.SIG_IGN):
            self._before = before
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
        if self.pressed:  # while plugins were closed: the run is paused, and the next `run()` is not to pause for it
            self._run._position.pause_requested = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._process != os.getpid():  # a worker that was forked meanwhile: a terminal sends Ctrl-C there too
            return
        if self.pressed:
            raise SecondInterrupt("Ctrl-C was pressed a second time")
        self.pressed = True
        if not self._run.ended:
            self._run.pause(CTRL_C)
