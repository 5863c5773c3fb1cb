"""`Uploading`: the thread that brings a mirror up to date while the run continues; there is one at most.

A store has one and starts it when a checkpoint is durable. It is no daemon: the interpreter does not exit before the
copies are there, or the mirror is given up. It touches nothing of the run, and exchanges nothing with other ranks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class Uploading:
    """Copying that is under way, or has ended.

    Attributes:
        ended: Set when nothing is copied.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.ended.set()
        self._process = os.getpid()

    @property
    def is_under_way(self) -> bool:
        """Whether a thread of this process copies; a forked child has none."""
        if self._process != os.getpid():
            self.ended.set()
        return not self.ended.is_set()

    def start(self, work: Callable[[], object]) -> None:
        """Start work that raises nothing; where no thread can be started, do it here."""
        self.ended.clear()
        self._process = os.getpid()
        thread = threading.Thread(target=self._run, args=(work,), name="heptad-checkpoint", daemon=False)
        try:
            thread.start()
        except RuntimeError:
            self._run(work)

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        finally:
            self.ended.set()
