"""What is fetched for each place in a pass over samples: their indices, and the seed under which transforms draw.

`IndexCursor` makes one when it begins a pass: `OrderedPass` in a single process, `DealtPasses` where ranks share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from heptad.data.cursor import PassKey
from heptad.data.dealing import Deal, Sizes, Slice
from heptad.data.order import Order, batch_seed

Job = tuple[torch.Tensor, int]
"""The indices of a batch, int64 of shape (samples,), and its seed; 0 where nothing is random."""


class PassJobs(Protocol):
    """The batches of a pass, by their places in it."""

    def job(self, place: int) -> Job:
        """Return what is fetched for a place, from 0."""
        ...


class OrderedPass:
    """One pass over the samples in its order.

    Args:
        key: Which pass.
        order: Its order.
        batch_size: Samples in a batch; the last one may be smaller.
        random: Whether fetching may draw, so that the seed matters.
    """

    def __init__(self, key: PassKey, order: Order, batch_size: int, *, random: bool) -> None:
        self._key = key
        self._order = order
        self._samples = len(order)
        self._batch_size = batch_size
        self._random = random

    def job(self, place: int) -> Job:
        """Return what is fetched for a batch, by its number."""
        size = self._batch_size
        start = place * size
        indices = self._order.part(start, min(start + size, self._samples))
        return indices, batch_seed(*self._key, place) if self._random else 0

    def slice(self, start: int, stop: int, number: int) -> Job:
        """Return what is fetched for the samples from `start` to `stop`, under the seed of the batch of a number."""
        seed = batch_seed(*self._key, number) if self._random else 0
        return self._order.part(start, stop), seed


class DealtPasses:
    """A pass of steps of one rank, which may take batches of several passes.

    Args:
        deal: What says which.
        key: The pass of steps.
        sizes: How large each pass over the samples is.
        make: Makes a pass over the samples.
    """

    def __init__(self, deal: Deal, key: PassKey, sizes: Sizes, make: Callable[[PassKey], OrderedPass]) -> None:
        self._deal = deal
        self._key = key
        self._sizes = sizes
        self._make = make
        self._passes: dict[PassKey, OrderedPass] = {}

    def job(self, place: int) -> Job:
        """Return what is fetched in a step; for a rank that has nothing to take some samples of the pass once more."""
        deal, sizes = self._deal, self._sizes
        part = deal.part(place, sizes, self._key)
        number = deal.first(self._key, sizes.batches) + place * deal.world + deal.rank
        if part is None:
            least = min(deal.least, sizes.samples)
            return self._pass(self._key).slice(sizes.samples - least, sizes.samples, number)
        if isinstance(part, Slice):
            return self._pass(self._key).slice(*part, number)
        return self._pass(part.key).job(part.number)

    def _pass(self, key: PassKey) -> OrderedPass:
        """Return a pass; the two that were asked for last are kept, since workers are ahead of the step."""
        found = self._passes.pop(key, None) or self._make(key)
        self._passes[key] = found
        if len(self._passes) > 2:
            del self._passes[next(iter(self._passes))]
        return found
