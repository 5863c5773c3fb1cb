"""The mean loss of a window: what each step gave is kept on its device, and the mean is taken when somebody asks."""

from __future__ import annotations

import torch

from heptad.run.weight import Weight

Losses = list[tuple[torch.Tensor, Weight]]
"""The loss of each step that adds something, detached, and the weight by which it counts."""


def mean_of(losses: Losses) -> torch.Tensor | None:
    """Return the weighed mean as a scalar, summed in float64; `None` of nothing (no sync).

    Its dtype is that of the losses, and float32 where that is less: a mean has more digits than bfloat16.
    """
    if not losses:
        return None
    newest = losses[-1][0]
    total, weight = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)  # scalars go anywhere
    for loss, relative in losses:
        total = total + weighed(loss, relative)
        weight = weight + relative
    return (total / weight).to(newest.device, torch.promote_types(newest.dtype, torch.float32))


def weighed(loss: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Return a loss times its weight in float64: 0 where that is 0, for the loss may be NaN then (no sync)."""
    product = loss.double() * weight
    return torch.where(weight > 0, product, 0.0) if isinstance(weight, torch.Tensor) else product
