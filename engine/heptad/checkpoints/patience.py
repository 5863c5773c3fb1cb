"""`Patience`: waits for work that may hang, as long as it makes progress. The mirror of a directory uses it.

Python cannot end a thread. Work that hangs is abandoned: its thread does nothing more when it wakes up, and until then
no other work is begun, so that two of them never write one file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

T = TypeVar("T")


class Pulse:
    """What work calls to say that it makes progress."""

    def __init__(self) -> None:
        self.last = monotonic()
        self.abandoned = False

    def beat(self) -> None:
        """Say that an operation has ended.

        Raises:
            TimeoutError: If the work was abandoned.
        """
        if self.abandoned:
            raise TimeoutError("this work was abandoned: it made no progress for too long")
        self.last = monotonic()


class Patience:
    """Waits for one piece of work at a time.

    Args:
        limit: Seconds that may pass without progress.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._hanging: threading.Thread | None = None

    def wait(self, work: Callable[[Pulse], T]) -> T:
        """Do work, in a thread of its own, and return what it returns.

        Raises:
            TimeoutError: If it made no progress for too long, or work before it still hangs.
            BaseException: What the work raised.
        """
        if self._hanging is not None and self._hanging.is_alive():
            raise TimeoutError("an operation that hung has still not ended")
        pulse, ended = Pulse(), threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work(pulse))
            except BaseException as error:  # of every kind: raised where it is waited for
                errors.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=run, name="heptad-mirror", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # none can be started when the interpreter exits: then it is waited for without a limit
            return work(pulse)
        try:
            while not ended.wait(max(pulse.last + self.limit - monotonic(), 0.001)):
                if monotonic() - pulse.last >= self.limit:
                    raise TimeoutError(f"an operation has not ended in {self.limit:g} s")
        except BaseException:  # Ctrl-C too
            pulse.abandoned, self._hanging = True, thread
            raise
        if errors:
            raise errors.pop()
        return results[0]
