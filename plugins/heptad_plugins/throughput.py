"""`Throughput` observes the run: steps, samples and updates a second, and the share of time spent waiting for data."""

from __future__ import annotations

from typing import Literal

from heptad import Plugin, Run, on_exit
from heptad_plugins._options import selection
from heptad_plugins._stopwatch import Stopwatch


class Throughput(Plugin):
    """Record on exit of `after_epoch` how fast the epoch went.

    `steps_per_second`, `samples_per_second` and `updates_per_second` are taken over all that happens between entry to
    `before_epoch` and exit of `after_epoch`, evaluations and checkpoints included. `data_wait_share` is the share of
    that time, from 0 to 1, spent where the run waits for data: in `before_epoch` and `before_step`, and
    between two states if the length of the data is unknown, so that a batch is read ahead there. Time in which the run
    is paused is left out (driven by `advance()`, the pauses between turns are not). A resumed run is measured from
    where it continues.

    Costs four calls a step (no device sync): where work is queued on a device, the time in which it is done counts for
    whatever waits for it next.

    Args:
        every: Epochs between two records; the figures are taken over all of these.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `every` is not a whole number from 1 on.
    """

    observes = True

    runs_before = ("EarlyStopping", "CSVLogger", "TensorBoardLogger", "Progress", "Checkpoint")

    def __init__(
        self, every: int = 1, *, first: int | None = None, on_error: Literal["raise", "detach"] = "raise"
    ) -> None:
        self.on_error = on_error
        self._numbers = selection("Throughput", every, first)
        self._all, self._waiting = Stopwatch(), Stopwatch()
        self._began: tuple[int, int, int] | None = None
        """Steps, samples and updates that were complete when measuring began; `None` between two spans."""
        self._read_before = 0.0

    def on_begin(self, run: Run) -> None:
        """Forget the span of an earlier run."""
        self._began = None

    def open(self, run: Run) -> None:
        """Start the clocks; in a run that was resumed in mid-epoch, measuring begins here."""
        if run.step and self._began is None:
            self._measure(run)
        if self._began is not None:
            self._all.start()
        if run.state in ("before_epoch", "before_step"):
            self._waiting.start()

    def on_pause(self, run: Run) -> None:
        """Stop the clocks: what other plugins do now is paused time."""
        self._all.stop()
        self._waiting.stop()

    close = on_pause

    def on_enter_before_epoch(self, run: Run) -> None:
        """Begin to measure, unless the span holds steps of an epoch before this one. Waiting begins."""
        if self._began is None or self._began[0] == run.step:
            self._measure(run)
        self._waiting.start()

    @on_exit("before_epoch")
    @on_exit("before_step")
    def end_waiting(self, run: Run) -> None:
        """Waiting ends."""
        self._waiting.stop()

    def on_enter_before_step(self, run: Run) -> None:
        """Waiting begins."""
        self._waiting.start()

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the figures, at an epoch whose number is a multiple of `every`."""
        if self._began is None or not self._numbers.selects(run.epoch):
            return
        seconds = max(self._all.read(), 1e-9)
        now = (run.step, run.samples, run.update)
        for name, after, before in zip(("steps", "samples", "updates"), now, self._began, strict=True):
            run.record(f"{name}_per_second", (after - before) / seconds)
        waited = self._waiting.read() + run.reading_seconds - self._read_before
        run.record("data_wait_share", waited / seconds)
        self._began = None

    def _measure(self, run: Run) -> None:
        """Begin a span."""
        self._began = (run.step, run.samples, run.update)
        self._read_before = run.reading_seconds
        self._all.put(0.0)
        self._waiting.put(0.0)
        self._all.start()
