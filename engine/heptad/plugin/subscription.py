"""`Subscription`: a handler on a moment of a state, with its filter; and finding those of a plugin."""

from __future__ import annotations

from collections.abc import Callable

from heptad.errors import PluginError, diagnose
from heptad.plugin.contract import MARKS, SHIPPED_DETOURS, Handler, Mark, Moment, Plugin
from heptad.run.run import Run
from heptad.table import TRAINING_STATES

_HANDLERS = ("on_enter_", "on_exit_")


class Subscription:
    """A handler on a moment of a state, with its filter.

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
        if not marks and name != "on_pause" and (callable(handler) or name.startswith(_HANDLERS)):
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
    """Returns the marks of a method; one that overrides a marked method and has none of its own keeps them."""
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
