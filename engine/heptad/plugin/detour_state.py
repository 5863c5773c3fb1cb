"""`DetourState`: the guard of a detour, with the count that `every` is measured by, and its body."""

from __future__ import annotations

from heptad.plugin.detour import Detour
from heptad.plugin.filter import Filter
from heptad.plugin.marks import Handler
from heptad.run.run import Run


class DetourState:
    """One detour of a run, shared by all nodes that it has in the table.

    Args:
        detour: The detour.
        body: What is called as its body: its own, or what the plugin manager wrapped around it.
    """

    __slots__ = ("_body", "_count", "_detour", "_filter", "_last", "_next")

    def __init__(self, detour: Detour, body: Handler) -> None:
        self._detour = detour
        self._body = body
        self._count = detour.count or "step"
        self._filter = None if detour.every is None else Filter(detour.every, first=detour.first)
        self.last = 0

    @property
    def last(self) -> int:
        """The counter's value when the detour last ran; part of a run's state."""
        return self._last

    @last.setter
    def last(self, count: int) -> None:
        self._last = count
        self._next = 0 if self._filter is None else self._filter.next_due(count)

    @property
    def counts_steps(self) -> bool:
        """Whether the counter is that of steps."""
        return self._count == "step"

    def due(self, run: Run) -> bool:
        """Return whether the detour is due: its guard. It changes nothing; the body remembers the count."""
        # The counter never falls, so reaching the next due number is the same as having crossed it.
        if self._next and getattr(run, self._count) < self._next:
            return False
        return bool(self._detour.when(run))

    def ahead(self) -> DetourState:
        """Return a copy for planning ahead."""
        copy = DetourState(self._detour, self._body)
        copy.last = self.last
        return copy

    def count(self, run: Run) -> None:
        """Remember the count as the body does, without running it."""
        self.last = getattr(run, self._count)

    def last_now(self, run: Run) -> int:
        """Return what `last` will be after the body, if that is being run; else what it is."""
        return getattr(run, self._count) if run._position.visit is self else self._last

    def body(self, run: Run) -> None:
        """Run the detour's body, unless a checkpoint was taken in it and it is done."""
        at = run._position
        if at.body_done:
            at.body_done = False
            return
        count = getattr(run, self._count)
        at.visit = self
        try:
            self._body(run)
        finally:
            at.visit = None
        self.last = count  # only now: a body that ended early is still due
