"""Building the feed of a run from what the user gave: a dataset of samples, or a loader of batches.

Here is only decided whether data can be read; what is likely wrong, and what to do, is worded in `heptad.diagnose`.
"""

from __future__ import annotations

import os
from collections import UserDict
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from heptad.config import Components, RunConfig
from heptad.data.ahead import AheadFeed
from heptad.data.dealing import Deal
from heptad.data.device_rows import PinnedRows, Prepare, ResidentRows
from heptad.data.feed import Feed, SizedFeed, StreamFeed
from heptad.data.fetch import Collate, Rows, build_fetch, is_a
from heptad.data.index_cursor import IndexCursor
from heptad.data.iterator_cursor import IteratorCursor, refuse_second_pass
from heptad.data.loader import LoaderSource
from heptad.data.part_cursor import Gather
from heptad.data.placement import Placement
from heptad.data.sharing import (
    build_deal,
    dealt_loader_feed,
    dealt_stream_feed,
    distributed_sampler,
    refuse_few,
    shared_limit,
    trusted_remarks,
)
from heptad.data.stream import StreamSource
from heptad.data.transfer import Transfer
from heptad.errors import ConfigError, DataError, a_kind, counted, diagnose, kind

Place = Transfer | Placement
"""What places the batches of a run."""


def build_feed(
    components: Components,
    config: RunConfig,
    share: tuple[int, int] = (0, 1),
    place: Place | None = None,
    gather: Gather | None = None,
) -> Feed:
    """Return the feed of a training run.

    Args:
        components: Whose data are read.
        config: How.
        share: By which the data are dealt out: the rank of this process, and the number of ranks.
        place: What places the batches: where that is a `Transfer`, they are pinned and read ahead for it.
        gather: Returns what each rank gave: for data that give each rank a part whose length the others do not know.

    Raises:
        ConfigError: If the configuration asks for what the data decide.
        DataError: If it is known now that the data cannot give what the run needs.
    """
    deal = None if share[1] == 1 else build_deal(components, config, *share)
    if components.loader is not None:
        feed = build_loader_feed(components.loader, limit=config.limit_batches, place=place, deal=deal)
    else:
        feed = build_dataset_feed(
            components.dataset, components.collate_fn, config, place=place, deal=deal, gather=gather
        )
    k, total = config.accumulation, feed.identity()["batches"]
    if deal is not None:
        refuse_few(feed.batches, deal, total)
    data = components.loader if components.loader is not None else components.dataset
    _check_passes(data, total, config, k * share[1])
    if config.remainder == "drop" and config.epochs is None and feed.batches is not None and feed.batches < k:
        raise DataError(
            f"a pass has {counted(feed.batches, 'batch')}, fewer than accumulation={k}, and remainder='drop' starts no "
            "window that cannot be filled: max_updates would never be reached; use remainder='extend' or 'flush'"
        )
    return feed


def build_dataset_feed(
    dataset: Any,
    collate: Collate | None,
    config: RunConfig,
    field: str = "Components.dataset",
    place: Place | None = None,
    deal: Deal | None = None,
    gather: Gather | None = None,
    own: Deal | None = None,
) -> Feed:
    """Return the feed over a dataset of samples, map-style or iterable; `field` is what messages call it.

    `deal` is how several ranks share it, or `own` where it is indexed and they evaluate on it.
    """
    _refuse_other_things(dataset, field)
    transfer = place if isinstance(place, Transfer) else None
    early = transfer if transfer is not None and transfer.ahead else None
    if is_a(dataset, DataLoader) or (is_a(dataset, dict | UserDict) and 0 not in dataset):
        raise DataError(diagnose("no_dataset", dataset, field))
    if hasattr(dataset, "__getitem__") and not is_a(dataset, IterableDataset):
        feed = SizedFeed(_index_cursor(dataset, collate, config, field, deal or own, place))
        # rows that are kept on the device are gathered there, on the stream of the computation
        return feed if early is None or config.data_on_device else AheadFeed(feed, early)
    if config.data_on_device:
        raise ConfigError(_no_rows(dataset, field))
    if not hasattr(dataset, "__iter__"):
        raise DataError(diagnose("no_dataset", dataset, field))
    if config.shuffle and "shuffle" in config.model_fields_set:
        raise ConfigError(diagnose("shuffled_stream", dataset, field))
    if config.persistent_workers:
        raise ConfigError(
            f"RunConfig.persistent_workers goes with a dataset that is indexed; {field} (a {kind(dataset)}) is "
            "iterated, and each pass begins in new workers; leave it out"
        )
    if deal is not None:
        return dealt_stream_feed(dataset, collate, config, deal, gather, field)
    source = StreamSource(dataset, config, collate, pin=transfer is not None)
    cursor = IteratorCursor(source, config.limit_batches)
    return StreamFeed(cursor, seeded=True, transfer=early if config.num_workers else None)


def _index_cursor(
    dataset: Any, collate: Collate | None, config: RunConfig, field: str, deal: Deal | None, place: Place | None
) -> IndexCursor:
    samples, size = _length(dataset), config.batch_size or 1
    if not samples or (config.drop_last and samples < size):
        raise DataError(diagnose("too_few_samples", dataset, field, samples, size))
    return IndexCursor(
        dataset,
        collate,
        size,
        drop_last=config.drop_last,
        shuffle=config.shuffle,
        workers=config.num_workers,
        persistent=config.persistent_workers,
        limit=config.limit_batches,
        deal=deal,
        remainder=config.remainder,
        pin=isinstance(place, Transfer),
        prepare=_preparation(dataset, collate, config, field, place),
    )


def _preparation(
    dataset: Any, collate: Collate | None, config: RunConfig, field: str, place: Place | None
) -> Prepare | None:
    """Return what prepares rows of tensors for the device; `None` where they are fetched as they are."""
    of_rows = isinstance(build_fetch(dataset, collate), Rows)
    if config.data_on_device:
        if not of_rows:
            raise ConfigError(_no_rows(dataset, field))
        return None if place is None else ResidentRows(place.device)
    if not of_rows or not isinstance(place, Transfer):
        return None
    streams = place.streams
    return lambda fetch: PinnedRows(fetch, streams) if isinstance(fetch, Rows) else fetch


def _no_rows(dataset: Any, field: str) -> str:
    return (
        "RunConfig.data_on_device keeps a dataset of tensors on the device (a tensor, a TensorDataset or a Subset of "
        f"one, without a collate_fn); {field} is {a_kind(dataset)}, of which samples are fetched one by one; leave it "
        "out, or make a TensorDataset of it"
    )


def build_loader_feed(
    loader: Any,
    field: str = "Components.loader",
    limit: int | None = None,
    place: Place | None = None,
    deal: Deal | None = None,
) -> Feed:
    """Return the feed over a loader of batches, `limit` in a pass at most; `field` is what messages call it."""
    if is_a(loader, Dataset) and not is_a(loader, IterableDataset):
        raise DataError(diagnose("no_loader", loader, field))
    _refuse_other_things(loader, field)
    iterated = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    if is_a(loader, dict | UserDict) or not iterated:
        raise DataError(diagnose("no_loader", loader, field))
    # the length of a loader over an iterable dataset is a guess: workers may each yield all of it, or a part
    streams = is_a(getattr(loader, "dataset", None), IterableDataset) or is_a(loader, IterableDataset)
    batches = None if streams else _length(loader)
    if batches == 0:
        raise DataError(f"{field} has no batches; is its dataset smaller than one batch under drop_last?")
    source = LoaderSource(loader, sized=batches is not None)
    early = place if isinstance(place, Transfer) and place.ahead and source.reads_early else None
    sampler = None if deal is None else distributed_sampler(loader, deal, field)
    if deal is not None and sampler is None:
        feed = dealt_loader_feed(source, limit, deal, draws=source.draws)
        return feed if early is None or not isinstance(feed, SizedFeed) else AheadFeed(feed, early)
    cursor = IteratorCursor(source, limit if deal is None else shared_limit(limit, deal))
    if batches is None:
        return StreamFeed(cursor, seeded=False, transfer=early)
    feed = SizedFeed(cursor, list(trusted_remarks(sampler)))
    return feed if early is None else AheadFeed(feed, early)


def _refuse_other_things(data: Any, field: str) -> None:
    """Raise a `DataError` for what can be indexed or iterated, but not for samples or batches."""
    frame = type(data).__name__ == "DataFrame" and type(data).__module__.partition(".")[0] in ("pandas", "polars")
    if is_a(data, type | str | bytes | os.PathLike) or frame:
        raise DataError(diagnose("no_data", data, field))


def _check_passes(data: Any, batches: int | None, config: RunConfig, k: int) -> None:
    """Refuse data that can be iterated once where it is known that more is needed, with `k` batches in a window."""
    if not is_a(data, Iterator):
        return
    epochs, limit = config.epochs, config.max_updates
    flushes = config.remainder == "flush" or (config.remainder == "carry" and epochs == 1)
    if batches is None:
        if limit is None and (epochs or 0) > 1:
            refuse_second_pass(data)
        return
    most = -(-batches // k) if flushes else batches // k  # updates that one pass makes
    an_epoch = batches // k if config.remainder == "drop" else -(-batches // k)
    of_all = None if epochs is None else epochs * an_epoch
    if config.remainder == "carry" and epochs is not None:
        of_all = -(-epochs * batches // k)
    wanted = min(n for n in (limit, of_all) if n is not None)
    if wanted > most or (wanted == 0 != limit and (epochs or 0) > 1):
        refuse_second_pass(data)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # there is no __len__, or it is that of torch's Sampler or a stream
        return None
