"""`TensorBoardLogger` observes the run: every recorded value, loss, learning rates and times, for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from heptad import Plugin, Run
from heptad_plugins._options import whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger(Plugin):
    """Writes scalars to a directory that TensorBoard reads, each at the number of complete updates.

    All recorded values under their names; `loss`, the loss of the newest step; `lr`, the learning rate that the update
    was made with, of several parameter groups `lr/0`, `lr/1`, … over all optimizers; and after each epoch `time/<state>`,
    the share of time that the run spent in each state since the time before, parked time left out: together 1. (Where
    the log has let go of its beginning, they are the shares over what it keeps.)

    What is there on exit of `after_epoch` and when `run()` returns is on disk then. A run that goes on adds to the
    directory, and hides what a run before it wrote for later updates.

    Costs about 0.1 ms a value, and after each epoch about 1 µs for each transition that the log keeps. Reading the loss
    and values that are on a device waits for it: every `every` updates, and where there are such values.

    Args:
        directory: Where the event files go; it is made.
        every: Updates between two of the loss and the learning rates.
        on_error: `"detach"` lets it fail without ending the run.

    Raises:
        PluginError: If `every` is not a whole number from 1 on.
        ImportError: If tensorboard is not installed; it names the extra.
    """

    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: int = 1,
        *,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter as _  # noqa: F401
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs tensorboard: pip install 'heptad[tensorboard]'") from error
        self.on_error = on_error
        self._directory = os.path.abspath(directory)
        self._every = whole("TensorBoardLogger", "every", every)
        self._writer: SummaryWriter | None = None
        self._seen = 0
        self._rates: dict[str, float] = {}
        self._spent: Mapping[str, int] = {}
