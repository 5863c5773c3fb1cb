"""`ShardedCall`: what calls a network that is sharded, and knows which of its parameters are used.

`Fsdp` has one for each network; evaluations go through it too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.hooks import RemovableHandle

from heptad.config import ComputeLoss, LossOutput
from heptad.errors import ConfigError

_CALL = "_sharded_call"
"""Where a network that is sharded keeps what calls it, no submodule of it."""


class ShardedCall(nn.Module):
    """Calls a function with a network that is sharded: the root, where FSDP2 begins and ends a pass.

    There is one for each network, so that several engines can train it one after the other.

    Args:
        network: The network.
        precision: `RunConfig.precision`, by which it is sharded.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network = network
        self.precision = precision
        self._device = next(network.parameters()).device
        self._gathered: dict[int, nn.Parameter] = {}
        """What parameters are when they are gathered, by their places."""
        self._adds_up = False
        self._hooks: list[RemovableHandle] = []
        self._torn = False
        self.end: Tensor | None = None
        """What the newest `compute_loss` has returned beside its loss: a backward pass from it computes nothing."""
        self._stays = False
        """Whether what is around the blocks stays gathered after a forward pass, for the next pass to come."""
        network.register_forward_hook(self._reshard)

    @contextmanager
    def resting(self) -> Generator[None]:
        """Make forward passes without a backward pass in a block, after which each rank has its part.

        What is around the blocks of the network stays gathered from one to the next.
        """
        try:
            with self._staying():
                yield
        finally:
            self.mend()
            for module in self.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def mend(self) -> None:
        """Let the next forward pass begin anew, where something was raised in the last one."""
        if self._torn:
            cast("FSDPModule", self).reset_iter_state()
            self._torn = False

    @contextmanager
    def _staying(self) -> Generator[None]:
        within, self._stays = self._stays, True
        try:
            yield
        finally:
            self._stays = within

    def _reshard(self, module: nn.Module, given: Any, output: Any) -> None:
        """Leave its part to each rank after a forward pass that a handler makes: nobody knows what it does next."""
        del given, output
        if not self._stays:
            cast("FSDPModule", module).reshard()

    def forward(self, call: Callable[..., Any], *given: Any) -> Any:
        """Return what the function returns, given the network and the rest."""
        try:
            with self._staying():
                return call(self.network, *given)
        except BaseException:
            self._torn = True
            raise

    def around(self, compute_loss: ComputeLoss) -> ComputeLoss:
        """Return a `compute_loss` that may call parts of the network: what is around the blocks is gathered before."""
        return partial(self._compute, compute_loss)

    def _compute(self, compute_loss: ComputeLoss, network: nn.Module, batch: Any) -> Tensor | LossOutput | None:
        del network
        found: list[Tensor | LossOutput | None] = []

        def call(network: nn.Module, batch: Any) -> tuple[Tensor | None, Tensor]:
            cast("FSDPModule", network).unshard()
            given = compute_loss(network, batch)
            found.append(given)
            loss: Any = given.value if isinstance(given, LossOutput) else given
            return loss, torch.zeros((), device=self._device, requires_grad=True)

        # FSDP2 casts what the network is called with, and not what its parts are
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            loss, self.end = self(call, batch)
        return replace(found[0], value=loss) if isinstance(found[0], LossOutput) else loss

    def watch(self, parameters: Sequence[nn.Parameter], used: set[int]) -> None:
        """Note from now on which parameters backward passes use, and no more for whoever has asked before.

        Args:
            parameters: Those of the network that are shared.
            used: Gets the places of those that were used.
        """
        for hook in self._hooks:
            hook.remove()
        self._gathered = {}
        places = {id(one): place for place, one in enumerate(parameters)}
        names = {name: places[id(one)] for name, one in self.network.named_parameters() if id(one) in places}
        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.set_reduce_scatter_unused_params(True)
                module.unshard()  # what a parameter is when it is gathered stays one object
                gathered = self.network.named_parameters()
                watched = [(one, names[name]) for name, one in gathered if name in names and type(one) is nn.Parameter]
                self._hooks += [_note_use(one, place, used) for one, place in watched]
                self._gathered |= {place: one for one, place in watched}
                module.reshard()

    def begin_backward(self, used: Collection[int], *, first: bool, closes: bool) -> None:
        """Have gradients of one dtype, which FSDP2 needs to average them: in bf16, those that a window adds up.

        It keeps what it adds up in fp32, and what only the last step of a window uses, or none, in bf16.

        Args:
            used: The places of parameters that steps of the window have used.
            first: Whether the step is the first of its window.
            closes: Whether it is the last.
        """
        if self.precision != "bf16-mixed":
            return
        adds_up = not (first and closes)
        if adds_up is not self._adds_up:
            self._adds_up = adds_up
            for one in self._gathered.values():
                one.grad_dtype = torch.float32 if adds_up else one.dtype
        if adds_up and closes:
            for place, one in self._gathered.items():
                if place not in used and one.requires_grad and one.grad is None:
                    one.grad = torch.zeros(one.shape, device=one.device)


def _note_use(parameter: nn.Parameter, place: int, used: set[int]) -> RemovableHandle:
    def note(parameter: Tensor) -> None:
        del parameter
        used.add(place)

    trained = parameter.requires_grad
    parameter.requires_grad_(True)  # one that is frozen takes no hook, and may be trained later
    hook = cast("RemovableHandle", parameter.register_post_accumulate_grad_hook(note))
    parameter.requires_grad_(trained)
    return hook


def find_call(network: nn.Module, precision: str) -> ShardedCall | None:
    """Return what calls a network that is sharded already; `None` of one that is whole.

    Raises:
        ConfigError: If it was sharded by others, or for another precision.
    """
    if not isinstance(network, FSDPModule):
        return None
    call = cast("ShardedCall | None", vars(network).get(_CALL))
    if call is None:
        raise ConfigError(
            "strategy='fsdp': Components.network is sharded by fully_shard already; pass it whole, and name the parts "
            "that are to be sharded one by one by Components.blocks"
        )
    if call.precision != precision and "bf16-mixed" in (call.precision, precision):
        raise ConfigError(
            f"strategy='fsdp': Components.network was sharded for precision={call.precision!r}, and this engine has "
            f"{precision!r}; build the network anew, and load its weights by load_weights"
        )
    return call


def keep_call(network: nn.Module, call: ShardedCall) -> None:
    """Let `find_call` find what calls a network."""
    vars(network)[_CALL] = call
