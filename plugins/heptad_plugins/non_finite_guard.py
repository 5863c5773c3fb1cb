"""`NonFiniteGuard` changes the run: it keeps an update with a NaN or an infinity away from the weights."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor

from heptad import Plugin, Run
from heptad_plugins._lookup import held_parameters
from heptad_plugins._options import one_of, whole

IN_A_ROW = 100
"""Skipped updates in a row after which there is no hope."""


class NonFiniteGuard(Plugin):
    """Checks loss and gradients for NaN and infinity on entry to `optimizer_update`.

    The loss is that of the window's last step, the gradients those that are about to be applied, of all parameters that
    the optimizers hold. What the forward pass itself wrote, such as the statistics of a batch norm, is not undone.

    The cost of a check is one pass over the gradients (their norms, fused), and it waits for the device once; where a
    norm is not finite, because of what is looked for or because large numbers overflow in it, a second pass looks at
    each number, and waits for each gradient. There is no delay: an update that is checked never reaches the weights.
    With `every=n` up to n - 1 updates go by between two checks; a NaN among them is found at the next check, when it is
    in the weights.

    Args:
        action: `"stop"` skips the update and ends the run in order; `"skip"` skips the update, and raises at the
            hundredth in a row, for then the weights are not finite and the run would have no end; `"raise"` raises.
        every: Check every n-th time that an update is due, skipped ones included.

    Raises:
        PluginError: When built, for an option that does not fit.
        FloatingPointError: In the run, with `action="raise"`, or `"skip"` and a hundred in a row; it names what is not
            finite.
    """

    def __init__(self, action: Literal["stop", "skip", "raise"] = "stop", every: int = 1) -> None:
        self._action = one_of("NonFiniteGuard", "action", action, ("stop", "skip", "raise"))
        self._every = whole("NonFiniteGuard", "every", every)
        self._begin()

    def _begin(self) -> None:
        """Forgets the run before."""
        self._count = 0
        self._skipped = 0  # checks in a row that had to skip

    def open(self, run: Run) -> None:
        """Begins anew where the run does."""
        if run.state == "idle":
            self._begin()

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Checks, where a check is due."""
        self._count += 1
        if self._count % self._every:
            return
        if not all(map(math.isfinite, _sizes(run))) and (found := _not_finite(run)):
            self._act(run, found)
        else:
            self._skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns how often an update was due, and how many were skipped in a row."""
        return {"count": self._count, "skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        self._count = state["count"]
        self._skipped = state.get("skipped", 0)  # a checkpoint of an older version has none

    def _act(self, run: Run, found: list[str]) -> None:
        reason = f"NonFiniteGuard: not finite in update {run.update}: {', '.join(found)}"
        self._skipped += 1
        if self._action == "raise":
            raise FloatingPointError(reason)
        if self._action == "skip" and self._skipped == IN_A_ROW:
            raise FloatingPointError(
                f"{reason}; {IN_A_ROW} updates in a row were skipped: no further one would be sound"
            )
        run.skip_update(reason)
        if self._action == "stop":
            run.stop(reason)


def _sizes(run: Run) -> list[float]:
    """Returns the loss and the norm of each gradient, finite only if all numbers are; waits for the device."""
    loss = run.loss
    found = [] if loss is None else [loss]
    grads = [parameter.grad for parameter in held_parameters(run)]
    if gradients := [values for grad in grads if grad is not None and (values := _values(grad)).numel()]:
        # what get_total_norm calls as well, at a third of its cost; the largest magnitudes, which cannot overflow, take
        # sixteen times as long on a CPU
        found += torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
    if len({one.device for one in found}) > 1:
        found = [one.to(found[0].device) for one in found]
    return cast("list[float]", torch.stack(found).tolist()) if found else []


def _not_finite(run: Run) -> list[str]:
    """Names the loss and the gradients that are not finite; the first few of these."""
    names = {id(parameter): f"gradient of {name}" for name, parameter in run.network.named_parameters()}
    found = [
        names.get(id(parameter), f"gradient of a parameter of shape {tuple(parameter.shape)} outside of the network")
        for parameter in held_parameters(run)
        if parameter.grad is not None and not torch.isfinite(_values(parameter.grad)).all()
    ]
    rest = len(found) - 5
    more = [f"{rest} gradient{'' if rest == 1 else 's'} more"] if rest > 0 else []
    loss = [] if run.loss is None or torch.isfinite(run.loss) else [f"loss ({run.loss.item():g})"]
    return [*loss, *found[:5], *more]


def _values(gradient: Tensor) -> Tensor:
    """Returns the numbers that a gradient holds; of a sparse one those that are stored."""
    return gradient._values() if gradient.is_sparse else gradient
