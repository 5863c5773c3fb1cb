"""`Plugin`, `on_enter`, `on_exit`: how a method becomes a handler. Mark, register, verify, call are separate steps.

`on_enter` and `on_exit` only mark. `subscriptions_of` finds the marks of a plugin. `verify` compares them with the
table and with what a handler must look like, before anything runs. The machine calls: a plain loop over a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from heptad.errors import PluginError, kind
from heptad.plugin.detour import Detour
from heptad.run.run import Run

Moment = Literal["enter", "exit"]
Handler = Callable[[Run], object]
Predicate = Callable[[Run], bool]
H = TypeVar("H", bound="Callable[[Any, Run], object]")

SHIPPED_DETOURS = ("evaluate", "checkpoint")
"""States that only a shipped detour brings. A handler for one is legal without it, and never called."""

LIFE = ("on_begin", "open", "on_pause", "close")
"""The methods of a plugin's life: each is called with the run, and none is a handler of a state."""

MARKS = "__heptad_marks__"


@dataclass(frozen=True, slots=True)
class Mark:
    """A subscription as it stands on a function: a moment of a state, and the options of a `Filter`."""

    moment: Moment
    state: str
    every: int = 1
    once: bool = False
    when: Predicate | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.state, str):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            what = f"on_{self.moment}"
            if callable(self.state):
                got = getattr(self.state, "__name__", repr(self.state))
                raise PluginError(f"@{what} stands before {got} without a state; write it as @{what}('after_step')")
            raise PluginError(f"@{what} takes the name of one state, got {self.state!r}; put one mark above the other")

    def words(self) -> str:
        """Return which events are heard, in words; empty for all."""
        parts = [f"every {self.every}" if self.every != 1 else "", "once" if self.once else ""]
        return ", ".join(part for part in (*parts, "when its predicate holds" if self.when else "") if part)


def on_enter(state: str, *, every: int = 1, once: bool = False, when: Predicate | None = None) -> Callable[[H], H]:
    """Mark a plugin's method as a handler on entry to a state.

    Args:
        state: The state's name.
        every: Call it at events number n, 2n, … of the run.
        once: Call it at the first of these events only.
        when: Call it only if this predicate of the run holds as well. It is asked at the events that `every`
            selects, and `once` counts only a call.

    Returns:
        The function as it was.
    """
    return _mark(Mark("enter", state, every, once, when))


def on_exit(state: str, *, every: int = 1, once: bool = False, when: Predicate | None = None) -> Callable[[H], H]:
    """Mark a plugin's method as a handler on exit from a state; the arguments are those of `on_enter`."""
    return _mark(Mark("exit", state, every, once, when))


def _mark(mark: Mark) -> Callable[[H], H]:
    def put(function: H) -> H:
        setattr(function, MARKS, (*getattr(function, MARKS, ()), mark))
        return function

    return put


class Plugin:
    """Base of all plugins. A method named `on_enter_<state>` or `on_exit_<state>`, or marked, is a handler.

    Handlers take the `Run` and nothing else. They may read it and use its verbs; only the machine advances it. The
    methods below may be overridden; none of them has to be. Their order: `detours` when the engine is built;
    `on_begin`, and `load_state_dict` if the run is resumed; then for each `Engine.run()` call `open`, handlers,
    `on_pause` if it pauses because that was requested, `close`.

    Attributes:
        name: Unique among the plugins of an engine; by default the class's name.
        observes: Whether the run does the same without this plugin; a resumed run may then lack it.
        on_error: `"raise"`: an exception of the plugin ends the run. `"detach"`, for an observer: after an Exception
            the plugin is called no more, the log says so, and the run continues.
        runs_after: Plugins, by class or by name, that are called before this one where both are there.
        runs_before: Plugins that are called after this one.
    """

    name: str = "Plugin"
    observes: bool = False
    on_error: Literal["raise", "detach"] = "raise"
    runs_after: Sequence[type[Plugin] | str] = ()
    runs_before: Sequence[type[Plugin] | str] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def detours(self) -> Iterable[Detour]:
        """Return the states that this plugin adds. Called once, when the engine is built."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return what the rest of the run depends on: plain data and tensors, which a checkpoint can hold.

        Plain data are None, numbers, text, bytes, and lists, tuples, dicts, Counters and OrderedDicts of these.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, in a plugin that was just built or has just begun (`on_begin`)."""

    def on_begin(self, run: Run) -> None:
        """Forget what an earlier run left in this object.

        Called once for each engine that the plugin is given to, before the first `open`. In a run that resumes,
        `load_state_dict` follows, so it need not forget anything itself; the run still stands in `idle` then.
        """

    def open(self, run: Run) -> None:
        """Open files, start a display. Called before the first turn of each `Engine.run()`."""

    def close(self, run: Run) -> None:
        """Release what `open` took. Called once when `Engine.run()` returns or raises, `open` called or not."""

    def on_pause(self, run: Run) -> None:
        """Save what must survive. Called when `Run.pause`, Ctrl-C or a signal has paused the run, between two turns."""


def titled(plugin: Plugin) -> str:
    """Return a plugin's name, behind its class's where that is another: `Evaluate 'valid'`."""
    return plugin.name if plugin.name == kind(plugin) else f"{kind(plugin)} '{plugin.name}'"
