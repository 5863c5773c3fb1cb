"""`PluginManager`: the plugins of an engine, their lives (begin, open, pause, close), and detaching one that failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, cast

from heptad.errors import CheckpointError, PluginError, Unfinished, a_kind, add_note, in_a_line
from heptad.plugin.contract import Plugin
from heptad.plugin.detour import Detour
from heptad.plugin.marks import Handler
from heptad.plugin.on_ranks import FIRST_ONLY, has_on_loss, nothing, refusing_to_steer, requests_of, verify_ranks
from heptad.plugin.order import ordered
from heptad.plugin.subscription import Subscription, subscriptions_of
from heptad.plugin.verify import verify_plugins, verify_signature
from heptad.record.events import Detach
from heptad.run.peers import NoPeers, Peers
from heptad.run.run import Run
from heptad.run.runtime import Runtime


class PluginManager:
    """The plugins in the order in which they are called: that of the list, bent by `runs_after` and `runs_before`.

    A plugin with `on_error="detach"` is called through a wrapper, which detaches it after an Exception. One with
    `ranks="first"` is in the roster of every rank, with its subscriptions, and called on the first alone.

    Args:
        plugins: The list.
        peers: The ranks of the run.

    Attributes:
        plugins: In that order: the roster, which is the same on all ranks.
        called: Those of them that are called on this rank.
        detours_given: The detours, each with its plugin, in that order; the engine adds its own, without one.

    Raises:
        PluginError: For a mistake in the list, a cycle in the order, or something else than detours from `detours()`.
    """

    def __init__(self, plugins: Sequence[Plugin], peers: Peers | None = None) -> None:
        verify_plugins(plugins)
        peers = peers or NoPeers()
        self.plugins = ordered(plugins)
        self.called = tuple(plugin for plugin in self.plugins if peers.rank == 0 or plugin.ranks == "all")
        self.detours_given: list[tuple[Plugin | None, Detour]] = [
            (plugin, detour) for plugin in self.plugins for detour in _detours_of(plugin)
        ]
        for plugin in self.plugins:
            verify_ranks(plugin, [detour for owner, detour in self.detours_given if owner is plugin])
        self._requests = requests_of(self.plugins)
        self._absent = {plugin.name for plugin in self.plugins} - {plugin.name for plugin in self.called}
        self._watches_first = peers.world > 1  # alone, the conformance kit does
        self._detached: set[str] = set()
        self._begun = False
        self._opened = False
        self._process = os.getpid()

    def subscriptions(self) -> list[Subscription]:
        """Return the subscriptions of all plugins."""
        return [subscription for plugin in self.plugins for subscription in subscriptions_of(plugin)]

    # -- wrapping what a plugin gives to the machine

    def wrap(self, subscription: Subscription) -> None:
        """Wrap a handler so that an exception detaches its plugin, where the plugin asks for that.

        That of a first-only plugin is replaced by nothing on another rank, and may not steer on the first of several.
        """
        plugin, who = subscription.plugin, subscription.who
        if plugin is None:
            return
        if plugin.name in self._absent:
            subscription.call = nothing
            return
        if plugin.on_error == "detach":
            subscription.call = self._wrapped(plugin, who, subscription.call, subscription.mark.moment)
        if plugin.ranks == "first" and self._watches_first:
            subscription.call = refusing_to_steer(who, subscription.call)

    def wrap_body(self, plugin: Plugin | None, detour: Detour) -> Handler:
        """Return a detour's body, wrapped likewise; what counts its visits is left outside, and counts on."""
        if plugin is None or plugin.on_error != "detach":
            return detour.body
        return self._wrapped(plugin, f"{plugin.name}.{detour.state}", detour.body, "body")

    def wrap_guard(self, plugin: Plugin | None, name: str, guard: Callable[[Run], bool]) -> Callable[[Run], bool]:
        """Return a detour's guard, wrapped likewise: False once its plugin is detached."""
        if plugin is None or plugin.on_error != "detach":
            return guard

        def ask(run: Run) -> bool:
            if plugin.name in self._detached:
                return False
            try:
                return guard(run)
            except Exception as error:
                self._detach(plugin, f"{plugin.name}.{name}", error, run, "guard")
                return False

        return ask

    def check(self, run: Run) -> None:
        """Call `on_build` of each plugin. There is no log to detach one in yet: what it raises ends the building."""
        for plugin in self.called:
            try:
                plugin.on_build(run)
            except BaseException as error:
                add_note(error, f"in {plugin.name}.on_build")
                raise

    def requests(self) -> tuple[str, ...]:
        """Return what the plugins may ask for by `Run.ask`, in their order: the same on all ranks, 48 at most."""
        return self._requests

    def equip(self, runtime: Runtime) -> None:
        """Set what the run's verbs and bodies need of plugins: the requests, and each `on_loss`, wrapped likewise."""
        runtime.requests = self._requests
        runtime.on_loss = tuple(self._loss_handler(plugin) for plugin in self.plugins if has_on_loss(plugin))

    def _loss_handler(self, plugin: Plugin) -> Handler:
        who = f"{plugin.name}.on_loss"
        if plugin.on_error == "detach":
            return self._wrapped(plugin, who, plugin.on_loss, "body")

        def call(run: Run) -> None:
            try:
                plugin.on_loss(run)
            except BaseException as error:
                add_note(error, f"in {who}")
                raise

        return call

    def _wrapped(self, plugin: Plugin, who: str, call: Handler, moment: str) -> Handler:
        detached, name = self._detached, plugin.name

        def wrapped(run: Run) -> None:
            if name in detached:
                return
            try:
                call(run)
            except Exception as error:  # KeyboardInterrupt and SystemExit are no failures of a plugin
                if isinstance(error, Unfinished) and moment == "body" and run.pause_requested:
                    raise  # nothing has failed: the machine pauses
                self._detach(plugin, who, error, run, moment)

        return wrapped

    # -- detaching

    def is_detached(self, plugin: Plugin) -> bool:
        """Return whether a plugin has failed and is called no more."""
        return plugin.name in self._detached

    def idle_because(self, plugin: Plugin) -> str:
        """Return why a plugin's handlers are not called; empty where they are."""
        if plugin.name in self._absent:
            return FIRST_ONLY
        return "detached" if self.is_detached(plugin) else ""

    def detached(self) -> list[str]:
        """Return the names of the detached plugins: part of a run's state."""
        return [plugin.name for plugin in self.plugins if plugin.name in self._detached]

    def detach(self, name: str) -> None:
        """Detach a plugin that was detached in the run that is resumed; only its `close` is called from then on."""
        self._detached.add(name)

    def _detach(self, plugin: Plugin, who: str, error: Exception, run: Run, moment: str = "") -> None:
        if run._runtime.peers.failed:
            raise error  # no plugin less would bring the other ranks back
        self._detached.add(plugin.name)
        run.emit(Detach, plugin.name, who, in_a_line(error), moment)

    def states(self, run: Run) -> dict[str, dict[str, Any]]:
        """Return the states of the plugins that are not detached, by name; one whose `state_dict` fails may detach.

        Raises:
            CheckpointError: If a plugin returns None.
            Exception: What a plugin raised, with a note that names it.
        """
        found: dict[str, dict[str, Any]] = {}
        for plugin in self.called:
            if plugin.name in self._detached:
                continue
            try:
                found[plugin.name] = plugin_state(plugin)
            except Exception as error:
                if plugin.on_error != "detach":
                    raise
                self._detach(plugin, f"{plugin.name}.state_dict", error, run)
        return found

    # -- the lives of plugins

    def open(self, run: Run) -> None:
        """Open all plugins, unless they are open; for a run that is about to begin, begin each of them first."""
        if self._opened:
            return
        self._opened = True
        self._process = os.getpid()
        begins = run.state == "idle" and not self._begun
        self._begun = True
        for plugin in self.called:
            for name in ("on_begin", "open") if begins else ("open",):
                try:
                    self._call(plugin, name, run)
                except BaseException as error:
                    add_note(error, f"in {plugin.name}.{name}; the run has not gone on")
                    raise

    def pause(self, run: Run) -> None:
        """Call `on_pause` of all plugins, also where one of them fails: another one may store a checkpoint.

        Raises:
            BaseException: What a plugin's `on_pause` raised; from several an ExceptionGroup.
        """
        errors: list[BaseException] = []
        for plugin in self.called:
            try:
                self._call(plugin, "on_pause", run)
            except BaseException as error:
                add_note(error, f"in {plugin.name}.on_pause; the run is paused in {run.state}")
                errors.append(error)
        try:
            if errors:
                raise _grouped("several plugins failed when the run was paused", errors)
        finally:
            del errors  # break a reference cycle, as in close()

    def close(self, run: Run) -> None:
        """Close all plugins, if they are open.

        Raises:
            BaseException: What a plugin's `close` raised; from several an ExceptionGroup.
        """
        failed = self._close(run) if self._opened else None
        try:
            if failed is not None:
                raise failed
        finally:
            # The exception holds its traceback, which holds this frame, which holds the exception: without this, the
            # cycle keeps networks and batches of all frames above alive until the garbage collector comes by.
            del failed

    def opened(self, run: Run) -> Opened:
        """Open all plugins for the length of a `with` block, and close every one of them whatever happens."""
        return Opened(self, run)

    def close_after(self, error: BaseException, run: Run) -> None:
        """Close all plugins after `error`, which is about to be raised; what closing raises becomes its context."""
        failed = self._close(run)
        try:
            if failed is not None:
                add_note(error, f"and closing the plugins raised: {in_a_line(failed)}")
                _uncouple(failed, error)
                error.__context__ = error.__context__ or failed
        finally:
            del failed, error  # break a reference cycle, as in close()

    def _close(self, run: Run) -> BaseException | None:
        """Close all plugins, in reverse order, then the data of evaluations; return what they raised."""
        self._opened = False
        if self._process != os.getpid():  # a forked child: their files and threads are the parent's
            return None
        errors: list[BaseException] = []
        for plugin in reversed(self.called):
            try:
                self._call(plugin, "close", run)
            except BaseException as error:
                add_note(error, f"in {plugin.name}.close")
                errors.append(error)
        if run._runtime.evaluator is not None:  # last: a plugin may evaluate in `close`
            try:
                run._runtime.evaluator.close()
            except BaseException as error:
                errors.append(error)
        try:
            return _grouped("several plugins failed to close", errors) if errors else None
        finally:
            del errors  # break a reference cycle, as in close()

    def _call(self, plugin: Plugin, name: str, run: Run) -> None:
        """Call a method of a plugin's life; of a detached plugin only `close`, which releases its files."""
        if plugin.name in self._detached and name != "close":
            return
        try:
            getattr(plugin, name)(run)
        except Exception as error:
            if plugin.on_error != "detach":
                raise
            self._detach(plugin, f"{plugin.name}.{name}", error, run)


class Opened:
    """The plugins of a manager, open for the length of a `with` block.

    A class and not a generator, in which a StopIteration that a plugin raises would become a RuntimeError.
    """

    def __init__(self, manager: PluginManager, run: Run) -> None:
        self._manager = manager
        self._run = run

    def __enter__(self) -> None:
        try:
            self._manager.open(self._run)
        except BaseException as error:
            self._manager.close_after(error, self._run)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._manager.close(self._run)
            else:
                self._manager.close_after(error, self._run)
        finally:
            del error  # break a reference cycle, as in PluginManager.close()


def plugin_state(plugin: Plugin) -> dict[str, Any]:
    """Return a plugin's state.

    Raises:
        CheckpointError: If it returns None.
        BaseException: What it raised, with a note that names it.
    """
    try:
        state = cast("dict[str, Any] | None", plugin.state_dict())
    except BaseException as error:
        add_note(error, f"in {plugin.name}.state_dict")
        raise
    if state is None:
        raise CheckpointError(
            f"{plugin.name}.state_dict returned None, expected a dict; does it end without a return? Where there is "
            "nothing to store return {}"
        )
    return state


def _detours_of(plugin: Plugin) -> list[Detour]:
    """Return a plugin's detours, checked."""
    if not callable(plugin.detours):
        raise PluginError(f"{plugin.name}.detours must be a method that returns a list of Detour objects")
    given = plugin.detours()
    if not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
        raise PluginError(f"{plugin.name}.detours() must return a list of Detour objects, got {a_kind(given)}")
    detours = list(given)
    for detour in detours:
        if not isinstance(detour, Detour):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(f"{plugin.name}.detours() must return Detour objects, got {a_kind(detour)}")
        verify_signature(f"{plugin.name}: the body of detour '{detour.state}'", detour.body)
        verify_signature(f"{plugin.name}: when of detour '{detour.state}'", detour.when)
    return detours


def _grouped(message: str, errors: list[BaseException]) -> BaseException:
    """Return the error, or several as a group."""
    return errors[0] if len(errors) == 1 else BaseExceptionGroup(message, errors)


def _uncouple(failed: BaseException, error: BaseException) -> None:
    """Remove `error` from the contexts of what was raised while it was handled, of which it will be the parent."""
    group = cast("BaseExceptionGroup[BaseException]", failed)
    each: BaseException
    for each in group.exceptions if isinstance(failed, BaseExceptionGroup) else (failed,):
        while each.__context__ is not None and each.__context__ is not error:
            each = each.__context__  # noqa: PLW2901 - walks down from each of them
        each.__context__ = None
