"""What a detour does in the machine: its guard, with the count that `every` is measured by, and its body."""

from __future__ import annotations

from heptad.plugin.detour import Detour
from heptad.run.run import Run


class DetourState:
    """One detour of a run, shared by all nodes that it has in the table.

    Attributes:
        last: What the count stood at when the detour last ran; part of a run's state.
    """

    __slots__ = ("_count", "_detour", "_every", "last")

    def __init__(self, detour: Detour) -> None:
        self._detour = detour
        self._every = detour.every
        self._count = detour.count or "step"
        self.last = 0

    def due(self, run: Run) -> bool:
        """The guard. It changes nothing: what was counted is remembered by the body."""
        every = self._every
        if every is not None and getattr(run, self._count) // every == self.last // every:
            return False
        return bool(self._detour.when(run))

    def ahead(self) -> DetourState:
        """Returns a copy to plan with."""
        visit = DetourState(self._detour)
        visit.last = self.last
        return visit

    def count(self, run: Run) -> None:
        """What the body remembers, without the body."""
        self.last = getattr(run, self._count)

    def last_now(self, run: Run) -> int:
        """Returns what `last` will be after the body, if that is being run; else what it is."""
        return getattr(run, self._count) if run.position.visit is self else self.last

    def body(self, run: Run) -> None:
        """The body."""
        at = run.position
        if at.body_done:
            at.body_done = False
            return
        count = getattr(run, self._count)
        at.visit = self
        try:
            self._detour.body(run)
        finally:
            at.visit = None
        self.last = count  # after it: one that ended early is due still
