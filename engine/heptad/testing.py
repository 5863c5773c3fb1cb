"""The conformance kit: `check_plugin` drives a plugin through short runs and says in words what is wrong with it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from heptad.config import Components, RunConfig
from heptad.data.generators import cpu_states
from heptad.engine import Engine
from heptad.errors import PluginError
from heptad.plugin.contract import Plugin, on_enter, on_exit
from heptad.plugin.detour import Detour
from heptad.plugin.subscription import subscriptions_of
from heptad.run.run import Run

MakePlugin = Callable[[], Plugin]
FEATURES, CLASSES, SIZE = 4, 3, 4


@dataclass
class PluginReport:
    """What `check_plugin` did and found.

    Attributes:
        plugin: The plugin's name.
        runs: How many short runs it was driven through.
        faults: What is wrong with it, each in words, and the runs in which it showed.
    """

    plugin: str
    runs: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def fault(self, text: str, path: object = "") -> None:
        """Adds a fault, or one more run in which a known one shows."""
        self.faults.setdefault(text, []).append(str(path))

    def __str__(self) -> str:
        if not self.faults:
            return f"{self.plugin}: no fault found in {self.runs} runs"
        lines = [f"{self.plugin}: {len(self.faults)} faults found in {self.runs} runs"]
        for text, paths in self.faults.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            lines.append(f"  - {text}{f' (with {paths[0]}{more})' if paths[0] else ''}")
        return "\n".join(lines)


class _Unsized:
    """A re-iterable of batches without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


@dataclass(frozen=True)
class _Path:
    """A short run: its configuration and what happens in it."""

    batches: int
    config: dict[str, Any]
    sized: bool = True
    stop_at: int | None = None
    skip_at: int | None = None
    evaluated: bool = False

    def __str__(self) -> str:
        parts = [f"{self.batches} batches{'' if self.sized else ' of unknown number'}"]
        parts += [f"{name}={value!r}" for name, value in self.config.items()]
        parts += [f"stopped in step {self.stop_at}"] if self.stop_at is not None else []
        parts += [f"update {self.skip_at} skipped"] if self.skip_at is not None else []
        parts += ["evaluated after every other update"] if self.evaluated else []
        return ", ".join(parts)


def _paths() -> list[_Path]:
    """Returns short runs that between them take every arc of the table."""
    paths = [
        _Path(3, {"epochs": 2}),
        _Path(1, {"epochs": 4}),
        _Path(3, {"epochs": 0}),
        _Path(3, {"epochs": 2, "accumulation": 2}),
        _Path(3, {"epochs": 1, "accumulation": 2}, sized=False),
        _Path(2, {"epochs": 2}, sized=False),
        _Path(1, {"epochs": 2, "accumulation": 3, "remainder": "drop"}),
        _Path(3, {"max_updates": 4, "epochs": 8}),  # both: a plugin that skips all updates ends it as well
        _Path(4, {"epochs": 1, "accumulation": 3}, stop_at=1),
        _Path(3, {"epochs": 2}, skip_at=1),
        _Path(3, {"epochs": 2}, evaluated=True),
    ]
    for remainder in ("flush", "drop"):
        for sized in (True, False):
            paths.append(_Path(3, {"epochs": 2, "accumulation": 2, "remainder": remainder}, sized=sized))
    return paths


class _Script(Plugin):
    """What happens in a run beside the plugin under test: values to watch, a stop, a skipped update, an evaluation."""

    name = "heptad.testing.script"

    def __init__(self, path: _Path) -> None:
        self._path = path

    def detours(self) -> Iterable[Detour]:
        """Returns the state `evaluate`, for plugins that do something there."""
        if not self._path.evaluated:
            return []
        return [Detour("evaluate", "optimizer_update", lambda run: True, self.look, every=2)]

    def look(self, run: Run) -> None:
        """Records what an evaluation would depend on: the weights that the network holds in it."""
        tensors = [tensor.double().sum() for tensor in run.network.state_dict().values()]
        run.record("heptad.testing.weights", torch.stack(tensors).sum())

    @on_exit("process_batch")
    def record(self, run: Run) -> None:
        """Records values under the names that plugins are commonly told to watch."""
        assert run.loss is not None
        for name in ("loss", "valid/loss", "valid/accuracy"):
            run.record(name, run.loss)
        if run.step == self._path.stop_at:
            run.stop("the script says so")

    @on_enter("optimizer_update")
    def skip(self, run: Run) -> None:
        """Skips an update."""
        if run.update == self._path.skip_at and not run.history("skipped"):
            run.record("skipped", 1)
            run.skip_update("the script says so")


class _StandIn(Plugin):
    """Stands in an engine for the plugin under test, which can be exchanged for another while the run is paused."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.name = plugin.name
        self.runs_after, self.runs_before = plugin.runs_after, plugin.runs_before
        self._given = tuple(plugin.detours())

        self.ask_twice = False

    def exchange(self, plugin: Plugin) -> None:
        """Puts another instance in place of the one that is there."""
        self.plugin = plugin
        self._given = tuple(plugin.detours())

    def open(self, run: Run) -> None:
        """Passed on."""
        self.plugin.open(run)

    def close(self, run: Run) -> None:
        """Passed on."""
        self.plugin.close(run)

    def on_pause(self, run: Run) -> None:
        """Passed on."""
        self.plugin.on_pause(run)

    def detours(self) -> Iterable[Detour]:
        """Returns detours that ask and run those of whichever plugin is there."""
        for number, detour in enumerate(self._given):
            yield Detour(
                detour.state,
                detour.after,
                lambda run, number=number: self._asked(self._given[number], run),
                lambda run, number=number: self._given[number].body(run),
                detour.every,
                detour.count,
            )

    def _asked(self, detour: Detour, run: Run) -> bool:
        if self.ask_twice:
            detour.when(run)
        return detour.when(run)


def _stand_in(plugin: Plugin) -> _StandIn:
    """Returns a stand-in that subscribes to what the plugin does, in the same order and with the same filters."""
    methods: dict[str, Any] = {}
    for subscription in subscriptions_of(plugin):
        method, mark = subscription.who.removeprefix(f"{plugin.name}."), subscription.mark

        def pass_on(self: _StandIn, run: Run, method: str = method) -> None:
            getattr(self.plugin, method)(run)

        marking = on_enter if mark.moment == "enter" else on_exit
        number = len(methods)
        methods[f"call_{number}"] = marking(mark.state, every=mark.every, once=mark.once, when=mark.when)(pass_on)
    return cast("_StandIn", type("_StandIn", (_StandIn,), methods)(plugin))


def _build(path: _Path, plugins: list[Plugin]) -> Engine:
    """Returns an engine over a network with dropout and batch norm, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, CLASSES))
        batches = [(torch.randn(SIZE, FEATURES), torch.randint(0, CLASSES, (SIZE,))) for _ in range(path.batches)]
    components = Components(
        network=network,
        loader=batches if path.sized else _Unsized(batches),
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9),
    )
    return Engine(components, RunConfig(seed=3, **path.config), plugins=[_Script(path), *plugins])


@dataclass
class _Outcome:
    """What two runs are compared by."""

    transitions: list[tuple[Any, ...]]
    notes: list[tuple[int, str, str]]
    values: list[tuple[Any, ...]]
    tensors: list[torch.Tensor]
    state: dict[str, Any]
    random: Any

    def differences(self, other: _Outcome, volatile: frozenset[str]) -> list[str]:
        """Says in what the other differs from this one."""
        found: list[str] = []
        if self.transitions != other.transitions:
            found.append("its path parts")
        if self.notes != other.notes:
            found.append("its notes differ")
        ours, theirs = ([v for v in values if v[0] not in volatile] for values in (self.values, other.values))
        if not _same(ours, theirs):
            found.append("its recorded values differ")
        if not _same(self.tensors, other.tensors):
            found.append("its weights differ")
        mine, its = ({k: v for k, v in state.items() if k not in volatile} for state in (self.state, other.state))
        if not _same(mine, its):
            found.append("its state_dict at the end differs")
        return found


def _outcome(engine: Engine, plugin: Plugin) -> _Outcome:
    run = engine.current
    return _Outcome(
        [(t.seq, t.source, t.dest, dict(t.guards), t.epoch, t.batch_index, t.step, t.update) for t in run.log],
        [(note.seq, note.kind, note.text) for note in run.log.notes() if note.kind != "pause"],
        [(r.name, r.value, r.seq, r.epoch, r.step, r.update) for r in run.records()],
        [tensor.clone() for tensor in run.network.state_dict().values()],
        plugin.state_dict(),
        _generators(),
    )


def _generators() -> list[Any]:
    """Returns where the global generators stand, as plain data and a tensor."""
    states = cpu_states()
    return [states["torch"], states["python"], [str(part) for part in states["numpy"][2:]], states["numpy"][1].tolist()]


def _same(one: Any, other: Any) -> bool:
    """Compares plain data and tensors, bit for bit; NaN is the same as NaN."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        return (
            both
            and one.dtype == other.dtype
            and one.shape == other.shape
            and bool(
                torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)) and torch.equal(one.isnan(), other.isnan())
            )
        )
    if isinstance(one, dict) and isinstance(other, dict):
        mine, theirs = cast("dict[Any, Any]", one), cast("dict[Any, Any]", other)
        return mine.keys() == theirs.keys() and all(_same(mine[key], theirs[key]) for key in mine)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        ours, others = cast("list[Any]", one), cast("list[Any]", other)
        return len(ours) == len(others) and all(_same(a, b) for a, b in zip(ours, others, strict=True))
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return both_nan or one == other


def _unplain(value: Any, place: str) -> list[str]:
    """Names what in a state_dict is neither plain data nor a tensor."""
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor):
        return []
    if type(value) in (list, tuple):
        return [fault for number, item in enumerate(value) for fault in _unplain(item, f"{place}[{number}]")]
    if type(value) is dict:
        items = cast("dict[Any, Any]", value).items()
        keys = [
            f"{place} has the key {key!r}, which is no str or int" for key, _ in items if type(key) not in (str, int)
        ]
        return keys + [fault for key, item in items for fault in _unplain(item, f"{place}[{key!r}]")]
    return [f"{place} is a {type(value).__name__}, which is neither plain data nor a tensor"]


def check_plugin(make_plugin: MakePlugin, *, volatile: Iterable[str] = ()) -> PluginReport:
    """Drives a plugin through short runs on every arc of the table and in `evaluate`, and holds it to the contract.

    - It is built twice from the same function, and opened and closed twice.
    - A run paused after every turn is the same as one that never was: path, notes, recorded values, weights, state.
    - Exchanged at every turn for a new instance that is given its `state_dict`, it goes on as if nothing had been.
    - Its `state_dict` is plain data and tensors, and asking for it changes nothing.
    - The guards of its detours change nothing: asked twice, all is the same.
    - If it says `observes`, weights and random generators are at the end what they are without it.
    - When a plugin before or behind it fails, it is closed and adds no failure of its own.

    Args:
        make_plugin: Returns a new instance, the same each time. What it is to watch may be called `"loss"`,
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
    report = PluginReport(make_plugin().name)
    apart = frozenset(volatile)
    for path in _paths():
        _check_path(make_plugin, path, apart, report)
    _check_neighbours(make_plugin, report)
    _check_lives(make_plugin, report)
    if report.faults:
        raise PluginError(str(report))
    return report


def _check_path(make_plugin: MakePlugin, path: _Path, volatile: frozenset[str], report: PluginReport) -> None:
    straight = _attempt(make_plugin, path, report, "run straight through", lambda engine, stand_in: engine.run())
    if straight is None:
        return
    for fault in _unplain(straight.state, "state_dict()"):
        report.fault(fault)
    if make_plugin().observes:
        _check_observer(path, straight, report)

    def paused(engine: Engine, stand_in: _StandIn) -> None:
        while not engine.current.ended:
            engine.run(until=lambda run: True)

    def paused_by_verb(engine: Engine, stand_in: _StandIn) -> None:
        while not engine.current.ended:
            engine.current.pause("paused by the kit")
            engine.run()

    def exchanged(engine: Engine, stand_in: _StandIn) -> None:
        while not engine.current.ended:
            engine.run(until=lambda run: True)
            if not engine.current.ended:
                state = stand_in.plugin.state_dict()
                fresh = make_plugin()
                fresh.load_state_dict(state)
                stand_in.exchange(fresh)

    def asked(engine: Engine, stand_in: _StandIn) -> None:
        stand_in.ask_twice = True
        while not engine.current.ended:
            engine.run(until=lambda run: True)
            stand_in.plugin.state_dict()

    ways = {
        "asked for its state_dict after every turn, and its guards twice": asked,
        "paused after every turn": paused,
        "paused wherever it may pause": paused_by_verb,
        "exchanged after every turn for a new instance with its state_dict": exchanged,
    }
    for way, drive in ways.items():
        other = _attempt(make_plugin, path, report, way, drive)
        if other is not None:
            for difference in straight.differences(other, volatile):
                if "paused wherever" in way and difference == "its notes differ":
                    continue  # the pauses themselves are notes
                report.fault(f"{way}, {difference} from those of the run that was not", path)


def _attempt(
    make_plugin: MakePlugin,
    path: _Path,
    report: PluginReport,
    way: str,
    drive: Callable[[Engine, _StandIn], object],
) -> _Outcome | None:
    """Makes one run; a failure in it is a fault of the plugin."""
    report.runs += 1
    try:
        stand_in = _stand_in(make_plugin())
        engine = _build(path, [stand_in])
        drive(engine, stand_in)
        return _outcome(engine, stand_in.plugin)
    except Exception as error:
        report.fault(f"{way}, it raised {_told(error)}", path)
        return None


def _check_observer(path: _Path, with_it: _Outcome, report: PluginReport) -> None:
    """Compares with a run that lacks the plugin: the engine relies on it that the two do the same."""
    engine = _build(path, [])
    engine.run()
    tensors = [tensor.clone() for tensor in engine.current.network.state_dict().values()]
    if not _same(with_it.tensors, tensors):
        report.fault("it says observes = True, and the weights differ from those of the run without it", path)
    elif not _same(with_it.random, _generators()):
        report.fault("it says observes = True, and draws from the global random generators", path)


class _Failing(Plugin):
    """A neighbour that fails on one moment."""

    def __init__(self, moment: str, state: str) -> None:
        self.name = "heptad.testing.neighbour"
        self._at = (moment, state)

    def fail(self, run: Run) -> None:
        """Fails."""
        raise _NeighbourFailed(f"on {self._at[0]} of {self._at[1]}")


class _NeighbourFailed(Exception):
    """What a failing neighbour raises."""


def _failing(moment: str, state: str) -> Plugin:
    marking = on_enter if moment == "enter" else on_exit

    def fail(self: _Failing, run: Run) -> None:
        self.fail(run)

    return cast("Plugin", type("_FailingThere", (_Failing,), {"call": marking(state)(fail)})(moment, state))


def _check_neighbours(make_plugin: MakePlugin, report: PluginReport) -> None:
    path = _Path(2, {"epochs": 1})
    for state in _build(path, []).current.table.scopes():
        for moment in ("enter", "exit"):
            for first in (True, False):
                report.runs += 1
                plugin = _counted(make_plugin())
                neighbour = _failing(moment, state)
                engine = _build(path, [neighbour, plugin] if first else [plugin, neighbour])
                where = f"when its neighbour failed on {moment} of {state}"
                try:
                    engine.run()
                    report.fault(f"{where}, the run went on: the failure was swallowed")
                except _NeighbourFailed as error:
                    if error.__context__ is not None and not isinstance(error.__context__, _NeighbourFailed):
                        report.fault(f"{where}, it raised {_told(error.__context__)} on being closed")
                except Exception as error:
                    report.fault(f"{where}, it raised {_told(error)} itself")
                if cast("Any", plugin).kit_closed != 1:
                    report.fault(f"{where}, close() was called {cast('Any', plugin).kit_closed} times")


def _counted(plugin: Plugin) -> Plugin:
    """Counts the calls of a plugin's `close`."""
    close, counted = plugin.close, cast("Any", plugin)
    counted.kit_closed = 0

    def count(run: Run) -> None:
        counted.kit_closed += 1
        close(run)

    counted.close = count
    return plugin


def _check_lives(make_plugin: MakePlugin, report: PluginReport) -> None:
    """Opens and closes the plugin twice, and closes one that was never opened."""
    report.runs += 1
    plugin = make_plugin()
    engine = _build(_Path(2, {"epochs": 1}), [plugin])
    run = engine.current
    for step in ("close", "open", "close", "open", "close", "close"):
        try:
            getattr(plugin, step)(run)
        except Exception as error:
            report.fault(f"opened and closed twice, {step}() raised {_told(error)}")
            return
    try:
        engine.run()
    except Exception as error:
        report.fault(f"opened and closed before the run, it raised {_told(error)}")


def _told(error: BaseException) -> str:
    """Returns an exception in a line, with the place in the plugin where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
