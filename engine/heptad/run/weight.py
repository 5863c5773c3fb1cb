"""What a step weighs: reading a weight where the host has it, and comparing it with the weight of another step."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch

from heptad.errors import EngineError
from heptad.record.host import host_number

Weight = float | torch.Tensor


def known_weight(weight: Weight | None) -> Weight | None:
    """Return a weight as a number where the host has it; one on an accelerator stays there (no device sync).

    Raises:
        EngineError: If it is neither a number from 0 on nor a 0-dim tensor of one.
    """
    if weight is None:
        return None
    number: object = weight
    if isinstance(weight, torch.Tensor):
        sound = not weight.dim() and weight.dtype != torch.bool
        if sound and not weight.is_cpu:
            return weight.detach()
        number = host_number(weight) if sound else None
    elif isinstance(weight, np.generic):
        number = cast("object", weight.item())
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        raise EngineError(
            f"LossOutput.weight must be a number from 0 on, or a 0-dim tensor of one; got {weight!r}. It says what the "
            "mean was taken over; 0 leaves the step out"
        )
    return cast("float", number)


def adds_nothing(weight: Weight | None) -> bool:
    """Return whether a step is known to weigh 0; of a tensor on an accelerator that is not asked."""
    return weight is not None and not isinstance(weight, torch.Tensor) and not weight


def relate(weight: Weight, reference: Weight | None) -> tuple[Weight, Weight]:
    """Return the weight of a step relative to the reference of its window, and that reference.

    The reference is the first weight above 0. Equal numbers give exactly 1.0; with a tensor, which may be 0 and is not
    read, the result is a float64 tensor.
    """
    if not isinstance(weight, torch.Tensor) and not isinstance(reference, torch.Tensor):
        reference = reference or weight
        return weight / reference, reference
    own = weight.double() if isinstance(weight, torch.Tensor) else weight
    if reference is None:
        found = cast("torch.Tensor", own)
    elif isinstance(reference, torch.Tensor):
        device = weight.device if isinstance(weight, torch.Tensor) else reference.device
        there = reference.detach().to(device, torch.float64)
        found = torch.where(there > 0, there, own)
    else:  # a number is never kept as a reference unless it is above 0
        return own / reference, reference
    return own / torch.where(found > 0, found, 1.0), found
