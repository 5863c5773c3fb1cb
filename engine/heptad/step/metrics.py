"""Metrics: functions of a batch that are averaged, and objects that gather batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch

from heptad.errors import DataError, EngineError, a_kind, add_note, kind, summarize


@runtime_checkable
class MetricObject(Protocol):
    """A metric that gathers what it needs batch by batch, such as those of torchmetrics."""

    def update(self, output: Any, target: Any, /) -> object:
        """Take in a batch."""
        ...

    def compute(self) -> Any:
        """Return the value over all batches since the reset: a number or a 0-dim tensor."""
        ...

    def reset(self) -> object:
        """Forget all batches."""
        ...


Metric = Callable[[Any, Any], "torch.Tensor | float"] | MetricObject


class Metrics:
    """The loss and the metrics of one evaluation, averaged with the weight of each batch, in float64.

    Attributes:
        functions: The metrics that are functions of a batch, by name.
        objects: Those that gather batches.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.objects = {name: metric for name, metric in metrics.items() if isinstance(metric, MetricObject)}
        self.functions = {name: metric for name, metric in metrics.items() if not isinstance(metric, MetricObject)}
        self._sums: dict[str, torch.Tensor] = {}
        self._weight = torch.zeros((), dtype=torch.float64)

    def reset(self, device: torch.device) -> None:
        """Reset metric objects, and move those to the device that can be moved."""
        for metric in self.objects.values():
            if callable(move := getattr(metric, "to", None)):
                move(device)
            metric.reset()

    def add(self, values: Mapping[str, torch.Tensor], weight: float | torch.Tensor) -> None:
        """Add what was measured of a batch, `"loss"` among it."""
        device = values["loss"].device
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + _weighed(value.to(device).double().mean(), weight)
        self._weight = self._weight.to(device) + weight

    def means(self) -> dict[str, float]:
        """Return all values by name, which waits for the device."""
        found = {name: (total / self._weight).item() for name, total in self._sums.items()}
        if not found:  # no batch counts: a mean of nothing
            found = dict.fromkeys(("loss", *self.functions), float("nan"))
        return found | {name: _as_number(name, metric.compute()) for name, metric in self.objects.items()}


def metrics_mistake(metrics: object) -> str | None:
    """Return what is wrong with metrics, `None` where nothing is."""
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


def _weighed(mean: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """Return a mean times its weight: 0 where it was taken over nothing, and is NaN (no device sync)."""
    if isinstance(weight, torch.Tensor):
        return torch.where(weight > 0, mean * weight, 0.0)
    return mean * weight


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
        add_note(error, f"in metrics[{name!r}]")
        if output is None:
            add_note(error, "there is no output to measure: let compute_loss return LossOutput(value, output=…)")
        raise


def target_of(name: str, batch: Any) -> Any:
    """Return the target of a batch of (data, target), for a metric object."""
    if isinstance(batch, tuple | list) and len(cast("list[Any]", batch)) == 2:
        return cast("list[Any]", batch)[1]
    raise DataError(
        f"metrics[{name!r}].update takes (output, target), which needs batches of (data, target); got a "
        f"{kind(cast('object', batch))}; give a function (output, batch) in its place"
    )


def _as_number(name: str, value: Any) -> float:
    """Return what a metric object computed, if it is a number."""
    if isinstance(value, torch.Tensor) and not value.dim():
        return value.item()
    if isinstance(value, int | float):
        return float(value)
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
    raise EngineError(
        f"metrics[{name!r}].compute() must return a number or a 0-dim tensor, got {a_kind(value)}{shape}; "
        "average it, or give one metric for each of its values"
    )
