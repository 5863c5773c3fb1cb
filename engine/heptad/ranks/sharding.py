"""How FSDP2 shares a network out over the ranks: what is shared, and what each rank holds of it.

`Fsdp` alone calls this. FSDP2 cuts each parameter along its first dimension, as `torch.chunk` does, so the last ranks
may have less of it, or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parameter import is_lazy

from heptad.blocks.finding import Chooser, find_blocks
from heptad.errors import CheckpointError, ConfigError, a_kind
from heptad.ranks.sharded_call import ShardedCall, keep_call
from heptad.run.shards import Part


class ShardingPlan(NamedTuple):
    """What is shared of a network.

    Attributes:
        blocks: What is sharded one by one, before the network around them.
        whole: The parameters that each rank holds whole.
        shared: The shapes of the others, by name; one that is tied has several names.
    """

    blocks: Sequence[nn.Module]
    whole: set[nn.Parameter]
    shared: Mapping[str, tuple[int, ...]]


def plan_sharding(network: nn.Module, choose: Chooser | None) -> ShardingPlan:
    """Return what is to be shared of a network, or is, if it was sharded before.

    Args:
        network: The network.
        choose: `Components.blocks`.

    Raises:
        ConfigError: If a part of it cannot be sharded, or the blocks are none.
    """
    if mistakes := [
        f"strategy='fsdp' cannot shard {repr(name) if name else 'Components.network'}: {why}"
        for name, module in cast("Iterable[tuple[str, nn.Module]]", network.named_modules())
        if (why := _why_not(module))
    ]:
        raise ConfigError("\n".join(mistakes))
    named = dict(network.named_parameters(remove_duplicate=False))
    blocks = [block for name, block in find_blocks(network, choose).items() if name]
    if isinstance(network, FSDPModule):
        whole = {one for one in named.values() if not isinstance(one, DTensor)}
    else:
        inside = {id(part) for block in blocks for part in block.modules()}
        around = (one for one in network.modules() if id(one) not in inside)
        rest = [one for module in around for one in module.parameters(recurse=False)]
        whole = _unshareable([*(list(block.parameters()) for block in blocks), rest])
    return ShardingPlan(blocks, whole, {name: tuple(one.shape) for name, one in named.items() if one not in whole})


def _why_not(module: nn.Module) -> str | None:
    """Return why a module cannot be sharded, without its parts."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"{a_kind(module)} is compiled by TorchScript, which holds its parameters; pass what it was made of"
    if hasattr(module, "_orig_mod"):
        return (
            "it is what torch.compile returned; pass the module itself with RunConfig(compile=True), which compiles "
            "its blocks in place"
        )
    if lazy := [name for name, one in module.named_parameters(recurse=False) if is_lazy(one)]:
        return (
            f"its parameter {lazy[0]} has no shape before the first batch; run the network once on a batch before the "
            "Engine is built, or name the sizes"
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return f"{a_kind(module)} with sparse=True has gradients that FSDP2 does not average; leave sparse=True out"
    return None


def refuse_whole(network: nn.Module, plan: ShardingPlan) -> None:
    """Refuse parameters that would be computed with in fp32 beside others in bf16, which torch does not do.

    Raises:
        ConfigError: If there is one that is no scalar.
    """
    if names := [name for name, one in network.named_parameters() if one in plan.whole and one.dim()]:
        raise ConfigError(
            "RunConfig.precision='bf16-mixed' with strategy='fsdp' casts what ranks share, and each holds whole: "
            f"{', '.join(names[:4])}{' …' if names[4:] else ''}; a parameter is shared where those of its block have "
            "one dtype, and no other block has it: choose others by Components.blocks, or use strategy='ddp'"
        )


def _unshareable(groups: Iterable[Sequence[nn.Parameter]]) -> set[nn.Parameter]:
    """Return the parameters that cannot be shared: FSDP2 takes no scalar, and groups of one dtype and of their own."""
    groups = [list({id(one): one for one in group}.values()) for group in groups]
    times = Counter(id(one) for group in groups for one in group)
    whole: set[nn.Parameter] = set()
    for group in groups:
        sizes: dict[torch.dtype, int] = {}
        for one in group:
            sizes[one.dtype] = sizes.get(one.dtype, 0) + one.numel()
        most = max(sizes, key=lambda dtype: (dtype.is_floating_point, sizes[dtype]), default=None)
        whole |= {one for one in group if not one.dim() or one.dtype != most or times[id(one)] > 1}
    return whole


def shard_network(network: nn.Module, plan: ShardingPlan, mesh: DeviceMesh, precision: str) -> ShardedCall:
    """Shard a network in place, and return what calls it."""
    inner = outer = MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        inner = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        outer = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
    for block in plan.blocks:
        fully_shard(block, mesh=mesh, mp_policy=inner, ignored_params=plan.whole)
    # what is around the blocks is used at both ends of a pass: it stays gathered until the backward pass is over
    fully_shard(network, mesh=mesh, mp_policy=outer, ignored_params=plan.whole, reshard_after_forward=False)
    call = ShardedCall(network, precision)
    fully_shard(call, mesh=mesh, ignored_params=set(network.parameters()))
    call(_do_nothing)  # the first module that is called becomes the root of all for ever
    keep_call(network, call)
    return call


def _do_nothing(network: nn.Module) -> None:
    del network


class DTensorShards:
    """What this rank holds of tensors that are cut along their first dimension.

    Args:
        mesh: The ranks, in one dimension.
        plan: What is shared of the network.
        lacking: Returns how many averaged gradients there are that this rank has added nothing to.
    """

    any = True

    def __init__(self, mesh: DeviceMesh, plan: ShardingPlan, lacking: Callable[[], int] = int) -> None:
        self._mesh = mesh
        self._lacking = lacking
        self._rank, self._world = mesh.get_local_rank(), mesh.size()
        self._names = {*plan.shared}
        self._shapes = {*plan.shared.values()} - {tuple(one.shape) for one in plan.whole}

    def lacking(self) -> int:
        """Return how many averaged gradients there are that this rank has added nothing to."""
        return self._lacking()

    def part(self, tensor: Tensor) -> Part | None:
        """Return what this rank holds; `None` of a tensor that is no DTensor.

        Raises:
            CheckpointError: If it is cut otherwise.
        """
        if not isinstance(tensor, DTensor):
            return None
        shape = tuple(tensor.shape)
        if tensor.placements != (Shard(0),):
            raise CheckpointError(
                f"a DTensor of shape {shape} is placed by {tensor.placements}, and only what is cut along its first "
                "dimension, as parameters are, can be stored; make it whole by full_tensor()"
            )
        return Part(tensor.to_local(), self.span(shape)[0], shape)

    def span(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return offset and size of what this rank holds."""
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

    def expects(self, section: str, name: str, shape: tuple[int, ...]) -> bool | None:
        """Return whether a stored tensor is a parameter of the network, or what an optimizer keeps for one."""
        if section == "network":
            return name in self._names
        if section == "optimizers":
            return shape in self._shapes and not name.startswith("held.")
        return None
