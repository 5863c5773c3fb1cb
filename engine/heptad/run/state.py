"""`RunState`: where a run is. The machine and the bodies write it, `Run` shows it, a checkpoint stores it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from heptad.config import RunConfig
from heptad.run.agreed import Agreed
from heptad.run.kept import KeptWindow
from heptad.run.loss_sums import LossSums
from heptad.run.redoing import Redoing
from heptad.run.weight import Weight
from heptad.run.window import Window


@dataclass(slots=True, eq=False)
class RunState:
    """Where a run is: `run._position`, called `at` where it is used. Plain slots, which are read in every turn.

    Written by the machine, the bodies, the verbs of `Run`, detours and restoring; plugins see it through `Run`.

    Attributes:
        window: The open window.
        last_epoch: Epochs after which the run ends, `None` for no limit.
        last_update: Updates after which it ends, `None` for no limit.
        extends: `remainder="extend"`.
        flushes: A window that the data end in makes an update: `remainder="flush"`, or `"carry"` in the last epoch.
        carries: `remainder="carry"`: the end of an epoch leaves the window open.
        node: The number of the state in the table.
        halt: The loop must return after this turn.
        entering: Entry handlers are being called.
        body_done: The run was resumed from a checkpoint that the body of this state took: that body is not run again.
        visit: The detour whose body is being run.
        pause_requested: Why the run must pause as soon as it may, and the transition in whose turn that was requested;
            `None` where it need not.
        asked: What this process asks for, see `Run.ask`.
        agreed: What the ranks have agreed on; `None` of a process alone.
        ending: A stop was asked for, or `max_updates` is reached: no new window is started.
        reason: Why the run ended, or is going to.
        skips: Skipped updates.
        epoch_open: The run is between the bodies of `before_epoch` and `after_epoch`.
        pass_index: Which pass of the epoch this is, from 0.
        remaining: Batches still to be taken from this pass; where nobody can know how many, 1 stands for "more".
        sized: The data know how many batches a pass has.
        needed: Batches that must remain for a window to be started.
        extending: This pass only fills the epoch's last window.
        update_due: The answer to the guard of this name, kept by the bodies: it is asked after every step, and a slot
            that is read costs no call.
        reading_ns: Nanoseconds spent on reading ahead, for data of unknown length.
        idle: The batch of the step only keeps other ranks company, which have one of their own; it weighs 0.
        batch: The batch of the step, placed.
        samples_now: Samples in it.
        output: What the network returned for it.
        loss: The loss of the newest step; `None` where it gave none.
        weight: What its mean was taken over; `None` where every step weighs the same, or nobody needs to know; 0 where
            it adds nothing.
        judging: `Plugin.on_loss` is being called: the step may still be left out.
        epoch_loss: The sums of the epoch's losses, where a plugin needs them.
        kept: The batches of the open window, `None` where nothing computes it again.
        redo: What a redo of the open window needs beside, `None` where `RunConfig.redo` asks for none.
        skip: Why the update that was just entered is to be skipped, `None` where it is not.
        skipped: The newest update was skipped.
    """

    window: Window
    last_epoch: int | None
    last_update: int | None
    extends: bool
    flushes: bool
    carries: bool = False

    node: int = 0
    halt: bool = False
    entering: bool = False
    body_done: bool = False
    visit: object = None
    pause_requested: tuple[str, int] | None = None
    asked: set[str] = field(default_factory=set[str])
    agreed: Agreed | None = None
    ending: bool = False
    reason: str | None = None

    epoch: int = 0
    batch_index: int = 0
    step: int = 0
    update: int = 0
    skips: int = 0
    samples: int = 0
    epoch_open: bool = False
    pass_index: int = 0
    remaining: int = 0
    sized: bool = True
    needed: int = 1
    extending: bool = False
    update_due: bool = False
    reading_ns: int = 0

    idle: bool = False
    batch: Any = None
    samples_now: int = 0
    output: Any = None
    loss: torch.Tensor | None = None
    weight: Weight | None = None
    judging: bool = False
    epoch_loss: LossSums = field(default_factory=LossSums)
    kept: KeptWindow | None = None
    redo: Redoing | None = None
    skip: str | None = None
    skipped: bool = False

    def end(self, reason: str, *, failed: bool = False) -> None:
        """Start no new window: the run ends in order. The first reason stays, unless the run fails.

        Args:
            reason: Why.
            failed: The run has failed.
        """
        self.ending = True
        self.reason = reason if failed else self.reason or reason
        self.settle_carry()

    def settle_carry(self) -> None:
        """Under `carry`, work out whether no epoch follows, so that what the window holds is to be flushed."""
        if self.carries and self.epoch_open:
            self.flushes = self.ending or self.epoch + 1 == self.last_epoch
            steps = self.window.steps
            self.update_due = steps == self.window.size or (self.flushes and steps > 0 and not self.remaining)


def initial_state(config: RunConfig) -> RunState:
    """Return where a run begins."""
    at = RunState(
        Window(config.accumulation),
        config.epochs,
        config.max_updates,
        extends=config.remainder == "extend",
        flushes=config.remainder == "flush",
        carries=config.remainder == "carry",
    )
    if config.max_updates == 0:
        at.end("max_updates=0 reached")
    return at
