"""What the mean of a criterion was taken over: the weight by which the steps of a window, and of an evaluation, count.

Most criteria take it over samples. Torch's own say what else it can be: the elements of a target, targets that are not
ignored, or the sum of the weights of their classes. Steps that are weighed by it make the update of one large batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from heptad.data.placement import count_samples

Weigh = Callable[[Any], "float | Tensor"]
"""Returns the weight of a target."""

_OVER_ELEMENTS = (
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.HuberLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
    nn.SoftMarginLoss,
)
_TORCHS_IGNORED = -100
"""The class that torch ignores by default."""


def weigher(criterion: object) -> Weigh:
    """Return what weighs the steps of a criterion: by samples, unless it is known to be something else."""
    if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return partial(_over_classes, criterion)
    return _over_elements if isinstance(criterion, _OVER_ELEMENTS) else count_samples


def _over_elements(target: Any) -> float:
    return target.numel() if isinstance(target, Tensor) else count_samples(target)


def _over_classes(criterion: nn.CrossEntropyLoss | nn.NLLLoss, target: Any) -> float | Tensor:
    """Weigh as torch's mean over classes does; a tensor (no device sync) where it depends on the target.

    A vector of classes is not searched for the ignored class -100 that nobody asked for: that would cost more than the
    loss of a small network.
    """
    if not isinstance(target, Tensor):
        return count_samples(target)
    if target.is_floating_point():  # probabilities of classes, which lie in the second dimension: all are counted
        return target.numel() // target.shape[1] if target.dim() > 1 else 1
    weight, ignored = criterion.weight, criterion.ignore_index
    if weight is None and ignored == _TORCHS_IGNORED and target.dim() < 2:
        return count_samples(target)
    counted = target != ignored
    return counted.sum() if weight is None else torch.where(counted, weight[target.where(counted, 0)], 0).sum()
