"""Evaluating and predicting: a run of its own on the evaluation table, heard by no training subscription."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from heptad.config import Components, LossOutput, RunConfig
from heptad.data.build import build_dataset_feed, build_loader_feed
from heptad.data.feed import Feed
from heptad.data.generators import preserved
from heptad.data.placement import count_samples, place
from heptad.errors import ConfigError, DataError, EngineError, Unfinished, add_note, kind, summarize
from heptad.machine import Machine
from heptad.record.buffer import LogBuffer
from heptad.run.guards import GUARDS
from heptad.run.run import Run
from heptad.run.runtime import Runtime
from heptad.step.bodies import check_pair
from heptad.table import evaluation_table


@runtime_checkable
class MetricObject(Protocol):
    """A metric that gathers what it needs batch by batch, such as those of torchmetrics."""

    def update(self, output: Any, target: Any, /) -> object:
        """Takes in a batch."""
        ...

    def compute(self) -> Any:
        """Returns the value over all batches since the reset: a number or a 0-dim tensor."""
        ...

    def reset(self) -> object:
        """Forgets all batches."""
        ...


Metric = Callable[[Any, Any], "torch.Tensor | float"] | MetricObject

LOG_CAPACITY = 1024  # an evaluation's log is read where it fails, if at all


class Evaluation:
    """The bodies of an evaluation and the sums that they build."""

    def __init__(self, metrics: Mapping[str, Metric], interrupted: Callable[[], bool] | None = None) -> None:
        self._objects = {name: metric for name, metric in metrics.items() if isinstance(metric, MetricObject)}
        self._functions = {name: metric for name, metric in metrics.items() if not isinstance(metric, MetricObject)}
        self._interrupted = interrupted
        self._sums: dict[str, torch.Tensor] = {}
        self._weight = torch.zeros((), dtype=torch.float64)
        self.means: dict[str, float] = {}

    def before_epoch(self, run: Run) -> None:
        """Opens the data; metric objects forget what they hold."""
        for metric in self._objects.values():
            if callable(move := getattr(metric, "to", None)):
                move(run.runtime.device)
            metric.reset()
        feed = run.runtime.feed
        feed.open(0, 0)
        run.position.remaining = (1 if feed.more() else 0) if feed.batches is None else feed.batches
        if not run.position.remaining:
            raise DataError("the data to evaluate on yield nothing")

    def before_step(self, run: Run) -> None:
        """Takes the next batch and places it, unless the evaluation is to end here."""
        if self._interrupted is not None and self._interrupted():
            raise Unfinished("the evaluation ended before its last batch, because of an interrupt")
        batch = run.runtime.feed.take()
        run.position.batch = place(batch, run.runtime.device) if run.runtime.places else batch

    def process_batch(self, run: Run) -> None:
        """Forward, loss and metrics, without gradients; nothing waits for the device."""
        batch = run.position.batch
        with torch.inference_mode():
            output, loss, weight = _forward(run.runtime, batch)
            run.position.output = output
            values: dict[str, torch.Tensor] = {"loss": loss}
            for name, function in self._functions.items():
                with _named(name, output):
                    value = function(output, batch)
                values[name] = _measured(name, value)
            for name, metric in self._objects.items():
                with _named(name, output):
                    metric.update(output, _target(name, batch))
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + _weighed(value.to(loss.device).double().mean(), weight)
            self._weight = self._weight.to(loss.device) + weight

    def after_step(self, run: Run) -> None:
        """Counts the step."""
        at, feed = run.position, run.runtime.feed
        at.samples += count_samples(at.batch)
        at.step += 1
        at.batch_index += 1
        at.batch = at.output = None
        at.remaining = (1 if feed.more() else 0) if feed.batches is None else at.remaining - 1

    def after_epoch(self, run: Run) -> None:
        """Takes the means."""
        run.runtime.feed.end()
        run.position.epoch += 1
        self.means = {name: (total / self._weight).item() for name, total in self._sums.items()}
        with torch.inference_mode():
            self.means |= {name: _scalar(name, metric.compute()) for name, metric in self._objects.items()}


def metrics_mistake(metrics: object) -> str | None:
    """Returns what is wrong with metrics, `None` where nothing is."""
    if not isinstance(metrics, Mapping):
        return f"metrics maps names to metrics, got a {kind(metrics)}"
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


def evaluate(
    components: Components, config: RunConfig, device: torch.device, data: Any, metrics: Mapping[str, Metric]
) -> dict[str, float]:
    """Returns the mean loss and metrics over data. See `Engine.evaluate`."""
    if mistake := metrics_mistake(metrics):
        raise ConfigError(mistake)
    feed = build_reading_feed(data, components, reading_config(config), "Engine.evaluate(data)")
    try:
        return evaluate_feed(components, config, device, feed, metrics)
    finally:
        feed.close()


def evaluate_feed(
    components: Components,
    config: RunConfig,
    device: torch.device,
    feed: Feed,
    metrics: Mapping[str, Metric],
    *,
    interrupted: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Returns the mean loss and metrics over one pass of a feed, which stays usable for another.

    Args:
        components: Whose network and loss are used.
        config: That of the training run.
        device: Where the network is.
        feed: From `build_reading_feed`.
        metrics: By name; `metrics_mistake` has found none in them.
        interrupted: Asked before each batch: if it says True, the evaluation ends there.

    Raises:
        Unfinished: If `interrupted` said True.
    """
    reading = reading_config(config)
    table = evaluation_table()
    run = Run(table, reading, Runtime(components, feed, device), LogBuffer(table, LOG_CAPACITY))
    evaluation = Evaluation(metrics, interrupted)
    names = ("before_epoch", "before_step", "process_batch", "after_step", "after_epoch")
    bodies = {name: getattr(evaluation, name) for name in names}
    machine = Machine(run, bodies, GUARDS, owners=dict.fromkeys(names, "the evaluation"))
    components.network.to(device)
    with generators_preserved(device), evaluating(components.network):
        run.buffer.go()
        while not run.ended:
            run.position.halt = False
            machine.drive(run, run.buffer.room)
            run.buffer.settle(run.counters)
    return evaluation.means


def predict(components: Components, config: RunConfig, device: torch.device, data: Any) -> Iterator[Any]:
    """Yields the network's output for each batch of data. See `Engine.predict`."""
    feed = build_reading_feed(data, components, reading_config(config), "Engine.predict(data)")
    network = components.network.to(device)
    try:
        with preserved():
            feed.open(0, 0)
        left = _left(feed, feed.batches)
        if not left:
            raise DataError("the data to predict on yield nothing")
        while left:
            with generators_preserved(device), evaluating(network), torch.inference_mode():
                batch = place(feed.take(), device)
                output = _predict(components, batch)
            yield output
            left = _left(feed, left - 1)
        with preserved():
            feed.end()
    finally:
        feed.close()


def _left(feed: Feed, known: int | None) -> int:
    """Returns how many batches follow: 1 stands for more where nobody can know."""
    if feed.batches is None:
        with preserved():
            return 1 if feed.more() else 0
    return known or 0


def reading_config(config: RunConfig) -> RunConfig:
    """Returns the configuration of one pass over data in its own order, nothing dropped."""
    return RunConfig(
        epochs=1,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=False,
        drop_last=False,
        num_workers=config.num_workers,
        device=config.device,
    )


def build_reading_feed(data: Any, components: Components, config: RunConfig, field: str) -> Feed:
    """Returns a feed over a dataset of samples, or over a loader or any iterable of batches; errors call it `field`.

    Samples are what is a torch dataset, a tensor, of the class that the training data are of (a list where those are a
    list), or can be indexed and not iterated over.
    """
    of_samples = (
        isinstance(data, Dataset | torch.Tensor)
        or callable(getattr(data, "__getitems__", None))
        or (components.dataset is not None and type(data) is type(components.dataset))
        or (hasattr(data, "__getitem__") and not hasattr(data, "__iter__"))
    )
    if isinstance(data, DataLoader) or not of_samples:
        return build_loader_feed(data, field)
    if config.batch_size is None:
        raise ConfigError(
            f"a {kind(cast('object', data))} holds samples, and this engine has no batch_size because it was given a "
            "loader; pass a DataLoader of it"
        )
    return build_dataset_feed(data, components.collate_fn, config, field)


@contextmanager
def generators_preserved(device: torch.device) -> Generator[None]:
    """Puts the global random generators, the device's too, back to where they were on entry."""
    with torch.random.fork_rng([device]) if device.type == "cuda" else nullcontext(), preserved():
        yield


@contextmanager
def evaluating(network: nn.Module) -> Generator[None]:
    """Puts a network into evaluation mode, and every module of it back into the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _forward(parts: Runtime, batch: Any) -> tuple[Any, torch.Tensor, Any]:
    """Returns output, loss and weight of a batch."""
    components = parts.components
    if components.criterion is not None:
        check_pair(batch)
        data, target = batch
        output = components.network(data)
        return output, components.criterion(output, target), parts.weigh(target)
    assert components.compute_loss is not None
    given = components.compute_loss(components.network, batch)
    if isinstance(given, LossOutput):
        return given.output, given.value, 1.0 if given.weight is None else given.weight
    return None, given, 1.0


def _predict(components: Components, batch: Any) -> Any:
    if components.criterion is not None:
        if isinstance(batch, torch.Tensor):
            return components.network(batch)
        check_pair(batch)
        return components.network(batch[0])
    assert components.compute_loss is not None
    given = components.compute_loss(components.network, batch)
    if not isinstance(given, LossOutput) or given.output is None:
        raise EngineError(
            "predict needs a compute_loss that returns LossOutput(value, output=…): it yields that output"
        )
    return given.output


def _weighed(mean: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """Returns a mean times its weight: 0 where it was taken over nothing, and is none."""
    if isinstance(weight, torch.Tensor):
        return torch.where(weight > 0, mean * weight, 0.0)
    if not weight >= 0:
        raise EngineError(f"LossOutput.weight must be a number that is not below 0, got {weight!r}")
    return mean * weight if weight else torch.zeros_like(mean)


def _measured(name: str, value: Any) -> torch.Tensor:
    """Returns what a metric said of a batch, as a tensor.

    Raises:
        EngineError: If it says nothing that has a mean.
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
def _named(name: str, output: Any) -> Generator[None]:
    """Lets what a metric raises say whose it is."""
    try:
        yield
    except Exception as error:
        add_note(error, f"in metrics[{name!r}]")
        if output is None:
            add_note(error, "there is no output to measure: let compute_loss return LossOutput(value, output=…)")
        raise


def _target(name: str, batch: Any) -> Any:
    """Returns the target of a batch of (data, target), for a metric object."""
    if isinstance(batch, tuple | list) and len(cast("list[Any]", batch)) == 2:
        return cast("list[Any]", batch)[1]
    raise DataError(
        f"metrics[{name!r}].update takes (output, target), which needs batches of (data, target); got a "
        f"{kind(cast('object', batch))}; give a function (output, batch) in its place"
    )


def _scalar(name: str, value: Any) -> float:
    """Returns what a metric object computed, if it is a number."""
    if isinstance(value, torch.Tensor) and not value.dim():
        return value.item()
    if isinstance(value, int | float):
        return float(value)
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
    raise EngineError(
        f"metrics[{name!r}].compute() must return a number or a 0-dim tensor, got a {kind(value)}{shape}; "
        "average it, or give one metric for each of its values"
    )
