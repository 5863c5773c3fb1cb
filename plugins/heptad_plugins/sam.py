"""`SAM` changes the run: each update follows the gradient at the worst weights nearby, which leads to flat minima."""

from __future__ import annotations

import torch
from torch import Tensor

from heptad import Plugin, PluginError, Run
from heptad_plugins._options import number
from heptad_plugins._shared import norm_of, whole_numbers


class SAM(Plugin):
    """Minimise the loss at the worst weights within a small distance: sharpness-aware minimization.

    On entry to `optimizer_update` the weights w are moved to w + rho · g / ‖g‖, where g is the gradient of the whole
    window and ‖g‖ its 2-norm over all parameters that the optimizers hold. The window is computed again there, the
    weights are put back, bit for bit, and the optimizers step with the new gradient. With `adaptive` the distance is
    measured relative to the weights: w + rho · w² · g / ‖|w| · g‖.

    The second computation costs a forward and a backward pass for each step of the window, whose batches are kept until
    then, and a copy of the weights; there is no device sync. Dropout draws again in it, and a batch norm counts both.
    `run.loss` is that at w. A gradient with a NaN or an infinity moves nothing, so that `NonFiniteGuard`, which comes
    later, finds the network as it was. An optimizer that needs a closure is refused.

    P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur: Sharpness-Aware Minimization for Efficiently Improving
    Generalization, ICLR 2021 (arXiv:2010.01412). `adaptive`: J. Kwon, J. Kim, H. Park, I. K. Choi: ASAM, ICML 2021
    (arXiv:2102.11600), which uses a `rho` about ten times as large.

    Args:
        rho: The distance, from 0 on.
        adaptive: Whether it is measured relative to the weights.

    Raises:
        PluginError: For an option that does not fit.
    """

    ranks = "all"  # each computes its part of the window again
    keeps_window = True
    changes_gradients = True
    runs_before = ("NonFiniteGuard", "GradientClipping")

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        self._rho = number("SAM", "rho", rho, least=0.0)
        if not isinstance(adaptive, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(f"SAM(adaptive=…) must be True or False, got {adaptive!r}")
        self._adaptive = adaptive

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Replace the gradients by those at the worst weights nearby."""
        held = [parameter for parameter in run.optimized_parameters() if parameter.grad is not None]
        if run.update_skipped or not held:
            return
        before = [parameter.detach().clone() for parameter in held]
        try:
            self._climb(run, held)
            run.recompute()
        finally:
            with torch.no_grad():
                for parameter, weight in zip(held, before, strict=True):
                    parameter.copy_(weight)

    @torch.no_grad()
    def _climb(self, run: Run, held: list[torch.nn.Parameter]) -> None:
        pairs = [(parameter, parameter.grad) for parameter in held if parameter.grad is not None]
        sizes = [norm_of(self._relative(parameter.abs(), gradient)) for parameter, gradient in pairs]
        sizes = whole_numbers(run, [gradient for _, gradient in pairs], sizes)
        norm = norm_of(torch.stack([size.to(sizes[0].device) for size in sizes]))
        scale, finite = self._rho / (norm + 1e-12), norm.isfinite()
        for parameter, gradient in ((run.local(one), run.local(gradient)) for one, gradient in pairs):
            climb = self._relative(parameter.square(), gradient) * scale.to(parameter)
            parameter.add_(climb.where(finite.to(parameter.device), 0.0))

    def _relative(self, size: Tensor, gradient: Tensor) -> Tensor:
        return size * gradient if self._adaptive else gradient
