"""The bodies of an evaluation, and what it needs around it: data in their own order, modes and generators restored."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from heptad.config import Components, RunConfig
from heptad.data.build import build_dataset_feed, build_loader_feed
from heptad.data.feed import Feed
from heptad.data.generators import preserved
from heptad.data.placement import count_samples
from heptad.errors import ConfigError, DataError, Unfinished, a_kind
from heptad.run.run import Run
from heptad.run.runtime import StepFunction
from heptad.run.weight import adds_nothing
from heptad.step.metrics import Metrics, as_tensor, blamed, target_of


class Evaluation:
    """The bodies of an evaluation and the sums that they build.

    Args:
        step: The step function.
        metrics: What is measured beside the loss.
        pause_requested: Asked before each batch: where it says True, the evaluation ends there.
    """

    def __init__(self, step: StepFunction, metrics: Metrics, pause_requested: Callable[[], bool] | None = None) -> None:
        self._step = step
        self._metrics = metrics
        self._pause_requested = pause_requested
        self.means: dict[str, float] = {}

    def bodies(self) -> dict[str, Callable[[Run], None]]:
        """Return the bodies by the state's name."""
        return {
            "before_epoch": self.before_epoch,
            "before_step": self.before_step,
            "process_batch": self.process_batch,
            "after_step": self.after_step,
            "after_epoch": self.after_epoch,
        }

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
        run.position.batch = self._step.place(batch, run.runtime.device) if run.runtime.places else batch

    def process_batch(self, run: Run) -> None:
        """Run forward, loss and metrics, without gradients (no device sync)."""
        at, metrics = run.position, self._metrics
        with torch.inference_mode():
            self._step.run(at)
            if adds_nothing(at.weight):
                return  # nothing to measure: all targets are ignored, or there is no loss
            values: dict[str, Any] = {"loss": at.loss}
            for name, function in metrics.functions.items():
                with blamed(name, at.output):
                    value = function(at.output, at.batch)
                values[name] = as_tensor(name, value)
            for name, metric in metrics.objects.items():
                with blamed(name, at.output):
                    metric.update(at.output, target_of(name, at.batch))
            metrics.add(values, 1.0 if at.weight is None else at.weight)

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


def reading_config(config: RunConfig) -> RunConfig:
    """Return the configuration of one pass over data in its own order, nothing dropped."""
    return RunConfig(
        epochs=1,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=False,
        drop_last=False,
        num_workers=config.num_workers,
        persistent_workers=config.persistent_workers,
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
            f"{a_kind(cast('object', data))} holds samples, and this engine has no batch_size because it was given a "
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
