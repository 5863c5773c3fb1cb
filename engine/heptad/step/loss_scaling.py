"""`LossScaling`: what fp16 needs beside autocast, so that small gradients do not vanish: torch's `GradScaler`.

Built with the optimizers, stored in checkpoints, and asked by the engine's first handler on entry to
`optimizer_update`. The window folds the scale into what each backward pass is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch

from heptad.errors import ConfigError, EngineError
from heptad.ranks.strategy import Strategy, scale
from heptad.run.peers import Peers
from heptad.run.run import Run
from heptad.run.runtime import StepFunction
from heptad.run.shards import Shards
from heptad.run.weight import Weight
from heptad.run.window import Window
from heptad.step.optimizers import precision_mistakes
from heptad.step.precision import in_precision


class LossScaling:
    """The loss scale of a run: halved where a gradient is not finite, doubled after 2,000 finite updates in a row.

    Args:
        device: Where the network is.
        peers: The ranks, which must find the same; `None` of a run alone.

    Attributes:
        scale: The scale, as the host knows it.
    """

    def __init__(self, device: torch.device, peers: Peers | None) -> None:
        self._peers = peers
        self._scaler = torch.amp.GradScaler(device.type)
        self._one = torch.ones((), device=device)
        self.scale = self._scaler.get_scale()

    def apply(self, window: Window) -> None:
        """Scale the losses of a window from now on (no device sync)."""
        window.scale = self._scaler.scale(self._one)
        window.seeds.clear()

    def unscale(self, run: Run) -> None:
        """Divide the gradients of a window by the scale; skip its update if one of them is not finite.

        One device sync, for what was found: the scale is smaller then.

        Raises:
            EngineError: If they are finite at no scale.
        """
        optimizers, window, before = run._runtime.optimizers, run._position.window, self.scale
        window.reference = None if window.size == 1 else mean_weight(window)
        held = optimizers.held()
        if self._peers is None and all(parameter.grad is None for parameter in held):
            return  # nothing was scaled, and the scaler would refuse it
        scaled = held if self._peers is None else _shards_held(held, run._runtime.shards, self._one)
        # all optimizers as one, so that a parameter that two of them hold is un-scaled once
        self._scaler.unscale_(cast("Any", SimpleNamespace(param_groups=[{"params": scaled}])))
        self._scaler.update()
        self.scale = self._scaler.get_scale()
        if self._peers is not None:
            self._agree(self._peers, before)
        # plugins see the gradients of the others too, whether they are finite or not
        ids = {id(parameter) for parameter in held}
        scale([one for one in optimizers.parameters(run.network) if id(one) not in ids], 1.0 / before)
        if self.scale != before:
            self.apply(window)
        if self.scale < before:
            run.skip_update(f"fp16: a gradient is not finite at scale {before:.10g} -> {self.scale:.10g}")
        if not self.scale:
            raise EngineError(
                "fp16: gradients are finite at no scale, so there is a NaN or an infinity in the data, the loss or the "
                "weights, which precision='fp32' with the plugin NonFiniteGuard finds; or numbers that float16 cannot "
                "hold, which 'bf16-mixed' can"
            )

    def _agree(self, peers: Peers, before: float) -> None:
        """Take the smaller scale where any rank has found a gradient that is not finite: each looks at its own parts.

        One exchange; a gradient that all have may be finite here and not there too, as it is not averaged yet.
        """
        smaller = self.scale < before
        total = peers.add(torch.tensor([float(smaller)], dtype=torch.float64))
        if float(total) and not smaller:
            self.scale = before * self._scaler.get_backoff_factor()
            self._load(self.scale, 0)

    def state(self) -> tuple[float, int]:
        """Return the scale, and the number of finite updates since it last changed (waits for the device)."""
        state = self._scaler.state_dict()
        return state["scale"], state["_growth_tracker"]

    def restore(self, scale: float, growth: int, window: Window) -> None:
        """Restore what `state` returned, and scale the losses of a window by it."""
        self._load(scale, growth)
        self.scale = scale
        self.apply(window)

    def _load(self, scale: float, growth: int) -> None:
        self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": growth})


def _shards_held(held: Sequence[torch.Tensor], shards: Shards, one: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors whose gradients are what this rank holds of those of others, in the same memory.

    Torch takes no list of shared and of whole gradients. There is one more, which is finite, in case there is no other.
    """
    found: list[torch.Tensor] = [one.detach().clone()]
    found[0].grad = torch.zeros_like(one)
    for parameter in held:
        if parameter.grad is not None:
            part = shards.part(parameter.grad)
            gradient = parameter.grad if part is None else part.local
            found.append(gradient.detach())
            found[-1].grad = gradient.detach()
    return found


def mean_weight(window: Window) -> Weight | None:
    """Return the mean weight of the steps of a window that count, the reference of the next one (no device sync).

    The first step of a window may hold few tokens, and the others would be scaled up until they overflow. `None` where
    no weights are related.
    """
    first, total, losses = window.first, window.total, window.losses
    if first is None or not losses:
        return window.reference
    whole = not isinstance(total, torch.Tensor) and total == len(losses)
    return first if whole else first * total / len(losses)


def build_scaled(run: Run, step: StepFunction, strategy: Strategy) -> StepFunction:
    """Return the step function in the precision of a run, and build what scales its losses in fp16.

    Raises:
        ConfigError: If the optimizers, or the device, do not go with the precision.
    """
    runtime, precision = run._runtime, run.config.precision
    if mistakes := precision_mistakes(runtime.optimizers, precision):
        raise ConfigError("\n".join(mistakes))
    if precision == "fp16-mixed":
        runtime.scaling = LossScaling(runtime.device, runtime.peers if strategy.announces else None)
        runtime.scaling.apply(run._position.window)
    return in_precision(step, precision, runtime.device) if strategy.autocasts(precision) else step


def first_on_update(strategy: Strategy, precision: str) -> list[Callable[[Run], None]]:
    """Return what the engine calls on entry to `optimizer_update`, in this order and before all plugins."""
    return [unscale, strategy.reduce] if precision == "fp16-mixed" else [strategy.reduce]


def unscale(run: Run) -> None:
    """Un-scale the gradients of a run in fp16, see `LossScaling.unscale`; do nothing in another precision."""
    if run._runtime.scaling is not None:
        run._runtime.scaling.unscale(run)
