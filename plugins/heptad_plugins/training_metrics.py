"""`TrainingMetrics` observes the run: metrics over the steps of an epoch, and the means of the training loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch

from heptad import Plugin, PluginError, Run
from heptad.plugin import add_over_ranks, apply_metric, metric_weight, metrics_mistake
from heptad_plugins._losses import Losses
from heptad_plugins._stored import mapping, scalars_in

_WEIGHT, _MEASURED = "epoch_loss", "loss"
"""Names that no metric can have: of the sum of the weights, and of the number of ranks that have measured something."""


@dataclass
class Sums:
    """Sums of what was measured, weighed, by name, and of the weights."""

    totals: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    weight: float | torch.Tensor = 0.0

    def add(self, parts: Mapping[str, torch.Tensor], weight: float | torch.Tensor) -> None:
        """Add further ones. New tensors are made: a checkpoint may hold the old ones."""
        for name, part in parts.items():
            self.totals[name] = self.totals[name] + part if name in self.totals else part
        self.weight = self.weight + weight

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint."""
        return {"totals": dict(self.totals), "weight": self.weight}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return the sums that `state_dict` returned."""
        return cls(scalars_in(state, "totals"), scalars_in({"sum": {"weight": state["weight"]}}, "sum")["weight"])


class TrainingMetrics(Plugin):
    """Measure the training itself: what the network gave for each step, while it was trained.

    A metric is averaged over the steps of an epoch, each weighed by what the mean of its loss is taken over (of weights
    of classes it knows nothing), and recorded on exit of `after_epoch` as `train/accuracy` and so on. Steps of skipped
    updates are left out, and steps that `RunConfig.redo` computes in parts of which some give no
    output. The network was in training mode, with dropout, and changed from step to step: `Evaluate` on the training
    data measures what it is at the end. Records `train/loss` and `train/epoch_loss` as the loggers do, also without any
    metric.

    With several ranks the metrics are those of all, and equal on all: one exchange an epoch.

    Costs the metrics, and some microseconds a step (no device sync).

    Args:
        metrics: By name functions `(output, batch) -> tensor`, the mean over the batch or one value a sample.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If a metric is no function; in the run, if the step has no output to measure.
    """

    observes = True
    ranks = "all"  # each measures its own steps
    own_state = True
    summed_state = ("epoch", "window")
    needs_epoch_loss = True

    runs_before = ("EarlyStopping", "LRSchedule", "Journal", "CSVLogger", "TensorBoardLogger", "Progress", "Checkpoint")

    def __init__(
        self,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        *,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self.on_error = on_error
        given: Mapping[str, Callable[[Any, Any], Any]] = {} if metrics is None else metrics
        mistake = metrics_mistake(given)
        objects = (
            "" if mistake else ", ".join(repr(name) for name, metric in given.items() if hasattr(metric, "update"))
        )
        if not mistake and "epoch_loss" in given:
            mistake = "'epoch_loss' is always recorded, and no name for another"
        if objects:
            mistake = (
                f"metrics takes functions (output, batch) -> tensor, and {objects} gathers batches; give it to Evaluate"
            )
        if mistake:
            raise PluginError(f"TrainingMetrics: {mistake}")
        self._metrics = dict(given)
        self._forget()

    def _forget(self) -> None:
        self._losses = Losses()
        self._clear()

    def _clear(self) -> None:
        self._epoch, self._window = Sums(), Sums()

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Look at recorded losses from here on."""
        self._losses.open(run)

    def on_enter_before_epoch(self, run: Run) -> None:
        """Begin an epoch."""
        self._clear()

    def on_exit_process_batch(self, run: Run) -> None:
        """Measure the step, unless it adds nothing, or only parts of it gave an output."""
        weight = metric_weight(run)
        if not self._metrics or weight is None or run.loss is None:
            return
        if not isinstance(weight, torch.Tensor) and not weight:
            return
        output, batch = run.output, run.batch
        if output is None:
            raise PluginError(
                "TrainingMetrics: there is no output to measure; let compute_loss return LossOutput(value, output=…)"
            )
        with torch.no_grad():
            parts: dict[str, torch.Tensor] = {}
            for name, metric in self._metrics.items():
                part = apply_metric(name, metric, output, batch).double().mean() * weight
                # of weight 0 the mean may be NaN
                parts[name] = torch.where(weight > 0, part, 0.0) if isinstance(weight, torch.Tensor) else part
            self._window.add(parts, weight)

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the loss of the update, unless somebody did; take over what its window measured."""
        self._losses.record_update(run)
        if not run.update_skipped:
            self._epoch.add(self._window.totals, self._window.weight)
        self._window = Sums()

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the metrics and the loss of the epoch."""
        self._losses.record_epoch(run)
        self._epoch.add(self._window.totals, self._window.weight)  # what remainder="drop" left, or "carry" left open
        for name, mean in self._means(run).items():
            run.record(f"train/{name}", mean)
        self._clear()

    def _means(self, run: Run) -> dict[str, float | torch.Tensor]:
        """Return the mean of each metric over the epoch; none where nothing was measured, on any rank."""
        if not self._metrics:
            return {}
        totals = {name: self._epoch.totals.get(name, 0.0) for name in self._metrics}
        sums = add_over_ranks(run, {**totals, _WEIGHT: self._epoch.weight, _MEASURED: float(bool(self._epoch.totals))})
        weight, measured = sums.pop(_WEIGHT), sums.pop(_MEASURED)
        return {name: total / weight for name, total in sums.items()} if measured else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the epoch, and how many values were recorded by the last update and epoch."""
        return {
            "epoch": self._epoch.state_dict(),
            "window": self._window.state_dict(),
            "losses": self._losses.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        epoch, window = Sums.of(mapping(state["epoch"], "epoch")), Sums.of(mapping(state["window"], "window"))
        self._losses.load_state_dict(state["losses"])
        self._epoch, self._window = epoch, window
