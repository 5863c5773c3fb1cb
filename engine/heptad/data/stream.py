"""Iterating an iterable dataset, in batches that the engine makes under a seed of each batch's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from heptad.config import RunConfig
from heptad.data.cursor import PassKey
from heptad.data.fetch import Collate, as_it_is, collate_samples, default_collate
from heptad.data.generators import (
    generator_state,
    generators_of,
    preserved,
    seed_cpu,
    set_generator_state,
    stored_state_of,
)
from heptad.data.iterator_cursor import walk_to
from heptad.data.loader import parts_of_dataset
from heptad.data.order import batch_seed
from heptad.data.workers import begin_iterating


class StreamSource:
    """An iterable dataset as a source of passes."""

    drained = False  # a pass of unknown length is over only where its end was seen

    def __init__(self, dataset: Any, config: RunConfig, collate: Collate | None, *, pin: bool = False) -> None:
        self.data = dataset
        self._pin = pin  # what the workers give
        self._collate = collate
        self._batch_size = config.batch_size or 1
        self._drop_last = config.drop_last
        self._workers = config.num_workers

    def length(self) -> int | None:
        """Return None: an iterable dataset's `len()` is a guess where workers share it out."""
        return None

    def iterate(self, key: PassKey) -> Iterator[Any]:
        """Begin a pass."""
        batches = StreamPass(self.data, self._batch_size, self._drop_last, self._collate, key)
        if not self._workers:
            return iter(batches)
        loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            num_workers=self._workers,
            collate_fn=as_it_is,
            pin_memory=self._pin,
            generator=torch.Generator().manual_seed(0),  # without one, iter() draws from the global generator
        )
        return begin_iterating(loader)

    def before_pass(self) -> list[Any]:
        """Return the states of the generators that the dataset holds; all other randomness follows from the key."""
        return self._generator_states()

    def before_first(self, began: list[Any]) -> list[Any]:
        """Add nothing: the first batch has a seed of its own."""
        return began

    def own(self) -> dict[str, Any]:
        """Return the states of the generators that the dataset holds."""
        return {"generators": self._generator_states()}

    def doubt(self) -> str:
        """Return nothing: each pass is seeded."""
        return ""

    def go_to(self, state: Mapping[str, Any], key: PassKey) -> tuple[Iterator[Any] | None, str | None]:
        """Return an iterator at a place, and what is to be said of it."""
        states = state.get("began", ()) if state["open"] else state.get("generators", ())
        with stored_state_of("a generator of the dataset"):
            for generator, at in zip(generators_of(*parts_of_dataset(self.data)), states, strict=False):
                set_generator_state(generator, at)
        if not state["open"]:
            return None, None
        iterator = self.iterate(key)
        return iterator, walk_to(iterator, state["taken"])

    def _generator_states(self) -> list[Any]:
        return [generator_state(generator) for generator in generators_of(*parts_of_dataset(self.data))]


class StreamPass(IterableDataset[Any]):
    """One pass over an iterable dataset, in batches, each fetched under a seed of its own."""

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool, collate: Collate | None, key: PassKey) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.collate = collate or default_collate
        self.key = key

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        return StreamBatches(self, *((worker.id, worker.num_workers) if worker else (0, 1)))


class StreamBatches(Iterator[Any]):
    """The batches of a pass that one process makes: of `share` processes that take turns, the one at `first`."""

    def __init__(self, stream: StreamPass, first: int, share: int) -> None:
        self._stream = stream
        self._batch = first
        self._share = share
        self._ended = False
        with preserved():
            seed_cpu(batch_seed(*stream.key, first))
            self._samples = iter(stream.dataset)

    def __next__(self) -> Any:
        stream = self._stream
        if self._ended:
            raise StopIteration
        with preserved():
            seed_cpu(batch_seed(*stream.key, self._batch))
            samples: list[Any] = []
            while len(samples) < stream.batch_size and not self._ended:
                try:
                    samples.append(next(self._samples))
                except StopIteration:
                    self._ended = True
            if not samples or (stream.drop_last and len(samples) < stream.batch_size):
                raise StopIteration
            self._batch += self._share
            return collate_samples(stream.collate, samples)
