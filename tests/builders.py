"""Small runs for tests: a network, batches, an engine around them, and plugins that write down what they see."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from heptad import Components, Engine, Plugin, RunConfig

FEATURES, CLASSES = 4, 3
STATES = (
    "before_loop",
    "before_epoch",
    "before_step",
    "process_batch",
    "after_step",
    "optimizer_update",
    "after_epoch",
    "after_loop",
)
"""The eight states that have a body."""


def small_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Returns a linear layer with weights that are the same in every test."""
    network = nn.Linear(FEATURES, CLASSES, dtype=dtype)
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel(), dtype=dtype).reshape(parameter.shape) * (number + 1))
    return network


def batches(count: int, size: int = 2, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns `count` different batches of (data, target)."""
    generator = torch.Generator().manual_seed(count * 1000 + size)
    return [
        (
            torch.randn(size, FEATURES, generator=generator, dtype=dtype),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


class Unsized:
    """A re-iterable of batches that has no length."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self):
        return iter(self.items)


def small_engine(
    loader: Any = 3, plugins: Any = (), *, network: nn.Module | None = None, engine_class: type[Engine] = Engine,
    **config: Any,
) -> Engine:
    """Returns an engine over `loader`, or over that many batches, one epoch long unless told otherwise."""
    network = small_network() if network is None else network
    loader = batches(loader) if isinstance(loader, int) else loader
    if "epochs" not in config and "max_updates" not in config:
        config["epochs"] = 1
    components = Components(
        network=network,
        loader=loader,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
    )
    return engine_class(components, RunConfig(**config), plugins=plugins)


def weights(network: nn.Module) -> list[torch.Tensor]:
    """Returns copies of all parameters and buffers."""
    return [tensor.detach().clone() for tensor in network.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Tells whether two lists of tensors are the same, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Witness(Plugin):
    """Writes down every edge in order: ("enter" | "exit", state), and what the run said there."""

    def __init__(self, states: tuple[str, ...] = STATES, name: str = "Witness") -> None:
        self.name = name
        self.seen: list[tuple[str, str]] = []
        self.counters: list[tuple[int, int, int, int]] = []
        self.opened = 0
        self.closed = 0
        self.parked = 0
        self.states = states

    def open(self, run: Any) -> None:
        self.opened += 1

    def close(self, run: Any) -> None:
        self.closed += 1

    def on_park(self, run: Any) -> None:
        self.parked += 1


def _edges() -> None:
    def handler(edge: str, state: str):
        def call(self: Witness, run: Any) -> None:
            self.seen.append((edge, state))
            self.counters.append((run.epoch, run.batch_index, run.step, run.update))

        return call

    for state in STATES:
        for edge in ("enter", "exit"):
            setattr(Witness, f"on_{edge}_{state}", handler(edge, state))


_edges()
