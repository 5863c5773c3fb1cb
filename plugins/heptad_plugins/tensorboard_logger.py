"""`TensorBoardLogger` observes the run: every recorded value, loss, learning rates and times, for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from heptad import Plugin, PluginError, Run
from heptad_plugins._losses import UPDATE, Losses
from heptad_plugins._options import directory_of, whole_number

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger(Plugin):
    """Write scalars to a directory that TensorBoard reads, each at the number of complete updates.

    All recorded values under their names, among them `train/loss`, the mean over the window of an update, and
    `train/epoch_loss`, the mean over the steps of an epoch, which it records unless somebody did since the update, or
    the epoch, before; `lr`, the learning rate of the update, or `lr/0`, `lr/1`, … of several parameter groups over all
    optimizers, unless somebody recorded these names since the update before; and after each epoch `time/<state>`, the
    share of time that the run spent in each state since the last such point, paused time left out: together 1. (If the
    log has dropped its beginning, they are the shares over what it keeps.) TensorBoard keeps values in single
    precision.

    What was written is on disk on exit of `after_epoch` and when `run()` returns. A run that continues adds to the
    directory; a resumed one hides what the run before it wrote for later updates.

    Costs about 0.1 ms a value, and after each epoch about 1 µs for each transition that the log keeps. Reading the loss
    and values that are on a device is a device sync: every `every` updates, and where there are such values.

    Args:
        directory: Where the event files go; it is made.
        every: Updates between two values of `train/loss` and the learning rates in the files.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `every` is not a whole number from 1 on, or `directory` is no path or that of a file; when the
            run is opened, if it cannot be written to.
        ImportError: If tensorboard is not installed; it names the extra.
    """

    observes = True
    needs_epoch_loss = True

    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: int = 1,
        *,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs tensorboard: pip install 'heptad[tensorboard]'") from error
        self.on_error = on_error
        self._build = SummaryWriter
        self._directory = str(directory_of("TensorBoardLogger", "directory", directory))
        self._every = whole_number("TensorBoardLogger", "every", every)
        self._writer: SummaryWriter | None = None
        self._forget()

    def _forget(self) -> None:
        self._opened = False
        self._seen = 0
        self._losses = Losses()
        self._rates: dict[str, float] = {}
        self._spent: Mapping[str, int] = {}

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Open a file of events.

        Raises:
            PluginError: If it cannot be made.
        """
        self._losses.open(run)
        resumed = run.step > 0 and not self._opened
        try:
            self._writer = self._build(self._directory, purge_step=run.update + 1 if resumed else None)
        except OSError as error:
            raise PluginError(
                f"TensorBoardLogger: {self._directory} cannot be written to: {error.strerror or error}; name another "
                "directory"
            ) from error
        self._opened = True

    def close(self, run: Run) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            try:
                self._write(run)
            finally:
                self._writer.close()
                self._writer = None

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Read the learning rates; after the update they may be those of the next one."""
        if (run.update + 1) % self._every == 0:
            self._rates = {name: float(rate) for name, rate in run.learning_rates().items()}

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the loss; write the values since the last time and the learning rates."""
        self._losses.record_update(run)
        due = run.update % self._every == 0
        # a loss that is not written need not be read from its device either
        if due or run.names_recorded(self._seen) - {UPDATE}:
            self._write(run, self._rates if due and not run.update_skipped else {})

    def on_exit_evaluate(self, run: Run) -> None:
        """Write the values since the last time."""
        self._write(run)

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the loss of the epoch; write what is new and the shares of time, and flush the file to disk."""
        self._losses.record_epoch(run)
        spent = {state: stay.total_ns for state, stay in run.log.durations().items()}
        before: Mapping[str, int] = {} if len(run.log) and run.log[0].seq else self._spent
        since = {state: total - before.get(state, 0) for state, total in spent.items()}
        whole_time = max(sum(since.values()), 1)
        self._spent = spent
        self._write(run, {f"time/{state}": part / whole_time for state, part in since.items()})
        if self._writer is not None:
            self._writer.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return how many recorded values were written, so that a resumed run writes none of them again."""
        return {"seen": self._seen, "losses": self._losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore that number."""
        self._seen = state["seen"]
        self._losses.load_state_dict(state.get("losses", {}))

    def _write(self, run: Run, scalars: Mapping[str, float] | None = None) -> None:
        if self._writer is None:
            return
        values = run.records(self._seen)
        for value in values:
            if value.name != UPDATE or value.update % self._every == 0:
                self._writer.add_scalar(value.name, value.value, value.update)
        self._seen += len(values)
        for name, number in (scalars or {}).items():
            if all(value.name != name for value in values):
                self._writer.add_scalar(name, number, run.update)
