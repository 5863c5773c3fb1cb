"""Checks of plugins and their handlers, made when the engine is built."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from heptad.errors import PluginError, a_kind, kind, nearest
from heptad.plugin.contract import Plugin
from heptad.plugin.marks import LIFE, SHIPPED_DETOURS
from heptad.plugin.placing import verify_places
from heptad.plugin.subscription import Subscription
from heptad.table import REDO, Table


def verify_plugins(plugins: Sequence[object]) -> None:
    """Check the list of plugins.

    Raises:
        PluginError: If it is not a list, holds a class in place of an instance, something that is not a plugin, the
            same object twice, two plugins of one name, one that stores a state and cannot restore it, or one that
            writes to a folder which is not in the list.
    """
    if not isinstance(plugins, list | tuple):
        raise PluginError(f"plugins must be a list, got {a_kind(plugins)}; write plugins=[…]")
    seen: dict[str, Plugin] = {}
    for plugin in plugins:
        if isinstance(plugin, type):
            raise PluginError(f"plugins holds the class {plugin.__name__}; pass an instance: {plugin.__name__}(…)")
        if not isinstance(plugin, Plugin):
            raise PluginError(f"plugins holds {a_kind(plugin)}; a plugin is an instance of a subclass of Plugin")
        if not (isinstance(plugin.name, str) and plugin.name):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(f"{kind(plugin)}.name must be a text that is not empty, got {plugin.name!r}")
        for method in LIFE:
            verify_signature(f"{plugin.name}.{method}", getattr(plugin, method))
        _verify_state(plugin)
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
            raise PluginError(
                f"two plugins have the name '{plugin.name}'; give one of them another `name` (where its class does not "
                "take one: plugin.name = '…')"
            )
        seen[plugin.name] = plugin
    verify_places(list(seen.values()))


def _verify_state(plugin: Plugin) -> None:
    """Check that a plugin has both `state_dict` and `load_state_dict`, or neither.

    Raises:
        PluginError: If it has one: its state would be stored and never restored, or restored from nothing.
    """
    has = {
        name: name in getattr(plugin, "__dict__", ()) or getattr(type(plugin), name) is not getattr(Plugin, name)
        for name in ("state_dict", "load_state_dict")
    }
    for name, other in (("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")):
        if has[name] and not has[other]:
            raise PluginError(
                f"{plugin.name} has a {name} and no {other}, so a resumed run could not restore it; give it both, or "
                "neither where it has nothing to store"
            )


def titled(plugin: Plugin) -> str:
    """Return a plugin's name, behind its class's where that is another: `Evaluate 'valid'`."""
    return plugin.name if plugin.name == kind(plugin) else f"{kind(plugin)} '{plugin.name}'"


def verify(subscription: Subscription, table: Table) -> None:
    """Check a subscription against the table, and its handler against what the machine will call.

    Raises:
        PluginError: Naming plugin, method and the expected shape.
    """
    who, mark = subscription.who, subscription.mark
    known = (*table.scopes(), *SHIPPED_DETOURS, REDO)
    if mark.state not in known:
        bookend = any(mark.state == state.shown for state in table.states)
        hint = "; nothing runs on its moments, use open() and close()" if bookend else nearest(mark.state, known)
        raise PluginError(
            f"{who} subscribes to {'the bookend' if bookend else 'the unknown state'} '{mark.state}'{hint}"
        )
    if type(mark.every) is not int or mark.every < 1:
        raise PluginError(f"{who}: every must be a whole number from 1 on, got {mark.every!r}")
    if mark.first is not None and (type(mark.first) is not int or mark.first < 1):
        raise PluginError(f"{who}: first must be a whole number from 1 on, got {mark.first!r}")
    if type(mark.once) is not bool:
        raise PluginError(
            f"{who}: once must be True or False, got {mark.once!r}; for the n-th event alone say every=n, once=True"
        )
    if mark.when is not None:
        verify_signature(f"{who}: when", mark.when)
    verify_signature(who, subscription.handler)


def verify_signature(who: str, function: object) -> None:
    """Check that something can be called with the run alone.

    Raises:
        PluginError: If it cannot.
    """
    if not callable(function):
        raise PluginError(f"{who} is {a_kind(function)}; it must be a function of the run")
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
