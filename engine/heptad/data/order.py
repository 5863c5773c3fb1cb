"""The order of samples: a function of (seed, epoch, pass) and of nothing else."""

from __future__ import annotations

import torch

from heptad.data.generators import derive

ORDER_VERSION = 1
"""Grows when the same (seed, epoch, pass) would give another order; a checkpoint of another version is refused."""


def order(samples: int, seed: int, epoch: int, pass_index: int, *, shuffle: bool) -> torch.Tensor:
    """Returns the indices of a pass in order, shape (samples,), int64, on the CPU.

    The global generators are not touched: the permutation is drawn from one of its own.
    """
    if not shuffle:
        return torch.arange(samples)
    generator = torch.Generator().manual_seed(derive("order", ORDER_VERSION, seed, epoch, pass_index))
    return torch.randperm(samples, generator=generator)


def batch_seed(seed: int, epoch: int, pass_index: int, batch: int, rank: int = 0) -> int:
    """Returns the seed under which the transforms of one batch draw."""
    return derive("batch", ORDER_VERSION, seed, epoch, pass_index, batch, rank)
