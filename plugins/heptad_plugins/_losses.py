"""`Losses` records the mean loss of each update and each epoch, unless somebody else did: loggers share the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from heptad import Run
from heptad.plugin import Filter, Recorded
from heptad_plugins._stored import count_in, mapping

UPDATE, EPOCH = "train/loss", "train/epoch_loss"
"""The names of the two means."""


def is_per_update(name: str) -> bool:
    """Return whether a value is one that is recorded in each update: the loss, and what `LRSchedule` records."""
    return name in (UPDATE, "lr") or name.startswith("lr/")


def thinned(values: Sequence[Recorded], numbers: Filter) -> list[Recorded]:
    """Return the values that a logger writes: of the loss and the rate of each update those of selected ones.

    A rate that was recorded elsewhere, as at the end of an epoch, is written.

    Args:
        values: Those since it wrote last.
        numbers: Which updates are selected.
    """
    updates = {value.seq for value in values if value.name == UPDATE}
    return [
        value
        for value in values
        if not is_per_update(value.name)
        or not value.update
        or numbers.selects(value.update)
        or value.seq not in updates
    ]


class Losses:
    """Records `train/loss` and `train/epoch_loss` for whichever logger is called first; no device sync.

    Only a value of that name counts as recorded already that came since the update, or the epoch, before.
    """

    def __init__(self) -> None:
        self._update: int | None = None  # values recorded up to the last update
        self._epoch: int | None = None  # values recorded up to the end of the last epoch

    def open(self, run: Run) -> None:
        """Look at values from here on, unless the run continues."""
        if self._update is None or self._epoch is None:
            self._update = self._epoch = run.record_count

    def record_update(self, run: Run, more: Mapping[str, float | torch.Tensor] | None = None) -> None:
        """Record the mean loss of the update, and more values; on exit of `optimizer_update`."""
        values = {} if run.update_skipped else {UPDATE: run.mean_loss, **(more or {})}
        self._update = run.record_defaults(values, self._update or 0)

    def record_epoch(self, run: Run) -> None:
        """Record the mean loss of the epoch; on exit of `after_epoch`."""
        self._epoch = run.record_defaults({EPOCH: run.epoch_loss}, self._epoch or 0)

    def record_watched(self, run: Run, name: str, *, epoch: bool = False) -> None:
        """Record the mean of that name for a plugin that watches it and is called before the loggers.

        Args:
            run: The run, on exit of `optimizer_update` or `after_epoch`.
            name: What is watched.
            epoch: Whether an epoch has ended.
        """
        if name == UPDATE and not epoch:
            self.record_update(run)
        elif name == EPOCH and epoch:
            self.record_epoch(run)

    def state_dict(self) -> dict[str, Any]:
        """Return how many values were recorded then."""
        return {"update": self._update, "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both; a checkpoint from before there were means has neither."""
        update, epoch = (count_in(mapping(state), name, None) for name in ("update", "epoch"))
        self._update, self._epoch = update, epoch
