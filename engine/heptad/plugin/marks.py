"""`on_enter`, `on_exit`: how a method becomes a handler. Mark, register, verify, call are separate steps.

`on_enter` and `on_exit` only mark. `subscriptions_of` finds the marks of a plugin. `verify` compares them with the
table and with what a handler must look like, before anything runs. The machine calls: a plain loop over a tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from heptad.errors import PluginError
from heptad.run.run import Run

Moment = Literal["enter", "exit"]
Handler = Callable[[Run], object]
Predicate = Callable[[Run], bool]
H = TypeVar("H", bound="Callable[[Any, Run], object]")

MARKS = "__heptad_marks__"

SHIPPED_DETOURS = ("evaluate", "checkpoint")
"""States that only a shipped detour brings. A handler for one is legal without it, and never called."""

LIFE = ("on_build", "on_begin", "open", "on_loss", "on_pause", "close")
"""The methods of a plugin's life: each is called with the run, and none is a handler of a state."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A subscription as it stands on a function: a moment of a state, and the options of a `Filter`."""

    moment: Moment
    state: str
    every: int = 1
    once: bool = False
    when: Predicate | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.state, str):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            what = f"on_{self.moment}"
            if callable(self.state):
                got = getattr(self.state, "__name__", repr(self.state))
                raise PluginError(f"@{what} stands before {got} without a state; write it as @{what}('after_step')")
            raise PluginError(f"@{what} takes the name of one state, got {self.state!r}; put one mark above the other")

    def words(self) -> str:
        """Return which events are heard, in words; empty for all."""
        late = f"from {self.first} on" if self.first not in (None, self.every) else ""
        numbers = " ".join(filter(None, (f"every {self.every}" if self.every != 1 else "", late)))
        parts = (numbers, "once" if self.once else "", "when its predicate holds" if self.when else "")
        return ", ".join(filter(None, parts))


def on_enter(
    state: str, *, every: int = 1, once: bool = False, when: Predicate | None = None, first: int | None = None
) -> Callable[[H], H]:
    """Mark a plugin's method as a handler on entry to a state.

    Args:
        state: The state's name.
        every: Call it at events number n, 2n, … of the run.
        once: Call it at the first of these events only.
        when: Call it only if this predicate of the run holds as well. It is asked at the events that `every`
            selects, and `once` counts only a call.
        first: The number of the first event that `every` selects, by default n: `every=10, first=1` calls it at events
            1, 11, 21, …, as a loop that asks for `i % 10 == 0` does.

    Returns:
        The function as it was.
    """
    return _mark(Mark("enter", state, every, once, when, first))


def on_exit(
    state: str, *, every: int = 1, once: bool = False, when: Predicate | None = None, first: int | None = None
) -> Callable[[H], H]:
    """Mark a plugin's method as a handler on exit from a state; the arguments are those of `on_enter`."""
    return _mark(Mark("exit", state, every, once, when, first))


def _mark(mark: Mark) -> Callable[[H], H]:
    def put(function: H) -> H:
        setattr(function, MARKS, (*getattr(function, MARKS, ()), mark))
        return function

    return put
