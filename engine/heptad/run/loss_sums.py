"""`LossSums`: the losses of an epoch and of its open window, weighed; numbers on the host, else on their device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heptad.run.weight import Weight


class LossSums:
    """Sums of losses and of weights.

    Attributes:
        epoch: The sum of weight times loss over the steps of the epoch's closed windows.
        epoch_weight: The sum of their weights.
        window: The first of the open window, and so the next.
        window_weight: The second.
    """

    __slots__ = ("epoch", "epoch_weight", "window", "window_weight")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self.epoch: Weight = 0.0
        self.epoch_weight: Weight = 0.0
        self.window: Weight = 0.0
        self.window_weight: Weight = 0.0

    def mean(self) -> torch.Tensor | None:
        """Return the mean over the steps of the epoch, as a float64 scalar; `None` of nothing (no device sync)."""
        total, weight = self.epoch + self.window, self.epoch_weight + self.window_weight
        if not isinstance(weight, torch.Tensor) and not weight:
            return None
        return torch.as_tensor(total / weight, dtype=torch.float64)

    def state(self) -> list[Weight]:
        """Return the four, for a checkpoint."""
        return [self.epoch, self.epoch_weight, self.window, self.window_weight]

    def restore(self, state: Sequence[Weight]) -> None:
        """Restore what `state` returned; nothing of a checkpoint from before there was a mean of the epoch."""
        if state:
            self.epoch, self.epoch_weight, self.window, self.window_weight = state
