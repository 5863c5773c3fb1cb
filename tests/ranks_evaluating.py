"""A script for torchrun: trains and evaluates, and writes what each rank has recorded into the folder that is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from builders import CLASSES, FEATURES
from heptad import Components, Engine, EngineError, RunConfig
from heptad.errors import RankFailed
from heptad_plugins import Evaluate, TrainingMetrics

RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))


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
    if RANK == 1:
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


def main() -> None:
    """Train with evaluations of all kinds; evaluate and predict beside it; fail on one rank."""
    metrics = {
        "right": right,
        "f1": of_classes("F1Score", average="macro"),
        "all": torchmetrics.MetricCollection({"auroc": of_classes("AUROC"), "recall": of_classes("Recall")}),
    }
    few = DataLoader(TensorDataset(VALID.data, VALID.target), batch_size=5, shuffle=True)  # in an order of each rank
    plugins = (Evaluate(VALID, metrics), Evaluate(few, name="few"), TrainingMetrics({"right": right}))
    engine = build(*plugins)
    run = engine.run()
    found: dict[str, Any] = {name: run.history(name) for name in sorted(run.metrics)}
    found["beside"] = dict(engine.evaluate(VALID, {"right": right}))
    predicted = {number: output.tolist() for number, output in engine.predict(VALID, numbered=True)}
    detached = build(Evaluate(VALID, {"m": on_rank_1}, trial=False, on_error="detach"))
    done = detached.run()
    found["detached"] = [done.state, done.update]
    try:
        build(Evaluate(VALID, {"m": on_rank_1}, trial=False)).run()
        failed = ""
    except (ValueError, EngineError, RankFailed) as error:
        failed = f"{type(error).__name__}: {error}"
    told = {"found": found, "predicted": predicted, "failed": failed}
    Path(sys.argv[1], f"{WORLD}.{RANK}").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
