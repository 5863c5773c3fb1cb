"""The feed: where a run takes its batches from, one pass after another.

Built by the engine, opened, asked and closed by the bodies. A feed knows how many batches a pass has (`batches`), or
that nobody can know; in the second case `more()` reads one batch ahead.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset

from heptad.data.fetch import Fetch, InWorkers, PassKey, as_it_is, ignore_interrupts
from heptad.data.generators import put_state, state_of
from heptad.data.order import ORDER_VERSION, batch_seed, order
from heptad.data.walk import NOTHING, StreamWalk, Walk
from heptad.errors import DataError, SecondInterrupt


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
        """Return the next batch, or `NOTHING` where a pass of unknown length is over; what the data raise is raised."""
        ...

    def more(self) -> bool:
        """Tells whether a batch follows. Only for a feed of unknown length, which reads it now."""
        ...

    def end(self) -> None:
        """Ends the pass. One that was walked whole must have nothing left."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns what must be the same for a place in the data to mean the same, as plain data."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns the place in the data, between two batches, as plain data and tensors."""
        ...

    def restore(self, state: Mapping[str, Any]) -> str | None:
        """Goes to a place that `state` returned, in place of `open`; returns what that took, if it took reading."""
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
        self._open = False

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        stop = self.batches or 0
        self._go_to(PassKey(self.seed, epoch, pass_index), 0, stop if limit is None else min(stop, limit))

    def identity(self) -> dict[str, Any]:
        return {"samples": self._samples, "batches": self.batches, "version of the order": ORDER_VERSION}

    def state(self) -> dict[str, Any]:
        generators = [state_of(generator) for generator in self._fetch.generators()]
        place = {"open": self._open, "key": list(self._key), "next": self._next, "stop": self._stop}
        return {**place, "generators": generators}

    def restore(self, state: Mapping[str, Any]) -> str | None:
        for generator, at in zip(self._fetch.generators(), state["generators"], strict=False):
            put_state(generator, at)
        if state["open"]:
            self._go_to(PassKey(*state["key"]), state["next"], state["stop"])
        return None

    def _go_to(self, key: PassKey, place: int, stop: int) -> None:
        """Opens a pass at a place in it: the order is a function of the key, so nothing is replayed."""
        self._key = key
        self._order = order(self._samples, *key, shuffle=self._shuffle)
        self._next, self._stop, self._open = place, stop, True
        self._fetched = None
        if self._workers and place < stop:
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
        self._open = False
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


class LoaderFeed:
    """Batches of a loader that the user made and that has a length."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._walk = Walk(loader)
        self.batches: int | None = len(loader)
        self.seed = 0

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        del limit
        self.batches = len(self._loader)
        self._walk.begin(PassKey(self.seed, epoch, pass_index))

    def take(self) -> Any:
        walk = self._walk
        if walk.iterator is None:
            raise DataError("no pass is open")
        if not walk.taken:
            walk.first()
        batch = next(walk.iterator, NOTHING)
        if batch is NOTHING:
            raise DataError(
                f"the loader says that it has {self.batches} batches, but it ended after {walk.taken}; "
                "mend its __len__, or pass a loader without one"
            )
        walk.taken += 1
        return batch

    def more(self) -> bool:
        return self._walk.taken < (self.batches or 0)

    def end(self) -> None:
        walk = self._walk
        if walk.taken == self.batches and walk.take() is not NOTHING:
            raise DataError(
                f"the loader says that it has {self.batches} batches, but it yielded at least {walk.taken}; "
                "mend its __len__, or pass a loader without one"
            )
        walk.end()

    def rest(self) -> None:
        """Keeps the iterator: what it has drawn could not be drawn again."""

    def close(self) -> None:
        self._walk.end()

    def identity(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def state(self) -> dict[str, Any]:
        return self._walk.state()

    def restore(self, state: Mapping[str, Any]) -> str | None:
        return self._walk.restore(state, PassKey(self.seed, 0, 0))


class StreamFeed:
    """Batches of something whose length nobody knows: read one ahead.

    What the data raise when read ahead is kept and raised by `take`, so that it stands where a plain loop has it.
    """

    def __init__(self, walk: Walk | StreamWalk) -> None:
        self.batches: int | None = None
        self.seed = 0
        self._walk = walk
        self._key = PassKey(0, 0, 0)
        self._taken = 0
        self._ahead: Any = NOTHING
        self._error: BaseException | None = None

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        del limit
        self._ahead, self._error, self._taken = NOTHING, None, 0
        self._key = PassKey(self.seed, epoch, pass_index)
        self._walk.begin(self._key)

    def more(self) -> bool:
        if self._ahead is NOTHING and self._error is None:
            try:
                self._ahead = self._walk.take()
            except SecondInterrupt:
                raise
            except BaseException as error:  # everything: it is raised again by take()
                self._error = error
        return self._ahead is not NOTHING or self._error is not None

    def take(self) -> Any:
        if not self.more():
            return NOTHING
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # a frame that holds the exception that holds the frame would outlive both
        batch, self._ahead = self._ahead, NOTHING
        self._taken += 1
        return batch

    def end(self) -> None:
        self._walk.end()
        self._ahead, self._error = NOTHING, None

    def rest(self) -> None:
        """Keeps the iterator: what it has drawn could not be drawn again."""

    def close(self) -> None:
        self.end()

    def identity(self) -> dict[str, Any]:
        return {"batches": None}

    def state(self) -> dict[str, Any]:
        """Returns the place; the batch that was read ahead is part of it, if there is one."""
        waits = self._ahead is not NOTHING
        return {
            "key": list(self._key),
            "taken": self._taken,
            "walk": self._walk.state(),
            "waits": waits,
            "ahead": [self._ahead] if waits else [],
            "failed": self._error is not None,
        }

    def restore(self, state: Mapping[str, Any]) -> str | None:
        self._key, self._taken = PassKey(*state["key"]), state["taken"]
        self._ahead, self._error = NOTHING, None
        again = state["waits"] and not state["ahead"]  # it could not be stored, so it is read once more
        walked = self._walk.restore({**state["walk"], "taken": state["walk"]["taken"] - again}, self._key)
        if again or state["failed"]:
            self.more()
            if again and isinstance(self._walk, Walk):  # a StreamWalk seeds what it reads
                told = "the batch read ahead could not be stored and was read once more; what it draws is drawn anew"
                walked = "; ".join(filter(None, (walked, told)))
        elif state["waits"]:
            (self._ahead,) = state["ahead"]
        return walked
