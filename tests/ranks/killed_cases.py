"""The run over ranks of which one is killed: what runs on each rank, all of whose moments tick.

Dropout, batch norm, AdamW, a schedule, an average of weights, clipping, an evaluation and a journal: two epochs of
seven batches, which no window divides, with a checkpoint wherever there may be one.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from rank_program import Rank
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import heptad.ranks.fsdp  # noqa: F401 - imported in the warm parent, once, for all ranks
from heptad import Components, Engine, Plugin, Run, RunConfig
from heptad.ranks.group import Group
from heptad_plugins import EMA, Checkpoint, Evaluate, GradientClipping, Journal, LRSchedule, TrainingMetrics
from killing import STATES, Ticks, ticking_files, ticking_machine, ticking_plugin
from scenario import CLASSES, FEATURES, SIZE, Noisy, held_out, outcome

PLACES = {"ddp": ("after_step", "optimizer_update", "after_epoch"), "fsdp": ("optimizer_update", "after_epoch")}
"""Where each strategy stores: fsdp does not in the middle of a window."""


def live(rank: Rank) -> dict[str, Any]:
    """Train to the end, or to the moment at which this rank is killed; return what has become of it.

    The environment has the strategy, and of the rank that is killed the number of the moment.
    """
    ticks = Ticks(int(os.environ["KILLED_AT"]) if "KILLED_AT" in os.environ else None)
    tick_at_exchanges(ticks)
    engine = ticking_engine(rank, os.environ["STRATEGY"], ticks)
    run = engine.run(resume="auto")
    return {"outcome": outcome(engine), "labels": ticks.labels, "resumed": run.resumed_from}


def ticking_engine(rank: Rank, strategy: str, ticks: Ticks) -> Engine:
    """Return the engine, whose windows are two steps of each rank."""
    folder = rank.folder.parent

    class TickingEngine(Engine):
        machine_class = ticking_machine(ticks)

    checkpoint = Checkpoint(folder / "checkpoints", at=PLACES[strategy], background="BACKGROUND" in os.environ)
    checkpoint.store = type(checkpoint.store)(folder / "checkpoints", ticking_files(ticks))
    torch.manual_seed(5)
    components = Components(
        network=nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, CLASSES)
        ),
        dataset=Noisy(),
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda network: torch.optim.AdamW(network.parameters(), lr=0.01),
    )
    plugins: list[Plugin] = [
        GradientClipping(max_norm=1.0),
        LRSchedule(lambda optimizer: OneCycleLR(optimizer, 0.05, total_steps=8)),
        EMA(decay=0.8),
        Evaluate(held_out(), {"spread": lambda output, batch: output.std(dim=1)}),
        TrainingMetrics({"spread": lambda output, batch: output.std(dim=1)}),
        checkpoint,
        Journal(folder / "run.journal"),
        ticking_plugin(ticks, STATES),
    ]
    config = RunConfig(epochs=2, batch_size=SIZE, window=2 * rank.world, seed=9, strategy=strategy)
    engine = TickingEngine(components, config, plugins)
    engine.on_exit("process_batch")(record_samples)
    engine.on_exit("optimizer_update")(record_loss)
    tick_in_backward(ticks, engine.current.network)
    return engine


def record_samples(run: Run) -> None:
    """Record the samples of a step, with their noise, by a number that no others have."""
    run.record("samples", float(run.batch[0].double().sum()))


def record_loss(run: Run) -> None:
    """Record the loss of a window over all ranks."""
    assert run.mean_loss is not None
    run.record("mean loss", run.mean_loss)


def tick_in_backward(ticks: Ticks, network: nn.Module) -> None:
    """Tick where the backward pass begins: the gradient of a parameter that is shared out has no such hook."""

    def watch(module: nn.Module, given: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: ticks.tick("as backward begins"))

    network.register_forward_hook(watch)


def tick_at_exchanges(ticks: Ticks) -> None:
    """Tick before and after each exchange on the control plane, of all engines of this process."""
    exchange = Group._frames

    def ticking(group: Group, content: bytes, what: int, room: int) -> Any:
        ticks.tick("before an exchange")
        found = exchange(group, content, what, room)
        ticks.tick("after an exchange")
        return found

    Group._frames = ticking
