"""The mean loss of a window: what each step gave is kept on its device, and the mean is taken when somebody asks."""

from __future__ import annotations

import torch

from heptad.run.weight import Weight

Losses = list[tuple[torch.Tensor, Weight]]
"""The loss of each step that adds something, detached, and the weight by which it counts."""


def mean_of(losses: Losses) -> torch.Tensor | None:
    """Return the weighed mean as a scalar of the losses' dtype, summed in float64; `None` of nothing (no sync)."""
    if not losses:
        return None
    newest = losses[-1][0]
    total, weight = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)  # scalars go anywhere
    for loss, relative in losses:
        total = total + weighed(loss, relative)
        weight = weight + relative
    return (total / weight).to(newest.device, newest.dtype)


def weighed(loss: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Return a loss times its weight in float64: 0 where that is 0, for the loss may be NaN then (no sync)."""
    product = loss.double() * weight
    return torch.where(weight > 0, product, 0.0) if isinstance(weight, torch.Tensor) else product
