"""The order of samples: a function of (seed, epoch, pass) and of nothing else."""

from __future__ import annotations

import torch

from heptad.data.generators import derive

ORDER_VERSION = 1
"""Grows when the same (seed, epoch, pass) would give another order; a checkpoint of another version is refused."""


def order(samples: int, seed: int, epoch: int, pass_index: int, *, shuffle: bool) -> torch.Tensor:
    """Return the indices of a pass in order, shape (samples,), int64, on the CPU.

    The permutation is drawn from a generator of its own: the global ones are not touched.
    """
    if not shuffle:
        return torch.arange(samples)
    generator = torch.Generator().manual_seed(derive("order", ORDER_VERSION, seed, epoch, pass_index))
    return torch.randperm(samples, generator=generator)


def batch_seed(seed: int, epoch: int, pass_index: int, batch: int) -> int:
    """Return the seed under which the transforms of one batch draw."""
    # the last 0 was the rank, which has no part in it any more; it stays so that the bits stay
    return derive("batch", ORDER_VERSION, seed, epoch, pass_index, batch, 0)
