"""`Progress` observes the run: a live line in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TextIO

from heptad import Plugin, Run, on_exit
from heptad_plugins._losses import EPOCH, UPDATE, Losses
from heptad_plugins._options import text_file

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from torch import Tensor


REDRAW = 0.25
"""Seconds between two drawings of the bar, at least."""

MOST_METRICS = 64
"""Values that the line of an epoch shows; how many more there are stands behind them."""


class Progress(Plugin):
    """Show epoch and run, loss, steps per second and the time left.

    In a terminal a bar is redrawn four times a second at most. A line is written after each epoch, in a terminal or
    not. Both read the loss, which is a device sync. In the bar it is the mean over the window of the newest update, in
    a line that over the steps of the epoch. They are recorded as `train/loss` and `train/epoch_loss`, unless somebody
    recorded a value of that name since the update, or the epoch, before. A line shows 64 other values.
    The rate of a line is that of its epoch; that of the bar is counted from the end of the first step on, so that
    starting up is not in it.

    Args:
        file: Where to write, an open text file; by default the standard error stream, so that a program's output stays
            its own.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `file` is no open text file.
        ImportError: If rich is not installed; it names the extra.
    """

    observes = True
    ranks = "first"  # one terminal
    needs_epoch_loss = True

    def __init__(self, file: TextIO | None = None, *, on_error: Literal["raise", "detach"] = "raise") -> None:
        try:
            from rich.console import Console
        except ImportError as error:
            raise ImportError("Progress needs rich: pip install 'heptad[rich]'") from error
        self.on_error = on_error
        self._console = Console(file=text_file("Progress", file), stderr=file is None)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._began: tuple[float, int] | None = None
        """The time at the end of the first step since `open`, and how many steps were complete then."""
        self._epoch_began = (0.0, 0)
        self._drawn = 0.0
        self._losses = Losses()

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._losses = Losses()

    def open(self, run: Run) -> None:
        """Start the clock, and in a terminal the bar."""
        self._losses.open(run)
        self._began, self._epoch_began = None, (monotonic(), run.step)
        if self._console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}")
            self._bar = Bar(*columns, console=self._console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("starting", total=run.total_updates, figures="")
            self._bar.start()

    def close(self, run: Run) -> None:
        """Remove the bar, so that whatever is printed next stands on a line of its own."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def state_dict(self) -> dict[str, Any]:
        """Return how many values were recorded by the last update and the last epoch."""
        return self._losses.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._losses.load_state_dict(state)

    def on_enter_before_epoch(self, run: Run) -> None:
        """Remember where the epoch begins."""
        self._epoch_began = (monotonic(), run.step)

    def on_exit_after_step(self, run: Run) -> None:
        """Redraw the bar if the last drawing is long enough ago."""
        if self._bar is None or self._task is None:
            return
        now = monotonic()
        if self._began is None:
            self._began = (now, run.step)
        if now - self._drawn < REDRAW:
            return
        self._drawn = now
        self._bar.update(
            self._task,
            total=run.total_updates,
            completed=run.update,
            description=_step_of_epoch(run),
            figures=_bar_figures(run, self._began, now),
            refresh=True,
        )

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the loss of the update, unless somebody did."""
        self._losses.record_update(run)

    @on_exit("after_epoch")
    def write_line(self, run: Run) -> None:
        """Write the line of the epoch that is now complete."""
        now, loss = monotonic(), run.epoch_loss
        self._losses.record_epoch(run)
        figures = f"{_shown(loss)}{_rate(run, self._epoch_began, now)}"
        line = f"epoch {run.epoch}{_of_epochs(run)}  {figures}  {_duration(now - self._epoch_began[0])}"
        here = ("loss", UPDATE, EPOCH)  # the loss stands there already
        others = {name: value for name, value in run.metrics.items() if name not in here}
        metrics = "".join(f"  {name} {value:.4g}" for name, value in islice(others.items(), MOST_METRICS))
        if len(others) > MOST_METRICS:
            metrics += f"  and {len(others) - MOST_METRICS} more"
        self._console.print(line + metrics, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _step_of_epoch(run: Run) -> str:
    of = f"/{run.steps_per_epoch}" if run.steps_per_epoch else ""
    return f"epoch {run.epoch + 1}{_of_epochs(run)} step {run.batch_index}{of}"


def _of_epochs(run: Run) -> str:
    return "" if run.config.epochs is None else f"/{run.config.epochs}"


def _bar_figures(run: Run, since: tuple[float, int], now: float) -> str:
    """Return loss, rate and the time that the rest takes at that rate; what cannot be known yet is left out."""
    began, step = since
    total, done = run.total_updates, run.step - step
    if not done:
        return _shown(run.mean_loss).rstrip()
    figures = f"{_shown(run.mean_loss)}{_rate(run, since, now)}"
    if not total or not run.update:
        return figures
    steps_left = (total - run.update) * run.accumulation
    return f"{figures}  {_duration(steps_left * (now - began) / done)} left"


def _shown(loss: Tensor | None) -> str:
    return "" if loss is None else f"loss {loss.item():.4f}  "


def _rate(run: Run, since: tuple[float, int], now: float) -> str:
    began, step = since
    return f"{(run.step - step) / max(now - began, 1e-9):,.0f} steps/s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
