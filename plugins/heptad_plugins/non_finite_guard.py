"""`NonFiniteGuard` changes the run: it keeps an update with a NaN or an infinity away from the weights."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor

from heptad import Plugin, PluginError, Run
from heptad_plugins._options import one_of, selection
from heptad_plugins._shared import apart, whole_numbers
from heptad_plugins._stored import count_in

IN_A_ROW = 100
"""Skipped updates in a row after which there is no hope."""


class NonFiniteGuard(Plugin):
    """Check loss and gradients for NaN and infinity on entry to `optimizer_update`.

    The loss is the mean over the window, the gradients are those about to be applied, of all parameters that the
    optimizers hold. What the forward pass itself wrote, such as the statistics of a batch norm, is not undone.

    A check costs one pass over the gradients (their norms, fused) and one device sync; where ranks share the
    parameters, one exchange of the norms, so that all find the same. Only if a norm is not finite, because of a NaN or
    because large numbers overflow in it, a second pass looks at each number, with a sync for each gradient. There is no
    delay: an update that is checked never reaches the weights. With `every=n` up to n - 1 updates pass between two
    checks; a NaN in one of them is found at the next check, when it is in the weights.

    `"skip_batch"` looks at the loss of each step as well, before its backward pass, which is a device sync for each
    micro-batch: a step whose loss is not finite is left out, and the update is that of the others in its window. It is
    refused where a run has several ranks, of which the others would wait for the backward pass of that step.

    Args:
        action: `"stop"` skips the update and ends the run in order; `"skip"` skips the update, and raises at the
            hundredth in a row, for then the weights are not finite and the run would have no end; `"skip_batch"` leaves
            out each step whose loss is not finite, raises at the hundredth in a row, and skips an update whose
            gradients are not finite all the same; `"raise"` raises.
        every: Check every n-th time that an update is due, skipped ones included. With `"skip_batch"` the loss is
            looked at in every step.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….

    Raises:
        PluginError: When built, for an option that does not fit, or `"skip_batch"` with several ranks.
        FloatingPointError: In the run, with `action="raise"`, or a hundred in a row with `"skip"` or `"skip_batch"`; it
            names what is not finite.
    """

    ranks = "all"  # all look at the same loss and the same gradients, those of the window over the ranks

    def __init__(
        self,
        action: Literal["stop", "skip", "skip_batch", "raise"] = "stop",
        every: int = 1,
        *,
        first: int | None = None,
    ) -> None:
        self._action = one_of("NonFiniteGuard", "action", action, ("stop", "skip", "skip_batch", "raise"))
        self._every, self._first = every, first
        selection("NonFiniteGuard", every, first)
        if action != "skip_batch" and type(self).on_loss is NonFiniteGuard.on_loss:
            self.on_loss = super().on_loss  # which is not called
        self._forget()

    def _forget(self) -> None:
        self._filter = selection("NonFiniteGuard", self._every, self._first)
        self._update_due = self._filter.gate(self._check)
        self._skipped = 0  # checks in a row that had to skip
        self._left_out = 0  # steps in a row that were left out

    def on_build(self, run: Run) -> None:
        """Refuse `"skip_batch"` with several ranks."""
        others = run.world - 1
        if others and self._action == "skip_batch":
            raise PluginError(
                f"NonFiniteGuard(action='skip_batch') leaves out a step of one rank, for whose backward pass the "
                f"{others} others would wait; say action='skip', which leaves out the update on all ranks"
            )

    def on_begin(self, run: Run) -> None:
        """Forget the counts of an earlier run."""
        self._forget()

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Check, if a check is due."""
        self._update_due(run)

    def on_loss(self, run: Run) -> None:
        """Leave the step out if its loss is not finite; with `action="skip_batch"` only."""
        if run.loss is None or self._action != "skip_batch":
            return
        if math.isfinite(value := run.loss.item()):
            self._left_out = 0
            return
        self._left_out += 1
        reason = f"NonFiniteGuard: not finite in step {run.step}: loss ({value:g})"
        self._refuse_hopeless(reason, self._left_out, "steps")
        run.skip_batch(reason)

    def state_dict(self) -> dict[str, Any]:
        """Return how many updates were counted for `every`, and how many updates and steps were skipped in a row."""
        return {"count": self._filter.state()[0], "skipped": self._skipped, "left_out": self._left_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        counted, skipped = (
            count_in(state, "count"),
            count_in(state, "skipped", 0),
        )  # an older checkpoint lacks all but one
        self._left_out = count_in(state, "left_out", 0)
        self._filter.restore(counted)
        self._skipped = skipped

    def _check(self, run: Run) -> None:
        if run.update_skipped and not _has_lost_its_loss(run):
            return
        if all(map(math.isfinite, _sizes(run))) or not (found := _not_finite(run)):
            self._skipped = 0
            return
        reason = f"NonFiniteGuard: not finite in update {run.update}: {', '.join(found)}"
        self._skipped += 1
        if self._action == "raise":
            raise FloatingPointError(reason)
        if self._action != "stop":
            self._refuse_hopeless(reason, self._skipped, "updates")
        run.skip_update(reason)
        if self._action == "stop":
            run.stop(reason)

    def _refuse_hopeless(self, reason: str, number: int, what: str) -> None:
        if number == IN_A_ROW:
            raise FloatingPointError(
                f"{reason}; {IN_A_ROW} {what} in a row were skipped: no further one would be sound"
            )


def _has_lost_its_loss(run: Run) -> bool:
    """Return whether an update is skipped in fp16 whose loss is not finite: no scale is to blame for that."""
    loss = run.mean_loss if run.config.precision == "fp16-mixed" else None
    return loss is not None and not math.isfinite(loss.item())


def _sizes(run: Run) -> list[float]:
    """Return the loss and the norm of each gradient, finite only if all numbers are (one device sync)."""
    loss = run.mean_loss
    found = [] if loss is None else [loss]
    grads = [parameter.grad for parameter in run.optimized_parameters()]
    for gradients in apart(run, (values for grad in grads if grad is not None and (values := _values(grad)).numel())):
        # what get_total_norm calls as well, at a third of its cost; the largest magnitudes, which cannot overflow, take
        # sixteen times as long on a CPU
        found += whole_numbers(run, gradients, torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
    if len({one.device for one in found}) > 1:
        found = [one.to(found[0].device) for one in found]
    return cast("list[float]", torch.stack(found).tolist()) if found else []


def _not_finite(run: Run) -> list[str]:
    """Return the names of the loss and the first few gradients that are not finite."""
    names = {id(parameter): f"gradient of {name}" for name, parameter in run.network.named_parameters()}
    held = [parameter for parameter in run.optimized_parameters() if parameter.grad is not None]
    gradients = [_values(cast("Tensor", parameter.grad)) for parameter in held]
    finite = [torch.isfinite(gradient).all() for gradient in gradients]
    found = [
        names.get(id(parameter), f"gradient of a parameter of shape {tuple(parameter.shape)} outside of the network")
        for parameter, is_finite in zip(held, whole_numbers(run, gradients, finite), strict=True)
        if not is_finite
    ]
    rest = len(found) - 5
    more = [f"{rest} gradient{'' if rest == 1 else 's'} more"] if rest > 0 else []
    mean = run.mean_loss
    loss = [] if mean is None or torch.isfinite(mean) else [f"loss ({mean.item():g})"]
    return [*loss, *found[:5], *more]


def _values(gradient: Tensor) -> Tensor:
    """Return the numbers that a gradient holds; of a sparse one those that are stored."""
    return gradient._values() if gradient.is_sparse else gradient
