"""Rows of tensors for a device: gathered into pinned memory, or kept on the device and gathered there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from heptad.data.fetch import Fetch, Rows
from heptad.data.generators import Generator
from heptad.data.order import Order
from heptad.data.streams import DeviceStreams

Prepare = Callable[[Fetch], Fetch]
"""Makes of what fetches the batches of a pass what fetches them for a device; asked when a pass begins."""


class PinnedRows:
    """Gathers rows straight into pinned memory, from which they are copied without a further copy on the host."""

    random = False

    def __init__(self, rows: Rows, streams: DeviceStreams) -> None:
        self._rows = rows
        self._streams = streams

    def __call__(self, indices: torch.Tensor, seed: int) -> Any:
        """Return a tensor, or a list of them, with a row for each index."""
        del seed
        return self._rows.gather(indices, self._gather)

    def generators(self) -> list[Generator]:
        """Return nothing: rows are not random."""
        return []

    def place_order(self, order: Order) -> Order:
        """Return the order of a pass as it is."""
        return order

    def _gather(self, tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        if not tensor.is_cpu or tensor.requires_grad or type(tensor) is not torch.Tensor:
            return tensor.index_select(0, indices)
        pinned = self._streams.empty_pinned((len(indices), *tensor.shape[1:]), tensor.dtype)
        return torch.index_select(tensor, 0, indices, out=pinned)


class ResidentRows:
    """Keeps the tensors of a dataset on a device, from the first pass on; batches are gathered there.

    A tensor that was written to since is copied anew when a pass begins, as a pass begins with the dataset as it is
    then. Tensors that are on the device are taken as they are: on the CPU nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}  # the tensor too, so that its id is its own

    def __call__(self, fetch: Fetch) -> Fetch:
        """Return what gathers on the device."""
        assert isinstance(fetch, Rows)  # checked when the feed was built
        kept, self._kept = self._kept, {}
        return fetch.on(self._device, lambda tensor: self._keep(tensor, kept.get(id(tensor))))

    def _keep(self, tensor: torch.Tensor, known: tuple[torch.Tensor, int, torch.Tensor] | None) -> torch.Tensor:
        version = -1 if tensor.is_inference() else tensor._version
        if known is None or not known[1] == version != -1:
            known = tensor, version, tensor.to(self._device)
        self._kept[id(tensor)] = known
        return known[2]
