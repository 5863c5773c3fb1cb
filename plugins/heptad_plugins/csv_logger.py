"""`CSVLogger` observes the run: every recorded value in a CSV file, a row for each position."""

from __future__ import annotations

import os
from typing import Any, Literal

from heptad import Plugin, PluginError, Run
from heptad.plugin import Placing
from heptad_plugins._csv_file import PLACE, CSVFile
from heptad_plugins._losses import Losses, is_per_update, thinned
from heptad_plugins._options import path_of, selection
from heptad_plugins._output_path import output_of
from heptad_plugins._stored import count_in


class CSVLogger(Plugin):
    """Write all recorded values, among them the means of the training loss, to a CSV file.

    It records `train/loss`, the mean over the window of an update, and `train/epoch_loss`, the mean over the steps of
    an epoch, unless somebody recorded a value of that name since the update, or the epoch, before.

    A row holds the values of one position, in columns that are named for them; a value that was recorded twice there
    opens a second row. Numbers have full precision. Rows are written on exit of `optimizer_update`, `evaluate` and
    `after_epoch` and when `run()` returns, each with one write to the operating system: a program that is killed
    leaves every row that was written. For a name that comes later the file is rewritten, whole, beside itself.
    A file has at most 16,384 columns, as many as a spreadsheet opens.

    A file that holds values is left alone, unless the run continues it: then rows are added. Where the run resumes from
    a checkpoint, the rows that a killed run had written after that are dropped first, so the file reads as one run's.
    If `resume="auto"` finds no checkpoint yet, the file is taken for that of an attempt that was killed too early, and
    is renamed, with `.before` behind its name (then `.before2`, and so on). A file that does not begin with the columns
    `step`, `update`, `epoch` is left alone always.

    Costs 20 to 40 µs an update, and once more the reading of the file for each column that comes late. Reading the loss
    and values that are on a device is a device sync: every `every` updates, and where there are such values.

    Args:
        path: The file; its folders are made. Or a `RunFolder`, for `log.csv` in it. A value named like one of the
            columns `step`, `update`, `epoch` has `(recorded)` behind its name.
        every: Updates between two values of `train/loss` in the file.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        overwrite: Whether values of another run in the file are dropped when a run begins.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `every` is not a whole number from 1 on, or `path` is no path; when the run is opened, for a
            file that cannot be written to, or may not, because it holds another run's values or is no file of this
            plugin's.
        PluginError: In the run, if more columns are needed, or if the file was removed, replaced, cut or written to by
            another program since it was opened.
        OSError: In the run, if the file cannot be written any more.
    """

    observes = True
    ranks = "first"  # one file
    needs_epoch_loss = True

    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")

    def __init__(
        self,
        path: str | os.PathLike[str] | Placing,
        every: int = 1,
        overwrite: bool = False,
        *,
        first: int | None = None,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self.on_error = on_error
        self._output = output_of("CSVLogger", "path", path, "log.csv", path_of)
        self._numbers = selection("CSVLogger", every, first)
        self._overwrite = overwrite
        self._forget()

    def _forget(self) -> None:
        self._path = self._output.path
        self._file = CSVFile(self._path)
        self._resumed = False
        self._seen = 0  # recorded values that were written
        self._losses = Losses()

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Open the file.

        Raises:
            PluginError: If the file cannot or may not be written to.
        """
        self._losses.open(run)
        try:
            if not self._file.is_adopted:
                self._adopt(run)
            self._file.open()
        except OSError as error:
            raise PluginError(f"CSVLogger: {self._path} cannot be written: {error}; name another file") from error

    def close(self, run: Run) -> None:
        """Write what is left and close the file."""
        if self._file.is_open:
            try:
                self.on_exit_evaluate(run)
                self._file.check()
            finally:
                self._file.close()

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the loss and write the values since the last time."""
        self._losses.record_update(run)
        # a loss that is not written need not be read from its device either
        if self._numbers.selects(run.update) or not all(map(is_per_update, run.names_recorded(self._seen))):
            self.on_exit_evaluate(run)

    def on_exit_evaluate(self, run: Run) -> None:
        """Write the values since the last time."""
        self._take(run)
        self._file.write()

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the loss of the epoch and write the values since the last time."""
        self._losses.record_epoch(run)
        self.on_exit_evaluate(run)

    def state_dict(self) -> dict[str, Any]:
        """Return how many values were written, and the state of the file."""
        return {"seen": self._seen, **self._file.state_dict(), "losses": self._losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        seen = count_in(state, "seen")
        self._losses.load_state_dict(state.get("losses", {}))
        self._file.load_state_dict(state)
        self._resumed, self._seen = True, seen

    def _adopt(self, run: Run) -> None:
        """Make the file this run's: begin it, or continue it."""
        holds_values = self._file.held_values()
        goes_on = run.step > 0 or self._resumed
        if holds_values and not goes_on:
            if run.afresh:
                self._file.set_aside()
            elif not self._overwrite:
                raise PluginError(
                    f"CSVLogger: {self._path} holds the values of another run; name another file, remove this one, or "
                    "say overwrite=True"
                )
        if not self._file.adopt(keep=goes_on):
            self._seen = 0  # the file is gone, or new: write all values
        if self._file.lacks > 0:
            run.note(
                f"CSVLogger: {self._path} lacks {self._file.lacks} of the rows that were written before the checkpoint:"
                " it was cut or replaced since"
            )

    def _take(self, run: Run) -> None:
        """Put the values since the last time into rows."""
        values = run.records(self._seen)
        for value in thinned(values, self._numbers):
            name = f"{value.name} (recorded)" if value.name in PLACE else value.name
            self._file.put((value.step, value.update, value.epoch), name, value.value)
        self._seen += len(values)
