"""`IndexCursor`: a place in a pass over samples that are indexed, in an order of the engine's own."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from heptad.data.cursor import PassKey
from heptad.data.fetch import Fetch, InWorkers, as_it_is, ignore_interrupts
from heptad.data.generators import generator_state, set_generator_state
from heptad.data.order import ORDER_VERSION, batch_seed, order
from heptad.errors import DataError


class IndexCursor:
    """A place in a pass: the order is a function of the key, so a place is a number and nothing is replayed.

    Attributes:
        batches: Batches in a pass.
    """

    def __init__(
        self, fetch: Fetch, samples: int, batch_size: int, *, drop_last: bool, shuffle: bool, workers: int
    ) -> None:
        self.batches: int | None = samples // batch_size if drop_last else -(-samples // batch_size)
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

    @property
    def taken(self) -> int:
        """Batches taken from the open pass."""
        return self._next

    def begin(self, key: PassKey, limit: int | None) -> None:
        """Begin a pass."""
        stop = self.batches or 0
        self._go_to(key, 0, stop if limit is None else min(stop, limit))

    def identity(self) -> dict[str, Any]:
        """Return the numbers of samples and batches, and the version of the order."""
        return {"samples": self._samples, "batches": self.batches, "version of the order": ORDER_VERSION}

    def state(self) -> dict[str, Any]:
        """Return the place."""
        generators = [generator_state(generator) for generator in self._fetch.generators()]
        place = {"open": self._open, "key": list(self._key), "next": self._next, "stop": self._stop}
        return {**place, "generators": generators}

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Return to a place, at once."""
        del key  # it is part of the state
        for generator, at in zip(self._fetch.generators(), state["generators"], strict=False):
            set_generator_state(generator, at)
        if state["open"]:
            self._go_to(PassKey(*state["key"]), state["next"], state["stop"])
        return None

    def take(self) -> Any:
        """Return the next batch."""
        if self._next >= self._stop:
            raise DataError(f"the pass has {self._stop} batches and one more was asked for")
        if self._workers:
            return self._take_from_workers()
        place = self._next
        batch = self._fetch(self._indices(place), batch_seed(*self._key, place) if self._fetch.random else 0)
        self._next = place + 1
        return batch

    def end(self) -> None:
        """End the pass; workers that have given all of it see its end, and wait for the next one."""
        self._open = False
        if self._fetched is not None and self._next >= self._stop:
            next(self._fetched, None)

    def rest(self) -> None:
        """End worker processes: what they have fetched can be fetched again."""
        self._fetched = self._loader = None

    def close(self) -> None:
        """End worker processes."""
        self.rest()

    def jobs(self) -> Iterator[tuple[Any, int]]:
        """Yield, for each batch of the open pass that was not taken yet, its indices and its seed."""
        for place in range(self._next, self._stop):
            yield self._indices(place).numpy(), batch_seed(*self._key, place)

    def _go_to(self, key: PassKey, place: int, stop: int) -> None:
        self._key = key
        self._order = order(self._samples, *key, shuffle=self._shuffle)
        self._next, self._stop, self._open = place, stop, True
        self._fetched = None
        if self._workers and place < stop:
            self._start_workers()

    def _indices(self, place: int) -> torch.Tensor:
        start = place * self._batch_size
        return self._order.narrow(0, start, min(self._batch_size, self._samples - start))

    def _take_from_workers(self) -> Any:
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

    def _start_workers(self) -> Iterator[Any]:
        """Start the workers on the batches of the open pass, from the next one on."""
        if self._loader is None:  # not `if not`: its truth is its length
            self._loader = DataLoader(
                cast("Dataset[Any]", InWorkers(self._fetch)),  # indexed by jobs, which torch's types lack
                sampler=_Jobs(self),
                batch_size=None,
                num_workers=self._workers,
                persistent_workers=True,
                collate_fn=as_it_is,
                worker_init_fn=ignore_interrupts,
                generator=torch.Generator().manual_seed(0),  # without one, iter() draws from the global generator
            )
        self._fetched = iter(self._loader)
        return self._fetched


class _Jobs:
    """The sampler of the worker processes: the jobs of whichever pass is open."""

    def __init__(self, cursor: IndexCursor) -> None:
        self._cursor = weakref.ref(cursor)  # else loader and cursor would hold each other, and the workers, for ever

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        cursor = self._cursor()
        return iter(()) if cursor is None else cursor.jobs()
