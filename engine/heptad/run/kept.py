"""`KeptWindow`: the batches of the open window, for what computes it again: closures, `Run.recompute`, a redo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from heptad.run.window import Weight, Window


@dataclass(slots=True)
class KeptWindow:
    """What has to be known of a window to compute it again; kept only where something does.

    Attributes:
        every: Whether steps that weigh nothing are kept too: a redo also repeats what they draw at random.
        batches: Those of its steps, placed, in order.
        idle: The numbers, in `batches`, of the steps that weigh nothing.
        loss: Σ (r / k) · loss over the others, detached; `None` before the first.
    """

    every: bool = False
    batches: list[Any] = field(default_factory=list[Any])
    idle: list[int] = field(default_factory=list[int])
    loss: torch.Tensor | None = None

    def add(self, batch: Any, loss: torch.Tensor | None, weight: Weight | None, window: Window) -> None:
        """Add a step, before it is counted; the first of a window drops what was kept of the one before.

        Args:
            batch: Its batch.
            loss: Its loss; `None` for a step that adds nothing.
            weight: What its mean was taken over; `None` where every step weighs the same.
            window: The window, which has weighed the step.
        """
        if not window.steps:
            self.clear()
        known = not isinstance(weight, torch.Tensor) or weight.device.type == "cpu"  # without a device sync
        if loss is None or (known and weight == 0):
            if self.every:
                self.idle.append(len(self.batches))
                self.batches.append(batch)
            return
        self.batches.append(batch)
        self.add_loss(loss, weight, window)

    def add_loss(self, loss: torch.Tensor, weight: Weight | None, window: Window) -> None:
        """Add the loss of a step that weighs something."""
        part = _scaled(loss.detach(), weight, window)
        self.loss = part if self.loss is None else self.loss + part  # not +=: a checkpoint may hold it

    def weighing(self) -> list[Any]:
        """Return the batches of the steps that weigh something."""
        return [batch for number, batch in enumerate(self.batches) if number not in self.idle]

    def corrected(self, window: Window) -> torch.Tensor:
        """Return the loss of the whole window: its mean over all samples of the window."""
        if self.loss is None:
            raise AssertionError("an update is made of a window that weighs something")
        factor = window.correction()
        if isinstance(factor, torch.Tensor):
            return self.loss * factor.to(self.loss.device, self.loss.dtype)
        return self.loss if factor == 1.0 else self.loss * factor

    def clear(self) -> None:
        """Drop the batches, which may be large."""
        self.batches.clear()
        self.idle.clear()
        self.loss = None


def _scaled(loss: torch.Tensor, weight: Weight | None, window: Window) -> torch.Tensor:
    """Return (r / k) · loss; where r is 1 a division, as in the textbook loop."""
    size, first = window.size, window.first
    if size == 1:
        return loss
    if weight is None or first is None:
        return loss / size
    if isinstance(weight, torch.Tensor) or isinstance(first, torch.Tensor):
        reference = torch.as_tensor(first, dtype=torch.float64)
        ratio = torch.as_tensor(weight, dtype=torch.float64) / torch.where(reference > 0, reference, 1.0)
        return loss * (ratio.detach() / size).to(loss.device, loss.dtype)
    return loss / size if weight == first else loss * (weight / first / size)
