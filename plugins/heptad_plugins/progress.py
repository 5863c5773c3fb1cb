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

OF_BYTES = (io.RawIOBase, io.BufferedIOBase)
"""What files are that take bytes, and no text."""


class Progress(Plugin):
    """Shows epoch and run, loss, steps per second and the time left.

    In a terminal a bar is redrawn four times a second at most; reading the loss waits for the device then, and when a
    line is written. A line is written after each epoch, in a terminal or not. `loss` is that of the newest step, and no
    mean over the epoch. The rate of a line is that of its epoch; that of the bar is counted from the end of the first
    step on, so that starting up is not in it.

    Args:
        file: Where to write, an open text file; by default the standard error stream, so that a program's output stays
            its own.
        on_error: `"detach"` lets it fail without ending the run.

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
        if file is not None and (isinstance(file, OF_BYTES) or not callable(getattr(file, "write", None))):
            raise PluginError(
                "Progress(file=…) must be an open text file, such as sys.stdout or open('progress.txt', 'w'), "
                f"got {file!r}"
            )
        self.on_error = on_error
        self._console = Console(file=file, stderr=file is None)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._began: tuple[float, int] | None = None
        """When the first step was complete that was seen, and how many steps were then."""
        self._epoch_began = (0.0, 0)
        self._drawn = 0.0

    def open(self, run: Run) -> None:
        """Starts the clock, and the bar where there is a terminal."""
        self._began, self._epoch_began = None, (monotonic(), run.step)
        if self._console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}")
            self._bar = Bar(*columns, console=self._console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("starting", total=run.total_updates, told="")
            self._bar.start()

    def close(self, run: Run) -> None:
        """Takes the bar down, so that whatever is printed next stands on a line of its own."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def on_enter_before_epoch(self, run: Run) -> None:
        """Notes where the epoch begins."""
        self._epoch_began = (monotonic(), run.step)

    def on_exit_after_step(self, run: Run) -> None:
        """Redraws the bar if the last time is long enough ago."""
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
            description=self._place(run),
            told=self._in_the_bar(run, self._began, now),
            refresh=True,
        )

    @on_exit("after_epoch")
    def write_line(self, run: Run) -> None:
        """Writes the line of the epoch that is now complete."""
        now = monotonic()
        told = f"{_loss(run)}{_rate(run, self._epoch_began, now)}"
        line = f"epoch {run.epoch}{self._of(run)}  {told}  {_clock(now - self._epoch_began[0])}"
        others = {name: value for name, value in run.metrics.items() if name != "loss"}  # which stands there already
        metrics = "".join(f"  {name} {value:.4g}" for name, value in others.items())
        self._console.print(line + metrics, highlight=False, soft_wrap=True)

    def _place(self, run: Run) -> str:
        of = f"/{run.steps_per_epoch}" if run.steps_per_epoch else ""
        return f"epoch {run.epoch + 1}{self._of(run)} step {run.batch_index}{of}"

    def _of(self, run: Run) -> str:
        return "" if run.config.epochs is None else f"/{run.config.epochs}"

    def _in_the_bar(self, run: Run, since: tuple[float, int], now: float) -> str:
        """Returns loss, rate and the time that the rest will take at that; what cannot be known yet is left out."""
        began, step = since
        total, done = run.total_updates, run.step - step
        if not done:
            return _loss(run).rstrip()
        told = f"{_loss(run)}{_rate(run, since, now)}"
        if not total or not run.update:
            return told
        steps_left = (total - run.update) * run.accumulation
        return f"{told}  {_clock(steps_left * (now - began) / done)} left"


def _loss(run: Run) -> str:
    return "" if run.loss is None else f"loss {run.loss.item():.4f}  "


def _rate(run: Run, since: tuple[float, int], now: float) -> str:
    began, step = since
    return f"{(run.step - step) / max(now - began, 1e-9):,.0f} steps/s"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
