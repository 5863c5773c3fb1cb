"""`GradientClipping` changes the run: it bounds the gradients of each update."""

from __future__ import annotations

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from heptad import Plugin, PluginError, Run
from heptad_plugins._options import number
from heptad_plugins._shared import norm_of, whole_numbers


class GradientClipping(Plugin):
    """Clip the gradients on entry to `optimizer_update`, where they are those of the whole window.

    All parameters of the network count together, in its order, as in `clip_grad_norm_(network.parameters(), …)`; then
    those that only an optimizer holds, such as a criterion's. One that no optimizer holds counts too if it has a
    gradient: freeze what is not trained (`requires_grad_(False)`). With `max_norm` the norm before clipping is recorded
    as `"gradient_norm"`; it stays on its device until it is read (no device sync). An update that was skipped before is
    left alone. The cost is one pass over the gradients, with `max_norm` two; where ranks share the parameters, one
    exchange of their norms besides. An optimizer whose step needs a closure computes the gradients again, not clipped,
    and is refused.

    Args:
        max_norm: The 2-norm that all gradients together are scaled down to where theirs is larger; above 0.
        max_value: Each element of a gradient is clamped to [-max_value, max_value]; above 0.

    Raises:
        PluginError: If not exactly one of the two is given, or it is not a number above 0.
    """

    ranks = "all"  # it clips what all have reduced, by the same norm
    runs_after = ("NonFiniteGuard",)
    changes_gradients = True

    def __init__(self, *, max_norm: float | None = None, max_value: float | None = None) -> None:
        if (max_norm is None) == (max_value is None):
            raise PluginError(
                "GradientClipping takes exactly one of max_norm and max_value, "
                f"got max_norm={max_norm!r}, max_value={max_value!r}"
            )
        self._norm = None if max_norm is None else number("GradientClipping", "max_norm", max_norm, above=0.0)
        self._value = None if max_value is None else number("GradientClipping", "max_value", max_value, above=0.0)

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Clip the gradients."""
        if run.update_skipped:
            return
        if run.shares:
            self._clip_shared(run)
        elif self._norm is not None:
            run.record("gradient_norm", clip_grad_norm_(run.parameters(), self._norm))
        elif self._value is not None:
            clip_grad_value_(run.parameters(), self._value)

    @torch.no_grad()
    def _clip_shared(self, run: Run) -> None:
        """Clip gradients of which the ranks hold parts, by torch's formulas; torch takes no whole ones beside them."""
        gradients = [parameter.grad for parameter in run.parameters() if parameter.grad is not None]
        parts = [run.local(one) for one in gradients]
        if self._value is not None:
            for one in parts:
                one.clamp_(min=-self._value, max=self._value)
        elif self._norm is not None:
            norms = whole_numbers(run, gradients, [norm_of(one) for one in gradients])
            norm = norm_of(torch.stack([one.to(norms[0].device) for one in norms])) if norms else torch.tensor(0.0)
            run.record("gradient_norm", norm)
            factor = torch.clamp(self._norm / (norm + 1e-6), max=1.0)
            for one in parts:
                one.mul_(factor.to(one.device))
