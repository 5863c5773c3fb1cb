"""`Losses` records the mean loss of each update and each epoch, unless somebody else did: loggers share the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from heptad import Run
from heptad_plugins._stored import count_in, mapping

UPDATE, EPOCH = "train/loss", "train/epoch_loss"
"""The names of the two means."""


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

    def state_dict(self) -> dict[str, Any]:
        """Return how many values were recorded then."""
        return {"update": self._update, "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both; a checkpoint from before there were means has neither."""
        update, epoch = (count_in(mapping(state), name, None) for name in ("update", "epoch"))
        self._update, self._epoch = update, epoch
