"""The order of samples: a function of (seed, epoch, pass) and of nothing else.

An `Order` is made by `order` when a pass begins, and belongs to the cursor of that pass, which takes a part of it for
each batch. Up to `HELD` samples it is a tensor; above, its parts are computed when they are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from heptad.data.generators import derive
from heptad.data.permutation import ROUNDS, KeyedPermutation

HELD = 10_000_000
"""The most samples of which the order is held as a tensor, and drawn by `torch.randperm`.

At this length the tensor takes 80 MB on each process and 0.4 s to draw, the most that the beginning of a pass may cost
(0.5 s and 100 MB); at 100 million samples it took 7 s and 800 MB. A computed order costs 2 to 20 µs more a batch
(benchmarks/order.py), so shorter ones stay as they were, to the bit.
"""

ORDER_VERSION = 1
"""Grows when the same (seed, epoch, pass) would give another order; a checkpoint of another version is refused."""

COMPUTED_ORDER_VERSION = 2
"""The version where an order is shuffled and longer than `HELD`."""

_AHEAD = 8192
"""Indices computed at once: fewer cost more each, as the calls of numpy weigh more."""


class Order(Protocol):
    """The indices of a pass in their order."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Return the indices at the places from `start` to `stop - 1`, int64. Do not write to it."""
        ...

    def on(self, device: torch.device) -> Order:
        """Return this order with its parts on a device."""
        ...


class HeldOrder:
    """An order that is a tensor of int64: a part is a view of it."""

    def __init__(self, indices: torch.Tensor) -> None:
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Return a view."""
        return self._indices.narrow(0, start, stop - start)

    def on(self, device: torch.device) -> HeldOrder:
        """Return the whole order, moved there (no device sync)."""
        return HeldOrder(self._indices.to(device, non_blocking=True))


class ComputedOrder:
    """An order of which parts are computed: of a place alone, so a part is the same whatever was taken before.

    What is computed and moved at once is a run of parts: those that follow at the distance of the last two, which is
    the batch size, or with several ranks that many batches. Taken in another way, each part is computed for itself.

    Args:
        samples: How many there are.
        at: Returns the indices at an array of places; `None` for the places themselves.
        device: Where the parts lie.
    """

    def __init__(
        self,
        samples: int,
        at: Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.int64]] | None,
        device: torch.device | None = None,
    ) -> None:
        self._samples = samples
        self._at = at
        self._device = torch.device("cpu") if device is None else device
        self._ahead = torch.empty(0, 0, dtype=torch.int64)  # of shape (parts, samples in a part)
        self._first = 0  # the place where the first of these parts starts
        self._stride = 1  # from one to the next
        self._last = 0  # where the part that was taken last starts

    def __len__(self) -> int:
        return self._samples

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Return a part that was computed, or compute it, with those that follow if the last two were as far apart."""
        number, between = divmod(start - self._first, self._stride)
        parts, size = self._ahead.shape
        if between or not 0 <= number < parts or stop - start != size:
            if not 0 <= start <= stop <= self._samples:
                raise IndexError(f"the order has {self._samples} places, and those from {start} to {stop} were taken")
            self._compute(start, stop - start)
            number = 0
        self._last = start
        return self._ahead[number]

    def on(self, device: torch.device) -> ComputedOrder:
        """Return the same order; it is computed on the CPU, and moved a run of parts at a time."""
        return ComputedOrder(self._samples, self._at, device)

    def _compute(self, start: int, size: int) -> None:
        follow = size == self._ahead.shape[1] and start > self._last
        stride = start - self._last if follow else max(size, 1)
        most = _AHEAD // max(size, 1) if follow else 1
        parts = max(1, min(most, (self._samples - start - size) // stride + 1))
        starts = np.uint64(start) + np.uint64(stride) * np.arange(parts, dtype=np.uint64)
        places = (starts[:, None] + np.arange(size, dtype=np.uint64)).reshape(-1)
        indices = places.view(np.int64) if self._at is None else self._at(places)
        self._ahead = torch.from_numpy(indices).view(parts, size).to(self._device, non_blocking=True)
        self._first, self._stride = start, stride


def order(samples: int, seed: int, epoch: int, pass_index: int, *, shuffle: bool) -> Order:
    """Return the order of a pass, with its parts on the CPU.

    The permutation is drawn from a generator of its own: the global ones are not touched.
    """
    version = version_of_order(samples, shuffle=shuffle)
    if samples <= HELD:
        if not shuffle:
            return HeldOrder(torch.arange(samples))
        generator = torch.Generator().manual_seed(derive("order", version, seed, epoch, pass_index))
        return HeldOrder(torch.randperm(samples, generator=generator))
    if not shuffle:
        return ComputedOrder(samples, None)
    keys = [derive("order", version, seed, epoch, pass_index, number) for number in range(ROUNDS)]
    return ComputedOrder(samples, KeyedPermutation(samples, keys))


def version_of_order(samples: int, *, shuffle: bool) -> int:
    """Return the version of the order of so many samples: what a checkpoint of it must agree in."""
    return COMPUTED_ORDER_VERSION if shuffle and samples > HELD else ORDER_VERSION


def batch_seed(seed: int, epoch: int, pass_index: int, batch: int) -> int:
    """Return the seed under which the transforms of one batch draw."""
    # the last 0 was the rank, which has no part in it any more; it stays so that the bits stay
    return derive("batch", ORDER_VERSION, seed, epoch, pass_index, batch, 0)
