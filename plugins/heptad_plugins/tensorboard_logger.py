"""`TensorBoardLogger` observes the run: every recorded value, loss, learning rates and times, for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from heptad import EngineError, Plugin, PluginError, Run
from heptad.plugin import Placing
from heptad_plugins._event_files import EventFiles
from heptad_plugins._losses import Losses, is_per_update, thinned
from heptad_plugins._options import directory_of, hparams_of, selection
from heptad_plugins._output_path import output_of
from heptad_plugins._stored import count_in, mapping, scalars_in

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Setting = bool | int | float | str


class TensorBoardLogger(Plugin):
    """Write scalars to a directory that TensorBoard reads, each at the number of complete updates.

    All recorded values under their names, among them `train/loss`, the mean over the window of an update, and
    `train/epoch_loss`, the mean over the steps of an epoch, which it records unless somebody did since the update, or
    the epoch, before; `lr`, the learning rate of the update, or `lr/0`, `lr/1`, … of several parameter groups over all
    optimizers, unless somebody recorded these names since the update before; and after each epoch `time/<state>`, the
    share of time that the run spent in each state since the last such point, paused time left out: together 1. (If the
    log has dropped its beginning, they are the shares over what it keeps.) TensorBoard keeps values in single
    precision.

    Learning rates have the tags `train/lr`, `train/lr/0`, …, whoever recorded them. The configuration, the options that
    the optimizers were built with, and `hparams` are written once a run, as hyperparameters and as the text `config`;
    a run that is resumed writes its own. Images, histograms and the like go to `writer`.

    What was written is on disk on exit of `after_epoch`, at each checkpoint and when `run()` returns. A run that
    continues adds to the directory. A resumed one hides what the run before it wrote for later updates, and writes none
    of its other points again, those of `writer` included: give these `run.update` as their step. If `resume="auto"`
    finds no checkpoint yet, all that the directory holds is hidden: an attempt that was killed too early wrote it.

    Costs about 0.1 ms a value, and after each epoch about 1 µs for each transition that the log keeps. Reading the loss
    and values that are on a device is a device sync: every `every` updates, and where there are such values.

    Args:
        directory: Where the event files go; it is made. Or a `RunFolder`, for `tensorboard` in it.
        every: Updates between two values of `train/loss` and the learning rates in the files.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        hparams: Further hyperparameters by name, such as the width of the network.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If a hyperparameter is no number, truth value or text; if `every` is not a whole number from 1 on,
            or `directory` is no path or that of a file; when the run is opened, if it cannot be written to; in the run,
            after an epoch or when it ends, if the file of events was removed, replaced or cut meanwhile; when a paused
            run continues, if that was done to the file before the pause.
        ImportError: If tensorboard is not installed; it names the extra.
    """

    observes = True
    ranks = "first"  # one directory, and what it has is of the whole run
    needs_epoch_loss = True

    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")

    def __init__(
        self,
        directory: str | os.PathLike[str] | Placing,
        every: int = 1,
        *,
        first: int | None = None,
        hparams: Mapping[str, Setting] | None = None,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs tensorboard: pip install 'heptad[tensorboard]'") from error
        self.on_error = on_error
        self._build = SummaryWriter
        self._output = output_of("TensorBoardLogger", "directory", directory, "tensorboard", directory_of)
        try:
            str(self._output.path).encode()
        except UnicodeEncodeError:
            raise PluginError(
                "TensorBoardLogger(directory=…): tensorboard writes to no folder whose name is not UTF-8, as in "
                f"{str(self._output.path)!a}; name another, or rename it"
            ) from None
        self._numbers = selection("TensorBoardLogger", every, first)
        self._writer: SummaryWriter | None = None
        self._hparams = hparams_of("TensorBoardLogger", hparams)
        self._forget()

    def _forget(self) -> None:
        self._opened = False
        self._seen = 0
        self._losses = Losses()
        self._rates: dict[str, float] = {}
        self._own_rates: dict[str, float] = {}  # those of the last update that it has written unrecorded
        self._own_update = 0
        self._directory = str(self._output.path)
        self._files = EventFiles(Path(self._directory))
        self._spent: Mapping[str, int] = {}

    @property
    def writer(self) -> SummaryWriter:
        """Torch's writer, for what is no number: `logger.writer.add_image("samples", image, run.update)`.

        Raises:
            EngineError: If no run is being driven: the file is open from `open` to `close`. On another rank than the
                first, always: what writes to it belongs into a plugin with `ranks = "first"`.
        """
        if self._writer is None:
            raise EngineError(
                "TensorBoardLogger.writer is there while a run is driven; use it in a handler, from before_loop on; of "
                "several ranks on the first alone: in a handler of a plugin with ranks = 'first'"
            )
        return self._writer

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Open a file of events.

        Raises:
            PluginError: If it cannot be made.
        """
        self._losses.open(run)
        first = not self._opened
        resumed = run.step > 0 and first
        try:
            at = run.update if resumed else None
            self._writer = self._files.open(self._build, at, self._mark(run), run.afresh and first)
        except OSError as error:
            raise PluginError(
                f"TensorBoardLogger: {self._directory} cannot be written to: {error.strerror or error}; name another "
                "directory"
            ) from error
        self._opened = True
        if resumed and run.optimizers:
            self._describe(run)
        self._files.leave_out_known()

    def close(self, run: Run) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            try:
                self._write(run)
            finally:
                self._writer = None
                self._files.close()

    def on_exit_before_loop(self, run: Run) -> None:
        """Write the hyperparameters, now that there is an optimizer."""
        self._describe(run)

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Read the learning rates; after the update they may be those of the next one."""
        if self._numbers.selects(run.update + 1):
            self._rates = {name: float(rate) for name, rate in run.learning_rates().items()}

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the loss; write the values since the last time and the learning rates."""
        self._losses.record_update(run)
        due = self._numbers.selects(run.update)
        # a loss that is not written need not be read from its device either
        if due or not all(map(is_per_update, run.names_recorded(self._seen))):
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
            self._files.flush()

    def on_enter_checkpoint(self, run: Run) -> None:
        """Mark the place in the file, and write what is buffered: the run that resumes here looks for it."""
        if self._writer is not None:
            self._files.leave_mark(self._mark(run), run.update)

    on_pause = on_enter_checkpoint

    def _mark(self, run: Run) -> str:
        """Return a text for a checkpoint taken now, of what a run that is resumed from it finds again."""
        return f"heptad {run.id} {run.epoch} {run.step} {run.update} {self._seen};"

    def state_dict(self) -> dict[str, Any]:
        """Return how many recorded values were written, so that a resumed run writes none again, and its own rates."""
        rates = {"next": dict(self._rates), "last": dict(self._own_rates), "update": self._own_update}
        return {"seen": self._seen, "losses": self._losses.state_dict(), "rates": rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        seen, rates = (
            count_in(state, "seen"),
            mapping(state.get("rates", {"next": {}, "last": {}, "update": 0}), "rates"),
        )
        coming, last, update = scalars_in(rates, "next"), scalars_in(rates, "last"), count_in(rates, "update")
        self._losses.load_state_dict(state.get("losses", {}))
        self._seen, self._rates, self._own_rates, self._own_update = seen, coming, last, update

    def _describe(self, run: Run) -> None:
        """Write configuration, optimizers and what the user named, as hyperparameters and as a text."""
        from torch.utils.tensorboard import summary

        make, files = cast("Any", summary), cast("Any", self.writer.file_writer)
        found = _settings(run) | self._hparams
        rows = "\n".join(f"| {name} | {value} |" for name, value in found.items())
        self.writer.add_text("config", f"| option | value |\n|---|---|\n{rows}", run.update)
        # only that of the session: without a list of metrics tensorboard shows all scalars beside the hyperparameters
        _, session, _ = make.hparams(found, {})
        files.add_summary(session)

    def _write(self, run: Run, scalars: Mapping[str, float] | None = None) -> None:
        if self._writer is None:
            return
        values = run.records(self._seen)
        for value in thinned(values, self._numbers):
            if value.update != self._own_update or self._own_rates.get(value.name) != value.value:
                self._writer.add_scalar(_tag(value.name), value.value, value.update)
        self._seen += len(values)
        for name, number in (scalars or {}).items():
            if all(value.name != name for value in values):
                self._writer.add_scalar(_tag(name), number, run.update)
                if is_per_update(name):  # a plugin behind this one may record it yet
                    self._own_rates = {**(self._own_rates if self._own_update == run.update else {}), name: number}
                    self._own_update = run.update


def _tag(name: str) -> str:
    """Return the tag of a value: its name, but that learning rates stand beside `train/loss`."""
    name = name.encode(errors="backslashreplace").decode()  # half a surrogate pair stands in the file as its escape
    return f"train/{name}" if name == "lr" or name.startswith("lr/") else name


def _settings(run: Run) -> dict[str, Setting]:
    """Return the plain fields of the configuration, and what network and optimizers are, with the options of groups."""
    network, optimizers = type(run.network).__name__, [type(optimizer).__name__ for optimizer in run.optimizers]
    found: dict[str, Any] = {**run.config.model_dump(), "network": network, "optimizer": ", ".join(optimizers)}
    groups = run.parameter_groups()
    for number, group in enumerate(groups):
        where = "optimizer" if len(groups) == 1 else f"optimizer/{number}"
        options = {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
        options["lr"] = group.get("initial_lr", group.get("lr"))  # a schedule has written its first rate over it
        found |= {f"{where}/{name}": value for name, value in options.items()}
    return {name: value for name, value in found.items() if isinstance(value, Setting)}
