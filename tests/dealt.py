"""Runs of several ranks in one process, without reduction: what each takes from the data, window by window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from heptad import Components, Engine, RunConfig
from heptad.data.generators import derive, seed_all
from heptad.ranks.strategy import Alone


class OneOf(Alone):
    """A rank that deals out the data and reduces nothing."""

    announces = True

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.closes: list[bool] = []

    def share(self) -> tuple[int, int]:
        return self.rank, self.world

    def equalize(self, run: Any) -> None:
        if self.rank:
            seed_all(derive("rank", run.config.seed or 0, self.rank))

    def reduce(self, run: Any) -> None:
        """Leave the gradients alone, and make the update of an idle rank too."""

    def window_closes(self, closes: bool) -> None:
        self.closes.append(closes)


class RankEngine(Engine):
    """An engine with a strategy of its own."""

    def __init__(self, strategy: Alone, *args: Any) -> None:
        self.strategy_class = lambda config: strategy
        super().__init__(*args)


def numbered(samples: int) -> TensorDataset:
    """Return samples that are their own numbers, with targets."""
    data = torch.arange(samples, dtype=torch.float32).unsqueeze(1)
    return TensorDataset(data, torch.zeros(samples, 1))


class Steps:
    """What one rank did.

    Attributes:
        windows: The samples of each update, by their numbers.
        seen: What handlers on exit of `process_batch` saw, step by step; nothing of an idle step.
        idle: Which steps were idle, from 0.
        run: The run.
        strategy: The strategy.
    """

    def __init__(
        self,
        strategy: OneOf | Alone,
        data: dict[str, Any],
        config: dict[str, Any],
        network: Any = None,
        plugins: Iterable[Any] = (),
    ) -> None:
        network = nn.Linear(1, 1) if network is None else network
        loss: dict[str, Any] = {"criterion": nn.MSELoss()}
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        components = Components(network=network, optimizer=optimizer, **{**loss, **data})
        self.engine = RankEngine(strategy, components, RunConfig(device="cpu", **config), [*plugins])
        self.strategy = strategy
        self.run = self.engine.current
        self.windows: list[Counter[int]] = []
        self.seen: list[list[int]] = []
        self.idle: list[int] = []
        open_window: Counter[int] = Counter()
        exits = self.engine.on_exit

        @exits("process_batch")
        def see(run: Any) -> None:
            batch = run.batch[0].flatten().int().tolist()
            self.seen.append(batch)
            open_window.update(batch)

        @exits("optimizer_update")
        def close(run: Any) -> None:
            if run._position.idle:
                self.idle.append(run.step - 1)
            self.windows.append(Counter(open_window))
            open_window.clear()

        @exits("after_epoch")
        def leave(run: Any) -> None:
            if run.config.remainder != "carry":
                open_window.clear()  # what remainder="drop" left over of data of unknown length

    def drive(self, **given: Any) -> Steps:
        self.engine.run(**given)
        return self


def on_ranks(world: int, data: Callable[[int], dict[str, Any]], network: Any = None, **config: Any) -> list[Steps]:
    """Return what the ranks of a run do, one after another; `data` gives each its own."""
    found: list[Steps] = []
    for rank in range(world):
        torch.manual_seed(0)
        found.append(Steps(OneOf(rank, world), data(rank), config, network).drive())
    return found


def together(ranks: Iterable[Steps]) -> list[Counter[int]]:
    """Return the samples of each window over all ranks."""
    nothing: Counter[int] = Counter()
    return [sum(parts, nothing) for parts in zip(*(rank.windows for rank in ranks), strict=True)]
