"""`RunState`: where a run is. The machine and the bodies write it, `Run` shows it, a checkpoint stores it."""

from __future__ import annotations

from typing import Any

import torch

from heptad.config import RunConfig
from heptad.run.window import Window


class RunState:
    """Where a run is. Written by the machine and the bodies, by nobody else; plain slots, read in every turn."""

    __slots__ = (
        "batch",
        "batch_index",
        "body_done",
        "ending",
        "entering",
        "epoch",
        "epoch_open",
        "extending",
        "extends",
        "flushes",
        "halt",
        "last_epoch",
        "last_update",
        "loss",
        "needed",
        "node",
        "output",
        "pass_index",
        "pause_requested",
        "remaining",
        "samples",
        "samples_now",
        "sized",
        "skip",
        "skipped",
        "step",
        "update",
        "visit",
        "window",
    )

    def __init__(self, config: RunConfig) -> None:
        self.node = 0
        """The number of the state in the table."""
        self.halt = False
        """The loop is to look up at the end of this turn."""
        self.entering = False
        """Entry handlers are being called."""
        self.body_done = False
        """The run was resumed from a checkpoint that the body of this state took: that body is not run again."""
        self.visit: object = None
        """The detour whose body is being run."""
        self.pause_requested: str | None = None
        self.ending = config.max_updates == 0
        """A stop was asked for, or `max_updates` is reached: no new window is started."""
        self.last_update = config.max_updates
        self.last_epoch = config.epochs

        self.epoch = self.batch_index = self.step = self.update = self.samples = 0
        self.epoch_open = False
        self.pass_index = 0
        self.remaining = 0
        """Batches that are still to be taken from this pass; 1 stands for "more" where nobody can know how many."""
        self.sized = True
        """The data know how many batches a pass has."""
        self.needed = 1
        """Batches that must remain for a window to be started."""
        self.extending = False
        """This pass only fills the epoch's last window."""
        self.extends = config.remainder == "extend"
        self.flushes = config.remainder == "flush"
        self.window = Window(config.accumulation)

        self.batch: Any = None
        self.samples_now = 0
        self.output: Any = None
        self.loss: torch.Tensor | None = None
        self.skip: str | None = None
        self.skipped = False
