"""`Stopwatch`: how long a run was driven, for plugins that stop it while the run is paused."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class Stopwatch:
    """The sum of the seconds between `start` and `stop`. Starting twice, or stopping twice, changes nothing.

    Attributes:
        clock: Returns seconds; it never runs backwards. Tests put their own here.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.clock = clock
        self._total = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Start it."""
        if self._since is None:
            self._since = self.clock()

    def stop(self) -> None:
        """Stop it."""
        if self._since is not None:
            self._total += self.clock() - self._since
            self._since = None

    def read(self) -> float:
        """Return the seconds so far."""
        return self._total + (0.0 if self._since is None else self.clock() - self._since)

    def put(self, seconds: float) -> None:
        """Set it to this many seconds; a running one keeps running."""
        self._total = seconds
        self._since = None if self._since is None else self.clock()
