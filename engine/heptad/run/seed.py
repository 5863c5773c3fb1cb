"""`seed_of`: what the backward pass of a step is handed.

That is the gradient of the loss with respect to itself: handing in r / k scales every gradient of the step by r / k, as
multiplying the loss would, less a forward and a backward operation.
"""

from __future__ import annotations

import torch

from heptad.run.weight import Weight


def seed_of(loss: torch.Tensor, share: Weight, scale: torch.Tensor | None) -> torch.Tensor:
    """Return a share of a loss as the gradient that scales all others by it (no device sync).

    In fp16 the scale is folded in: what `scaler.scale(share * loss).backward()` hands on, in the dtype of the loss, in
    which a scale may overflow. It needs no operation of its own.

    Args:
        loss: The loss, a scalar.
        share: r / k, of which a number may be kept.
        scale: What fp16 multiplies a loss by; `None` where nothing is scaled.
    """
    if isinstance(share, torch.Tensor):
        share = share.to(loss.device, loss.dtype).reshape(loss.shape)
        return share if scale is None else share * scale.to(loss.device, loss.dtype)
    if scale is None:
        return torch.full_like(loss, share)
    return scale.to(loss.device, loss.dtype) * share
