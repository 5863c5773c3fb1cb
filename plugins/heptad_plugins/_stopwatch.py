"""A stopwatch for plugins that measure how long a run was driven: it stands still while the run is paused."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class Stopwatch:
    """Seconds between `start` and `stop`, added up. Starting one that goes, or stopping one that stands, is nothing.

    Attributes:
        clock: Returns seconds; it never runs backwards. Tests put their own here.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.clock = clock
        self._total = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Lets it go."""
        if self._since is None:
            self._since = self.clock()

    def stop(self) -> None:
        """Lets it stand."""
        if self._since is not None:
            self._total += self.clock() - self._since
            self._since = None

    def read(self) -> float:
        """Returns the seconds so far."""
        return self._total + (0.0 if self._since is None else self.clock() - self._since)

    def put(self, seconds: float) -> None:
        """Sets it to this many seconds; it goes on if it goes."""
        self._total = seconds
        self._since = None if self._since is None else self.clock()
