"""What the mean of a criterion was taken over: the weight by which the steps of a window, and of an evaluation, count.

Most criteria take it over samples. Torch's own say what else it can be: the elements of a target, targets that are not
ignored, or the sum of the weights of their classes. Steps that are weighed by it make the update of one large batch.
Only the `forward` of torch's own classes is known: a subclass that has its own is weighed by samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from ctypes import c_float
from functools import cache, partial
from math import isnan
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from heptad.data.placement import count_samples
from heptad.record.host import host_array, host_bytes, host_integers, host_number

Weigh = Callable[[Any], "float | Tensor"]
"""Returns the weight of a target: a number where the host has it, else a tensor on its device (no device sync)."""

OverClasses = nn.CrossEntropyLoss | nn.NLLLoss

FEW = 256
"""Targets that are counted sooner as bytes than with numpy."""

_OVER_ELEMENTS = (
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.HingeEmbeddingLoss,
    nn.HuberLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
    nn.SoftMarginLoss,
)


def weigher(criterion: object) -> Weigh:
    """Return what weighs the steps of a criterion: by samples, unless it is known to be something else."""
    if ignores_targets(criterion):
        return partial(_over_classes, criterion)
    # of two kinds of mean, "mean" of KLDivLoss is that over elements
    elements = isinstance(criterion, nn.KLDivLoss) and criterion.reduction == "mean"
    classes = (*_OVER_ELEMENTS, nn.KLDivLoss) if elements else _OVER_ELEMENTS
    return _over_elements if _has_forward_of(criterion, *classes) else count_samples


def ignores_targets(criterion: object) -> TypeGuard[OverClasses]:
    """Return whether a criterion is one of torch's that leave targets out, by their value."""
    return _has_forward_of(criterion, nn.CrossEntropyLoss, nn.NLLLoss)


def weight_on_host(criterion: OverClasses, target: Any) -> float | None:
    """Return the weight of a target that is still on the host; `None` where only a device knows it."""
    if not isinstance(target, Tensor) or not target.is_cpu or target.is_floating_point():
        return None
    if criterion.weight is None or criterion.weight.is_cpu:
        weight = _over_classes(criterion, target)
        return None if isinstance(weight, Tensor) else weight
    return None if _count(target, criterion.ignore_index) else 0  # the weights of classes are on the device


def _has_forward_of(criterion: object, *classes: type[nn.Module]) -> bool:
    """Return whether a criterion is of one of these classes and computes what that does."""
    if not isinstance(criterion, classes):
        return False
    kind, own = type(criterion), vars(criterion)
    return (
        any(kind.forward is known.forward for known in classes if isinstance(criterion, known))
        and kind.__call__ is nn.Module.__call__
        and "forward" not in own
        and not own["_forward_hooks"]  # one may replace the loss
    )


def _over_elements(target: Any) -> float:
    return target.numel() if isinstance(target, Tensor) else count_samples(target)


def count_targets(criterion: OverClasses, target: Any) -> float | Tensor:
    """Return how many targets are not ignored, whatever their classes weigh."""
    if not isinstance(target, Tensor):
        return count_samples(target)
    if target.is_floating_point():  # probabilities of classes, which lie in the second dimension: all are counted
        return target.numel() // target.shape[1] if target.dim() > 1 else 1
    return _count(target, criterion.ignore_index)


def _over_classes(criterion: OverClasses, target: Any) -> float | Tensor:
    """Weigh as torch's mean over classes does."""
    weight, ignored = criterion.weight, criterion.ignore_index
    if weight is None or not isinstance(target, Tensor) or target.is_floating_point():
        return count_targets(criterion, target)
    counted = target != ignored
    total = torch.where(counted, weight[target.where(counted, 0)], 0).sum()
    return host_number(total) if total.is_cpu else total


def _count(target: Tensor, ignored: int) -> int | Tensor:
    """Count the targets that are not ignored.

    A step between others takes 1 µs for 32 of them on the host as bytes, 5 µs with numpy, which many are worth, and
    more with torch.
    """
    plain = target.__class__ is Tensor and target.dtype is torch.int64 and target.is_cpu and target.is_contiguous()
    if not plain:
        counted = (target != ignored).sum()
        return int(host_number(counted)) if counted.is_cpu else counted
    if (number := target.numel()) > FEW:
        return int(np.count_nonzero(host_array(target) != ignored))
    memory = host_bytes(target)
    # most batches ignore none; what matches may also lie across two numbers
    return number if _in_memory(ignored) not in memory else number - host_integers(memory).count(ignored)


@cache
def _in_memory(number: int) -> bytes:
    """Return a number as it lies in an int64 tensor."""
    return number.to_bytes(8, sys.byteorder, signed=True)


def is_nan(loss: Tensor) -> bool:
    """Return whether a loss on the host is NaN."""
    plain = loss.dtype is torch.float32 and loss.__class__ is Tensor  # what host_number finds out, less a call a step
    return isnan(c_float.from_address(loss.data_ptr()).value if plain else host_number(loss))
