"""`Progress` observes the run: live lines in a terminal or a notebook, a line an epoch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from heptad import Plugin, PluginError, Run, on_exit
from heptad_plugins._epoch_line import EpochLine, packed
from heptad_plugins._losses import Losses
from heptad_plugins._options import text_file
from heptad_plugins._screens import Notebook, PlainFile, Screen, Terminal, Ticker, bar, notebook, pulse
from heptad_plugins._time_left import TimeLeft

if TYPE_CHECKING:
    from torch import Tensor


REDRAW = 0.25
"""Seconds between two drawings of the bar, at least."""

MOST_VALUES = 100_000
"""Values of an epoch that means are taken over, at most: the last ones."""

_BAR, _SHORTEST = 30, 5
"""Characters of a bar, and those that one has at least."""


class Progress(Plugin):
    """Show epoch and run, loss, speed and the time left.

    In a terminal a bar is redrawn four times a second at most, and a second one while the run is in a detour, such as
    `evaluate`. A line is written after each epoch, in a terminal or not; its columns stand below those of the line
    before. Bar and line read the loss, which is a device sync. In the bar it is the mean over the window of the newest
    update, in a line that over the steps of the epoch. They are recorded as `train/loss` and `train/epoch_loss`, unless
    somebody recorded a value of that name since the update, or the epoch, before.

    A line shows the values that were recorded in the epoch, up to 64 of them: the mean of those that were recorded
    several times, the newest of a learning rate, a dash for one that was not recorded this time. Its speed is that of
    its epoch, so those of `Throughput` are left out. The speed of the bar is counted from the end of the first step on,
    so that starting up is not in it, and without detours. The time left is that of the steps that are left, and of as
    many detours as the epochs so far had.

    In a notebook both are one display, which needs no widgets.

    Args:
        file: Where to write, an open text file; by default the standard error stream, so that a program's output stays
            its own.
        show: Which recorded values a line shows, in this order: patterns such as `["valid/*", "lr"]`; by default all.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `file` is no open text file, or `show` is no list of patterns.
        ImportError: If rich is not installed; it names the extra.
    """

    observes = True
    ranks = "first"  # one terminal
    needs_epoch_loss = True

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        show: Sequence[str] | None = None,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            from rich.console import Console
        except ImportError as error:
            raise ImportError("Progress needs rich: pip install 'heptad[rich]'") from error
        self.on_error = on_error
        self._own_file = file is None
        self._console = Console(file=text_file("Progress", file), stderr=file is None)
        self._show = _patterns(show)
        self._screen: Screen | None = None
        self._ticker: Ticker | None = None
        self._left: TimeLeft | None = None
        self._detour: tuple[str, float] | None = None
        """The detour that the run was in when it was last looked at, and since when."""
        self._bar = ""
        self._drawn = 0.0
        self._forget()

    def _forget(self) -> None:
        self._losses = Losses()
        self._line = EpochLine(self._show)
        self._epoch_began = (0.0, 0)
        self._seen: int | None = None
        """Values that were recorded up to the end of the last epoch."""

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Start the clock, and in a terminal or a notebook the display."""
        self._losses.open(run)
        self._seen = run.record_count if self._seen is None else self._seen
        self._left, self._epoch_began = None, (monotonic(), run.step)
        self._bar = "starting"
        self._screen = self._open_screen()
        if self._screen.draws:
            self._detours = {state.shown for state in run.log.source.table.states if state.kind == "detour"}
            self._screen.draw([self._bar])
            if self._detours:
                self._ticker = Ticker(lambda: self._look_for_detour(run), REDRAW or 0.01)

    def _open_screen(self) -> Screen:
        display = notebook() if self._own_file else None
        if display is not None:
            return Notebook(display)
        return Terminal(self._console) if self._console.is_terminal else PlainFile(self._console)

    def close(self, run: Run) -> None:
        """Remove the bar, so that whatever is printed next stands on a line of its own."""
        if self._ticker is not None:
            self._ticker.stop()
        if self._screen is not None:
            self._screen.close()
        self._ticker = self._screen = None

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
        screen = self._screen
        if screen is None or not screen.draws:
            return
        now = monotonic()
        if self._left is None:
            self._left = TimeLeft(run, now)
        if now - self._drawn < REDRAW:
            return
        self._drawn = now
        self._left.look(run, now)
        self._bar = _bar_line(run, self._left, now, screen.width)
        screen.draw([self._bar])

    def _look_for_detour(self, run: Run) -> None:
        """Draw a second bar while the run is in a detour. Called in a thread of its own, which reads and draws only."""
        state, screen, now = run.state, self._screen, monotonic()
        if state not in self._detours:
            if self._detour is not None and screen is not None:
                screen.draw([self._bar])
            self._detour = None
            return
        if self._detour is None or self._detour[0] != state:
            self._detour = state, now
        if screen is not None:
            made = self._left.made.get(state) if self._left is not None else None
            spent, usual = now - self._detour[1], made.mean if made else 0.0
            screen.draw([self._bar, _detour_line(state, spent, usual, screen.width)])

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the loss of the update, unless somebody did."""
        self._losses.record_update(run)

    @on_exit("after_epoch")
    def write_line(self, run: Run) -> None:
        """Write the line of the epoch that is now complete."""
        now, loss = monotonic(), run.epoch_loss
        self._losses.record_epoch(run)
        began, step = self._epoch_began
        epochs = run.config.epochs
        number = f"{run.epoch:>{len(str(epochs or ''))}}{_of_epochs(run)}"
        rate = f"{(run.step - step) / max(now - began, 1e-9):,.0f}"
        cells = [f"epoch {number}", f"{rate:>6} steps/s", f"{_duration(now - began):>7}"]
        if loss is not None:
            cells.insert(1, f"loss {loss.item():.4f}")
        since = max(self._seen or 0, run.record_count - MOST_VALUES)
        cells += self._line.cells(run.records(since))
        self._seen = run.record_count
        if self._screen is not None:
            self._screen.write(packed(cells, self._screen.width))


def _patterns(show: object) -> Sequence[str] | None:
    """Return patterns, or `None` where none were given.

    Raises:
        PluginError: If they are something else.
    """
    if show is None:
        return None
    if isinstance(show, str) or not isinstance(show, Sequence):
        raise PluginError(f"Progress(show=…) takes a list of patterns, such as ['valid/*', 'lr'], got {show!r}")
    patterns = cast("Sequence[Any]", show)
    for one in patterns:
        if not isinstance(one, str) or not one:
            raise PluginError(f"Progress(show=…) takes patterns that are texts, got {one!r} among them")
    return tuple(patterns)


def _bar_line(run: Run, left: TimeLeft, now: float, width: int | None) -> str:
    """Return place, bar, loss, speed and the time left; what cannot be known yet, or has no room, is left out."""
    speed, rest, total = left.steps_per_second(run, now), left.seconds(run, now), run.total_updates
    place = _step_of_epoch(run)
    parts = [] if run.mean_loss is None else [_shown_loss(run.mean_loss)]
    if speed:
        parts.append(f"{speed:,.0f} steps/s")
    if rest is not None:
        parts.append(f"{_duration(rest)} left")
    while parts and width is not None and len(place) + len("  ".join(("", *parts))) > width:
        parts.pop(-2 if len(parts) > 1 else 0)  # the speed before the time left, and that before the loss
    words = "  ".join(parts)
    room = _BAR if width is None else min(_BAR, width - len(place) - len(words) - 2)
    drawn = bar(run.update / total, room) if total and room >= _SHORTEST else ""
    return " ".join(filter(None, (place, drawn, words)))


def _detour_line(state: str, spent: float, usual: float, width: int | None) -> str:
    """Return how long a detour has taken, with a bar up to the time that it takes as a rule, if that is known."""
    begin, end = f"  {state}  ", _duration(spent)
    if usual:
        end += f" of about {_duration(usual)}"
    room = _BAR if width is None else min(_BAR, width - len(begin) - len(end) - 2)
    if room < _SHORTEST:
        return f"{begin}{_duration(spent)}"
    return f"{begin}{bar(spent / usual, room) if usual else pulse(spent, room)}  {end}"


def _step_of_epoch(run: Run) -> str:
    of = f"/{run.steps_per_epoch}" if run.steps_per_epoch else ""
    return f"epoch {run.epoch + 1}{_of_epochs(run)} step {run.batch_index}{of}"


def _of_epochs(run: Run) -> str:
    return "" if run.config.epochs is None else f"/{run.config.epochs}"


def _shown_loss(loss: Tensor) -> str:
    return f"loss {loss.item():.4f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
