"""`Runtime`: what a run works with. Built with the engine, completed in `before_loop`, read by the bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from heptad.config import Components
from heptad.data.feed import Feed
from heptad.data.weighing import Weigh, weigher


class Evaluates(Protocol):
    """Evaluates a network over data; the engine's `Evaluator`."""

    def prepare(self, data: Any, name: str) -> object:
        """Open data for later evaluations; errors call it `name`."""
        ...

    def evaluate(self, data: Any, metrics: Mapping[str, Any], ended: Callable[[], bool]) -> dict[str, float]:
        """Return the means by name. `ended` is asked before each batch; where it says True, `Unfinished` is raised."""
        ...

    def close(self) -> None:
        """Close the data of all evaluations."""
        ...


@dataclass(slots=True)
class Runtime:
    """What a run works with: built with the engine, completed in `before_loop`."""

    components: Components
    feed: Feed
    device: torch.device
    optimizers: tuple[Optimizer, ...] = ()
    clearing: tuple[tuple[Optimizer, bool], ...] = ()
    """Each with whether its `zero_grad` is torch's own, so that what it does can be done without it."""
    evaluator: Evaluates | None = None
    """`None` in a run that is itself an evaluation."""
    network: nn.Module = field(init=False)
    criterion: Any = field(init=False)
    compute_loss: Any = field(init=False)
    weigh: Weigh = field(init=False)
    """Tells what a criterion's mean was taken over."""
    places: bool = field(init=False)
    """Batches are to be moved to the device. On the CPU they are where they are used."""

    def __post_init__(self) -> None:
        # read in every step, where an attribute of a pydantic model costs five times that of a slot
        self.network = self.components.network
        self.criterion = self.components.criterion
        self.compute_loss = self.components.compute_loss
        self.weigh = weigher(self.criterion)
        self.places = self.device.type != "cpu"
