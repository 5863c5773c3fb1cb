"""The bodies of an evaluation, and what it needs around it: data in their own order, modes and generators restored."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from heptad.config import Components, RunConfig
from heptad.data.build import Place, build_dataset_feed, build_loader_feed
from heptad.data.dealing import Deal
from heptad.data.feed import Feed
from heptad.data.generators import device_preserved, global_states, preserved, restore_states
from heptad.data.own_feed import EvenFeed, OwnDeal, OwnFeed, own_sampler
from heptad.data.placement import count_samples
from heptad.errors import ConfigError, DataError, Unfinished, a_kind
from heptad.run.detached import detached
from heptad.run.evaluating import EvaluationOptions, Measures
from heptad.run.run import Run
from heptad.run.runtime import StepFunction
from heptad.run.state import RunState
from heptad.step.metrics import Metrics


class Evaluation:
    """The bodies of an evaluation and the sums that they build.

    Attributes:
        measures: What was measured, once it is over.

    Args:
        step: The step function.
        metrics: What is measured beside the loss.
        options: Those of the evaluation.
        pause_requested: Asked before each batch: where it says True, the evaluation ends there.
    """

    def __init__(
        self,
        step: StepFunction,
        metrics: Metrics,
        options: EvaluationOptions,
        pause_requested: Callable[[], bool] | None = None,
    ) -> None:
        self._step = step
        self._metrics = metrics
        self._gradients_off = gradients_off(options.get("inference_mode", False))
        self._pause_requested = pause_requested
        self._limit = options.get("limit")
        self.measures = Measures({})

    def bodies(self, feed: Feed) -> dict[str, Callable[[Run], None]]:
        """Return the bodies by the state's name, for batches of this feed."""
        return {
            "before_epoch": self.before_epoch,
            "before_step": self.before_step,
            "process_batch": self.process_batch_and_read if feed.reads_early else self.process_batch,
            "after_step": self.after_step,
            "after_epoch": self.after_epoch,
        }

    def before_epoch(self, run: Run) -> None:
        """Open the data and reset metric objects."""
        self._metrics.reset(run._runtime.device)
        feed = run._runtime.feed
        feed.open(0, 0, self._limit)
        run._position.remaining = self._left(run)
        self.refuse_nothing(run)

    def refuse_nothing(self, run: Run) -> None:
        """Refuse data without a batch."""
        if not run._position.remaining:
            raise DataError("the data to evaluate on yield nothing")

    def before_step(self, run: Run) -> None:
        """Take the next batch and place it, unless the evaluation is to end here."""
        if self._pause_requested is not None and self._pause_requested():
            raise Unfinished("the evaluation ended before its last batch, because the run is to pause")
        batch = run._runtime.feed.take()
        run._position.batch = self._step.place(batch, run._runtime.place) if run._runtime.places else batch

    def process_batch(self, run: Run) -> None:
        """Run forward, loss and metrics, without gradients (no device sync)."""
        at = run._position
        with self._gradients_off():
            self._step.run(at)
            self._add(at)

    def _add(self, at: RunState) -> None:
        self._metrics.add(without_graph(at.output), at.batch, at.loss, at.weight, self._step.count(at))

    def process_batch_and_read(self, run: Run) -> None:
        """The body of `process_batch` where batches are read ahead: they are copied while the device computes."""
        self.process_batch(run)
        feed, taken = run._runtime.feed, run._position.batch_index + 1
        left = 1 if feed.batches is None else feed.batches - taken
        feed.read_ahead(left if self._limit is None else min(left, self._limit - taken))

    def after_step(self, run: Run) -> None:
        """Count the step."""
        at = run._position
        at.samples += count_samples(at.batch)
        at.step += 1
        at.batch_index += 1
        at.batch = at.output = at.loss = None
        at.remaining = self._left(run)

    def _left(self, run: Run) -> int:
        """Return how many batches follow: 1 stands for more where nobody can know. None is read beyond the limit."""
        feed, taken = run._runtime.feed, run._position.batch_index
        if self._limit is not None and taken >= self._limit:
            return 0
        if feed.batches is None:
            return 1 if feed.more() else 0
        return feed.batches - taken

    def after_epoch(self, run: Run) -> None:
        """Take the means, and what metric objects compute."""
        run._runtime.feed.end()
        run._position.epoch += 1
        with self._gradients_off():
            self.measures = self._metrics.measures()


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
        precision=config.precision,
        prefetch=config.prefetch,
    )


def holds_samples(data: Any, components: Components) -> bool:
    """Return whether data hold samples and not batches.

    Samples are what is a torch dataset, a tensor, of the class that the training data are of (a list where those are a
    list), or can be indexed and not iterated over.
    """
    if isinstance(data, DataLoader):
        return False
    return (
        isinstance(data, Dataset | torch.Tensor)
        or callable(getattr(data, "__getitems__", None))
        or (components.dataset is not None and type(data) is type(components.dataset))
        or (hasattr(data, "__getitem__") and not hasattr(data, "__iter__"))
    )


def build_reading_feed(
    data: Any,
    components: Components,
    config: RunConfig,
    field: str,
    place: Place,
    share: tuple[int, int] = (0, 1),
    *,
    even: bool = False,
) -> Feed:
    """Return a feed over a dataset of samples, or over a loader or any iterable of batches; errors call it `field`.

    Of several ranks (`share` is the rank, and how many there are) each takes its own batches: samples that are indexed
    are fetched by their rank alone, of all else every rank reads the whole. With `even` all take equally many, and the
    feed is `idle` while it repeats a batch to that end.
    """
    rank, world = share
    dealt = EvenFeed if even else OwnFeed
    if not holds_samples(data, components):
        feed = build_loader_feed(data, field, place=place)
        return feed if world == 1 or own_sampler(data, rank, world, field) else dealt(feed, rank, world)
    if config.batch_size is None:
        raise ConfigError(
            f"{a_kind(cast('object', data))} holds samples, and this engine has no batch_size because it was given a "
            "loader; pass a DataLoader of it"
        )
    own = None if world == 1 else Deal(rank, world, "flush") if even else OwnDeal(rank, world)
    feed = build_dataset_feed(data, components.collate_fn, config, field, place, own=own)
    return feed if world == 1 or feed.batches is not None else dealt(feed, rank, world)


def gradients_off(inference_mode: bool) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of an evaluation."""
    # not inference mode by default: what a network keeps from there could not be trained on
    return torch.inference_mode if inference_mode else torch.no_grad


def without_graph(output: Any) -> Any:
    """Return an output without the graph of a network that takes gradients inside: a metric would keep it alive."""
    return detached(output) if _has_graph(output) else output


def _has_graph(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = cast("Mapping[Any, Any]", value).values()
    elif isinstance(value, tuple | list):
        parts = cast("Sequence[Any]", value)
    return any(map(_has_graph, parts))


@contextmanager
def generators_preserved(device: torch.device) -> Generator[None]:
    """Restore the global random generators, the device's too, to where they were on entry."""
    with device_preserved(device), preserved():
        yield


@contextmanager
def generators_restored_on_error() -> Generator[None]:
    """Restore them only if the block raises: an evaluation that ends early for a pause is done anew."""
    states = global_states()
    try:
        yield
    except BaseException:
        restore_states(states)
        raise


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
