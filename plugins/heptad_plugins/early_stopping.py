"""`EarlyStopping` changes the run: it ends it when a recorded value has stopped improving."""

from __future__ import annotations

import math
from typing import Any, Literal

from heptad import Plugin, Run
from heptad.plugin import Watch, refuse_unrecorded
from heptad_plugins._losses import EPOCH, Losses
from heptad_plugins._options import number, one_of, selection, text_of, whole_number
from heptad_plugins._stored import count_in, flag_in, mapping, real_in


class EarlyStopping(Plugin):
    """Stop the run after `patience` new values in a row of which none was better than the best so far.

    Each value that is recorded under the name is judged once, on the next exit of `evaluate`, `optimizer_update` or
    `after_epoch`: so of `Evaluate` each evaluation, however often that is. NaN is no improvement. The run ends in
    order. A value that is still on its device is waited for. With several ranks it must be one that is the same on all:
    those of `Evaluate` and the means of the training are.

    Args:
        monitor: The name of the recorded value, such as `"valid/loss"`.
        mode: Whether lower values (`"min"`) or higher ones (`"max"`) are better.
        patience: Values without improvement until the run is stopped.
        min_delta: How much better than the best a value must be to count as an improvement, in the value's units.
        every: From 2 on: judge only the newest value at the end of every n-th epoch, if it is new there.
        first: The first of these epochs, by default `every`: `every=10, first=1` means 1, 11, 21, ….

    Raises:
        PluginError: When built, for an option that does not fit.
        EngineError: In the run, if nothing was recorded under that name when an epoch with a step ends, and no
            `Evaluate` is to.
    """

    ranks = "all"  # all judge the same value, and stop in the same turn
    own_state = True  # where it has looked: the first rank may have recorded more values
    runs_after = ("Evaluate",)

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        every: int = 1,
        *,
        first: int | None = None,
    ) -> None:
        self.needs_epoch_loss = monitor == EPOCH
        self._watch = Watch(text_of("EarlyStopping", "monitor", monitor, "the name of a recorded value"))
        self._mode = one_of("EarlyStopping", "mode", mode, ("min", "max"))
        self._sign = 1.0 if mode == "min" else -1.0
        self._patience = whole_number("EarlyStopping", "patience", patience)
        self._min_delta = number("EarlyStopping", "min_delta", min_delta, least=0.0)
        numbers = selection("EarlyStopping", every, first)
        self._numbers = None if every == 1 and first is None else numbers
        self._forget()

    def _forget(self) -> None:
        self._best: float | None = None
        self._count = 0
        self._stopped = False
        self._watch.seen = 0
        self._losses = Losses()

    def on_begin(self, run: Run) -> None:
        """Forget the values of an earlier run."""
        self._forget()

    def on_exit_evaluate(self, run: Run) -> None:
        """Judge what an evaluation recorded."""
        self._look(run)

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Judge what was recorded since the last update: a stop would complete the window in any case."""
        self._losses.record_watched(run, self._watch.name)
        self._look(run)

    def on_exit_after_epoch(self, run: Run) -> None:
        """Judge what is new at the end of an epoch; an epoch without a step needs no value."""
        self._losses.record_watched(run, self._watch.name, epoch=True)
        if self._numbers is None:
            self._look(run)
        elif self._numbers.selects(run.epoch):
            for value in self._watch.take(run)[-1:]:
                self._judge(run, value)
        else:
            return
        if run.batch_index:
            refuse_unrecorded(run, self._watch.name, "EarlyStopping")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, the count of those without improvement, and which values were judged."""
        return {
            "best": self._best,
            "count": self._count,
            "stopped": self._stopped,
            "seen": self._watch.seen,
            "losses": self._losses.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore these; older checkpoints lack the last three."""
        best, number, seen = real_in(state, "best", None), count_in(state, "count"), count_in(state, "seen", None)
        losses = mapping(state.get("losses", {}), "losses")
        self._stopped = flag_in(state, "stopped", False)
        self._best, self._count, self._watch.seen = best, number, seen
        self._losses.load_state_dict(losses)

    def open(self, run: Run) -> None:
        """Count all values as judged where a checkpoint does not say which were."""
        self._losses.open(run)
        if self._watch.seen is None:
            self._watch.take(run)

    def _look(self, run: Run) -> None:
        if self._numbers is None and self._watch.seen != run.record_count:
            for value in self._watch.take(run):
                self._judge(run, value)

    def _judge(self, run: Run, value: float) -> None:
        """Compare a value with the best, and stop the run if patience is exhausted."""
        if self._improves(value):
            self._best, self._count = value, 0
            return
        self._count += 1
        if self._count >= self._patience and not self._stopped:
            self._stopped = True
            best = "there never was a number" if self._best is None else f"the best is {self._best:g}"
            times = "1 time" if self._count == 1 else f"{self._count} times in a row"
            monitor, mode = self._watch.name, self._mode
            run.stop(f"EarlyStopping: {monitor} is {value:g}, {best}, no improvement {times} (mode='{mode}')")

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return not math.isnan(value)
        return self._sign * (self._best - value) > self._min_delta
