"""Building the feed of a run from what the user gave: a dataset of samples, or a loader of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from heptad.config import Components, RunConfig
from heptad.data.feed import DatasetFeed, Feed, LoaderFeed, StreamFeed
from heptad.data.fetch import Collate, build_fetch
from heptad.data.walk import StreamWalk, Walk, is_a, refuse_second_walk
from heptad.errors import DataError, kind


def build_feed(components: Components, config: RunConfig) -> Feed:
    """Returns the feed of a training run.

    Raises:
        DataError: If it can be told now that the data cannot give what the run needs.
    """
    if components.loader is not None:
        feed = build_loader_feed(components.loader)
    else:
        feed = build_dataset_feed(components.dataset, components.collate_fn, config)
    _check_walks(components.loader if components.loader is not None else components.dataset, feed.batches, config)
    k = config.accumulation
    if config.remainder == "drop" and config.epochs is None and feed.batches is not None and feed.batches < k:
        raise DataError(
            f"a pass has {feed.batches} batches, fewer than accumulation={k}, and remainder='drop' starts no window "
            "that cannot be filled: max_updates would never be reached; use remainder='extend' or 'flush'"
        )
    return feed


def build_dataset_feed(dataset: Any, collate: Collate | None, config: RunConfig) -> Feed:
    """Returns the feed over a dataset of samples, map-style or iterable."""
    if is_a(dataset, DataLoader):
        raise DataError("Components.dataset is a DataLoader, which yields batches; pass it as loader=")
    map_style = hasattr(dataset, "__getitem__") and not is_a(dataset, IterableDataset)
    if not map_style:
        if not hasattr(dataset, "__iter__"):
            raise DataError(f"Components.dataset must have __getitem__ and __len__, or __iter__; got a {kind(dataset)}")
        return StreamFeed(StreamWalk(dataset, config, collate))
    samples = _length(dataset)
    name = f"the dataset (a {kind(dataset)})"
    if samples is None:
        raise DataError(
            f"{name} has __getitem__ but no length; give it __len__, or __iter__ and IterableDataset as a base"
        )
    if samples == 0:
        raise DataError(f"{name} is empty; give it at least one sample")
    size = config.batch_size or 1
    if config.drop_last and samples < size:
        raise DataError(
            f"{name} has {samples} samples, fewer than one batch of {size}, and drop_last=True leaves it out; "
            "use a smaller batch_size or drop_last=False"
        )
    fetch = build_fetch(dataset, collate)
    return DatasetFeed(
        fetch, samples, size, drop_last=config.drop_last, shuffle=config.shuffle, workers=config.num_workers
    )


def build_loader_feed(loader: Any) -> Feed:
    """Returns the feed over a loader of batches."""
    if is_a(loader, Dataset) and not is_a(loader, IterableDataset):
        raise DataError(f"Components.loader is a {kind(loader)}, which holds samples; pass it as dataset=")
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise DataError(f"Components.loader must be a re-iterable of batches, got a {kind(loader)}")
    # the length of a loader over an iterable dataset is a guess: workers may each yield all of it, or a part
    streams = is_a(getattr(loader, "dataset", None), IterableDataset) or is_a(loader, IterableDataset)
    batches = None if streams else _length(loader)
    if batches is None:
        return StreamFeed(Walk(loader))
    if batches == 0:
        raise DataError("Components.loader has no batches; is its dataset smaller than one batch under drop_last?")
    return LoaderFeed(loader)


def _check_walks(data: Any, batches: int | None, config: RunConfig) -> None:
    """Refuses data that can be walked once where it is known that more is needed."""
    if not is_a(data, Iterator):
        return
    epochs, limit, k = config.epochs, config.max_updates, config.accumulation
    if batches is None:
        if limit is None and (epochs or 0) > 1:
            refuse_second_walk(data)
        return
    most = -(-batches // k) if config.remainder == "flush" else batches // k  # updates that one walk makes
    an_epoch = batches // k if config.remainder == "drop" else -(-batches // k)
    wanted = min(n for n in (limit, None if epochs is None else epochs * an_epoch) if n is not None)
    if wanted > most or (wanted == 0 != limit and (epochs or 0) > 1):
        refuse_second_walk(data)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
