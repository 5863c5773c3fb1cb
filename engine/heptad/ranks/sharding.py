"""`DTensorShards`: the tensors that FSDP2 shares out over the ranks, as parts; and which parameters it can share.

`Fsdp` builds it and puts it into the run's `Runtime`. FSDP2 cuts each parameter along its first dimension, as
`torch.chunk` does, so the last ranks may have less of it, or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from heptad.run.shards import Part


class DTensorShards:
    """What this rank holds of tensors that are cut along their first dimension.

    Args:
        mesh: The ranks, in one dimension.
    """

    any = True

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        self._rank, self._world = mesh.get_local_rank(), mesh.size()

    def part(self, tensor: Tensor) -> Part | None:
        """Return what this rank holds; `None` of a tensor that is no DTensor."""
        if not isinstance(tensor, DTensor):
            return None
        shape = tuple(tensor.shape)
        return Part(tensor.to_local(), self.span(shape)[0], shape)

    def span(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return offset and size of what this rank holds."""
        if not shape:  # a norm, say, of which each rank has its share
            return (), ()
        rows = -(-shape[0] // self._world)
        start = min(self._rank * rows, shape[0])
        return (start, *(0,) * (len(shape) - 1)), (min(rows, shape[0] - start), *shape[1:])

    def join(self, part: Part) -> Tensor:
        """Return the DTensor; nothing is exchanged."""
        strides = torch.empty(part.shape, device="meta").stride()
        local = part.local.to(self._mesh.device_type)
        return DTensor.from_local(
            local, self._mesh, [Shard(0)], run_check=False, shape=torch.Size(part.shape), stride=strides
        )


def whole_parameters(groups: Iterable[Iterable[nn.Parameter]]) -> set[nn.Parameter]:
    """Return the parameters that each rank must hold whole.

    FSDP2 takes no scalar, and what it gathers at once must be of one dtype and belong to one module that it shards.

    Args:
        groups: The parameters that are gathered at once.
    """
    listed = [list(group) for group in groups]
    times = Counter(id(one) for group in listed for one in {id(one): one for one in group}.values())
    whole: set[nn.Parameter] = set()
    for group in listed:
        sizes: dict[torch.dtype, int] = {}
        for one in group:
            sizes[one.dtype] = sizes.get(one.dtype, 0) + one.numel()
        most = max(sizes, key=lambda dtype: (dtype.is_floating_point, sizes[dtype]), default=None)
        whole |= {one for one in group if not one.dim() or one.dtype != most or times[id(one)] > 1}
    return whole
