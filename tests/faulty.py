"""Faults for tests of redo: memory that does not hold a whole batch, and numbers that are not finite once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Memory:
    """Holds so many samples at a time; more of them raise `torch.OutOfMemoryError`.

    Attributes:
        limit: How many samples it holds.
        place: Where they do not fit: `"forward"`, `"loss"` or `"backward"`.
        first: The first whole batch, from 0, that does not fit.
        failed: How many samples did not fit, each time.
    """

    limit: int
    place: str = "forward"
    first: int = 0
    failed: list[int] = field(default_factory=list)
    seen: int = 0

    def check(self, place: str, samples: int) -> None:
        """Raise the error where so many samples do not fit."""
        if place == "forward" and samples > self.limit:
            self.seen += 1
        if place == self.place and samples > self.limit and self.seen > self.first:
            self.failed.append(samples)
            raise torch.OutOfMemoryError(f"no memory for {samples} samples in {place}")

    def criterion(self, criterion: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a criterion that needs memory."""

        def needing(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.check("loss", len(output))
            return criterion(output, target)

        return needing


class _NeedsMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        ctx.memory, ctx.samples = memory, len(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ctx.memory.check("backward", ctx.samples)
        return gradients[0], None


class Needy(nn.Module):
    """A network whose forward and backward need memory: half of its parameters have a gradient when that runs out."""

    def __init__(self, memory: Memory, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.memory = memory
        self.first, self.second = first, second

    def forward(self, x: Any) -> torch.Tensor:
        if isinstance(x, dict):
            x = x["x"]
        self.memory.check("forward", len(x))
        return self.second(_NeedsMemory.apply(self.first(x), self.memory))


class Glitch(nn.Module):
    """A network whose output is not finite in its n-th forward passes, each counted from 0."""

    def __init__(self, inner: nn.Module, *at: int) -> None:
        super().__init__()
        self.inner = inner
        self.at = at
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.inner(x)
        self.calls += 1
        return output * float("nan") if self.calls - 1 in self.at else output
