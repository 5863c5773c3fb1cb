"""Building the feed of a run from what the user gave: a dataset of samples, or a loader of batches."""

from __future__ import annotations

import os
import reprlib
from collections import UserDict
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from heptad.config import Components, RunConfig
from heptad.data.feed import DatasetFeed, Feed, LoaderFeed, StreamFeed
from heptad.data.fetch import Collate, build_fetch
from heptad.data.walk import StreamWalk, Walk, is_a, refuse_second_walk
from heptad.errors import ConfigError, DataError, a_kind, counted, kind, summarize


def build_feed(components: Components, config: RunConfig) -> Feed:
    """Returns the feed of a training run.

    Raises:
        ConfigError: If the configuration asks for what the data decide.
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
            f"a pass has {counted(feed.batches, 'batch')}, fewer than accumulation={k}, and remainder='drop' starts no "
            "window that cannot be filled: max_updates would never be reached; use remainder='extend' or 'flush'"
        )
    return feed


def build_dataset_feed(
    dataset: Any, collate: Collate | None, config: RunConfig, field: str = "Components.dataset"
) -> Feed:
    """Returns the feed over a dataset of samples, map-style or iterable; `field` is what messages call it."""
    if is_a(dataset, DataLoader):
        raise DataError(f"{field} is a DataLoader, which yields batches; pass it as loader=")
    _refuse_other_things(dataset, field)
    if is_a(dataset, dict | UserDict) and 0 not in dataset:
        raise DataError(f"{field} is {summarize(dataset)}; samples are read at 0, 1, 2, …: {_parts(dataset)}")
    map_style = hasattr(dataset, "__getitem__") and not is_a(dataset, IterableDataset)
    if not map_style:
        if not hasattr(dataset, "__iter__"):
            raise DataError(f"{field} must have __getitem__ and __len__, or __iter__; got {a_kind(dataset)}")
        if config.shuffle and "shuffle" in config.model_fields_set:
            raise ConfigError(
                f"RunConfig.shuffle=True needs a dataset that is indexed, and {field} ({a_kind(dataset)}) is walked in "
                "its own order; leave it out, and shuffle where the samples are yielded"
            )
        return StreamFeed(StreamWalk(dataset, config, collate))
    samples = _length(dataset)
    name = f"{field} ({a_kind(dataset)})"
    if samples is None:
        raise DataError(
            f"{name} has __getitem__ but no length; give it __len__, or __iter__ and IterableDataset as a base"
        )
    if samples == 0:
        raise DataError(f"{name} is empty; give it at least one sample")
    size = config.batch_size or 1
    if config.drop_last and samples < size:
        advice = "use a smaller batch_size or drop_last=False"
        if is_a(dataset, tuple | list) and _are_columns(dataset):
            advice = "if its items are columns, pass TensorDataset(*map(torch.as_tensor, data)); else " + advice
        raise DataError(
            f"{name} has {counted(samples, 'sample')}, fewer than one batch of {size}, and drop_last=True leaves it "
            f"out; {advice}"
        )
    fetch = build_fetch(dataset, collate)
    return DatasetFeed(
        fetch, samples, size, drop_last=config.drop_last, shuffle=config.shuffle, workers=config.num_workers
    )


def build_loader_feed(loader: Any, field: str = "Components.loader") -> Feed:
    """Returns the feed over a loader of batches; `field` is what messages call it."""
    if is_a(loader, Dataset) and not is_a(loader, IterableDataset):
        raise DataError(f"{field} is {a_kind(loader)}, which holds samples; pass it as dataset=")
    _refuse_other_things(loader, field)
    if is_a(loader, dict | UserDict):
        raise DataError(f"{field} is {summarize(loader)}; it must be a re-iterable of batches: {_parts(loader)}")
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise DataError(f"{field} must be a re-iterable of batches, got a {kind(loader)}")
    # the length of a loader over an iterable dataset is a guess: workers may each yield all of it, or a part
    streams = is_a(getattr(loader, "dataset", None), IterableDataset) or is_a(loader, IterableDataset)
    batches = None if streams else _length(loader)
    if batches is None:
        return StreamFeed(Walk(loader))
    if batches == 0:
        raise DataError(f"{field} has no batches; is its dataset smaller than one batch under drop_last?")
    return LoaderFeed(loader)


def _refuse_other_things(data: Any, field: str) -> None:
    """Raises a `DataError` for what can be indexed or walked, but not for samples or batches."""
    if isinstance(data, type):
        raise DataError(f"{field} is the class {data.__name__}; pass an instance: {data.__name__}(…)")
    if is_a(data, str | bytes | os.PathLike):
        raise DataError(
            f"{field} is {reprlib.repr(cast('Any', os.fspath(data)))}; no file is read here, pass what reads it"
        )
    if type(data).__name__ == "DataFrame" and type(data).__module__.partition(".")[0] in ("pandas", "polars"):
        raise DataError(
            f"{field} is a DataFrame, which is indexed by column; pass TensorDataset(torch.tensor(frame.to_numpy())), "
            "or a Dataset whose __getitem__ takes a row by its position"
        )


def _parts(data: dict[Any, Any] | UserDict[Any, Any]) -> str:
    """Returns what to pass in place of a dict."""
    keys = [repr(key) for key in data]
    if _are_columns(list(data.values())):
        return f"pass TensorDataset({', '.join(f'torch.as_tensor(data[{key}])' for key in keys[:4])})"
    return f"pass one of its values, such as data[{keys[0]}]" if keys else "it is empty"


def _are_columns(values: Sequence[Any]) -> bool:
    """Tells whether these are tensors or arrays of one length, which people mean as the columns of samples."""
    rows = {
        len(cast("Any", value)) if isinstance(value, torch.Tensor | np.ndarray) and value.ndim else None
        for value in values
    }
    return len(values) > 1 and len(rows) == 1 and None not in rows


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
