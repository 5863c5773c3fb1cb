"""Metrics: functions of a batch that are averaged, and objects that gather batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch

from heptad.errors import DataError, EngineError, a_kind, add_note, summarize
from heptad.record.host import host_number
from heptad.run.evaluating import EvaluationOptions, Measures
from heptad.step.results import split


@runtime_checkable
class MetricObject(Protocol):
    """A metric that gathers what it needs batch by batch, such as those of torchmetrics."""

    def update(self, *args: Any, **kwargs: Any) -> object:
        """Take in a batch: by default `(output, target)`, else what the option `inputs` returns."""
        ...

    def compute(self) -> Any:
        """Return the value over all batches since the reset: a number, an array, or a mapping of these by name."""
        ...

    def reset(self) -> object:
        """Forget all batches."""
        ...


Metric = Callable[[Any, Any], "torch.Tensor | float"] | MetricObject
MetricsInput = Mapping[str, Metric] | MetricObject
"""Metrics by name; or one object whose `compute` gives names, such as a `MetricCollection`."""


class Metrics:
    """The loss and the metrics of one evaluation: means with the weight of each batch, in float64, and objects.

    Attributes:
        functions: The metrics that are functions of a batch, by name.
        objects: Those that gather batches; one that stands alone has no name.
        counted: Batches that were added and weigh something, as far as the host knows.
        unready: In a trial, what metric objects could not compute of one batch, by name.

    Args:
        metrics: What is measured beside the loss.
        options: Those of the evaluation.
    """

    def __init__(self, metrics: MetricsInput, options: EvaluationOptions) -> None:
        named = named_metrics(metrics)
        self.objects = {name: metric for name, metric in named.items() if isinstance(metric, MetricObject)}
        self.functions = {name: metric for name, metric in named.items() if not isinstance(metric, MetricObject)}
        self._inputs = options.get("inputs")
        self._class_names = options.get("class_names", ())
        self.unready: dict[str, Exception] = {}
        self._has_loss = False
        self.counted = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor | float] = {}

    def reset(self, device: torch.device) -> None:
        """Reset metric objects, and move those to the device that can be moved."""
        for metric in self.objects.values():
            if callable(move := getattr(metric, "to", None)):
                move(device)
            metric.reset()

    def add(
        self,
        output: Any,
        batch: Any,
        loss: torch.Tensor | None,
        weight: float | torch.Tensor | None,
        count: float | torch.Tensor | None = None,
    ) -> None:
        """Add what is measured of a batch (no device sync). A batch that weighs nothing adds nothing.

        Args:
            output: What the network gave.
            batch: For what.
            loss: Its loss; `None` if it gave no loss.
            weight: What the mean of the loss was taken over; `None` where each batch weighs the same.
            count: By what metrics are averaged; `None` where that is the weight.
        """
        self._has_loss = self._has_loss or loss is not None
        if (loss is None and output is None) or _is_nothing(weight):
            return
        self.counted += 1
        values: dict[str, Any] = {} if loss is None else {"loss": loss}
        for name, function in self.functions.items():
            values[name] = apply_metric(name, function, output, batch)
        for name, metric in self.objects.items():
            with blamed(name, output):
                self._update(name, metric, output, batch)
        weight = 1.0 if weight is None else weight
        count = weight if count is None else count
        for name, value in values.items():
            device = value.device if loss is None else loss.device
            mean, own = value.to(device).double().mean(), weight if name == "loss" else count
            self._sums[name] = self._sums.get(name, 0.0) + _weighed(mean, own)
            self._weights[name] = self._weights.get(name, 0.0) + own

    def _update(self, name: str, metric: MetricObject, output: Any, batch: Any) -> None:
        if self._inputs is None:
            metric.update(output, target_of(name, batch))
            return
        given = self._inputs(output, batch)
        if isinstance(given, Mapping):
            metric.update(**cast("Mapping[str, Any]", given))
        elif isinstance(given, tuple):
            metric.update(*cast("tuple[Any, ...]", given))
        else:
            raise EngineError(f"inputs must return a tuple, such as (preds, target), or a mapping, got {a_kind(given)}")

    def measures(self, *, trial: bool = False) -> Measures:
        """Return all that was measured, which waits for the device.

        Args:
            trial: Whether a single batch was added, of which a metric object need not be able to compute anything.
        """
        found = {  # a mean of nothing is NaN
            name: float(self._sums[name] / self._weights[name]) if name in self._sums else float("nan")
            for name in (*(("loss",) if self._has_loss else ()), *self.functions)
        }
        measures = Measures(found)
        for name, metric in self.objects.items():
            try:
                with blamed(name, metric):
                    value = metric.compute()
            except Exception as error:
                if not trial:
                    raise
                self.unready[name] = error
                continue
            if not name and not isinstance(value, Mapping):
                raise EngineError(
                    f"{a_kind(metric)} that is given alone must compute a mapping from names to values, as a "
                    f"MetricCollection does, got {a_kind(value)}; give it a name: {{'name': metric}}"
                )
            numbers, arrays = split(name, value, getattr(metric, "class_names", None) or self._class_names)
            if taken := (numbers | arrays).keys() & (measures.keys() | measures.arrays.keys()):
                raise EngineError(f"two metrics give a value named {min(taken)!r}; give them other names")
            measures |= numbers
            measures.arrays |= arrays
        return measures


def named_metrics(metrics: MetricsInput) -> dict[str, Metric]:
    """Return metrics by name; an object that stands alone has the empty name."""
    return dict(metrics) if isinstance(metrics, Mapping) else {"": metrics}


def metrics_mistake(metrics: object, *, alone: bool = False) -> str | None:
    """Return what is wrong with metrics, `None` where nothing is.

    Args:
        metrics: By name; anything is looked at.
        alone: Whether one object that computes several values by name may stand in place of the mapping.
    """
    if alone and isinstance(metrics, MetricObject) and not isinstance(metrics, type | Mapping):
        return None
    if not isinstance(metrics, Mapping):
        return f"metrics maps names to metrics, got {a_kind(metrics)}"
    for name, metric in cast("Mapping[Any, Any]", metrics).items():
        if isinstance(metric, type):
            return f"metrics[{name!r}] is the class {metric.__name__}; pass an instance: {metric.__name__}(…)"
        named = isinstance(name, str) and name not in ("", "loss")
        if not named or not (callable(metric) or isinstance(metric, MetricObject)):
            return (
                "metrics maps names to functions (output, batch) -> tensor, or to objects with update, compute and "
                f"reset; 'loss' is always measured and no name for another: got {name!r}: {metric!r}"
            )
    return None


def _is_nothing(weight: float | torch.Tensor | None) -> bool:
    """Return whether the host knows that a batch weighs nothing; a tensor on an accelerator is not read."""
    if isinstance(weight, torch.Tensor):
        return weight.is_cpu and not weight.dim() and host_number(weight) == 0
    return weight == 0


def _weighed(mean: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """Return a mean times its weight: 0 where it was taken over nothing, and is NaN (no device sync)."""
    if isinstance(weight, torch.Tensor):
        return torch.where(weight > 0, mean * weight, 0.0)
    return mean * weight


def apply_metric(name: str, metric: Callable[[Any, Any], Any], output: Any, batch: Any) -> torch.Tensor:
    """Return what a metric that is a function gives for a batch, as a tensor: of any shape, whose mean counts.

    Raises:
        EngineError: If it gives nothing that has a mean.
        BaseException: What the metric raised, with a note that names it.
    """
    with blamed(name, output):
        value = metric(output, batch)
    return as_tensor(name, value)


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """Return what a metric gave for a batch, as a tensor.

    Raises:
        EngineError: If it is nothing that has a mean.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, torch.Tensor) and not value.is_complex():
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(value, dtype=torch.float64)
    hint = "; its arguments are (output, batch), and a batch of (data, target) is both" if value is False else ""
    raise EngineError(
        f"metrics[{name!r}] must return a tensor or a number, the mean over the batch or one value a sample; got "
        f"{summarize(value)}{hint}"
    )


@contextmanager
def blamed(name: str, output: Any) -> Generator[None]:
    """Note on what a metric raises whose it is."""
    try:
        yield
    except Exception as error:
        add_note(error, f"in metrics[{name!r}]" if name else "in metrics")
        if output is None:
            add_note(error, "there is no output to measure: let compute_loss return LossOutput(value, output=…)")
        raise


def target_of(name: str, batch: Any) -> Any:
    """Return the target of a batch of (data, target), for a metric object."""
    if isinstance(batch, tuple | list) and len(cast("list[Any]", batch)) == 2:
        return cast("list[Any]", batch)[1]
    which = f"metrics[{name!r}]" if name else "the metric"
    raise DataError(
        f"{which}.update takes (output, target), which needs batches of (data, "
        f"target); got {a_kind(cast('object', batch))}; say what it is to be called with: inputs=lambda output, batch: "
        "(preds, target)"
    )
