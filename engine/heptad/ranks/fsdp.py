"""`Fsdp`: the strategy of several ranks that each hold a part of every parameter; torch's FSDP2 gathers and averages.

The blocks of the network (`Components.blocks`) are sharded one by one, then the network around them. Parameters become
DTensors, so optimizers are built after it, and hold a part each. What FSDP2 cannot share is whole on each rank, and is
averaged as what optimizers hold beside the network is.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from heptad.blocks.finding import find_blocks
from heptad.errors import ConfigError
from heptad.plugin.manager import PluginManager
from heptad.ranks.company import LossModule, through
from heptad.ranks.grouped import Grouped
from heptad.ranks.requests import SharedRun
from heptad.ranks.sharding import DTensorShards, whole_parameters
from heptad.ranks.window import RanksWindow
from heptad.run.run import Run
from heptad.run.runtime import Runtime


class _Output(NamedTuple):
    """What a module that is sharded has returned in the forward pass under way, without its memory."""

    edge: GradientEdge
    like: Tensor


class Fsdp(Grouped):
    """Shards the network by FSDP2."""

    shares = True
    run_class: type[Run] = SharedRun

    def __init__(self) -> None:
        super().__init__()
        self._modules: list[FSDPModule] = []
        """What is sharded: the network, and its blocks before it."""
        self._outputs: list[_Output] = []
        self._used: set[int] = set()
        """The places of the parameters that the steps of the window have used, in `_shared`."""
        self._shared: list[nn.Parameter] = []
        self._closes: bool | None = None

    def autocasts(self, precision: str) -> bool:
        """Return False for bf16: FSDP2 gathers the parameters in it, at half the traffic."""
        return precision != "bf16-mixed"

    def prepare(self, run: Run, manager: PluginManager) -> None:
        """Refuse what does not go with parameters that become others; then as the others do."""
        super().prepare(run, manager)

    def _wrap(self, runtime: Runtime) -> set[int]:
        network = runtime.network
        if lazy := [name for name, one in network.named_parameters() if is_lazy(one)]:
            raise ConfigError(
                f"strategy='fsdp' cannot shard the parameter {lazy[0]}, which has no shape before the first batch; run "
                "the network once on a batch before the Engine is built, or name the sizes"
            )
        mesh = DeviceMesh.from_group(self._group.data, runtime.device.type)
        runtime.shards = DTensorShards(mesh)
        if not isinstance(network, FSDPModule):
            self._shard(runtime, mesh)
        self._modules = [one for one in network.modules() if isinstance(one, FSDPModule)]
        self._shared = [one for one in network.parameters() if runtime.shards.part(one) is not None]
        self._watch()
        if self._compute_loss is not None:
            whole = LossModule(network, self._compute_loss)
            whole.register_forward_pre_hook(lambda module, given: cast("Any", network).unshard())
            fully_shard(whole, mesh=mesh, ignored_params=set(network.parameters()))
            self._compute_loss = through(whole, whole)
        self._closes = None
        return {id(one) for one in self._shared}

    def _shard(self, runtime: Runtime, mesh: DeviceMesh) -> None:
        network = runtime.network
        self._send([*network.parameters(), *network.buffers()])
        blocks = [block for name, block in find_blocks(network, runtime.components.blocks).items() if name]
        groups = [list(block.parameters()) for block in blocks]
        inside = {id(part) for block in blocks for part in block.modules()}
        rest = [
            one for module in network.modules() if id(module) not in inside for one in module.parameters(recurse=False)
        ]
        whole = whole_parameters([*groups, rest])
        policy = MixedPrecisionPolicy()
        outer = MixedPrecisionPolicy()
        if self._config.precision == "bf16-mixed":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            outer = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
        reshard = None if self._compute_loss is None else False
        fully_shard(network, mesh=mesh, mp_policy=outer, ignored_params=whole, reshard_after_forward=reshard)
        network.to(runtime.device)

    def _watch(self) -> None:
        """Note which parameters each backward pass uses, and what the modules return."""
        places = {id(one): place for place, one in enumerate(self._shared)}
        for module in self._modules:
            module.set_reduce_scatter_unused_params(True)
        network = cast("nn.Module", self._modules[0])
        names = {name: places[id(one)] for name, one in network.named_parameters() if id(one) in places}
        for module in self._modules:
            module.unshard()
            for name, one in network.named_parameters():
                if name in names and not isinstance(one, DTensor):
                    self._watch_one(one, names[name])
            module.reshard()
            cast("nn.Module", module).register_forward_hook(self._note_output)
        self._used.clear()

    def _watch_one(self, parameter: nn.Parameter, place: int) -> None:
        def note(parameter: Tensor) -> None:
            del parameter
            self._used.add(place)

        trained = parameter.requires_grad
        parameter.requires_grad_(True)
        parameter.register_post_accumulate_grad_hook(note)
        parameter.requires_grad_(trained)

    def _note_output(self, module: nn.Module, given: Any, output: Any) -> None:
        del module, given
        for one in tree_leaves(output):
            if isinstance(one, Tensor) and one.requires_grad:
                like = torch.empty((), dtype=one.dtype, device=one.device).expand(one.shape)
                self._outputs.append(_Output(get_gradient_edge(one), like))

    def window_closes(self, closes: bool) -> None:
        """Let FSDP2 average in the backward pass to come, or only add up."""
        window = cast("RanksWindow", self._run._position.window)
        window.closes = closes
        self._outputs.clear()
        if not window.steps:
            self._used.clear()
        if closes is not self._closes:
            self._closes = closes
            for module in self._modules:
                module.set_requires_gradient_sync(closes, recurse=False)

    def keep_company(self, loss: Any, closes: bool) -> None:
        """Make a backward pass of zeros from what the modules have returned, in each step that adds nothing.

        A rank that has gathered parameters in the forward pass, and leaves the backward out, would be out of step with
        the others. The loss is left aside: it may be NaN, and 0 times NaN is NaN.
        """
        outputs, used = [*self._outputs], {*self._used}
        self._outputs.clear()
        if outputs:
            zeros = [torch.zeros_like(one.like) for one in outputs]
            torch.autograd.backward(cast("Any", [one.edge for one in outputs]), zeros)
        self._used = used

    def _lacking(self) -> int:
        return sum(place not in self._used and one.requires_grad for place, one in enumerate(self._shared))

    def _drop_unused(self) -> None:
        """Leave parameters that no rank has used without a gradient, as one process does: FSDP2 has averaged zeros."""
        own = np.zeros(len(self._shared), dtype=bool)
        own[[*self._used]] = True
        told = self._group.gather(np.packbits(own).tobytes())
        used = np.any([np.unpackbits(np.frombuffer(one, np.uint8), count=len(own)) for one in told], axis=0)
        for one, is_used in zip(self._shared, used, strict=True):
            if not is_used:
                one.grad = None
