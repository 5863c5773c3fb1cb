"""`Subscription`: a handler on a moment of a state, with its filter; and those of a plugin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from heptad.errors import PluginError, diagnose
from heptad.plugin.contract import Plugin
from heptad.plugin.filter import Filter
from heptad.plugin.marks import LIFE, MARKS, SHIPPED_DETOURS, Handler, Mark, Moment
from heptad.table import TRAINING_STATES

_HANDLERS = ("on_enter_", "on_exit_")


class Subscription:
    """A handler on a moment of a state, with its filter.

    Attributes:
        plugin: Whose handler it is; `None` for a function and for the engine's own.
        who: The plugin and the method, as errors and tables name it.
        mark: The moment, the state and the options of the filter.
        handler: What the plugin gave.
        filter: Which events the handler is called at, and how far they are counted.
        call: What the machine calls: the handler behind its filter.
    """

    __slots__ = ("call", "filter", "handler", "mark", "plugin", "who")

    def __init__(self, plugin: Plugin | None, who: str, mark: Mark, handler: Handler) -> None:
        self.plugin = plugin
        self.who = who
        self.mark = mark
        self.handler = handler
        self.wrap(lambda call: call)

    def wrap(self, around: Callable[[Handler], Handler]) -> None:
        """Wrap each call that passes the filter; to be used before the first event."""
        mark = self.mark
        self.filter = Filter(mark.every, mark.once, mark.when, first=mark.first)
        self.call = self.filter.gate(around(self.handler))


def function_name(function: Callable[..., object]) -> str:
    """Return what a function is called: the same in every process, so never an address."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)


def subscriptions_of(plugin: Plugin) -> list[Subscription]:
    """Return what a plugin subscribes to, in the order in which its class defines it.

    Raises:
        PluginError: If a method's name looks like a handler's and would never be called.
    """
    found: list[Subscription] = []
    for name in _method_names(type(plugin)):
        marks = _marks_of(type(plugin), name)
        if not marks and not name.startswith("on_"):
            _refuse_near_miss(plugin, name)
            continue  # not even looked at: a property may not be ready to be read
        handler = getattr(plugin, name)
        if not marks and name not in LIFE and (callable(handler) or name.startswith(_HANDLERS)):
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
    """Refuse a method whose name is a handler's but for `on_`, case and underscores: it would never be called."""
    plain = name.lower().replace("_", "").removeprefix("on")
    scopes = [state.name for state in TRAINING_STATES if state.kind == "scope"]
    for moment in ("enter", "exit"):
        for state in (*scopes, *SHIPPED_DETOURS):
            if plain == f"{moment}{state.replace('_', '')}":
                raise PluginError(
                    f"{plugin.name}.{name} would never be called; name it on_{moment}_{state}, or mark it "
                    f"with @on_{moment}"
                )


def _method_names(cls: type) -> list[str]:
    return list(dict.fromkeys(name for base in reversed(cls.__mro__[:-1]) for name in vars(base)))


def _marks_of(cls: type, name: str) -> tuple[Mark, ...]:
    """Return the marks of a method; one that overrides a marked method and has no mark of its own keeps them."""
    for base in cls.__mro__:
        if marks := getattr(vars(base).get(name), MARKS, ()):
            return marks
    return ()


def _mark_in_name(plugin: Plugin, name: str) -> Mark:
    moments: tuple[Moment, ...] = ("enter", "exit")
    for moment in moments:
        if name.startswith(f"on_{moment}_"):
            return Mark(moment, name.removeprefix(f"on_{moment}_"))
    raise PluginError(
        f"{plugin.name}.{name} would never be called: a handler is named on_enter_<state> or on_exit_<state>, or "
        f"marked with @on_enter or @on_exit; {diagnose('handler_name', name)}"
    )
