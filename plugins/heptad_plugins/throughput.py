"""`Throughput` observes the run: steps, samples and updates a second, the time spent waiting for data, and MFU."""

from __future__ import annotations

from typing import Literal

from heptad import Plugin, Run, on_exit
from heptad_plugins._device import card_of
from heptad_plugins._flops import StepFlops
from heptad_plugins._options import number, selection
from heptad_plugins._peaks import product_dtype, published_peak
from heptad_plugins._stopwatch import Stopwatch


class Throughput(Plugin):
    """Record on exit of `after_epoch` how fast the epoch went.

    `steps_per_second`, `samples_per_second` and `updates_per_second` are taken over all that happens between entry to
    `before_epoch` and exit of `after_epoch`, evaluations and checkpoints included. `data_wait_share` is the share of
    that time, from 0 to 1, spent where the run waits for data: in `before_epoch` and `before_step`, and
    between two states if the length of the data is unknown, so that a batch is read ahead there. Time in which the run
    is paused is left out (driven by `advance()`, the pauses between turns are not). A resumed run is measured from
    where it continues.

    With several ranks the first records: the samples of all of them, as far as the ranks have agreed on these, and the
    steps and updates that all make together. `mfu` is that of all devices, the share of waiting that of the first rank.

    `mfu`, the model FLOPs utilisation, is the share that the network's products of matrices, convolutions and
    attention have of what the device could do in that time; it is recorded where both are known. Those of a sample are
    counted in the first step that is driven, in its forward pass, and a backward pass counts as two forward passes, as
    in appendix B of PaLM (https://arxiv.org/abs/2204.02311); what `recompute` repeats counts once. The peak is what the
    maker publishes for the card and for the dtype that `precision`, the network and torch's precision of products ask
    for. No step is counted, and nothing recorded, where the peak is not known. A compiled network cannot be counted,
    and a backward pass that stops at frozen parts takes less: give `flops_per_sample` there.

    Costs five calls a step (no device sync): where work is queued on a device, the time in which it is done counts for
    whatever waits for it next.

    Args:
        every: Epochs between two records; the figures are taken over all of these.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        peak_flops: Floating-point operations that the device can do in a second, in place of the published peak.
        flops_per_sample: Those that a sample takes, forward and backward pass together, in place of counting.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `every` is not a whole number from 1 on, or a number of FLOPs is not above 0.
    """

    observes = True
    ranks = "first"  # it counts the samples of all

    runs_before = ("EarlyStopping", "CSVLogger", "TensorBoardLogger", "Progress", "Checkpoint")

    def __init__(
        self,
        every: int = 1,
        *,
        first: int | None = None,
        peak_flops: float | None = None,
        flops_per_sample: float | None = None,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self.on_error = on_error
        self._numbers = selection("Throughput", every, first)
        self._given = [
            None if value is None else number("Throughput", name, value, above=0)
            for name, value in (("peak_flops", peak_flops), ("flops_per_sample", flops_per_sample))
        ]
        self._all, self._waiting = Stopwatch(), Stopwatch()
        self._read_before = 0.0
        self._forget()

    def _forget(self) -> None:
        self._began: tuple[int, int, int] | None = None
        """Steps, samples and updates that were complete when measuring began; `None` between two spans."""
        self._peak, self._flops_per_sample = self._given
        self._count: StepFlops | None = None
        """What counts in the first step; `None` where it is not needed, and after it."""

    def on_begin(self, run: Run) -> None:
        """Forget the span of an earlier run, and its network."""
        self._forget()

    def open(self, run: Run) -> None:
        """Start the clocks; in a run that was resumed in mid-epoch, measuring begins here."""
        self._peak = self._peak or _published_peak(run)
        if self._count is None and self._peak is not None and self._flops_per_sample is None:
            self._count = StepFlops()
        elif self._count is not None:
            self._count.resume(run)
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

    def close(self, run: Run) -> None:
        """Stop the clocks, and count nothing meanwhile."""
        self.on_pause(run)
        if self._count is not None:
            self._count.pause()

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
        if self._count is not None and run.state == "before_step":
            self._count.begin(run)

    def on_enter_before_step(self, run: Run) -> None:
        """Waiting begins."""
        self._waiting.start()

    def on_exit_after_step(self, run: Run) -> None:
        """Take what was counted: samples are those of this rank until the ranks agree."""
        if self._count is not None:
            self._end_count(run, self._count)

    def on_enter_redo_window(self, run: Run) -> None:
        """Count another step, if this one ran out of memory."""
        if self._count is not None:
            self._count.drop(run)

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the figures, at an epoch whose number is a multiple of `every`."""
        if self._began is None or not self._numbers.selects(run.epoch):
            return
        seconds = max(self._all.read(), 1e-9)
        steps, samples, updates = self._began
        run.record("steps_per_second", (run.step - steps) / seconds)
        run.record("samples_per_second", (run.samples - samples) / seconds)
        run.record("updates_per_second", (run.update - updates) / seconds)
        waited = self._waiting.read() + run.reading_seconds - self._read_before
        run.record("data_wait_share", waited / seconds)
        if self._peak is not None and self._flops_per_sample is not None:
            done = (run.samples - samples) * self._flops_per_sample
            run.record("mfu", done / (seconds * self._peak * run.world))
        self._began = None

    def _end_count(self, run: Run, count: StepFlops) -> None:
        """Take what was counted, once the first step is complete."""
        if not count.end(run):
            return
        self._count = None
        self._flops_per_sample = count.training / count.samples if count.samples else None
        if count.unknown:
            self._peak = None
            run.note(f"Throughput: mfu is not known: {count.unknown}; give flops_per_sample=…")

    def _measure(self, run: Run) -> None:
        """Begin a span."""
        self._began = (run.step, run.samples, run.update)
        self._read_before = run.reading_seconds
        self._all.put(0.0)
        self._waiting.put(0.0)
        self._all.start()


def _published_peak(run: Run) -> float | None:
    precision = getattr(run.config, "precision", "fp32")
    return published_peak(card_of(run.device), product_dtype(precision, run.network.parameters()))
