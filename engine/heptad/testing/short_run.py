"""`ShortRun`: a run of a few steps for a plugin under test; together they take every arc of the table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from heptad.config import Components, RunConfig
from heptad.engine import Engine
from heptad.plugin.contract import Plugin
from heptad.plugin.detour import Detour
from heptad.plugin.marks import on_enter, on_exit
from heptad.run.run import Run

FEATURES, CLASSES, SIZE = 4, 3, 4


@dataclass(frozen=True)
class ShortRun:
    """A run of a few steps, and what happens in it.

    Attributes:
        batches: Batches in a pass.
        config: Fields of `RunConfig`.
        sized: Whether the data have a length.
        stop_at: The step in which it is stopped.
        skip_at: The update that is skipped.
        evaluated: Whether there is a state `evaluate`.
    """

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

    def build(self, plugins: Iterable[Plugin]) -> Engine:
        """Return an engine over a network with dropout and batch norm, the same each time."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            network = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, CLASSES))
            batches = [(torch.randn(SIZE, FEATURES), torch.randint(0, CLASSES, (SIZE,))) for _ in range(self.batches)]
        components = Components(
            network=network,
            loader=batches if self.sized else _WithoutLength(batches),
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9),
        )
        return Engine(components, RunConfig(seed=3, **self.config), plugins=[_Script(self), *plugins])


def short_runs() -> list[ShortRun]:
    """Return runs that between them take every arc of the table."""
    runs = [
        ShortRun(3, {"epochs": 2}),
        ShortRun(1, {"epochs": 4}),
        ShortRun(3, {"epochs": 0}),
        ShortRun(3, {"epochs": 2, "accumulation": 2}),
        ShortRun(3, {"epochs": 1, "accumulation": 2}, sized=False),
        ShortRun(2, {"epochs": 2}, sized=False),
        ShortRun(1, {"epochs": 2, "accumulation": 3, "remainder": "drop"}),
        ShortRun(3, {"max_updates": 4, "epochs": 8}),  # both: a plugin that skips all updates ends it as well
        ShortRun(4, {"epochs": 1, "accumulation": 3}, stop_at=1),
        ShortRun(3, {"epochs": 2}, skip_at=1),
        ShortRun(3, {"epochs": 2}, evaluated=True),
    ]
    for remainder in ("flush", "drop", "carry"):
        for sized in (True, False):
            runs.append(ShortRun(3, {"epochs": 2, "accumulation": 2, "remainder": remainder}, sized=sized))
    return runs


class _WithoutLength:
    """A re-iterable of batches without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


class _Script(Plugin):
    """What happens in a run beside the plugin under test: values to watch, a stop, a skipped update, an evaluation."""

    name = "heptad.testing.script"

    def __init__(self, run: ShortRun) -> None:
        self._given = run

    def detours(self) -> Iterable[Detour]:
        """Return the state `evaluate`, for plugins that do something there."""
        if not self._given.evaluated:
            return []
        return [Detour("evaluate", "optimizer_update", lambda run: True, self.look, every=2)]

    def look(self, run: Run) -> None:
        """Record what an evaluation would depend on: the weights that the network holds in it."""
        tensors = [tensor.double().sum() for tensor in run.network.state_dict().values()]
        run.record("heptad.testing.weights", torch.stack(tensors).sum())

    @on_exit("process_batch")
    def record(self, run: Run) -> None:
        """Record values under the names that plugins are commonly given to watch."""
        assert run.loss is not None
        for name in ("loss", "valid/loss", "valid/accuracy"):
            run.record(name, run.loss)
        if run.step == self._given.stop_at:
            run.stop("the script says so")

    @on_enter("optimizer_update")
    def skip(self, run: Run) -> None:
        """Skip an update."""
        if run.update == self._given.skip_at and not run.history("skipped"):
            run.record("skipped", 1)
            run.skip_update("the script says so")
