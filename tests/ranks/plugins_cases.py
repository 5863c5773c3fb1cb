"""Shipped plugins on two ranks: what came of each case."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from rank_program import Case, Rank
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from builders import Clock, dataset_engine, small_engine
from heptad import Components, Engine, EngineError, Plugin, Run, RunConfig, find_learning_rate
from heptad_plugins import (
    EMA,
    SWA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Evaluate,
    Freeze,
    GracefulStop,
    Journal,
    LRSchedule,
    ModelSummary,
    OptimizerMonitor,
    OptunaPruning,
    Profiler,
    Progress,
    TensorBoardLogger,
    Throughput,
    TimeLimit,
    TrainingMetrics,
)


class Skips(Plugin):
    """Is called on the first rank only, and skips an update there."""

    observes = True
    ranks = "first"

    def on_enter_optimizer_update(self, run: Run) -> None:
        if run.update == 1:
            run.skip_update("here alone")


def limited(action: Any, second_a_step: float) -> Any:
    """Return an engine whose time is up after 2.5 s, of which each step takes so many."""
    limit = TimeLimit(2.5, action)
    clock = limit._watch.clock = Clock()
    engine = small_engine(16, [limit])
    engine.on_exit("process_batch")(lambda run: setattr(clock, "now", clock.now + second_a_step))
    return engine


def stopped(rank: Rank) -> Any:
    """By the clock of rank 1."""
    engine = limited("stop", 1.0 if rank.number else 0.1)
    run = engine.run()
    return [run.update, run.seq, run.reason]


def paused(rank: Rank) -> Any:
    """By the clock of rank 1."""
    engine = limited("pause", 1.0 if rank.number else 0.7)
    updates: list[int] = []
    while not engine.current.ended:
        updates.append(engine.run().update)
    return updates


class AsksAfter(optuna.pruners.BasePruner):
    """Prunes at one step."""

    def prune(self, study: Any, trial: Any) -> bool:
        return trial.last_step == 2


def pruned(rank: Rank) -> Any:
    """Rank 0 has the trial, whose storage it alone talks to; a checkpoint behind the decision is resumed on both."""
    study = optuna.create_study(pruner=AsksAfter())
    found: list[Any] = []
    for resume in (None, "auto"):
        trial = None if rank.number else study.ask()
        plugins = [OptunaPruning(trial, "train/loss"), Checkpoint(rank.folder / "pruned")]
        engine = small_engine(4, plugins, epochs=5)
        try:
            engine.run(resume=resume)
        except optuna.TrialPruned as error:
            found.append(f"TrialPruned: {error}")
        found.append([engine.current.state, engine.current.epoch, engine.current.seq])
    return [found, [list(trial.intermediate_values) for trial in study.trials]]


def signalled(rank: Rank) -> Any:
    """Rank 1 alone."""
    engine = small_engine(16, [GracefulStop()])

    def kill(run: Run) -> None:
        if rank.number == 1 and run.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    engine.on_exit("after_step")(kill)
    try:
        engine.run()
    except SystemExit as ended:
        return [ended.code, engine.current.update, engine.current.paused, engine.run().state]
    return None


def logged(rank: Rank) -> Any:
    folder = rank.folder / "files"
    out = io.StringIO()
    plugins = [
        *(CSVLogger(folder / "a.csv"), TensorBoardLogger(folder / "events"), Progress(file=out)),
        *(ModelSummary(file=out), Throughput(), TrainingMetrics(), EarlyStopping("train/epoch_loss", patience=9)),
        Profiler(folder / "trace.json", range(1, 2)),
    ]
    run = small_engine(6, plugins, epochs=2).run()
    found = run.metrics
    per_step = found["samples_per_second"] / found["steps_per_second"] if rank.number == 0 else None
    return [run.seq, found["train/epoch_loss"], bool(out.getvalue()), per_step]


def averaged(rank: Rank) -> Any:
    """Over a dataset, and over a loader that deals the samples out; each rank's own batches move its BatchNorm."""
    return [_averaged(rank, loader=loader) for loader in (False, True)]


def _averaged(rank: Rank, loader: bool) -> Any:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    data = TensorDataset(torch.linspace(-1, 1, 64).reshape(16, 4).sin(), torch.arange(16) % 3)
    plugins = [plugin := SWA(1), Evaluate(DataLoader(data, 2))]
    if loader:
        sampler = DistributedSampler(data, 2, rank.number, shuffle=False)
        engine = small_engine(DataLoader(data, 2, sampler=sampler), plugins, network=network, epochs=3)
    else:
        engine = dataset_engine(data, plugins, network=network, epochs=3)
    run = engine.run()
    found = {name: tensor.tolist() for name, tensor in plugin.network.state_dict().items()}
    return [found, run.history("valid/loss"), run.network[1].running_mean.tolist()]


def journalled(rank: Rank) -> None:
    """Rank 1 reads slowly, and the first waits for it in the steps that close a window."""
    data = TensorDataset(torch.linspace(-1, 1, 192).reshape(48, 4), torch.arange(48) % 3)
    engine = dataset_engine(data, [Journal(rank.folder / "run.journal")], accumulation=2, epochs=2)
    engine.on_exit("before_step")(lambda run: time.sleep(0.01 * run.rank))
    engine.on_exit("after_epoch")(lambda run: run.note(f"rank {run.rank} of {run.world}"))
    engine.run()


def thawing(folder: Path, strategy: str, plugins: Sequence[Plugin] = ()) -> Engine:
    """Return an engine whose first layer and scale are frozen for an epoch of three, and join the optimizer then."""
    torch.manual_seed(2)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
    network = nn.Sequential(nn.Linear(4, 6), *blocks, nn.Linear(6, 3)).double()
    drawn = torch.Generator().manual_seed(4)
    data = TensorDataset(
        torch.randn(24, 4, dtype=torch.float64, generator=drawn), torch.randint(0, 3, (24,), generator=drawn)
    )
    components = Components(
        network=network,
        dataset=data,
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda net: torch.optim.AdamW([one for one in net.parameters() if one.requires_grad], lr=0.05),
    )
    config = RunConfig(epochs=3, batch_size=2, window=4, seed=5, strategy=strategy)
    schedule = LRSchedule(lambda optimizer, total: CosineAnnealingLR(optimizer, T_max=total))
    store = Checkpoint(folder, every=100)
    return Engine(components, config, [Freeze("0.*", "1.0.*", until=1, lr=0.02), EMA(0.9), schedule, store, *plugins])


def weights_of(run: Run) -> list[Any]:
    """Return all weights as numbers; ranks call it together."""
    tensors = [one.detach() for one in run.network.parameters()]
    return [(one.full_tensor() if hasattr(one, "full_tensor") else one).tolist() for one in tensors]


def thawed(rank: Rank) -> Any:
    """By strategy: the weights, and those of runs that were stored before the thaw, at it and after it."""
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp"):
        runs = [weights_of(thawing(rank.folder / f"{strategy} whole", strategy).run())]
        for state, epoch in (("after_epoch", 0), ("before_epoch", 1), ("before_epoch", 2)):
            folder = rank.folder / f"{strategy} {state} {epoch}"
            engine = thawing(folder, strategy)
            engine.on_enter(state)(lambda run, epoch=epoch: run.epoch == epoch and run.pause("to be resumed"))
            assert engine.run().paused
            runs.append(weights_of(thawing(folder, strategy).run(resume=folder)))
        found[strategy] = runs
    return found


def searched(rank: Rank) -> Any:
    """A range test by ddp, then the run; the run without; and what fsdp says."""
    tried, plain = (thawing(rank.folder / f"searched {number}", "ddp") for number in range(2))
    before = [one.detach().clone() for one in tried.current.network.parameters()]
    found = find_learning_rate(tried, low=1e-3, high=0.1, steps=4)
    untouched = all(map(torch.equal, before, tried.current.network.parameters()))
    runs = [weights_of(engine.run()) for engine in (tried, plain)]
    try:
        find_learning_rate(thawing(rank.folder / "searched 3", "fsdp"), steps=3)
    except EngineError as error:
        refused = str(error)
    return [found.losses, found.suggestion, untouched, runs, refused]


def monitored(rank: Rank) -> Any:
    """Histograms of a sharded network; the first rank writes them."""
    logger = TensorBoardLogger(rank.folder / "histograms")
    engine = thawing(rank.folder / "monitored", "fsdp", [logger, OptimizerMonitor(5, histograms=logger)])
    return [weights_of(run := engine.run()), run.update]


def steered(rank: Rank) -> Any:
    """By a first-only plugin; last, for it ends what the ranks have in common."""
    try:
        small_engine(4, [Skips()]).run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


_IN_ORDER = (stopped, paused, pruned, signalled, logged, averaged, journalled, thawed, searched, monitored, steered)

CASES: dict[str, Case] = {case.__name__: case for case in _IN_ORDER}
