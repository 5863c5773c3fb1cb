"""The feed: where a run takes its batches from, one pass after another.

Built by the engine, opened, asked and closed by the bodies. A feed knows how many batches a pass has (`batches`), or
that nobody can know; in the second case `more()` reads one batch ahead.
"""

from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from heptad.config import Components, RunConfig
from heptad.data.fetch import Collate, Fetch, InWorkers, PassKey, Stream, build_fetch
from heptad.data.order import batch_seed, order
from heptad.errors import DataError, SecondInterrupt, kind

_NOTHING: Any = object()


class Feed(Protocol):
    """Where batches come from. One pass is open at a time.

    Attributes:
        batches: Batches in a pass, `None` where that cannot be known.
        seed: The root of the data's order; set in `before_loop`.
    """

    batches: int | None
    seed: int

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        """Begins a pass, of which at most `limit` batches will be taken."""
        ...

    def take(self) -> Any:
        """Returns the next batch. What the data raise comes through unchanged."""
        ...

    def more(self) -> bool:
        """Tells whether a batch follows. Only for a feed of unknown length, which reads it now."""
        ...

    def end(self) -> None:
        """Ends the pass. One that was walked whole must have nothing left."""
        ...

    def rest(self) -> None:
        """Lets worker processes go in the middle of a pass, where `take` can make them anew without loss."""
        ...

    def close(self) -> None:
        """Lets iterators and worker processes go; `open` makes them anew."""
        ...


class DatasetFeed:
    """Batches of a map-style dataset, in an order of the engine's own."""

    def __init__(
        self, fetch: Fetch, samples: int, batch_size: int, *, drop_last: bool, shuffle: bool, workers: int
    ) -> None:
        self.batches: int | None = samples // batch_size if drop_last else -(-samples // batch_size)
        self.seed = 0
        self._fetch = fetch
        self._samples = samples
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._workers = workers
        self._loader: DataLoader[Any] | None = None
        self._fetched: Iterator[Any] | None = None
        self._order = torch.empty(0, dtype=torch.int64)
        self._key = PassKey(0, 0, 0)
        self._next = 0
        self._stop = 0

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        self._key = PassKey(self.seed, epoch, pass_index)
        self._order = order(self._samples, *self._key, shuffle=self._shuffle)
        self._next = 0
        self._stop = self.batches or 0
        if limit is not None:
            self._stop = min(self._stop, limit)
        self._fetched = None
        if self._workers:
            self._start_workers()

    def take(self) -> Any:
        if self._next >= self._stop:
            raise DataError(f"the pass has {self._stop} batches and one more was asked for")
        if self._workers:
            fetched = self._start_workers() if self._fetched is None else self._fetched
            try:
                batch = next(fetched)
            except StopIteration:
                raise DataError(
                    f"the dataset has {self._stop} batches in this pass, but its workers gave {self._next}; "
                    "a StopIteration raised by the dataset ends them early"
                ) from None
            self._next += 1
            return batch
        place = self._next
        batch = self._fetch(self._indices(place), batch_seed(*self._key, place) if self._fetch.random else 0)
        self._next = place + 1
        return batch

    def more(self) -> bool:
        return self._next < self._stop

    def end(self) -> None:
        if self._fetched is not None and self._next >= self._stop:
            next(self._fetched, None)  # lets the iterator see its own end

    def rest(self) -> None:
        self._fetched = self._loader = None

    def close(self) -> None:
        self.rest()

    def _start_workers(self) -> Iterator[Any]:
        """Lets the workers fetch the batches of the open pass, from the next one on."""
        if self._loader is None:  # its truth would be its length
            self._loader = self._build_loader()
        self._fetched = iter(self._loader)
        return self._fetched

    def _indices(self, place: int) -> torch.Tensor:
        start = place * self._batch_size
        return self._order.narrow(0, start, min(self._batch_size, self._samples - start))

    def _build_loader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", InWorkers(self._fetch)),  # indexed by jobs, which torch's types lack
            sampler=_Jobs(self),
            batch_size=None,
            num_workers=self._workers,
            persistent_workers=True,
            collate_fn=as_it_is,
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator().manual_seed(0),  # without one, iter() draws from the global generator
        )
        return loader

    def jobs(self) -> Iterator[tuple[Any, int]]:
        """Yields for each batch of the open pass that was not taken yet its indices and its seed."""
        for place in range(self._next, self._stop):
            yield self._indices(place).numpy(), batch_seed(*self._key, place)


class _Jobs:
    """The sampler of the worker processes: the jobs of whichever pass is open."""

    def __init__(self, feed: DatasetFeed) -> None:
        self._feed = weakref.ref(feed)  # else loader and feed would hold each other, and the workers, for ever

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        feed = self._feed()
        return iter(()) if feed is None else feed.jobs()


class IteratorFeed:
    """Batches of anything that can be iterated: what sized and unsized loaders have in common."""

    def __init__(self) -> None:
        self.batches: int | None = None
        self.seed = 0
        self._iterator: Iterator[Any] | None = None
        self._taken = 0

    def iterate(self, epoch: int, pass_index: int) -> Iterator[Any]:
        """Returns an iterator over a new pass."""
        raise NotImplementedError  # abstract

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        del limit
        self._taken = 0
        self._iterator = None  # the old one's workers go before the new one's come
        self._iterator = self.iterate(epoch, pass_index)

    def rest(self) -> None:
        """Keeps the iterator: what it has drawn could not be drawn again."""

    def close(self) -> None:
        self._iterator = None


class LoaderFeed(IteratorFeed):
    """Batches of a loader that the user made and that has a length."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self._loader = loader
        self._walks = 0
        self.batches: int | None = len(loader)

    def iterate(self, epoch: int, pass_index: int) -> Iterator[Any]:
        del epoch, pass_index
        self.batches = len(self._loader)
        return walk(self._loader, again=self._walks > 0)

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        super().open(epoch, pass_index, limit)
        self._walks += 1

    def take(self) -> Any:
        if self._iterator is None:
            raise DataError("no pass is open")
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise DataError(
                f"the loader says that it has {self.batches} batches, but it ended after {self._taken}; "
                "mend its __len__, or pass a loader without one"
            ) from None
        self._taken += 1
        return batch

    def more(self) -> bool:
        return self._taken < (self.batches or 0)

    def end(self) -> None:
        if self._iterator is not None and self._taken == self.batches:
            extra = next(self._iterator, _NOTHING)
            if extra is not _NOTHING:
                raise DataError(
                    f"the loader says that it has {self.batches} batches, but it yielded at least {self._taken + 1}; "
                    "mend its __len__, or pass a loader without one"
                )
        self._iterator = None


class StreamFeed(IteratorFeed):
    """Batches of something whose length nobody knows: read one ahead.

    What the data raise when read ahead is kept and raised by `take`, so that it stands where a plain loop has it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ahead: Any = _NOTHING
        self._error: BaseException | None = None

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        self._ahead, self._error = _NOTHING, None
        super().open(epoch, pass_index, limit)

    def more(self) -> bool:
        if self._ahead is _NOTHING and self._error is None and self._iterator is not None:
            try:
                self._ahead = next(self._iterator)
            except StopIteration:
                self._iterator = None
            except SecondInterrupt:
                raise
            except BaseException as error:  # everything: it is raised again by take()
                self._error = error
        return self._ahead is not _NOTHING or self._error is not None

    def take(self) -> Any:
        if not self.more():
            raise DataError(f"the data ended after {self._taken} batches and one more was asked for")
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # a frame that holds the exception that holds the frame would outlive both
        batch, self._ahead = self._ahead, _NOTHING
        self._taken += 1
        return batch

    def end(self) -> None:
        self._iterator, self._ahead, self._error = None, _NOTHING, None

    def close(self) -> None:
        self.end()


class UnsizedLoaderFeed(StreamFeed):
    """Batches of a loader that the user made and whose length is not known."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self._loader = loader
        self._walks = 0

    def iterate(self, epoch: int, pass_index: int) -> Iterator[Any]:
        del epoch, pass_index
        self._walks += 1
        return walk(self._loader, again=self._walks > 1)


class IterableFeed(StreamFeed):
    """Batches that the engine makes of an iterable dataset."""

    def __init__(self, dataset: Any, config: RunConfig, collate: Collate | None) -> None:
        super().__init__()
        self._dataset = dataset
        self._collate = collate
        self._batch_size = config.batch_size or 1
        self._drop_last = config.drop_last
        self._workers = config.num_workers
        self._walks = 0

    def iterate(self, epoch: int, pass_index: int) -> Iterator[Any]:
        self._walks += 1
        if self._walks > 1:
            refuse_second_walk(self._dataset)
        key = PassKey(self.seed, epoch, pass_index)
        stream = Stream(self._dataset, self._batch_size, self._drop_last, self._collate, key)
        if not self._workers:
            return iter(stream)
        loader: DataLoader[Any] = DataLoader(
            stream,
            batch_size=None,
            num_workers=self._workers,
            collate_fn=as_it_is,
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator().manual_seed(0),
        )
        return iter(loader)


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
    if _is(dataset, DataLoader):
        raise DataError("Components.dataset is a DataLoader, which yields batches; pass it as loader=")
    map_style = hasattr(dataset, "__getitem__") and not _is(dataset, IterableDataset)
    if not map_style:
        if not hasattr(dataset, "__iter__"):
            raise DataError(f"Components.dataset must have __getitem__ and __len__, or __iter__; got a {kind(dataset)}")
        return IterableFeed(dataset, config, collate)
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
    if _is(loader, Dataset) and not _is(loader, IterableDataset):
        raise DataError(f"Components.loader is a {kind(loader)}, which holds samples; pass it as dataset=")
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise DataError(f"Components.loader must be a re-iterable of batches, got a {kind(loader)}")
    # the length of a loader over an iterable dataset is a guess: workers may each yield all of it, or a part
    streams = _is(getattr(loader, "dataset", None), IterableDataset) or _is(loader, IterableDataset)
    batches = None if streams else _length(loader)
    if batches is None:
        return UnsizedLoaderFeed(loader)
    if batches == 0:
        raise DataError("Components.loader has no batches; is its dataset smaller than one batch under drop_last?")
    return LoaderFeed(loader)


def walk(loader: Any, *, again: bool) -> Iterator[Any]:
    """Begins to walk a loader, the first time or again."""
    if again:
        refuse_second_walk(loader)
    return iter(loader)


def refuse_second_walk(data: Any) -> None:
    """Raises a `DataError` for what can be walked only once."""
    if _is(data, Iterator):
        raise DataError(
            f"the data are a {kind(data)}, which can be walked once, and a further pass is needed; pass "
            "something whose __iter__ begins anew, such as a list, a DataLoader or a class with __iter__"
        )


def as_it_is(batch: Any) -> Any:
    """The collate function of batches that are already made."""
    return batch


def ignore_interrupts(worker: int) -> None:
    """Lets a worker process live through Ctrl-C, which a terminal sends to it too: the main process decides."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_walks(data: Any, batches: int | None, config: RunConfig) -> None:
    """Refuses data that can be walked once where it is known that more is needed."""
    if not _is(data, Iterator):
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


def _is(value: object, of: Any) -> bool:
    """`isinstance` that narrows nothing: torch's generic classes would make a user's `Any` partly unknown."""
    return isinstance(value, of)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
