"""`Progress` observes the run: a live line in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import io
from time import monotonic
from typing import TYPE_CHECKING, Literal, TextIO

from heptad import Plugin, PluginError, Run, on_exit

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


REDRAW = 0.25
"""Seconds between two drawings of the bar, at least."""

BINARY = (io.RawIOBase, io.BufferedIOBase)
"""Classes of files that take bytes and no text."""


class Progress(Plugin):
    """Show epoch and run, loss, steps per second and the time left.

    In a terminal a bar is redrawn four times a second at most. A line is written after each epoch, in a terminal or
    not. Both read the loss, which is a device sync. `loss` is that of the newest step, not a mean over the epoch. The
    rate of a line is that of its epoch; that of the bar is counted from the end of the first step on, so that starting
    up is not in it.

    Args:
        file: Where to write, an open text file; by default the standard error stream, so that a program's output stays
            its own.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `file` is no open text file.
        ImportError: If rich is not installed; it names the extra.
    """

    observes = True

    def __init__(self, file: TextIO | None = None, *, on_error: Literal["raise", "detach"] = "raise") -> None:
        try:
            from rich.console import Console
        except ImportError as error:
            raise ImportError("Progress needs rich: pip install 'heptad[rich]'") from error
        if file is not None and (isinstance(file, BINARY) or not callable(getattr(file, "write", None))):
            raise PluginError(
                "Progress(file=…) must be an open text file, such as sys.stdout or open('progress.txt', 'w'), "
                f"got {file!r}"
            )
        self.on_error = on_error
        self._console = Console(file=file, stderr=file is None)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._began: tuple[float, int] | None = None
        """The time at the end of the first step since `open`, and how many steps were complete then."""
        self._epoch_began = (0.0, 0)
        self._drawn = 0.0

    def open(self, run: Run) -> None:
        """Start the clock, and in a terminal the bar."""
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

    @on_exit("after_epoch")
    def write_line(self, run: Run) -> None:
        """Write the line of the epoch that is now complete."""
        now = monotonic()
        figures = f"{_loss(run)}{_rate(run, self._epoch_began, now)}"
        line = f"epoch {run.epoch}{_of_epochs(run)}  {figures}  {_duration(now - self._epoch_began[0])}"
        others = {name: value for name, value in run.metrics.items() if name != "loss"}  # which stands there already
        metrics = "".join(f"  {name} {value:.4g}" for name, value in others.items())
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
        return _loss(run).rstrip()
    figures = f"{_loss(run)}{_rate(run, since, now)}"
    if not total or not run.update:
        return figures
    steps_left = (total - run.update) * run.accumulation
    return f"{figures}  {_duration(steps_left * (now - began) / done)} left"


def _loss(run: Run) -> str:
    return "" if run.loss is None else f"loss {run.loss.item():.4f}  "


def _rate(run: Run, since: tuple[float, int], now: float) -> str:
    began, step = since
    return f"{(run.step - step) / max(now - began, 1e-9):,.0f} steps/s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
