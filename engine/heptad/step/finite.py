"""Whether a loss and gradients are finite, and whether two tensors hold the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def are_finite(losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> bool:
    """Return whether losses and gradients are finite in all their numbers (one device sync)."""
    found = [loss.detach() for loss in losses]
    found += [values for gradient in gradients if (values := _stored_numbers(gradient)).numel()]
    if not found or bool(torch.isfinite(get_total_norm(found))):
        return True
    return all(bool(torch.isfinite(one).all()) for one in found)  # a norm may overflow though its numbers do not


def same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether two tensors are the same, NaN included; or neither is there (waits for the device)."""
    if one is None or other is None:
        return one is other
    if one.layout is not other.layout or one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_sparse:
        one, other = one.coalesce(), other.coalesce()
        return same_bits(one.indices(), other.indices()) and same_bits(one.values(), other.values())
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _stored_numbers(gradient: Tensor) -> Tensor:
    """Return the numbers that a gradient holds; of a sparse one those that are stored."""
    return gradient._values() if gradient.is_sparse else gradient
