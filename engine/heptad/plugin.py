"""Plugins: mark, register, verify, call.

`on_enter` and `on_exit` only mark. `subscriptions_of` finds the marks of a plugin. `verify` compares them with the
table and with what a handler must look like, and says what is wrong before anything runs. Calling is the machine's: a
plain loop over a tuple.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from heptad.errors import PluginError, kind, nearest
from heptad.hooks import HERE
from heptad.states import TRAINING_STATES, Detour, Table

if TYPE_CHECKING:
    from heptad.run import Run

Edge = Literal["enter", "exit"]
Handler = Callable[["Run"], object]
Predicate = Callable[["Run"], bool]
H = TypeVar("H", bound="Callable[[Any, Run], object]")

SHIPPED_DETOURS = ("evaluate", "checkpoint")
"""States that only a shipped detour brings. A handler for one is legal without it, and never called."""

_HANDLERS = ("on_enter_", "on_exit_")
_MARKS = "__heptad_marks__"


@dataclass(frozen=True, slots=True)
class Mark:
    """A subscription as it stands on a function: which edge of which state, and which of its events."""

    edge: Edge
    state: str
    every: int = 1
    once: bool = False
    when: Predicate | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.state, str):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            what = f"on_{self.edge}"
            if callable(self.state):
                got = getattr(self.state, "__name__", repr(self.state))
                raise PluginError(f"@{what} stands before {got} without a state; write it as @{what}('after_step')")
            raise PluginError(f"@{what} takes the name of one state, got {self.state!r}; put one mark above the other")

    def words(self) -> str:
        """Returns which events it hears, in words; nothing for all."""
        parts = [f"every {self.every}" if self.every != 1 else "", "once" if self.once else ""]
        return ", ".join(part for part in (*parts, "when its predicate holds" if self.when else "") if part)


def on_enter(state: str, *, every: int = 1, once: bool = False, when: Predicate | None = None) -> Callable[[H], H]:
    """Marks a plugin's method as a handler on entry to a state.

    Args:
        state: The state's name.
        every: Called at the n-th, 2n-th … event of the run.
        once: Called at the first of these events only.
        when: Called only if this predicate of the run holds as well. It is asked at the events that `every` lets
            through, and `once` counts only a call.

    Returns:
        The function as it was.
    """
    return _mark(Mark("enter", state, every, once, when))


def on_exit(state: str, *, every: int = 1, once: bool = False, when: Predicate | None = None) -> Callable[[H], H]:
    """Marks a plugin's method as a handler on exit from a state; the arguments are those of `on_enter`."""
    return _mark(Mark("exit", state, every, once, when))


def _mark(mark: Mark) -> Callable[[H], H]:
    def put(function: H) -> H:
        setattr(function, _MARKS, (*getattr(function, _MARKS, ()), mark))
        return function

    return put


class Plugin:
    """Base of all plugins. A method named `on_enter_<state>` or `on_exit_<state>`, or marked, is a subscription.

    Handlers take the `Run` and nothing else. They may read it and use its verbs; only the machine advances it. The
    methods below may be overridden; none of them has to be.

    Attributes:
        name: Unique among the plugins of an engine; by default the class's name.
        observes: Says that the run does the same without this plugin; one that was resumed may then lack it.
        on_error: `"raise"` lets what the plugin raises end the run. `"detach"` is for an observer that the run can do
            without: after an Exception it is called no more, and the log says so.
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
        """Returns the states that this plugin adds. Asked once, when the engine is built."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Returns what the rest of the run depends on: plain data (None, numbers, str, list, dict) and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned, in a plugin that was built anew."""

    def open(self, run: Run) -> None:
        """Called before the first turn of each `Engine.run()`: open files, start a display."""

    def close(self, run: Run) -> None:
        """Called once when that call returns or raises, for every plugin, whatever happened.

        It must do with a plugin whose `open` failed or was never reached.
        """

    def on_park(self, run: Run) -> None:
        """Called when an interrupt has parked the run, between two turns."""


def titled(plugin: Plugin) -> str:
    """Returns a plugin's name, behind its class's where that is another: `Evaluate 'valid'`."""
    return plugin.name if plugin.name == kind(plugin) else f"{kind(plugin)} '{plugin.name}'"


class Subscription:
    """A handler on an edge of a state, with its filter.

    Attributes:
        plugin: Whose it is; `None` for a function and for the engine's own.
        who: How errors and tables name it: plugin and method.
        handler: What the plugin gave.
        call: What the machine calls: the handler behind its filter.
        filtered: Tells how many events the filter has counted, and whether `once` is done.
        restore: Lets the filter go on from there.
    """

    __slots__ = ("call", "filtered", "handler", "mark", "plugin", "restore", "who")

    def __init__(self, plugin: Plugin | None, who: str, mark: Mark, handler: Handler) -> None:
        self.plugin = plugin
        self.who = who
        self.mark = mark
        self.handler = handler
        self.wrap(lambda call: call)

    def wrap(self, around: Callable[[Handler], Handler]) -> None:
        """Puts something around each call that the filter lets through; before the first event."""
        mark = self.mark
        self.call = around(self.handler)
        self.filtered: Callable[[], tuple[int, bool]] = lambda: (0, False)
        self.restore: Callable[[int, bool], None] = lambda count, done: None
        if mark.every != 1 or mark.once or mark.when is not None:
            self.call, self.filtered, self.restore = _gate(self.call, mark)


def _gate(handler: Handler, mark: Mark) -> tuple[Handler, Callable[[], tuple[int, bool]], Callable[[int, bool], None]]:
    """Returns a handler that hears the events that a filter names; what tells how far it has counted; what sets that.

    A closure that counts down, because an event that is not due costs half of what a method with a modulo does.
    """
    every, once, when = mark.every, mark.once, mark.when
    rounds = 0
    left = every  # events until the next one that is due, that one included
    done = False

    def gate(run: Run) -> None:
        nonlocal rounds, left, done
        if left > 1:
            left -= 1
            return
        rounds, left = rounds + 1, every
        if done or (when is not None and not when(run)):
            return
        done = once
        handler(run)

    def filtered() -> tuple[int, bool]:
        return rounds * every + every - left, done

    def restore(counted: int, is_done: bool) -> None:
        nonlocal rounds, left, done
        rounds, past = divmod(counted, every)
        left, done = every - past, is_done

    return gate, filtered, restore


def subscriptions_of(plugin: Plugin) -> list[Subscription]:
    """Finds what a plugin subscribes to, in the order in which its class defines it.

    Raises:
        PluginError: If a method's name looks like a subscription and is none.
    """
    found: list[Subscription] = []
    for name in _method_names(type(plugin)):
        marks = _marks_of(type(plugin), name)
        if not marks and not name.startswith("on_"):
            _refuse_near_miss(plugin, name)
            continue  # not even looked at: a property may not be ready to be read
        handler = getattr(plugin, name)
        if not marks and name != "on_park" and (callable(handler) or name.startswith(_HANDLERS)):
            marks = (_mark_in_name(plugin, name),)
        found += [Subscription(plugin, f"{plugin.name}.{name}", mark, handler) for mark in marks]
    for name in getattr(plugin, "__dict__", ()):
        if name.startswith(_HANDLERS) and not hasattr(type(plugin), name):
            raise PluginError(
                f"{plugin.name}.{name} is set on the instance and would never be called; define it in the class, or "
                "subscribe a function with @engine.on_enter or @engine.on_exit"
            )
    return found


def _refuse_near_miss(plugin: Plugin, name: str) -> None:
    """Refuses a method whose name lacks no more than `on_` to be a handler's: it would never be called."""
    plain = name.lower().replace("_", "").removeprefix("on")
    scopes = [state.name for state in TRAINING_STATES if state.kind == "scope"]
    for edge in ("enter", "exit"):
        for state in (*scopes, *SHIPPED_DETOURS):
            if plain == f"{edge}{state.replace('_', '')}":
                raise PluginError(
                    f"{plugin.name}.{name} would never be called; name it on_{edge}_{state}, or mark it with @on_{edge}"
                )


def _method_names(cls: type) -> list[str]:
    return list(dict.fromkeys(name for base in reversed(cls.__mro__[:-1]) for name in vars(base)))


def _marks_of(cls: type, name: str) -> tuple[Mark, ...]:
    """Returns the marks of a method; one that overrides a marked method and has none of its own keeps them."""
    for base in cls.__mro__:
        if marks := getattr(vars(base).get(name), _MARKS, ()):
            return marks
    return ()


def _mark_in_name(plugin: Plugin, name: str) -> Mark:
    edges: tuple[Edge, ...] = ("enter", "exit")
    for edge in edges:
        if name.startswith(f"on_{edge}_"):
            return Mark(edge, name.removeprefix(f"on_{edge}_"))
    raise PluginError(
        f"{plugin.name}.{name} would never be called: a handler is named on_enter_<state> or on_exit_<state>, or "
        f"marked with @on_enter or @on_exit; {_hint(name)}"
    )


def _hint(name: str) -> str:
    known = HERE.get(name)
    other = "give any other method a name that does not begin with 'on_'"
    return f"here it would be {known}" if known else other


def verify_plugins(plugins: Sequence[object]) -> None:
    """Checks the list of plugins.

    Raises:
        PluginError: For no list, a class in place of an instance, something else, the same object twice, two of one
            name.
    """
    if not isinstance(plugins, list | tuple):
        raise PluginError(f"plugins must be a list, got a {kind(plugins)}; write plugins=[…]")
    seen: dict[str, Plugin] = {}
    for plugin in plugins:
        if isinstance(plugin, type):
            raise PluginError(f"plugins holds the class {plugin.__name__}; pass an instance: {plugin.__name__}(…)")
        if not isinstance(plugin, Plugin):
            raise PluginError(f"plugins holds a {kind(plugin)}; a plugin is an instance of a subclass of Plugin")
        for method in ("open", "close", "on_park"):
            verify_signature(f"{plugin.name}.{method}", getattr(plugin, method))
        if plugin.on_error not in ("raise", "detach"):
            raise PluginError(f"{plugin.name}.on_error must be 'raise' or 'detach', got {plugin.on_error!r}")
        for references in (plugin.runs_after, plugin.runs_before):
            collected = isinstance(references, list | tuple | set | frozenset)
            if not collected or not all(isinstance(r, str | type) for r in references):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
                raise PluginError(f"{plugin.name}: runs_after and runs_before are tuples of plugin classes or names")
        other = seen.get(plugin.name)
        if other is plugin:
            raise PluginError(f"plugins holds the same {plugin.name} twice; pass it once")
        if other is not None:
            raise PluginError(f"two plugins have the name '{plugin.name}'; give one of them another `name`")
        seen[plugin.name] = plugin


def verify(subscription: Subscription, table: Table) -> None:
    """Checks one subscription against the table, and its handler against what the machine will call.

    Raises:
        PluginError: Naming plugin, method and the expected shape.
    """
    who, mark = subscription.who, subscription.mark
    known = (*table.scopes(), *SHIPPED_DETOURS)
    if mark.state not in known:
        bookend = any(mark.state == state.shown for state in table.states)
        hint = "; nothing runs on its edges, use open() and close()" if bookend else nearest(mark.state, known)
        raise PluginError(
            f"{who} subscribes to {'the bookend' if bookend else 'the unknown state'} '{mark.state}'{hint}"
        )
    if type(mark.every) is not int or mark.every < 1:
        raise PluginError(f"{who}: every must be a whole number from 1 on, got {mark.every!r}")
    if type(mark.once) is not bool:
        raise PluginError(
            f"{who}: once must be True or False, got {mark.once!r}; for the n-th event alone say every=n, once=True"
        )
    if mark.when is not None:
        verify_signature(f"{who}: when", mark.when)
    verify_signature(who, subscription.handler)


def verify_signature(who: str, function: object) -> None:
    """Checks that something can be called with the run alone.

    Raises:
        PluginError: If it cannot.
    """
    if not callable(function):
        raise PluginError(f"{who} is a {kind(function)}; it must be a function of the run")
    called = function if inspect.isroutine(function) else type(function).__call__
    if any(is_one(called) for is_one in (inspect.iscoroutinefunction, inspect.isgeneratorfunction)):
        raise PluginError(f"{who} is a coroutine or a generator; calling it would do nothing, make it a plain function")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # some callables of C have none; calling is the test then
    try:
        signature.bind(object())
    except TypeError as error:
        shape = "(self, run)" if "." in getattr(function, "__qualname__", "").rpartition("<locals>.")[2] else "(run)"
        raise PluginError(
            f"{who}{signature} cannot be called with the run alone ({error}); write it as {shape}"
        ) from None
