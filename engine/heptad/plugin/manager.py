"""The plugins of an engine: their order, their lives (open, pause, close), and the detaching of one that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, cast

from heptad.errors import CheckpointError, PluginError, Unfinished, add_note, in_a_line, kind
from heptad.plugin.contract import Handler, Plugin
from heptad.plugin.detour import Detour
from heptad.plugin.subscription import Subscription, subscriptions_of
from heptad.plugin.verify import verify_plugins, verify_signature
from heptad.run.run import Run


class PluginManager:
    """The plugins in the order in which they are called: that of the list, bent by `runs_after` and `runs_before`.

    Attributes:
        plugins: In that order.
        detours_given: The detours, each with its plugin, in that order.

    Raises:
        PluginError: For a mistake in the list, a cycle in the order, or detours that are none.
    """

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        verify_plugins(plugins)
        self.plugins = ordered(plugins)
        self.detours_given = self._ask_for_detours()
        self._detached: set[str] = set()
        self._opened = False

    def subscriptions(self) -> list[Subscription]:
        """Finds what all plugins subscribe to."""
        return [subscription for plugin in self.plugins for subscription in subscriptions_of(plugin)]

    def catch(self, subscription: Subscription) -> None:
        """Lets a plugin that may fail be called through a catch."""
        plugin = subscription.plugin
        if plugin is not None and plugin.on_error == "detach":
            subscription.call = self._caught(plugin, subscription.who, subscription.call)

    def _ask_for_detours(self) -> list[tuple[Plugin, Detour]]:
        found: list[tuple[Plugin, Detour]] = []
        for plugin in self.plugins:
            if not callable(plugin.detours):
                raise PluginError(f"{plugin.name}.detours must be a method that returns a list of Detour objects")
            given = plugin.detours()
            if not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
                raise PluginError(f"{plugin.name}.detours() must return a list of Detour objects, got a {kind(given)}")
            for detour in given:
                if not isinstance(detour, Detour):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
                    raise PluginError(f"{plugin.name}.detours() must return Detour objects, got a {kind(detour)}")
                verify_signature(f"{plugin.name}: the body of detour '{detour.state}'", detour.body)
                verify_signature(f"{plugin.name}: when of detour '{detour.state}'", detour.when)
                found.append((plugin, detour))
        return found

    def caught_body(self, plugin: Plugin, state: str, body: Handler) -> Handler:
        """Returns a detour's body; that of a plugin that may fail through a catch."""
        return self._caught(plugin, f"{plugin.name}.{state}", body) if plugin.on_error == "detach" else body

    def caught_guard(self, plugin: Plugin, name: str, guard: Callable[[Run], bool]) -> Callable[[Run], bool]:
        """Returns a detour's guard; that of a plugin that may fail through a catch: False once it is detached."""
        if plugin.on_error != "detach":
            return guard

        def ask(run: Run) -> bool:
            if plugin.name in self._detached:
                return False
            try:
                return guard(run)
            except Exception as error:
                self._detach(plugin, f"{plugin.name}.{name}", error, run)
                return False

        return ask

    def is_detached(self, plugin: Plugin) -> bool:
        """Tells whether this plugin failed and is called no more."""
        return plugin.name in self._detached

    def detached(self) -> list[str]:
        """Returns the names of the plugins that failed and are called no more: part of a run's state."""
        return [plugin.name for plugin in self.plugins if plugin.name in self._detached]

    def detach(self, name: str) -> None:
        """Detaches a plugin, as it was in the run that is resumed; closing is all that it is called for then."""
        self._detached.add(name)

    def states(self, run: Run) -> dict[str, dict[str, Any]]:
        """Returns the states of the plugins that are not detached, by name; one that may fail is detached if it does.

        Raises:
            CheckpointError: If a plugin returns None.
            Exception: What a plugin raised, with a note that names it.
        """
        found: dict[str, dict[str, Any]] = {}
        for plugin in self.plugins:
            if plugin.name in self._detached:
                continue
            try:
                found[plugin.name] = state_of(plugin)
            except Exception as error:
                if plugin.on_error != "detach":
                    raise
                self._detach(plugin, f"{plugin.name}.state_dict", error, run)
        return found

    def open(self, run: Run) -> None:
        """Opens all plugins, unless they are open."""
        if self._opened:
            return
        self._opened = True
        for plugin in self.plugins:
            try:
                self._call(plugin, "open", run)
            except BaseException as error:
                add_note(error, f"in {plugin.name}.open; the run has not gone on")
                raise

    def pause(self, run: Run) -> None:
        """Tells all plugins that an interrupt has paused the run, also where one of them fails.

        Raises:
            BaseException: What a plugin's `on_pause` raised; from several an ExceptionGroup.
        """
        errors: list[BaseException] = []
        for plugin in self.plugins:
            try:
                self._call(plugin, "on_pause", run)
            except BaseException as error:  # everything: a checkpoint may be stored by one of the others
                add_note(error, f"in {plugin.name}.on_pause; the run is paused in {run.state}")
                errors.append(error)
        try:
            if errors:
                raise _one("several plugins failed when the run was paused", errors)
        finally:
            del errors  # as in close()

    def close(self, run: Run) -> None:
        """Closes all plugins, if they are open.

        Raises:
            BaseException: What a plugin's `close` raised; from several an ExceptionGroup.
        """
        failed = self._close(run) if self._opened else None
        try:
            if failed is not None:
                raise failed
        finally:
            del failed  # a frame that holds the exception that holds the frame would outlive both

    def opened(self, run: Run) -> Opened:
        """Opens all plugins for the length of a `with` block, and closes every one of them whatever happens."""
        return Opened(self, run)

    def close_under(self, error: BaseException, run: Run) -> None:
        """Closes all plugins after `error`, which is to be raised on: what closing raises hangs under it as context."""
        failed = self._close(run)
        try:
            if failed is not None:
                add_note(error, f"and closing the plugins raised: {in_a_line(failed)}")
                _part(failed, error)
                error.__context__ = error.__context__ or failed
        finally:
            del failed, error  # as in close()

    def _close(self, run: Run) -> BaseException | None:
        self._opened = False
        errors: list[BaseException] = []
        for plugin in reversed(self.plugins):
            try:
                self._call(plugin, "close", run)
            except BaseException as error:  # everything: the other plugins are to be closed too
                add_note(error, f"in {plugin.name}.close")
                errors.append(error)
        if run.runtime.evaluator is not None:  # last: a plugin may evaluate in `close`
            try:
                run.runtime.evaluator.close()
            except BaseException as error:
                errors.append(error)
        try:
            return _one("several plugins failed to close", errors) if errors else None
        finally:
            del errors  # as in close()

    def _call(self, plugin: Plugin, name: str, run: Run) -> None:
        """Calls a method of a plugin's life. A detached plugin is still closed, so that it can let go of its files."""
        if plugin.name in self._detached and name != "close":
            return
        try:
            getattr(plugin, name)(run)
        except Exception as error:
            if plugin.on_error != "detach":
                raise
            self._detach(plugin, f"{plugin.name}.{name}", error, run)

    def _caught(self, plugin: Plugin, who: str, call: Handler) -> Handler:
        detached, name = self._detached, plugin.name

        def caught(run: Run) -> None:
            if name in detached:
                return
            try:
                call(run)
            except Unfinished:
                raise
            except Exception as error:  # KeyboardInterrupt and SystemExit are no failures of a plugin
                self._detach(plugin, who, error, run)

        return caught

    def _detach(self, plugin: Plugin, who: str, error: Exception, run: Run) -> None:
        self._detached.add(plugin.name)
        run.note_of("detach", f"{who} raised {in_a_line(error)}; {plugin.name} is called no more")


def state_of(plugin: Plugin) -> dict[str, Any]:
    """Returns a plugin's state.

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


class Opened:
    """The plugins of a roster, open for the length of a `with` block.

    A class and not a generator, in which a StopIteration that a plugin raises would become a RuntimeError.
    """

    def __init__(self, roster: PluginManager, run: Run) -> None:
        self._roster = roster
        self._run = run

    def __enter__(self) -> None:
        try:
            self._roster.open(self._run)
        except BaseException as error:
            self._roster.close_under(error, self._run)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._roster.close(self._run)
            else:
                self._roster.close_under(error, self._run)
        finally:
            del error  # as in PluginManager.close()


def _one(told: str, errors: list[BaseException]) -> BaseException:
    """Returns the error, or several as a group."""
    return errors[0] if len(errors) == 1 else BaseExceptionGroup(told, errors)


def _part(failed: BaseException, error: BaseException) -> None:
    """Cuts `error` out of the contexts of what was raised while it was handled: both ways would be a circle."""
    group = cast("BaseExceptionGroup[BaseException]", failed)
    each: BaseException
    for each in group.exceptions if isinstance(failed, BaseExceptionGroup) else (failed,):
        while each.__context__ is not None and each.__context__ is not error:
            each = each.__context__  # noqa: PLW2901 - walks down from each of them
        each.__context__ = None


def ordered(plugins: Sequence[Plugin]) -> tuple[Plugin, ...]:
    """Returns the plugins in list order, each moved behind those that must come before it, and no further.

    Raises:
        PluginError: If what they ask for is a cycle; it is named.
    """
    # by name, which is unique: two plugins may compare equal, and are two all the same
    before: dict[str, list[str]] = {plugin.name: [] for plugin in plugins}
    for plugin in plugins:
        for other in plugins:
            if other is not plugin and _named(other, plugin.runs_after):
                before[plugin.name].append(other.name)
            if other is not plugin and _named(other, plugin.runs_before):
                before[other.name].append(plugin.name)
    done: dict[str, Plugin] = {}
    left = {plugin.name: plugin for plugin in plugins}
    while left:
        ready = next((name for name in left if all(other in done for other in before[name])), None)
        if ready is None:
            raise PluginError(
                f"the order of the plugins is a cycle: {_cycle(list(left), before)}; see runs_after and runs_before"
            )
        done[ready] = left.pop(ready)
    return tuple(done.values())


def _named(plugin: Plugin, references: Sequence[type[Plugin] | str]) -> bool:
    """Tells whether a plugin is meant: by its name, or by its class or one that it derives from, or that one's name."""
    classes = type(plugin).__mro__
    return any(
        reference == plugin.name or any(reference in (cls, cls.__name__) for cls in classes) for reference in references
    )


def _cycle(left: Sequence[str], before: dict[str, list[str]]) -> str:
    walked = [left[0]]
    while walked.count(walked[-1]) < 2:
        walked.append(next(other for other in before[walked[-1]] if other in left))
    first = walked.index(walked[-1])
    return " before ".join(reversed(walked[first:]))
