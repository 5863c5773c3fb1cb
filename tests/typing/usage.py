"""Every public name used as it is meant to be. Pyright, strict, finds no fault here; the file is never run."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import TensorDataset

from heptad import (
    Arc,
    CheckpointError,
    Components,
    ConfigError,
    DataError,
    Detour,
    Engine,
    EngineError,
    LogError,
    LossOutput,
    Plugin,
    PluginError,
    RankFailed,
    RateSearch,
    Run,
    RunConfig,
    State,
    TableError,
    Transition,
    TransitionLog,
    find_learning_rate,
    load_weights,
    on_enter,
    on_exit,
)
from heptad.plugin import Measures
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

Batch = tuple[torch.Tensor, torch.Tensor]


class Own(Plugin):
    """A plugin with all that one may have."""

    name = "own"
    on_error = "detach"
    runs_after = (Evaluate, "EMA")
    runs_before = ("CSVLogger",)

    def __init__(self) -> None:
        self.count = 0

    def detours(self) -> Iterable[Detour]:
        return [
            Detour("sample", after="optimizer_update", when=lambda run: run.update > 3, body=self.sample, every=10),
            Detour("look", after=("after_step", "after_epoch"), when=lambda run: True, body=self.sample, count="step"),
        ]

    def sample(self, run: Run) -> None:
        run.record("count", self.count)

    def open(self, run: Run) -> None:
        self.count = 0

    def close(self, run: Run) -> None:
        self.count = 0

    def on_pause(self, run: Run) -> None:
        self.count += 1

    def on_enter_optimizer_update(self, run: Run) -> None:
        for parameter in run.network.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)
        if run.update == 3:
            run.skip_update("the third")

    @on_exit("process_batch", every=100)
    def report(self, run: Run) -> None:
        assert_type(run.loss, torch.Tensor | None)
        assert_type(run.batch, Any)

    @on_enter("before_epoch", once=True, when=lambda run: run.epoch > 0)
    def first(self, run: Run) -> None:
        run.set_accumulation(2)
        run.stop("enough")
        run.pause("for a while")
        run.note("seen")

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def compute_loss(network: nn.Module, batch: Batch) -> LossOutput:
    output = network(batch[0])
    value = nn.functional.cross_entropy(output, batch[1])
    return LossOutput(value, weight=len(batch[1]), output=output, logs={"error": value})


def bare_loss(network: nn.Module, batch: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def accuracy(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    return (output.argmax(1) == batch[1]).float().mean()


def build_optimizer(network: nn.Module) -> Optimizer:
    return SGD(network.parameters(), lr=0.1)


def engines(network: nn.Module, data: TensorDataset, batches: list[Batch]) -> list[Engine]:
    given = SGD(network.parameters(), lr=0.1)
    config = RunConfig(
        epochs=2,
        max_updates=10,
        batch_size=4,
        accumulation=2,
        remainder="flush",
        seed=None,
        shuffle=False,
        drop_last=False,
        num_workers=0,
        device="cpu",
        deterministic=False,
        compile={"mode": "default"},
        recompute=True,
        log_capacity=1000,
    )
    plugins = [
        Own(),
        Evaluate(data, {"accuracy": accuracy}, at="after_epoch", every=1, name="valid"),
        LRSchedule(lambda optimizer, total_updates: StepLR(optimizer, total_updates), interval="update"),
        GradientClipping(max_norm=1.0),
        Report("report.html", journal="run.journal"),
        SAM(rho=0.1, adaptive=True),
        EMA(decay=0.99),
        Freeze("backbone.*", "stem.*", until=2, lr=1e-3, group={"weight_decay": 0.0}, freeze_statistics=False),
        SWA(start=1, cycle=2, dtype=torch.float32, evaluate=False, apply=True),
        OptimizerMonitor(every=10, first=1, patterns=["head.*"], ratio=True, histograms=TensorBoardLogger("events")),
        EarlyStopping("valid/loss", mode="min", patience=3, min_delta=0.0),
        NonFiniteGuard(action="skip", every=2),
        CSVLogger("run.csv"),
        TensorBoardLogger(Path("events")),
        GracefulStop(exit=False),
        Throughput(on_error="detach", peak_flops=1e12),
        DeviceMonitor(every=10),
        ModelSummary(depth=None),
        Profiler("trace.json", range(10, 13), record_shapes=True),
        TrainingMetrics({"accuracy": accuracy}, on_error="detach"),
        TimeLimit(60.0, action="pause"),
        OTelTracing(every=100, states=["evaluate"], on_error="detach"),
        OptunaPruning(None, "valid/loss", by="update"),
        Progress(),
    ]
    folder = RunFolder("runs")
    plugins += [
        folder,
        Checkpoint(folder),
        Journal(folder),
        MLflowLogger("runs", checkpoints=folder),
        WandbLogger("runs", directory=folder),
        TrackioLogger("runs", checkpoints="checkpoints"),
    ]
    return [
        Engine(
            Components(network=network, dataset=data, criterion=nn.CrossEntropyLoss(), optimizer=given), config, plugins
        ),
        Engine(
            Components(network=network, loader=batches, compute_loss=compute_loss, optimizer=build_optimizer),
            RunConfig(max_updates=3),
        ),
        Engine(
            Components(
                network=network,
                loader=batches,
                compute_loss=bare_loss,
                optimizer=[given, build_optimizer],
                side_optimizers={"made": given, "built": build_optimizer},
                blocks=lambda network: network.children(),
            ),
            RunConfig(max_updates=3),
            plugins=[Own()],
        ),
    ]


def drive(engine: Engine) -> Run:
    @engine.on_exit("after_epoch", every=2)
    def tell(run: Run) -> None:
        print(run.epoch, run.batch_index, run.step, run.update, run.samples, run.accumulation, run.total_updates)

    assert_type(tell(engine.current), None)
    assert_type(engine.diagram(), str)
    for turn in engine.plan():
        assert_type(turn.condition, str | None)
    print(engine.subscriptions()[0].who)
    assert_type(engine.advance(), Transition)
    engine.run(until="after_epoch")
    engine.run(until=lambda run: run.update == 3)
    with engine:
        run = engine.run()
    assert_type(run, Run)
    assert_type(engine.evaluate([], {"accuracy": accuracy}), Measures)
    assert_type(engine.evaluate([], limit=1)["loss"], float)
    assert_type(engine.predict([]), Iterator[Any])
    engine.close()
    return run


def read(run: Run) -> None:
    log = run.log
    assert_type(log, TransitionLog)
    assert_type(log[0], Transition)
    assert_type(log[1:3], list[Transition])
    assert_type(log.tail(5), list[Transition])
    assert_type(log.where(source="after_step", update=range(3)), list[Transition])
    assert_type(log.path(), list[str])
    assert_type(log.counts()["evaluate"], int)
    assert_type(log.durations()["after_step"].median_ns, float)
    assert_type(log.notes("stop")[0].text, str)
    assert_type(log.explain(3).tried[0].guard, str | None)
    assert_type(log.to_jsonl("log.jsonl"), Path)
    assert_type(log[0].guards, Mapping[str, bool])
    assert_type(run.metrics, dict[str, float])
    assert_type(run.history("loss"), list[float])
    assert_type((run.mean_loss, run.epoch_loss), tuple[torch.Tensor | None, torch.Tensor | None])
    assert_type((run.weight, run.windows), tuple[float | torch.Tensor | None, int])
    assert_type(run.optimizer, Optimizer)
    assert_type(run.side_optimizers, Mapping[str, Optimizer])
    assert_type(run.recompute(), torch.Tensor)
    assert_type(run.network, nn.Module)
    assert_type((run.state, run.paused, run.reason), tuple[str, str | None, str | None])
    assert_type((run.update_due, run.batches_remain, run.epochs_remain), tuple[bool, bool, bool])


def resume(engine: Engine, network: nn.Module) -> None:
    assert_type(engine.run(resume="auto"), Run)
    assert_type(engine.run(resume="auto", allow_changes=("optimizer",)), Run)
    assert_type(engine.run(resume=Path("runs"), until="after_epoch").resumed_from, str | None)
    assert_type(load_weights("runs", network, which="best"), Path)
    assert_type(load_weights("runs", network, average="SWA"), Path)
    assert_type(find_learning_rate(engine, steps=9), RateSearch)
    assert_type(find_learning_rate(engine).suggestion, float | None)
    checkpoint = Checkpoint("runs", at=("after_step", "after_epoch"), seconds=60.0, keep_best=1, monitor="valid/loss")
    assert_type(checkpoint, Checkpoint)
    assert_type(Journal("runs/digits.journal", flush_every=100), Journal)
    assert_type(engine.current.snapshot().summary, dict[str, Any])


def tables() -> tuple[State, Arc]:
    return State("before_loop"), Arc("idle", "before_loop", guard=None)


def errors() -> list[type[EngineError]]:
    return [CheckpointError, ConfigError, DataError, LogError, PluginError, RankFailed, TableError]


print(check_plugin(Own, volatile={"time"}).faults)
