"""`check_plugin`: drives a plugin through short runs and holds it to the contract."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any, cast

from heptad.engine import Engine
from heptad.errors import PluginError, a_kind
from heptad.plugin.contract import Plugin
from heptad.plugin.marks import on_enter, on_exit
from heptad.plugin.on_ranks import verify_ranks
from heptad.run.run import Run
from heptad.testing.outcome import RunOutcome, same
from heptad.testing.report import PluginReport
from heptad.testing.short_run import ShortRun, short_runs
from heptad.testing.stand_in import StandIn, stand_in_for

MakePlugin = Callable[[], Plugin]


def check_plugin(make_plugin: MakePlugin, *, volatile: Iterable[str] = ()) -> PluginReport:
    """Drive a plugin through short runs on every arc of the table and in `evaluate`, and hold it to the contract.

    - It is built twice from the same function, and opened and closed twice.
    - A run paused after every turn is the same as one that never was: path, notes, recorded values, weights, state.
    - If it is exchanged at every turn for a new instance that is given its `state_dict`, the run is the same too.
    - Its `state_dict` holds what a checkpoint can, and asking for it changes nothing.
    - The guards of its detours change nothing: asked twice, all is the same.
    - If it says `observes`, weights and random generators are at the end what they are without it.
    - If it says `ranks = "first"`, it has nothing that an engine refuses in such a one, and the path of the run is what
      it is without it. What it asks for by `Run.ask` is among its `requests`.
    - When a plugin before or behind it fails, it is closed and adds no failure of its own.

    Args:
        make_plugin: Returns a new instance, the same each time. What it watches may be called `"loss"`,
            `"valid/loss"` or `"valid/accuracy"`: these are recorded in every step.
        volatile: Names of recorded values, and keys of the state_dict, that measure time and so differ from run to run.

    Returns:
        What was done: `str()` says it in words.

    Raises:
        PluginError: With every fault, in words.
    """
    if isinstance(make_plugin, Plugin):
        raise PluginError(
            f"check_plugin builds the plugin anew for each run; got an instance, pass what builds it: "
            f"{type(make_plugin).__name__}, or lambda: {type(make_plugin).__name__}(…)"
        )
    made = make_plugin() if callable(make_plugin) else make_plugin
    if not isinstance(made, Plugin):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
        given = "got" if made is make_plugin else "it returned"
        raise PluginError(f"check_plugin takes a function that builds a plugin; {given} {a_kind(made)}")
    report = PluginReport(made.name)
    _check_ranks(made, report)
    but_for = frozenset(volatile)
    for given in short_runs():
        _check_run(make_plugin, given, but_for, report)
    _check_neighbours(make_plugin, report)
    _check_lives(make_plugin, report)
    if report.faults:
        raise PluginError(str(report))
    return report


# -- what it says of ranks


def _check_ranks(made: Plugin, report: PluginReport) -> None:
    """Raise at once for what an engine would refuse to be built with: every run would say it again.

    Raises:
        PluginError: If the plugin says of `ranks` or `requests` what cannot be held.
    """
    try:
        verify_ranks(made, list(made.detours()) if made.ranks == "first" else ())
    except PluginError as error:
        report.fault(str(error))
        raise PluginError(str(report)) from None


# -- a run is the same however it is driven


def _check_run(make_plugin: MakePlugin, given: ShortRun, volatile: frozenset[str], report: PluginReport) -> None:
    straight = _attempt(make_plugin, given, report, "run straight through", lambda engine, stand_in: engine.run())
    if straight is None:
        return
    plugin = make_plugin()
    if plugin.observes:
        _check_observer(given, straight, report, first_only=plugin.ranks == "first")

    def exchange(engine: Engine, stand_in: StandIn) -> None:
        while not engine.current.ended:
            engine.run(until=_after_every_turn)
            if not engine.current.ended:
                state = stand_in.plugin.state_dict()
                fresh = make_plugin()
                fresh.on_begin(engine.current)  # as where a run is resumed
                fresh.load_state_dict(state)
                stand_in.exchange(fresh)

    ways = {
        "asked for its state_dict after every turn, and its guards twice": _ask,
        "paused after every turn": _pause_after_every_turn,
        "paused wherever it may pause": _pause_where_it_may,
        "exchanged after every turn for a new instance with its state_dict": exchange,
    }
    for way, drive in ways.items():
        other = _attempt(make_plugin, given, report, way, drive)
        if other is not None:
            for difference in straight.differences(other, volatile):
                report.fault(f"{way}, {difference} from those of the run that was not", given)


def _attempt(
    make_plugin: MakePlugin,
    given: ShortRun,
    report: PluginReport,
    way: str,
    drive: Callable[[Engine, StandIn], object],
) -> RunOutcome | None:
    """Make one run; a failure in it is a fault of the plugin."""
    report.runs += 1
    try:
        stand_in = stand_in_for(make_plugin())
        engine = given.build([stand_in])
        drive(engine, stand_in)
        return RunOutcome.of(engine, stand_in.plugin)
    except Exception as error:
        report.fault(f"{way}, it raised {_with_place(error)}", given)
        return None


def _after_every_turn(run: Run) -> bool:
    return True


def _pause_after_every_turn(engine: Engine, stand_in: StandIn) -> None:
    while not engine.current.ended:
        engine.run(until=_after_every_turn)


def _pause_where_it_may(engine: Engine, stand_in: StandIn) -> None:
    while not engine.current.ended:
        engine.current.pause("paused by the kit")
        engine.run()


def _ask(engine: Engine, stand_in: StandIn) -> None:
    stand_in.ask_twice = True
    while not engine.current.ended:
        engine.run(until=_after_every_turn)
        stand_in.plugin.state_dict()


def _check_observer(given: ShortRun, with_it: RunOutcome, report: PluginReport, *, first_only: bool) -> None:
    """Compare with a run that lacks the plugin: the engine relies on it that the two do the same."""
    engine = given.build([])
    engine.run()
    without = RunOutcome.of(engine, Plugin())
    if not same(with_it.weights, without.weights):
        report.fault("it says observes = True, and the weights differ from those of the run without it", given)
    elif not same(with_it.random, without.random):
        report.fault("it says observes = True, and draws from the global random generators", given)
    if first_only and with_it.path != without.path:
        report.fault(
            "it says ranks = 'first', and the path parts from that of the run without it: it steers, on one rank only",
            given,
        )


# -- the failures of others


class _NeighbourFailed(Exception):
    """What a failing neighbour raises."""


def _neighbour_that_fails(moment: str, state: str) -> Plugin:
    """Return a plugin that fails on one moment."""

    def fail(self: Plugin, run: Run) -> None:
        raise _NeighbourFailed(f"on {moment} of {state}")

    marking = on_enter if moment == "enter" else on_exit
    neighbour = type("Neighbour", (Plugin,), {"name": "heptad.testing.neighbour", "fail": marking(state)(fail)})
    return cast("Plugin", neighbour())


def _check_neighbours(make_plugin: MakePlugin, report: PluginReport) -> None:
    given = ShortRun(2, {"epochs": 1})
    for state in given.build([]).current.table.scopes():
        for moment in ("enter", "exit"):
            for first in (True, False):
                report.runs += 1
                plugin, closed = make_plugin(), [0]
                _count_closing(plugin, closed)
                neighbour = _neighbour_that_fails(moment, state)
                engine = given.build([neighbour, plugin] if first else [plugin, neighbour])
                _check_failure(engine, closed, f"when its neighbour failed on {moment} of {state}", report)


def _check_failure(engine: Engine, closed: list[int], where: str, report: PluginReport) -> None:
    """Make a run in which the neighbour fails, and look at what the plugin adds to that."""
    try:
        engine.run()
        report.fault(f"{where}, the run continued: the failure was swallowed")
    except _NeighbourFailed as error:
        if error.__context__ is not None and not isinstance(error.__context__, _NeighbourFailed):
            report.fault(f"{where}, it raised {_with_place(error.__context__)} on being closed")
    except Exception as error:
        report.fault(f"{where}, it raised {_with_place(error)} itself")
    if closed != [1]:
        report.fault(f"{where}, close() was called {closed[0]} times")


def _count_closing(plugin: Plugin, closed: list[int]) -> None:
    """Count the calls of a plugin's `close`."""
    close = plugin.close

    def count(run: Run) -> None:
        closed[0] += 1
        close(run)

    cast("Any", plugin).close = count


# -- its own life


def _check_lives(make_plugin: MakePlugin, report: PluginReport) -> None:
    """Open and close the plugin twice, and close one that was never opened."""
    report.runs += 1
    plugin = make_plugin()
    engine = ShortRun(2, {"epochs": 1}).build([plugin])
    run = engine.current
    for step in ("close", "open", "close", "open", "close", "close"):
        try:
            getattr(plugin, step)(run)
        except Exception as error:
            report.fault(f"opened and closed twice, {step}() raised {_with_place(error)}")
            return
    try:
        engine.run()
    except Exception as error:
        report.fault(f"opened and closed before the run, it raised {_with_place(error)}")


def _with_place(error: BaseException) -> str:
    """Return an exception in a line, with the place in the plugin where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
