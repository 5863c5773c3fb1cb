"""`Filter`: which events of a moment a handler is called at, and how far it has counted them."""

from __future__ import annotations

from collections.abc import Callable

from heptad.run.run import Run


class Filter:
    """Every n-th event, or only the first of these, or only those at which a predicate holds.

    A handler behind a filter is called at events number n, 2n, … of the run, counted from 1; with `first=f` at f,
    f + n, f + 2n, …. The predicate is asked at these events only, and `once` counts calls, not events. A plugin may use
    one for what it counts itself: `check = Filter(every=3).gate(look)`.

    Attributes:
        every: n, from 1 on.
        once: Whether the first call is the last.
        when: The predicate of the run; `None` for no condition.
        first: The number of the first of these events; by default n.
    """

    __slots__ = ("_restore", "_state", "every", "first", "once", "when")

    def __init__(
        self,
        every: int = 1,
        once: bool = False,
        when: Callable[[Run], bool] | None = None,
        *,
        first: int | None = None,
    ) -> None:
        self.every = every
        self.once = once
        self.when = when
        self.first = every if first is None else first
        self._state: Callable[[], tuple[int, bool]] = lambda: (0, False)
        self._restore: Callable[[int, bool], None] = lambda count, done: None

    def gate(self, handler: Callable[[Run], object]) -> Callable[[Run], object]:
        """Return the handler behind this filter: the function to call at every event of the moment.

        A filter without any condition returns the handler itself and counts nothing.
        """
        every, once, when = self.every, self.once, self.when
        if every == self.first == 1 and not once and when is None:
            return handler
        due = self.first  # the number of the next event that is due
        left = due  # events until then, that one included
        done = False

        # A closure that counts down, because this is called at every event of the moment: an event that is not due
        # costs one comparison and one subtraction, half of what a method with a modulo costs.
        def gated(run: Run) -> None:
            nonlocal due, left, done
            if left > 1:
                left -= 1
                return
            due, left = due + every, every
            if done or (when is not None and not when(run)):
                return
            done = once
            handler(run)

        def state() -> tuple[int, bool]:
            return due - left, done

        def restore(count: int, is_done: bool) -> None:
            nonlocal due, left, done
            due = self.next_due(count)
            left, done = due - count, is_done

        self._state, self._restore = state, restore
        return gated

    def next_due(self, count: int) -> int:
        """Return the number of the first event above a count that `every` and `first` select."""
        return self.first + max(0, (count - self.first) // self.every + 1) * self.every

    def selects(self, number: int) -> bool:
        """Return whether `every` and `first` select the event of a number, counted from 1."""
        return number >= self.first and (number - self.first) % self.every == 0

    def state(self) -> tuple[int, bool]:
        """Return how many events were counted, and whether `once` is done."""
        return self._state()

    def restore(self, count: int, done: bool = False) -> None:
        """Continue from what `state` returned."""
        self._restore(count, done)

    def ahead(self, handler: Callable[[Run], object]) -> Callable[[Run], object]:
        """Return another handler behind a copy of this filter, which counts on from here and leaves this one alone."""
        copy = Filter(self.every, self.once, self.when, first=self.first)
        gated = copy.gate(handler)
        copy.restore(*self.state())
        return gated
