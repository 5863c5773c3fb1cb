"""The mean loss of an epoch, summed step by step on the device for plugins that need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from heptad.run.loss_mean import weighed
from heptad.run.run import Run


def add_step(run: Run) -> None:
    """Add the loss of a step, weighed by what its mean was taken over (no device sync)."""
    at = run._position
    sums = at.epoch_loss
    if not at.batch_index:  # a new epoch: what an open window carries over was counted in the one before
        sums.clear()
    loss: Any = at.loss
    if loss is None:
        return
    weight = run._runtime.step.weigh(at)
    if isinstance(weight, torch.Tensor):
        sums.window = sums.window + weighed(loss.detach(), weight)
    elif weight:
        sums.window = sums.window + (loss.item() if loss.is_cpu else loss.detach().double()) * weight
    sums.window_weight = sums.window_weight + weight


def close_window(run: Run) -> None:
    """Take over the steps of a window whose update was made; those of a skipped one are left out."""
    at = run._position
    sums = at.epoch_loss
    if not at.skipped:
        sums.epoch = sums.epoch + sums.window
        sums.epoch_weight = sums.epoch_weight + sums.window_weight
    sums.window, sums.window_weight = 0.0, 0.0


SUMMED: dict[str, Callable[[Run], None]] = {"process_batch": add_step, "optimizer_update": close_window}
"""What the engine calls on exit of a state, before all plugins, where one of them needs the mean of the epoch."""
