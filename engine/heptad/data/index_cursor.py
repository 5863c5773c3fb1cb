"""`IndexCursor`: a place in a pass over samples that are indexed, in an order of the engine's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from heptad.data.cursor import PassKey
from heptad.data.dealing import Deal, Sizes
from heptad.data.device_rows import Prepare
from heptad.data.fetch import Collate, Fetch, InWorkers, as_it_is, build_fetch
from heptad.data.generators import generator_state, set_generator_state, stored_state_of
from heptad.data.order import HeldOrder, Order, order, version_of_order
from heptad.data.pass_jobs import DealtPasses, OrderedPass, PassJobs
from heptad.data.workers import begin_iterating
from heptad.errors import DataError
from heptad.record.host import host_bytes


class IndexCursor:
    """A place in a pass: the order is a function of the key, so a place is a number and nothing is replayed.

    A pass begins with the dataset as it is then: how many samples it has, and what worker processes copy.

    Where several ranks read the same samples, a pass is one of steps, and a `Deal` says what each of them takes.

    Args:
        dataset: The samples, indexed from 0.
        collate: Makes a batch of a list of them; `None` for torch's.
        batch_size: Samples in a batch.
        drop_last: Whether a last, smaller batch is left out.
        shuffle: Whether each pass has an order of its own.
        workers: Processes that fetch batches, 0 for none.
        persistent: Whether they are kept from pass to pass, with the copy of the dataset that each began with. Where
            the number of samples has changed they are made anew.
        limit: Batches in a pass at most, `None` for all that the dataset has.
        deal: What says which batches are this rank's; `None` in a single process.
        remainder: `RunConfig.remainder`, by which a single process finds the place that several had reached.
        pin: Whether what the workers give is put into pinned memory.
        prepare: Makes of what fetches the batches what fetches them for a device; where there are no workers.

    Attributes:
        batches: Batches, for a rank steps, in the pass that is open, or in the last one.
        idle: Whether this rank had nothing to take in the newest step, and has repeated something for the others.
        varies: Whether a pass had another number of batches than the one before it.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Collate | None,
        batch_size: int,
        *,
        drop_last: bool,
        shuffle: bool,
        workers: int,
        persistent: bool = False,
        limit: int | None = None,
        deal: Deal | None = None,
        remainder: str = "extend",
        pin: bool = False,
        prepare: Prepare | None = None,
    ) -> None:
        self._dataset = dataset
        self._collate = collate
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._shuffle = shuffle
        self._workers = workers
        self._persistent = persistent
        self._limit = limit
        self._deal = deal
        self._remainder = remainder
        self._pin = pin
        self._prepare = prepare
        self._fetch: Fetch = build_fetch(dataset, collate)
        if deal is not None and self._fetch.random:
            self._deal = replace(deal, slices=False)  # what is drawn for a batch is drawn sample by sample, in a row
        self.varies = False
        self._key = PassKey(0, 0, 0)
        self._set_samples(len(dataset))
        self._built = self._size()
        self._version = version_of_order(self._samples, shuffle=shuffle)
        self._loader: DataLoader[Any] | None = None
        self._fetched: Iterator[Any] | None = None
        nothing = HeldOrder(torch.empty(0, dtype=torch.int64))
        self._jobs: PassJobs = OrderedPass(self._key, nothing, 1, random=False)
        self._next = 0
        self._stop = 0
        self._until = 0  # where `take` looks up: the end of the pass, or 0 in one that was restored and not begun again
        self._open = False

    @property
    def batches(self) -> int | None:
        """See above."""
        return self._batches if self._deal is None else self._deal.steps(self._key, self._batches)

    @property
    def taken(self) -> int:
        """Batches taken from the open pass."""
        return self._next

    @property
    def idle(self) -> bool:
        """See above."""
        deal = self._deal
        return deal is not None and self._next > 0 and deal.part(self._next - 1, self._sizes(), self._key) is None

    @property
    def taken_early(self) -> bool:
        """Whether the open pass may be empty: steps of the one before it have taken batches of it."""
        return self._deal is not None and self._batches > 0 and self._deal.first(self._key, self._batches) > 0

    def steps_in(self, epochs: range) -> int:
        """Return how many steps these epochs make, if the dataset stays as it is."""
        if self._deal is None:
            return len(epochs) * self._batches
        return self._deal.steps_in(epochs, self._batches)

    def begin(self, key: PassKey, limit: int | None) -> None:
        """Begin a pass.

        Raises:
            DataError: If the dataset has changed, and a rank has taken batches of this pass already.
        """
        samples, before = len(self._dataset), self._batches
        if samples != self._samples:
            if self._deal is not None and self._deal.first(key, before):
                raise DataError(
                    f"the dataset has {samples} samples, and had {self._samples} when a rank began pass "
                    f"{key.pass_index} of epoch {key.epoch} with the last batches of the step before; change it only "
                    "where a step ends with the pass, or use remainder='drop' or 'flush'"
                )
            self._loader = None  # persistent workers hold a copy of the dataset as it was
            self._set_samples(samples)
            self.varies = self.varies or self._batches != before
        self._key, self._next, self._open = key, 0, True
        stop = self.batches or 0
        self._stop = stop if limit is None else min(stop, limit)
        self._make_ready()
        if self._workers and self._stop:
            self._start_workers()

    def identity(self) -> dict[str, Any]:
        """Return the numbers of samples and batches, and the version of the order.

        The numbers are those that the run was built with, as it is when it is resumed; those of a dataset that has
        changed since stand beside them.
        """
        size = self._size()
        now = {f"{name} now": number for name, number in size.items() if size != self._built}
        return {**self._built, "version of the order": self._version, **now}

    def state(self) -> dict[str, Any]:
        """Return the place."""
        generators = [generator_state(generator) for generator in self._fetch.generators()]
        place = {"open": self._open, "key": list(self._key), "next": self._next, "stop": self._stop}
        place |= {} if self._deal is None else {"world": self._deal.world}
        return {**place, "generators": generators, "samples": self._samples, "varies": self.varies}

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Return to a place, at once; the dataset is looked at when the first batch is taken, as plugins open first."""
        del key  # it is part of the state
        with stored_state_of("a generator of the dataset"):
            for generator, at in zip(self._fetch.generators(), state["generators"], strict=False):
                set_generator_state(generator, at)
        self._set_samples(state.get("samples", self._samples))  # older checkpoints have none
        self.varies = state.get("varies", False)
        if state["open"]:
            self._key, self._next, self._stop = PassKey(*state["key"]), state["next"], state["stop"]
            self._until, self._open, self._fetched = 0, True, None
            self._move(state.get("world", 1))
        return None

    def take(self) -> Any:
        """Return the next batch."""
        if self._next >= self._until:
            self._resume()
        if self._workers:
            return self._take_from_workers()
        batch = self._fetch(*self._jobs.job(self._next))
        self._next += 1
        return batch

    def end(self) -> None:
        """End the pass; workers that have given all of it see its end, and wait for the next one."""
        self._open = False
        if self._fetched is not None and self._next >= self._stop:
            next(self._fetched, None)

    def doubt(self) -> str:
        """Return nothing: order and randomness are functions of seed, epoch, pass and batch."""
        return ""

    def rest(self) -> None:
        """End worker processes: what they have fetched can be fetched again."""
        self._fetched = self._loader = None

    def close(self) -> None:
        """End worker processes."""
        self.rest()

    def jobs(self) -> Iterator[tuple[Any, int]]:
        """Yield, for each batch of the open pass that was not taken yet, its indices and its seed."""
        for place in range(self._next, self._stop):
            indices, seed = self._jobs.job(place)
            yield np.frombuffer(host_bytes(indices), np.int64).copy(), seed

    def _resume(self) -> None:
        """Make a pass that was restored ready, with the dataset as it is now that plugins are open."""
        if self._next >= self._stop:
            raise DataError(f"the pass has {self._stop} batches and one more was asked for")
        if (samples := len(self._dataset)) != self._samples:
            raise DataError(
                f"the dataset has {samples} samples, and had {self._samples} in the pass that is resumed; the plugin "
                "that changes its size must do so in its open(run) too"
            )
        self._make_ready()

    def _move(self, world: int) -> None:
        """Find the place that ranks of another number had reached, after the same batches."""
        here = 1 if self._deal is None else self._deal.world
        if world == here:
            return
        deal = self._deal or Deal(0, 1, self._remainder)
        self._next, self._stop = deal.moved(world, self._key, self._next, self._stop, self._batches)

    def _make_ready(self) -> None:
        fetch: Fetch = build_fetch(self._dataset, self._collate)
        if self._prepare is not None and not self._workers:
            fetch = self._prepare(fetch)
        place = None if self._workers else fetch.place_order
        make = partial(_ordered_pass, self._samples, self._batch_size, self._shuffle, fetch.random, place)
        self._jobs = make(self._key) if self._deal is None else DealtPasses(self._deal, self._key, self._sizes(), make)
        self._fetch, self._until, self._fetched = fetch, self._stop, None

    def _set_samples(self, samples: int) -> None:
        self._samples = samples
        whole = samples // self._batch_size if self._drop_last else -(-samples // self._batch_size)
        self._batches = whole if self._limit is None else min(whole, self._limit)

    def _size(self) -> dict[str, Any]:
        return {"samples": self._samples, "batches": self._batches}

    def _sizes(self) -> Sizes:
        return Sizes(self._batches, min(self._samples, self._batches * self._batch_size), self._batch_size)

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
        if self._loader is None or not self._persistent:  # not `if not`: its truth is its length
            self._loader = DataLoader(
                cast("Dataset[Any]", InWorkers(self._fetch)),  # indexed by jobs, which torch's types lack
                sampler=_Jobs(self),
                batch_size=None,
                num_workers=self._workers,
                persistent_workers=self._persistent,
                collate_fn=as_it_is,
                pin_memory=self._pin,
                generator=torch.Generator().manual_seed(0),  # without one, iter() draws from the global generator
            )
        self._fetched = begin_iterating(self._loader)
        return self._fetched


class _Jobs:
    """The sampler of the worker processes: the jobs of whichever pass is open."""

    def __init__(self, cursor: IndexCursor) -> None:
        self._cursor = weakref.ref(cursor)  # else loader and cursor would hold each other, and the workers, for ever

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        cursor = self._cursor()
        return iter(()) if cursor is None else cursor.jobs()


def _ordered_pass(
    samples: int,
    batch_size: int,
    shuffle: bool,
    random: bool,
    place: Callable[[Order], Order] | None,
    key: PassKey,
) -> OrderedPass:
    """Return a pass over samples in its order, which `place` puts where the indices are needed."""
    its = order(samples, *key, shuffle=shuffle)
    return OrderedPass(key, its if place is None else place(its), batch_size, random=random)
