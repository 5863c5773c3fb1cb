"""`EarlyStopping` changes the run: it ends it when a recorded value has stopped improving."""

from __future__ import annotations

import math
from typing import Any, Literal

from heptad import Plugin, Run
from heptad.plugin import monitored
from heptad_plugins._options import number, one_of, selection, text_of, whole_number


class EarlyStopping(Plugin):
    """Stop the run after `patience` looks in a row at which a recorded value was no better than the best so far.

    It looks at the newest value on exit of `after_epoch`. NaN is no improvement. An epoch without a step is passed
    over. The run ends in order. A value that is still on its device is waited for, once a look.

    Args:
        monitor: The name of the recorded value, such as `"valid/loss"`.
        mode: Whether lower values (`"min"`) or higher ones (`"max"`) are better.
        patience: Looks without improvement until the run is stopped.
        min_delta: How much better than the best a value must be to count as an improvement, in the value's units.
        every: Look at every n-th epoch only; for a value that is recorded as rarely.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….

    Raises:
        PluginError: When built, for an option that does not fit.
        EngineError: In the run, if nothing was recorded under that name when it looks.
    """

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
        self._monitor = text_of("EarlyStopping", "monitor", monitor, "the name of a recorded value")
        self._mode = one_of("EarlyStopping", "mode", mode, ("min", "max"))
        self._sign = 1.0 if mode == "min" else -1.0
        self._patience = whole_number("EarlyStopping", "patience", patience)
        self._min_delta = number("EarlyStopping", "min_delta", min_delta, least=0.0)
        self._numbers = selection("EarlyStopping", every, first)
        self._best: float | None = None
        self._count = 0

    def on_begin(self, run: Run) -> None:
        """Forget the best value and the count of an earlier run."""
        self._best, self._count = None, 0

    def on_exit_after_epoch(self, run: Run) -> None:
        """Look at the value, and stop the run if patience is exhausted."""
        if not self._numbers.selects(run.epoch) or not run.batch_index:
            return
        value = monitored(run, self._monitor, "EarlyStopping")
        if self._improves(value):
            self._best, self._count = value, 0
            return
        self._count += 1
        if self._count >= self._patience:
            best = "there never was a number" if self._best is None else f"the best is {self._best:g}"
            times = "1 time" if self._count == 1 else f"{self._count} times in a row"
            run.stop(
                f"EarlyStopping: {self._monitor} is {value:g}, {best}, no improvement {times} (mode='{self._mode}')"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the count."""
        return {"best": self._best, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._best, self._count = state["best"], state["count"]

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return not math.isnan(value)
        return self._sign * (self._best - value) > self._min_delta
