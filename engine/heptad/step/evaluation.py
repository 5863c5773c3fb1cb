"""Evaluating and predicting: a run of its own on the evaluation table, which no training subscription hears."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from heptad.config import Components, RunConfig
from heptad.data.build import build_dataset_feed, build_loader_feed
from heptad.data.feed import Feed
from heptad.data.generators import preserved
from heptad.data.placement import count_samples, place
from heptad.errors import ConfigError, DataError, Unfinished, kind
from heptad.record.buffer import LogBuffer
from heptad.run.guards import GUARDS
from heptad.run.run import Run
from heptad.run.runtime import Runtime
from heptad.step.function import StepFunction, build_step
from heptad.step.metrics import Metric, Metrics, metrics_mistake
from heptad.step.optimizers import Optimizers
from heptad.table import evaluation_table

LOG_CAPACITY = 1024  # an evaluation's log is read where it fails, if at all


class Drives(Protocol):
    """What drives a run over a table: the machine, which this room must not import."""

    def drive(self, run: Run, turns: int) -> None:
        """Make up to so many turns."""
        ...


MakeMachine = Callable[..., Drives]


class Evaluation:
    """The bodies of an evaluation and the sums that they build.

    Args:
        step: The step function.
        metrics: What is measured beside the loss.
        pause_requested: Asked before each batch: where it says True, the evaluation ends there.
    """

    def __init__(
        self, step: StepFunction, metrics: Metrics, pause_requested: Callable[[], bool] | None = None
    ) -> None:
        self._step = step
        self._metrics = metrics
        self._pause_requested = pause_requested
        self.means: dict[str, float] = {}

    def before_epoch(self, run: Run) -> None:
        """Open the data and reset metric objects."""
        self._metrics.reset(run.runtime.device)
        feed = run.runtime.feed
        feed.open(0, 0)
        run.position.remaining = (1 if feed.more() else 0) if feed.batches is None else feed.batches
        if not run.position.remaining:
            raise DataError("the data to evaluate on yield nothing")

    def before_step(self, run: Run) -> None:
        """Take the next batch and place it, unless the evaluation is to end here."""
        if self._pause_requested is not None and self._pause_requested():
            raise Unfinished("the evaluation ended before its last batch, because the run is to pause")
        batch = run.runtime.feed.take()
        run.position.batch = place(batch, run.runtime.device) if run.runtime.places else batch

    def process_batch(self, run: Run) -> None:
        """Run forward, loss and metrics, without gradients (no device sync)."""
        at = run.position
        with torch.inference_mode():
            self._step(at)
            self._metrics.add(at.loss, at.output, at.batch, 1.0 if at.weight is None else at.weight)

    def after_step(self, run: Run) -> None:
        """Count the step."""
        at, feed = run.position, run.runtime.feed
        at.samples += count_samples(at.batch)
        at.step += 1
        at.batch_index += 1
        at.batch = at.output = None
        at.remaining = (1 if feed.more() else 0) if feed.batches is None else at.remaining - 1

    def after_epoch(self, run: Run) -> None:
        """Take the means."""
        run.runtime.feed.end()
        run.position.epoch += 1
        with torch.inference_mode():
            self.means = self._metrics.means()


def evaluate(
    components: Components,
    config: RunConfig,
    device: torch.device,
    data: Any,
    metrics: Mapping[str, Metric],
    machine: MakeMachine,
) -> dict[str, float]:
    """Return the mean loss and metrics over data. See `Engine.evaluate`."""
    if mistake := metrics_mistake(metrics):
        raise ConfigError(mistake)
    feed = build_reading_feed(data, components, reading_config(config), "Engine.evaluate(data)")
    try:
        return evaluate_feed(components, config, device, feed, metrics, machine)
    finally:
        feed.close()


def evaluate_feed(
    components: Components,
    config: RunConfig,
    device: torch.device,
    feed: Feed,
    metrics: Mapping[str, Metric],
    machine: MakeMachine,
    *,
    pause_requested: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Return the mean loss and metrics over one pass of a feed, which stays usable for another.

    Args:
        components: Whose network and loss are used.
        config: That of the training run.
        device: Where the network is.
        feed: From `build_reading_feed`.
        metrics: By name; `metrics_mistake` has found none in them.
        machine: Makes what drives the run of the evaluation.
        pause_requested: Asked before each batch: where it says True, the evaluation ends there.

    Raises:
        Unfinished: If `pause_requested` said True.
    """
    reading = reading_config(config)
    table = evaluation_table()
    run = Run(table, reading, Runtime(components, feed, device, Optimizers()), LogBuffer(table, LOG_CAPACITY))
    step = build_step(components, components.network, weighs=True)
    evaluation = Evaluation(step, Metrics(metrics), pause_requested)
    names = ("before_epoch", "before_step", "process_batch", "after_step", "after_epoch")
    bodies = {name: getattr(evaluation, name) for name in names}
    driver = machine(run, bodies, GUARDS, owners=dict.fromkeys(names, "the evaluation"))
    components.network.to(device)
    with generators_preserved(device), evaluating(components.network):
        run.buffer.go()
        while not run.ended:
            run.position.halt = False
            driver.drive(run, run.buffer.room)
            run.buffer.settle(run.counters)
    return evaluation.means


def predict(components: Components, config: RunConfig, device: torch.device, data: Any) -> Iterator[Any]:
    """Yield the network's output for each batch of data. See `Engine.predict`."""
    feed = build_reading_feed(data, components, reading_config(config), "Engine.predict(data)")
    network = components.network.to(device)
    step = build_step(components, network, weighs=False)
    try:
        with preserved():
            feed.open(0, 0)
        left = _left(feed, feed.batches)
        if not left:
            raise DataError("the data to predict on yield nothing")
        while left:
            with generators_preserved(device), evaluating(network), torch.inference_mode():
                output = step.predict(place(feed.take(), device))
            yield output
            left = _left(feed, left - 1)
        with preserved():
            feed.end()
    finally:
        feed.close()


def _left(feed: Feed, known: int | None) -> int:
    """Return how many batches follow: 1 stands for more where nobody can know."""
    if feed.batches is None:
        with preserved():
            return 1 if feed.more() else 0
    return known or 0


def reading_config(config: RunConfig) -> RunConfig:
    """Return the configuration of one pass over data in its own order, nothing dropped."""
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
    """Return a feed over a dataset of samples, or over a loader or any iterable of batches; errors call it `field`.

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
    """Restore the global random generators, the device's too, to where they were on entry."""
    with torch.random.fork_rng([device]) if device.type == "cuda" else nullcontext(), preserved():
        yield


@contextmanager
def evaluating(network: nn.Module) -> Generator[None]:
    """Put a network into evaluation mode for the length of a block, and restore the mode of every module of it."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
