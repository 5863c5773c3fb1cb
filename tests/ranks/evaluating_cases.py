"""Evaluations of all kinds on ranks: what each rank has recorded, by case. One process runs them too."""

from __future__ import annotations

import os
from typing import Any

import torch
import torchmetrics
from rank_program import Case, Rank
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from builders import CLASSES, FEATURES
from heptad import Components, Engine, EngineError, RunConfig
from heptad.errors import RankFailed
from heptad_plugins import Evaluate, TrainingMetrics


class Noisy(Dataset):
    """Samples that draw from the global generator, which each batch seeds by its number."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(count)
        self.data = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
        self.target = torch.randint(0, CLASSES, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index] + torch.rand((), dtype=torch.float64), self.target[index]


VALID = Noisy(13)


def right(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return (output.argmax(1) == batch[1]).double()


def on_rank_1(output: torch.Tensor, batch: Any) -> float:
    if os.environ.get("RANK") == "1":
        raise ValueError("on rank 1 only")
    return 0.0


def of_classes(name: str, **options: Any) -> Any:
    return getattr(torchmetrics, name)("multiclass", num_classes=CLASSES, **options)


def build(*plugins: Any) -> Engine:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    components = Components(network=network, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), dataset=Noisy(24))
    return Engine(components, RunConfig(epochs=2, batch_size=2, window=6), plugins)


def measured(rank: Rank) -> dict[str, Any]:
    """Train with evaluations of all kinds, and evaluate beside it."""
    metrics = {
        "right": right,
        "f1": of_classes("F1Score", average="macro"),
        "all": torchmetrics.MetricCollection({"auroc": of_classes("AUROC"), "recall": of_classes("Recall")}),
    }
    few = DataLoader(TensorDataset(VALID.data, VALID.target), batch_size=5, shuffle=True)  # in an order of each rank
    engine = build(Evaluate(VALID, metrics), Evaluate(few, name="few"), TrainingMetrics({"right": right}))
    run = engine.run()
    found: dict[str, Any] = {name: run.history(name) for name in sorted(run.metrics)}
    found["beside"] = dict(engine.evaluate(VALID, {"right": right}))
    return found


def predicted(rank: Rank) -> dict[str, Any]:
    """Predict with the network as it begins."""
    return {str(number): output.tolist() for number, output in build().predict(VALID, numbered=True)}


def detached(rank: Rank) -> list[Any]:
    """A metric fails on one rank, and the plugin is to be detached."""
    run = build(Evaluate(VALID, {"m": on_rank_1}, trial=False, on_error="detach")).run()
    return [run.state, run.update]


def failed(rank: Rank) -> str:
    """A metric fails on one rank."""
    try:
        build(Evaluate(VALID, {"m": on_rank_1}, trial=False)).run()
    except (ValueError, EngineError, RankFailed) as error:
        return f"{type(error).__name__}: {error}"
    return ""


CASES: dict[str, Case] = {case.__name__: case for case in (measured, predicted, detached, failed)}
