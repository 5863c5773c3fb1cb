"""The work that the adapters of the peers get: a network, batches, and handlers that count their calls."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Ready:
    """Batches that are ready, and the time at which each was fetched.

    Setting up and tearing down a run is no part of the cost of a step, and each library does it at its own place: a
    step is timed from the fetch of one batch to the fetch of another, in the same way for all.
    """

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.fetched: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        self.fetched.append(time.perf_counter())
        return self.batches[index]


def only(batch: list[Any]) -> Any:
    """Return the one item of a list, a batch that is ready."""
    return batch[0]


def only_named(batch: list[Any]) -> dict[str, Any]:
    """Return the one item of a list as a dict, for transformers' Trainer."""
    return {"data": batch[0][0], "target": batch[0][1]}


def only_labelled(batch: list[Any]) -> dict[str, Any]:
    """Return the same with the name by which the Trainer counts labels."""
    return {"data": batch[0][0], "labels": batch[0][1]}


@dataclass
class Work:
    """What is to be trained.

    Attributes:
        network: A new network; it holds the weights in the end.
        criterion: A module that takes output and target.
        lr: The learning rate of SGD.
        batches: Batches that are ready, in order; or `None`.
        dataset: Samples, of which one shuffled pass is made in batches of 64; or `None`.
        accumulation: Steps in a window.
        epochs: Passes over the batches.
        subscribers: How many handlers the library calls at the end of each step.
        folder: An empty folder.
    """

    network: nn.Module
    criterion: nn.Module
    lr: float
    folder: Path
    batches: Ready | None = None
    dataset: TensorDataset | None = None
    accumulation: int = 1
    epochs: int = 1
    subscribers: int = 0
    calls: int = field(default=0, init=False)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return SGD of the network."""
        return torch.optim.SGD(self.network.parameters(), lr=self.lr)

    def loader(self) -> DataLoader[Any]:
        """Return a loader of the batches, or of the samples as tutorials write it."""
        if self.dataset is not None:
            return DataLoader(self.dataset, batch_size=64, shuffle=True)
        return DataLoader(self.batches, batch_size=1, collate_fn=only)

    def call(self, *arguments: Any, **named: Any) -> None:
        """Do what a handler does: count the call."""
        self.calls += 1

    def handlers(self, base: type, method: str) -> list[Any]:
        """Return the handlers, as objects of a class of the library that has one method."""
        kind = type("Handler", (base,), {method: lambda this, *arguments, **named: self.call()})
        return [kind() for _ in range(self.subscribers)]
