"""What holds for every shipped plugin: the contract, the declared order, and that observers change nothing."""

from __future__ import annotations

import ast
import csv
import inspect
import io
import itertools
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, StepLR

import heptad_plugins
from builders import CLASSES, FEATURES, Planned, Side, batches
from heptad import CheckpointError, Components, Detour, Engine, Plugin, PluginError, Run, RunConfig
from heptad.plugin.manager import PluginManager
from heptad.plugin.order import ordered
from heptad.testing import check_plugin
from heptad_plugins import (
    EMA,
    SAM,
    SWA,
    Checkpoint,
    CSVLogger,
    DeviceMonitor,
    EarlyStopping,
    Evaluate,
    Freeze,
    GracefulStop,
    GradientClipping,
    Journal,
    LRSchedule,
    MLflowLogger,
    ModelSummary,
    NonFiniteGuard,
    OptimizerMonitor,
    OptunaPruning,
    OTelTracing,
    Profiler,
    Progress,
    Report,
    RunFolder,
    TensorBoardLogger,
    Throughput,
    TimeLimit,
    TrackioLogger,
    TrainingMetrics,
    WandbLogger,
)

FOLDER = Path(heptad_plugins.__file__).parent
TIMES = {
    *("steps_per_second", "samples_per_second", "updates_per_second", "data_wait_share", "mfu", "seconds"),
    "host/memory",
    *("trace_id", "span_id", "tracked"),
}
"""What measures time or memory, or is an id, among the recorded values and the state of shipped plugins."""


class Terminal(io.StringIO):
    """Takes what is written, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def makers(folder: Path) -> dict[str, Any]:
    """Return what builds each shipped plugin, with the options of every form that it has."""
    held_out = batches(2)
    files = itertools.count()
    provider = TracerProvider(shutdown_on_exit=False)
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())

    def csv_logger() -> Plugin:
        return CSVLogger(folder / "values.csv", overwrite=True)

    def checkpoint(**options: Any) -> Any:
        return lambda: Checkpoint(folder / f"checkpoints {next(files)}", overwrite=True, **options)

    def journal(**options: Any) -> Any:
        return lambda: Journal(folder / f"journal {next(files)}", overwrite=True, **options)

    return {
        "CSVLogger": csv_logger,
        "Checkpoint": checkpoint(),
        "Checkpoint often": checkpoint(at=("after_step", "optimizer_update"), every=2, keep_best=1, monitor="loss"),
        "DeviceMonitor": lambda: DeviceMonitor(every=2),
        "EMA": lambda: EMA(decay=0.5),
        "EarlyStopping": lambda: EarlyStopping("valid/loss", patience=6, min_delta=1e9),
        "EarlyStopping max": lambda: EarlyStopping("valid/accuracy", mode="max", patience=6),
        "Evaluate": lambda: Evaluate(held_out, {"mean": lambda output, batch: output.mean()}),
        "Evaluate often": lambda: Evaluate(held_out, at="optimizer_update", every=2, name="often"),
        "Evaluate steps": lambda: Evaluate(held_out, at="after_step", name="steps"),
        "Freeze": lambda: Freeze("*bias", until=1),
        "GracefulStop": GracefulStop,
        "GradientClipping": lambda: GradientClipping(max_norm=0.1),
        "GradientClipping value": lambda: GradientClipping(max_value=0.01),
        "Journal": journal(),
        "Journal often": journal(flush_every=1),
        "LRSchedule": lambda: LRSchedule(lambda optimizer: StepLR(optimizer, step_size=2, gamma=0.5)),
        "LRSchedule epoch": lambda: LRSchedule(lambda optimizer: StepLR(optimizer, step_size=1), interval="epoch"),
        "MLflowLogger": lambda: MLflowLogger("runs", uri=f"sqlite:///{folder.absolute()}/mlflow.db"),
        "ModelSummary": lambda: ModelSummary(file=io.StringIO()),
        "NonFiniteGuard": lambda: NonFiniteGuard("skip", every=2),
        "OTelTracing": lambda: OTelTracing(provider),
        "OptunaPruning": lambda: OptunaPruning(study.ask(), "valid/loss"),
        "OptimizerMonitor": lambda: OptimizerMonitor(2, ratio=True, patterns=["*"]),
        "Profiler": lambda: Profiler(folder / f"trace {next(files)}.json", range(1, 2), overwrite=True),
        "Progress": lambda: Progress(file=io.StringIO()),
        "Progress bar": lambda: Progress(file=Terminal()),
        "Report": lambda: Report(folder / "report.html"),
        "RunFolder": lambda: RunFolder(folder / "numbered"),
        "SAM": SAM,
        "SWA": lambda: SWA(start=0),
        "TensorBoardLogger": lambda: TensorBoardLogger(folder / f"events {next(files)}"),
        "Throughput": Throughput,
        "Throughput MFU": lambda: Throughput(peak_flops=1e12),
        "TimeLimit": lambda: TimeLimit(1e6),
        "TrackioLogger": lambda: TrackioLogger(f"catalogue-{folder.name}"),
        "TrainingMetrics": lambda: TrainingMetrics({"mean": lambda output, batch: output.mean()}),
        # the kit begins it some thousand times, and offline W&B starts a process and takes a second for each
        "WandbLogger": lambda: WandbLogger("runs", directory=folder, mode="disabled"),
    }


NAMES = tuple(makers(Path()))


@pytest.fixture(autouse=True)
def no_page_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page takes a second, and here a thousand runs end; `test_report.py` draws them."""

    def write(log: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(repr(log), encoding="utf-8")

    monkeypatch.setattr("heptad_plugins.report.write_report", write)


# the kit begins each some thousand times, which takes these a minute: `make long`
LONG = {"MLflowLogger": pytest.mark.long, "TrackioLogger": pytest.mark.long}


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG.get(name.split()[0], ())) for name in NAMES])
def test_every_shipped_plugin_keeps_the_contract(name, tmp_path):
    """The conformance kit finds no fault."""
    assert "no fault found" in str(check_plugin(makers(tmp_path)[name], volatile=TIMES))


class OwnRates(torch.optim.SGD):
    """An optimizer that finds its rate itself where a group has none, as Adafactor does by default."""

    def step(self, closure=None):
        held = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = 0.1 if group["lr"] is None else group["lr"]
        super().step(closure)
        for group, rate in zip(self.param_groups, held, strict=True):
            group["lr"] = rate


class Still(LRScheduler):
    """A schedule that leaves all rates as they are."""

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]


@pytest.mark.parametrize("second", [0.25, torch.tensor([0.25]), None], ids=["number", "tensor", "none"])
def test_observers_leave_out_a_rate_that_is_no_number(second, tmp_path):
    """Adafactor's `lr=None` ends no run; the other groups keep their numbers, and the logs their values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    network = nn.Linear(FEATURES, CLASSES)
    optimizer = OwnRates([{"params": [network.weight]}, {"params": [network.bias]}], lr=0.1)
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = None, second
    components = Components(network=network, loader=batches(2), criterion=nn.CrossEntropyLoss(), optimizer=optimizer)
    loggers = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path / "a.csv"), Progress(file=io.StringIO())]
    for plugins in ([Journal(tmp_path / "a")], loggers, [LRSchedule(partial(Still))]):
        run = Engine(components, RunConfig(epochs=1), plugins).run()
        assert not run.history("lr/0")
        if plugins is not loggers:
            assert run.history("lr/1") == ([] if second is None else [0.25] * 2)
    events = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert "train/lr/0" not in events
    assert ("train/lr/1" in events) is (second is not None)


def forgetful(plugin: Plugin) -> Plugin:
    """Return the plugin, without its memory."""
    plugin.state_dict = dict  # type: ignore[method-assign] - an empty one
    plugin.load_state_dict = lambda state: None  # type: ignore[method-assign]
    return plugin


@pytest.mark.parametrize("name", ["EMA", "EarlyStopping", "EarlyStopping max", "LRSchedule", "SWA"])
def test_the_kit_catches_each_of_them_that_forgets(name, tmp_path):
    """Those whose state decides what the kit can see: path, values and weights part where an instance is exchanged."""
    with pytest.raises(PluginError, match="exchanged after every turn for a new instance with its state_dict, its "):
        check_plugin(lambda: forgetful(makers(tmp_path)[name]()))


def test_every_shipped_plugin_is_in_the_list():
    """What `heptad_plugins` exports is what is checked here, and what lies in its folder."""
    shipped = set(heptad_plugins.__all__)
    assert {name.split()[0] for name in NAMES} == shipped
    files = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")}
    assert {name.replace("_", "") for name in files} == {name.lower() for name in shipped}


@pytest.mark.parametrize("path", [path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("_")])
def test_the_first_line_says_whether_it_observes_or_changes_the_run(path):
    """And no plugin imports another."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert re.match(r"`\w+` (observes|changes) the run: .*\.$", (ast.get_docstring(tree) or "").splitlines()[0])
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    plugins = {module for module in imported if module.startswith("heptad_plugins.")}
    assert all(module.removeprefix("heptad_plugins.").startswith("_") for module in plugins)


def shipped(folder: Path) -> dict[str, Plugin]:
    """Return one of each, by class name."""
    return {name: make() for name, make in makers(folder).items() if " " not in name}


def declared(folder: Path) -> list[tuple[str, str]]:
    """Return every pair (first, second) that a shipped plugin asks for, but for the two that are before all."""
    plugins = {name: plugin for name, plugin in shipped(folder).items() if name not in ("Profiler", "OTelTracing")}
    pairs = [(str(other), name) for name, plugin in plugins.items() for other in plugin.runs_after]
    pairs += [(name, str(other)) for name, plugin in plugins.items() for other in plugin.runs_before]
    return sorted(set(pairs))


PAIRS = declared(Path())


def test_what_matters_is_declared():
    """The guard before clipping, the average before evaluation and checkpoint, metrics before loggers and judges."""
    needed = {
        ("NonFiniteGuard", "GradientClipping"),
        ("EMA", "Evaluate"),
        ("EMA", "Checkpoint"),
        ("SWA", "Evaluate"),
        ("SWA", "Checkpoint"),
        ("GradientClipping", "OptimizerMonitor"),
        ("OptimizerMonitor", "CSVLogger"),
        ("Evaluate", "CSVLogger"),
        ("Evaluate", "TensorBoardLogger"),
        ("Evaluate", "Progress"),
        ("Evaluate", "EarlyStopping"),
        ("Throughput", "CSVLogger"),
        ("Throughput", "TensorBoardLogger"),
        ("DeviceMonitor", "CSVLogger"),
        ("DeviceMonitor", "TensorBoardLogger"),
        ("LRSchedule", "CSVLogger"),
        ("GradientClipping", "CSVLogger"),
    }
    assert needed <= set(PAIRS)
    assert {name for pair in PAIRS for name in pair} <= set(shipped(Path()))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_each_declared_pair_holds_in_all_orders_of_five(first, second, tmp_path):
    """With three others drawn beside the pair, whatever the order of the list."""
    plugins = shipped(tmp_path)
    others = sorted(set(plugins) - {first, second})
    for drawn in range(3):
        five = [first, second, *random.Random(f"{first} {second} {drawn}").sample(others, 3)]
        for order in itertools.permutations(five):
            found = [plugin.name for plugin in ordered([plugins[name] for name in order])]
            assert found.index(plugins[first].name) < found.index(plugins[second].name)


def on_one_moment(folder: Path) -> dict[tuple[str, str], set[str]]:
    """Return which shipped plugins have a handler on each moment where several do."""
    moments: dict[tuple[str, str], set[str]] = {}
    for name, plugin in shipped(folder).items():
        for found in PluginManager([plugin]).subscriptions():
            moments.setdefault((found.mark.moment, found.mark.state), set()).add(name)
    return {moment: names for moment, names in moments.items() if len(names) > 1}


MOMENTS = on_one_moment(Path())


@pytest.mark.parametrize("most", [150, pytest.param(None, marks=pytest.mark.long)], ids=["drawn", "all"])
@pytest.mark.parametrize("moment", MOMENTS, ids=" ".join)
def test_the_calls_of_a_moment_keep_each_declared_pair_in_all_orders(moment, most, tmp_path):
    """The plugins that have a handler there, four at a time, in every order of the list."""
    plugins, names = shipped(tmp_path), {plugin.name: name for name, plugin in shipped(tmp_path).items()}
    every = [*itertools.combinations(sorted(MOMENTS[moment]), min(4, len(MOMENTS[moment])))]
    drawn = every if most is None else random.Random(" ".join(moment)).sample(every, min(most, len(every)))
    for some in drawn:
        pairs = [pair for pair in PAIRS if set(pair) <= set(some)]
        for order in itertools.permutations(some):
            called = [
                names[found.plugin.name]
                for found in PluginManager([plugins[name] for name in order]).subscriptions()
                if found.plugin is not None and (found.mark.moment, found.mark.state) == moment
            ]
            assert sorted(called) == sorted(some)
            assert all(called.index(first) < called.index(second) for first, second in pairs)


def test_clipping_sees_the_gradients_that_the_engine_has_divided(tmp_path):
    """The engine's own division comes before every plugin, in all orders of the plugins on that moment."""
    norms = []
    for order in itertools.permutations(range(3)):
        plugins = [GradientClipping(max_norm=1e9), NonFiniteGuard(), EMA(decay=0.9)]
        engine = build([plugins[place] for place in order], accumulation=3, uneven=True)
        norms.append(engine.run().history("gradient_norm"))
    assert all(norm == norms[0] for norm in norms)
    plain = build([], accumulation=3, uneven=True)
    seen: list[float] = []
    plain.on_enter("optimizer_update")(
        lambda run: seen.append(
            torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in run.network.parameters()])).item()
        )
    )
    plain.run()
    assert norms[0] == pytest.approx(seen, rel=1e-6)


class Noisy(torch.utils.data.Dataset):
    """Samples with noise from all three generators."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return torch.randn(FEATURES) + random.random(), place % CLASSES


def build(plugins: list[Plugin], *, accumulation: int = 1, uneven: bool = False) -> Engine:
    """Return an engine over a network with dropout and batch norm."""
    torch.manual_seed(1)
    layers = nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)
    network = nn.Sequential(*layers)
    return Engine(
        Components(
            network=network,
            dataset=Noisy(),
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.AdamW(network.parameters(), lr=0.01),
        ),
        RunConfig(epochs=3, batch_size=4, accumulation=accumulation, drop_last=not uneven, seed=2),
        plugins=plugins,
    )


OBSERVERS = (
    "CSVLogger",
    "Evaluate",
    "Checkpoint",
    "Checkpoint often",
    "DeviceMonitor",
    "Evaluate often",
    "Evaluate steps",
    "Journal",
    "Journal often",
    "MLflowLogger",
    "ModelSummary",
    "OTelTracing",
    "OptimizerMonitor",
    "Profiler",
    "Progress",
    "Progress bar",
    "Report",
    "RunFolder",
    "TensorBoardLogger",
    "Throughput",
    "Throughput MFU",
    "TrackioLogger",
    "TrainingMetrics",
    "WandbLogger",
)


def bits(run: Run) -> Iterator[bytes]:
    """Yield all that a run leaves behind, as bytes: weights and buffers, the optimizer's state, the generators."""
    state: dict[int, dict[str, Any]] = run.optimizer.state_dict()["state"]
    assert state
    for tensor in [*run.network.state_dict().values(), *(value for held in state.values() for value in held.values())]:
        yield tensor.numpy().tobytes()
    yield torch.get_rng_state().numpy().tobytes()
    yield repr(random.getstate()).encode()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", [*OBSERVERS, "Evaluate every update"])
def test_observers_are_neutral(name, accumulation, tmp_path):
    """Weights, buffers, optimizer and generators are the same, bit for bit, with and without each."""
    every_update = {"Evaluate every update": lambda: Evaluate(Noisy(), at="optimizer_update")}
    observer = {**makers(tmp_path), **every_update}[name]()
    with_it = build([observer], accumulation=accumulation).run()
    left = list(bits(with_it))
    without = build([], accumulation=accumulation).run()
    assert with_it.update == without.update > 0
    assert left == list(bits(without))


# -- one instance, one run after the other


class Beside(Side):
    """Records what others watch, looks at the network where it is evaluated, and brings a NaN or a failure.

    Args:
        nan: The step after which a gradient holds a NaN.
        fails: The step in which it raises.
    """

    def __init__(self, nan: int | None = None, fails: int | None = None) -> None:
        super().__init__(Detour("evaluate", "optimizer_update", lambda run: True, self.look))
        self.nan, self.fails = nan, fails

    def look(self, run: Run) -> None:
        run.record("looked", torch.stack([tensor.double().sum() for tensor in run.network.state_dict().values()]).sum())

    def on_exit_process_batch(self, run: Run) -> None:
        for name in ("loss", "valid/loss", "valid/accuracy"):
            run.record(name, run.loss)
        if run.step == self.nan:
            run.optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))
        if run.step == self.fails:
            raise Planned


def beside(name: str, plugin: Plugin, *others: Plugin, fails: int | None = None) -> Engine:
    """Return an engine for a plugin of the list; a guard gets a NaN to find in the second of six updates."""
    nan = 3 if name.startswith("NonFiniteGuard") else None
    return build([Beside(nan, fails), plugin, *others], accumulation=2, uneven=True)


def left_by(engine: Engine, plugin: Plugin, resume: str | None = None) -> tuple[Any, ...]:
    """Run an engine, and return what a plugin can make of a run; of what measures time whether it is more than 0."""
    run = engine.run(resume=resume)
    values = [(record.name, record.update, record.value) for record in run.records()]
    values = [(name, update, value > 0 if name in TIMES else repr(value)) for name, update, value in values]
    state = {name: value for name, value in plugin.state_dict().items() if name not in TIMES}
    return run.log.path(), run.reason, values, list(bits(run)), repr(state)


@pytest.mark.parametrize("fails", [None, 6], ids=["ended", "failed in an epoch"])
@pytest.mark.parametrize("name", NAMES)
def test_an_instance_that_is_given_to_a_second_engine_begins_anew(name, fails, tmp_path):
    """Path, reason, recorded values, weights and its state are those of a fresh one, whatever the first run left."""
    used, fresh = makers(tmp_path / "used")[name](), makers(tmp_path / "fresh")[name]()
    first = beside(name, used, fails=fails)
    with pytest.raises(Planned) if fails else nullcontext():
        first.run()
    assert left_by(beside(name, used), used) == left_by(beside(name, fresh), fresh)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("Checkpoint")])
def test_an_instance_that_continues_from_a_checkpoint_in_a_second_engine_is_like_a_fresh_one(name, tmp_path):
    """What the run that failed left in it is gone, also what is in no checkpoint."""
    used_folder, fresh_folder = tmp_path / "used", tmp_path / "fresh"
    used = makers(used_folder)[name]()
    with pytest.raises(Planned):
        beside(name, used, Checkpoint(used_folder / "at", at="after_step", every=3), fails=6).run()
    shutil.copytree(used_folder, fresh_folder)
    left = []
    for folder, plugin in ((used_folder, used), (fresh_folder, makers(fresh_folder)[name]())):
        engine = beside(name, plugin, Checkpoint(folder / "at", at="after_step", every=3))
        left.append(left_by(engine, plugin, resume="auto"))
    assert left[0] == left[1]


@pytest.mark.parametrize("make", [CSVLogger, Checkpoint, Journal])
def test_an_instance_does_not_take_the_file_of_its_first_run_for_that_of_the_second(make, tmp_path):
    """Without `overwrite` it is refused, as a fresh one is."""
    plugin = make(tmp_path / "there")
    build([plugin]).run()
    with pytest.raises((PluginError, CheckpointError), match="of another run"):
        build([plugin]).run()


def test_every_file_that_says_observes_is_checked_to_be_neutral():
    """The list above is the list of what says so of itself."""
    said = {
        re.match(r'"""`(\w+)` observes', path.read_text(encoding="utf-8"))[1]  # type: ignore[index] - the pattern was matched above
        for path in FOLDER.glob("*.py")
        if re.match(r'"""`\w+` observes', path.read_text(encoding="utf-8"))
    }
    assert said == {name.split()[0] for name in OBSERVERS}


class Reads(Plugin):
    """Reads the files of two loggers at the end of each epoch, behind them."""

    runs_after = (CSVLogger, Progress)

    def __init__(self, path: Path, out: io.StringIO) -> None:
        self.path, self.out = path, out
        self.epochs = 0

    def on_exit_after_epoch(self, run: Run) -> None:
        self.epochs += 1
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        lines = self.out.getvalue().splitlines()
        assert len(lines) == run.epoch
        for name in ("valid/loss", "steps_per_second"):
            values = run.history(name)
            assert len(values) == run.epoch
            assert [float(row[name]) for row in rows if row.get(name)] == values
            shown = name != "steps_per_second"  # a line has a speed of its own
            assert (f"{name} {values[-1]:.4g}" in lines[-1]) == shown


def test_loggers_see_the_metrics_of_the_epoch(tmp_path):
    """In any order of the list: when a logger is called at the end of an epoch, the values of that epoch are there."""
    for number, order in enumerate(itertools.permutations(range(4))):
        path, out = tmp_path / f"{number}.csv", io.StringIO()
        plugins = [CSVLogger(path), Evaluate(batches(2)), Throughput(), Progress(file=out)]
        reads = Reads(path, out)
        build([reads, *(plugins[place] for place in order)]).run()
        assert reads.epochs == 3


def test_every_observer_may_be_allowed_to_fail(tmp_path):
    """`on_error="detach"` is an option of each, by keyword."""
    made = makers(tmp_path)
    for name in set(OBSERVERS) - {"RunFolder"}:  # has no handler that could fail
        option = inspect.signature(type(made[name]())).parameters["on_error"]
        assert (option.kind, option.default) == (inspect.Parameter.KEYWORD_ONLY, "raise")
    for plugin in (
        CSVLogger(tmp_path / "a.csv", on_error="detach"),
        DeviceMonitor(on_error="detach"),
        Evaluate(batches(1), on_error="detach"),
        Journal(tmp_path / "a.journal", on_error="detach"),
        MLflowLogger("a", on_error="detach"),
        ModelSummary(on_error="detach"),
        OTelTracing(on_error="detach"),
        OptimizerMonitor(on_error="detach"),
        Profiler(tmp_path / "a.json", range(1), on_error="detach"),
        Progress(on_error="detach"),
        Report(on_error="detach"),
        TensorBoardLogger(tmp_path, on_error="detach"),
        Throughput(on_error="detach"),
        TrackioLogger("a", on_error="detach"),
        TrainingMetrics(on_error="detach"),
        WandbLogger("a", on_error="detach"),
    ):
        assert plugin.on_error == "detach"


def test_every_is_the_same_word_everywhere(tmp_path):
    """Every plugin that has it counts from 1 on, by default each, and refuses what is no such number in equal words."""
    needed = {
        "CSVLogger": (tmp_path / "a.csv",),
        "Checkpoint": (tmp_path / "checkpoints",),
        "EMA": (0.9,),
        "EarlyStopping": ("valid/loss",),
        "Evaluate": (batches(1),),
        "MLflowLogger": ("a",),
        "TensorBoardLogger": (tmp_path,),
        "TrackioLogger": ("a",),
        "WandbLogger": ("a",),
    }
    options = {name: inspect.signature(getattr(heptad_plugins, name)).parameters for name in heptad_plugins.__all__}
    having = [name for name in options if "every" in options[name]]
    assert {*needed, "DeviceMonitor", "NonFiniteGuard", "OTelTracing", "OptimizerMonitor", "Throughput"} == set(having)
    for name in having:
        assert options[name]["every"].default == 1
        for wrong in (0, -1, 1.0, True, "2", None):
            with pytest.raises(PluginError) as caught:
                getattr(heptad_plugins, name)(*needed.get(name, ()), every=wrong)
            assert str(caught.value) == f"{name}(every=…) must be a whole number from 1 on, got {wrong!r}"
        assert options[name]["first"].default is None
        for wrong in (0, -1, 1.0, True, "2"):
            with pytest.raises(PluginError) as caught:
                getattr(heptad_plugins, name)(*needed.get(name, ()), first=wrong)
            assert str(caught.value) == f"{name}(first=…) must be a whole number from 1 on, got {wrong!r}"


def numbers_of(name: str, folder: Path, **options: int) -> list[int]:
    """Return at which epochs or updates, of ten, a plugin does what its `every` counts."""
    guarded: list[int] = []

    class Guarded(NonFiniteGuard):
        def _check(self, run: Run) -> None:
            guarded.append(run.update + 1)

    monitor: dict[str, Any] = {"monitor": "valid/loss", "patience": 100}
    plugin = {
        "CSVLogger": lambda: CSVLogger(folder / "a.csv", overwrite=True, **options),
        "Checkpoint": lambda: Checkpoint(folder / "c", overwrite=True, keep_last=10, **options),
        "DeviceMonitor": lambda: DeviceMonitor(**options),
        "Checkpoint updates": lambda: Checkpoint(folder / "d", "optimizer_update", overwrite=True, **options),
        "EarlyStopping": lambda: EarlyStopping(**monitor, **options),
        "Evaluate": lambda: Evaluate(batches(1), **options),
        "Evaluate updates": lambda: Evaluate(batches(1), at="optimizer_update", **options),
        "NonFiniteGuard": lambda: Guarded(**options),
        "OptimizerMonitor": lambda: OptimizerMonitor(**options),
        "Throughput": lambda: Throughput(**options),
    }[name]()
    network = nn.Linear(FEATURES, CLASSES)
    components = Components(
        network=network,
        loader=batches(1),
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    )
    engine = Engine(components, RunConfig(epochs=10), [plugin])
    if name == "EarlyStopping":
        engine.on_enter("after_epoch")(lambda run: run.record("valid/loss", 1.0))
        looked: list[int] = []
        plugin._improves = lambda value: looked.append(engine.current.epoch) is None
        engine.run()
        return looked
    run = engine.run()
    state = {"Checkpoint": "checkpoint", "Evaluate": "evaluate"}.get(name.split(maxsplit=1)[0])
    if state is not None:
        return [t.update for t in run.log.where(dest=state)]
    if name == "CSVLogger":
        rows = list(csv.DictReader((folder / "a.csv").read_text().splitlines()))
        return [int(row["update"]) for row in rows if row["train/loss"]]
    if name == "DeviceMonitor":
        return [value.update for value in run.records()]
    if name == "OptimizerMonitor":
        return [value.update for value in run.records() if value.name == "grad_norm"]
    return guarded or [value.epoch for value in run.records() if value.name == "steps_per_second"]


@pytest.mark.parametrize(
    "name",
    [
        *("CSVLogger", "Checkpoint", "Checkpoint updates", "DeviceMonitor", "EarlyStopping", "Evaluate"),
        *("Evaluate updates", "NonFiniteGuard", "OptimizerMonitor", "Throughput"),
    ],
)
def test_first_is_the_same_word_everywhere(name, tmp_path):
    """`every=4, first=1` means 1, 5, 9, as in a loop that asks for `i % 4 == 0`; without it 4, 8."""
    assert numbers_of(name, tmp_path, every=4) == [4, 8]
    assert numbers_of(name, tmp_path, every=4, first=1) == [1, 5, 9]
    assert numbers_of(name, tmp_path, every=2, first=7) == [7, 9]


@pytest.mark.parametrize("wrong", [None, "", 3, True, b"a", Path], ids=repr)
@pytest.mark.parametrize(
    ("make", "option", "what"),
    [
        (CSVLogger, "path", "file"),
        (Checkpoint, "directory", "directory"),
        (Journal, "path", "file"),
        (partial(Profiler, updates=range(1)), "path", "file"),
        (TensorBoardLogger, "directory", "directory"),
    ],
)
def test_what_is_no_path_is_refused_when_it_is_built(make, option, what, wrong):
    """In equal words; the empty one too, which would be the working directory."""
    with pytest.raises(PluginError) as caught:
        make(wrong)
    name = getattr(make, "func", make).__name__
    said = f"{name}({option}=…) must be the path of a {what}, as a str or a Path, got {wrong!r}"
    assert str(caught.value) == said


@pytest.mark.parametrize("make", [Checkpoint, TensorBoardLogger])
def test_a_file_in_place_of_a_directory_is_refused_when_it_is_built(make, tmp_path):
    """The message names it, and what is wanted."""
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(PluginError, match=rf"{make.__name__}\(directory=…\): {path} is a file; name a directory"):
        make(path)
    assert path.read_text(encoding="utf-8") == "precious"


def test_no_extra_is_imported_until_it_is_used():
    """All plugins can be imported, and those that need no extra be built, where none is installed."""
    code = """
import sys
absent = "mlflow", "opentelemetry", "optuna", "psutil", "pynvml", "rich", "tensorboard", "torchmetrics"
sys.modules.update(dict.fromkeys((*absent, "trackio", "wandb")))
from heptad_plugins import *
CSVLogger("a.csv"), EMA(0.9), EarlyStopping("a"), Evaluate([]), GracefulStop(), GradientClipping(max_norm=1.0)
LRSchedule(lambda optimizer: None), NonFiniteGuard(), OptimizerMonitor()
Profiler("a.json", range(1)), SWA(0), Throughput(), TimeLimit(1)
pruning = lambda: OptunaPruning(None, "a")
trackers = (lambda: MLflowLogger("a"), lambda: TrackioLogger("a"), lambda: WandbLogger("a"))
for make in (DeviceMonitor, ModelSummary, OTelTracing, pruning, Progress, lambda: TensorBoardLogger("a"), *trackers):
    try:
        make()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "DeviceMonitor needs psutil: pip install 'heptad[monitor]'",
        "ModelSummary needs rich: pip install 'heptad[rich]'",
        "OTelTracing needs opentelemetry: pip install 'heptad[otel]'",
        "OptunaPruning needs optuna: pip install 'heptad[optuna]'",
        "Progress needs rich: pip install 'heptad[rich]'",
        "TensorBoardLogger needs tensorboard: pip install 'heptad[tensorboard]'",
        "MLflowLogger needs mlflow: pip install 'heptad[mlflow]'",
        "TrackioLogger needs trackio: pip install 'heptad[trackio]'",
        "WandbLogger needs wandb: pip install 'heptad[wandb]'",
    ]
