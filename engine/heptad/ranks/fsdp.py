"""`Fsdp`: the strategy of several ranks that each hold a part of every parameter; torch's FSDP2 gathers and averages.

The blocks of the network (`Components.blocks`) are sharded one by one, then the network around them. Parameters become
DTensors, so optimizers are built after it, and hold a part each. What FSDP2 cannot share is whole on each rank, and is
averaged as what optimizers hold beside the network is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from heptad.config import ComputeLoss
from heptad.plugin.manager import PluginManager
from heptad.ranks.grouped import Grouped, is_of_exchange
from heptad.ranks.sharded_call import ShardedCall, find_call
from heptad.ranks.sharding import DTensorShards, plan_sharding, refuse_whole, shard_network
from heptad.ranks.shared_run import SharedRun
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
        self._mesh: DeviceMesh
        self._call: ShardedCall | None = None
        """What gathers and calls the network, once it is sharded."""
        self._modules: list[FSDPModule] = []
        """What is sharded: the network, and its blocks."""
        self._shared: list[nn.Parameter] = []
        self._before: list[ref[nn.Parameter]] = []
        """What the network held before it was sharded; it is freed unless somebody else holds it."""
        self._used: set[int] = set()
        """Places in `_shared`: of the parameters that the steps of the window have used."""
        self._outputs: list[_Output] = []
        """Of the forward pass under way; a step that adds nothing makes its backward pass from them."""
        self._hooks: list[RemovableHandle] = []
        self._closes: bool | None = None
        """The value last passed to FSDP2: whether the step closes its window. `None` before the first step."""
        self._resumed = False
        """Whether no step was made yet: gradients are those of a window that is complete, and was restored."""

    def autocasts(self, precision: str) -> bool:
        """Return False for bf16: FSDP2 gathers the parameters in it, at half the traffic."""
        return precision != "bf16-mixed"

    def prepare(self, run: Run, manager: PluginManager) -> None:
        """Say which tensors will be shared: a checkpoint is read before the network is sharded."""
        super().prepare(run, manager)
        runtime = run._runtime
        self._mesh = DeviceMesh.from_group(self._group.data, runtime.device.type)
        plan = plan_sharding(runtime.network, runtime.components.blocks)
        if self._config.precision == "bf16-mixed":
            refuse_whole(runtime.network, plan)
        runtime.shards = DTensorShards(self._mesh, plan, self._lacking)

    def replaces(self, network: nn.Module) -> bool:
        """Return whether it is to be sharded: an earlier engine may have done that."""
        return not isinstance(network, FSDPModule)

    def replaced(self) -> Collection[int]:
        """Return the ids of what the network held before and somebody still holds, such as an optimizer."""
        now = set(map(id, cast("nn.Module", self._call).parameters()))
        return {id(one) for each in self._before if (one := each()) is not None} - now

    def _wrap(self, runtime: Runtime) -> set[int]:
        network, precision = runtime.network, self._config.precision
        call = find_call(network, precision)
        if call is None:
            self._send([*network.parameters(), *network.buffers()])
            self._before = [ref(one) for one in network.parameters()]
            plan = plan_sharding(network, runtime.components.blocks)
            runtime.shards = DTensorShards(self._mesh, plan, self._lacking)
            call = shard_network(network, plan, self._mesh, precision)
            network.to(runtime.device)
        call.mend()
        self._call, self._closes, self._resumed = call, None, True
        self._modules = [one for one in network.modules() if isinstance(one, FSDPModule)]
        self._shared = [one for one in network.parameters() if isinstance(one, DTensor)]
        call.watch(self._shared, self._used)
        self._watch_outputs()
        runtime.forward = partial(call, _call_network)
        return {id(one) for one in self._shared}

    def compute_loss(self, given: ComputeLoss | None) -> ComputeLoss | None:
        """Return one that gathers what it uses of the network, which may be parts of it."""
        return given if given is None or self._call is None else self._call.around(given)

    # -- what is watched

    def _watch_outputs(self) -> None:
        self._watch_no_more()
        modules = cast("list[nn.Module]", self._modules)
        note: Any = self._note_output
        if self._config.compile:  # else not, as it takes a second to import
            note = torch.compiler.disable(note)
        self._hooks = [module.register_forward_hook(note) for module in modules]

    def _watch_no_more(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._outputs.clear()

    def _note_output(self, module: nn.Module, given: Any, output: Any) -> None:
        del module, given
        for one in tree_leaves(output):
            if isinstance(one, Tensor) and one.requires_grad:
                like = torch.empty((), dtype=one.dtype, device=one.device).expand(one.shape)
                self._outputs.append(_Output(get_gradient_edge(one), like))

    @contextmanager
    def driving(self, run: Run) -> Generator[None]:
        """Watch what the network returns, as long as the run is driven."""
        try:
            if self._modules:
                self._watch_outputs()
            with super().driving(run):
                yield
        finally:
            self._watch_no_more()

    # -- the window

    def window_closes(self, closes: bool) -> None:
        """Let FSDP2 average in the backward pass to come, or only add up."""
        window = cast("RanksWindow", self._run._position.window)
        window.closes, self._resumed = closes, False
        self._outputs.clear()
        if not window.steps:
            self._used.clear()
        if self._call is not None:
            self._call.begin_backward(self._used, first=not window.steps, closes=closes)
        if closes is not self._closes:
            self._closes = closes
            for module in self._modules:
                module.set_requires_gradient_sync(closes, recurse=False)

    def reduce(self, run: Run) -> None:
        """Make the gradients those of the window; see that each rank has its part of the weights again.

        FSDP2 does that in the backward pass, which does not reach a part of which nothing is trained.
        """
        for module in self._modules:
            module.reshard()
        super().reduce(run)

    def keep_company(self, loss: Any, closes: bool) -> None:
        """Make a backward pass of zeros from what the modules have returned, in each step that adds nothing.

        A rank that has gathered parameters in the forward pass, and leaves the backward out, would be out of step with
        the others. The loss is left aside: it may be NaN, and 0 times NaN is NaN.
        """
        outputs, used = [*self._outputs], {*self._used}
        self._outputs.clear()
        if self._call is not None and (end := self._call.end) is not None:
            # a `compute_loss` may call parts of the network that are not sharded by themselves
            outputs.append(_Output(get_gradient_edge(end), end.detach()))
            self._call.end = None
        if outputs:
            zeros = [torch.zeros_like(one.like) for one in outputs]
            torch.autograd.backward(cast("Any", [one.edge for one in outputs]), zeros)
        self._used.clear()
        self._used |= used

    # -- forward passes without a backward pass

    def divides(self, network: nn.Module) -> bool:
        """Return whether a network is sharded by now: ranks make its forward passes together."""
        return isinstance(network, FSDPModule)

    def forward_of(self, network: nn.Module) -> Callable[[Any], Any]:
        """Return what calls a network, for an evaluation."""
        call = find_call(network, self._config.precision)
        return network if call is None else partial(call, _call_network)

    def loss_of(self, network: nn.Module, given: ComputeLoss) -> ComputeLoss:
        """Return a `compute_loss` that may call parts of a network, for an evaluation."""
        call = find_call(network, self._config.precision)
        return given if call is None else call.around(given)

    @contextmanager
    def resting(self, network: nn.Module, name: str) -> Generator[None]:
        """Leave its part to each rank after a block of forward passes, also after one that raises.

        Args:
            network: The network.
            name: What errors call the block.

        Raises:
            ConfigError: If the network is sharded by others, or for another precision.
        """
        call = find_call(network, self._config.precision)
        if call is None:
            yield
            return
        group, outputs, where = self._group, [*self._outputs], self._group.where
        if where is str:  # no run is driven
            group.where = lambda: f"in {name}"
        try:
            with call.resting():
                yield
        finally:
            self._outputs[:] = outputs
            group.where = where

    def break_off(self, network: nn.Module, error: Exception) -> None:
        """Tell the other ranks of an error for which they would wait in a forward pass.

        Raises:
            RankFailed: If it is another rank that has broken it off.
        """
        if self.divides(network) and not self._group.failed:
            if is_of_exchange(error):
                self._group.explain(error)
            self._group.tell(error)

    def _lacking(self) -> int:
        if self._resumed:
            self._used |= {place for place, one in enumerate(self._shared) if one.grad is not None}
        return sum(place not in self._used and one.requires_grad for place, one in enumerate(self._shared))

    def _drop_unused(self) -> None:
        """Leave parameters that no rank has used without a gradient, as one process does: FSDP2 has averaged zeros."""
        own = np.zeros(len(self._shared), dtype=bool)
        own[[*self._used]] = True
        rows = self._group.gather(np.packbits(own).tobytes())
        used = np.any([np.unpackbits(np.frombuffer(one, np.uint8), count=len(own)) for one in rows], axis=0)
        for one, is_used in zip(self._shared, used, strict=True):
            if not is_used:
                one.grad = None


def _call_network(network: nn.Module, data: Any) -> Any:
    return network(data)
