"""Walking a loader that the user made, or an iterable dataset, pass after pass; and finding back to a place in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from heptad.config import RunConfig
from heptad.data.fetch import Collate, PassKey, Stream, as_it_is, ignore_interrupts
from heptad.errors import DataError, kind
from heptad.seeding import capture_cpu, own_generators, preserved, put_state, restore, state_of

NOTHING: Any = object()


class Walk:
    """Walks a loader. One pass is open at a time.

    A loader with `state_dict` and `load_state_dict`, such as torchdata's `StatefulDataLoader`, is brought back to a
    place by these. Any other is walked there anew: from the random states in which the pass was begun and its first
    batch was taken, since that is where loaders draw their order.

    Attributes:
        iterator: Over the open pass; `None` where none is open or its end was seen.
        taken: Batches taken from it. Whoever takes one without `take` counts it, and calls `first` before the first.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._walks = 0
        self.iterator: Iterator[Any] | None = None
        self.taken = 0
        self._began: list[Any] = []
        """Random states: when the pass was begun, and when its first batch was about to be taken."""

    def begin(self, key: PassKey) -> None:
        """Begins a pass.

        Raises:
            DataError: If the loader can be walked once, and was.
        """
        del key
        self.iterator = None  # the old one's workers go before the new one's come
        if self._walks:
            refuse_second_walk(self._loader)
        self._began = [self._random_state()] if self._draws else []
        self.iterator = iter(self._loader)
        self._walks += 1
        self.taken = 0

    def take(self) -> Any:
        """Returns the next batch, or `NOTHING` at the end of the pass."""
        if self.iterator is None:
            return NOTHING
        if not self.taken:
            self.first()
        batch = next(self.iterator, NOTHING)
        if batch is NOTHING:
            self.iterator = None
        else:
            self.taken += 1
        return batch

    def first(self) -> None:
        """Remembers the random states in which the first batch of the pass is about to be taken."""
        if self._draws:
            self._began = [*self._began[:1], self._random_state()]

    def end(self) -> None:
        """Ends the pass."""
        self.iterator = None

    def state(self) -> dict[str, Any]:
        """Returns the place, as plain data and tensors."""
        own = self._loader.state_dict() if self._is_stateful else None
        return {
            "walks": self._walks,
            "open": self.iterator is not None,
            "taken": self.taken,
            "began": self._began,
            "own": own,
            "generators": [state_of(generator) for generator in self._generators()],
        }

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Goes to a place.

        Returns:
            What it took, in words, where the loader had to be walked.

        Raises:
            DataError: If the loader ends before that place.
        """
        del key
        self._walks, self.taken, self._began = state["walks"], state["taken"], list(state["began"])
        if self._is_stateful and state["own"] is not None:
            self._loader.load_state_dict(state["own"])
            self.iterator = iter(self._loader)  # it is this that takes the state in; the next one begins a pass
            self._put_generators(state["generators"])
            if not state["open"]:
                self.iterator = None
            return None
        walked = None
        if state["open"]:
            with preserved():
                walked = self._walk_to(state["taken"])
        else:
            self._put_generators(state["generators"])
        return walked

    def _walk_to(self, taken: int) -> str | None:
        if self._began:
            self._put_random_state(self._began[0])
        self.iterator = iter(self._loader)
        if self._began[1:]:
            self._put_random_state(self._began[1])
        return walk_on(self.iterator, taken)

    @property
    def _is_stateful(self) -> bool:
        return all(callable(getattr(self._loader, name, None)) for name in ("state_dict", "load_state_dict"))

    @property
    def _draws(self) -> bool:
        """Whether walking may draw random numbers."""
        return not isinstance(self._loader, list | tuple) and not self._is_stateful

    def _generators(self) -> Sequence[Any]:
        batches = getattr(self._loader, "batch_sampler", None)
        return own_generators(
            self._loader,
            getattr(self._loader, "sampler", None),
            batches,
            getattr(batches, "sampler", None),
            getattr(self._loader, "dataset", None),
        )

    def _random_state(self) -> dict[str, Any]:
        return {"global": capture_cpu(), "own": [state_of(generator) for generator in self._generators()]}

    def _put_random_state(self, state: Mapping[str, Any]) -> None:
        restore(state["global"])
        self._put_generators(state["own"])

    def _put_generators(self, states: Sequence[Any]) -> None:
        generators = self._generators()
        if len(generators) != len(states):
            raise DataError(
                f"the loader, its sampler and its dataset hold {len(generators)} random generators, those of the "
                f"checkpoint held {len(states)}; resume with the data that the run was begun with"
            )
        for generator, state in zip(generators, states, strict=True):
            put_state(generator, state)


class StreamWalk:
    """Walks an iterable dataset, pass after pass, in batches that the engine makes."""

    def __init__(self, dataset: Any, config: RunConfig, collate: Collate | None) -> None:
        self._dataset = dataset
        self._collate = collate
        self._batch_size = config.batch_size or 1
        self._drop_last = config.drop_last
        self._workers = config.num_workers
        self._walks = 0
        self._taken = 0
        self._iterator: Iterator[Any] | None = None

    def begin(self, key: PassKey) -> None:
        """Begins a pass.

        Raises:
            DataError: If the dataset can be walked once, and was.
        """
        self._iterator = None  # the old one's workers go before the new one's come
        self._walks += 1
        if self._walks > 1:
            refuse_second_walk(self._dataset)
        self._taken = 0
        self._iterator = self._iterate(key)

    def take(self) -> Any:
        """Returns the next batch, or `NOTHING` at the end of the pass."""
        if self._iterator is None:
            return NOTHING
        batch = next(self._iterator, NOTHING)
        if batch is NOTHING:
            self._iterator = None
        else:
            self._taken += 1
        return batch

    def end(self) -> None:
        """Ends the pass."""
        self._iterator = None

    def state(self) -> dict[str, Any]:
        """Returns the place."""
        return {"walks": self._walks, "taken": self._taken, "open": self._iterator is not None}

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Goes to a place; says so where that took reading the data anew."""
        self._walks, self._taken = state["walks"], state["taken"]
        if not state["open"]:
            return None
        self._iterator = self._iterate(key)
        return walk_on(self._iterator, self._taken)

    def _iterate(self, key: PassKey) -> Iterator[Any]:
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


def walk_on(iterator: Iterator[Any], batches: int) -> str | None:
    """Takes this many batches and lets them go; says so.

    Raises:
        DataError: If there are fewer.
    """
    for number in range(batches):
        if next(iterator, NOTHING) is NOTHING:
            raise DataError(
                f"the data ended after {number} batches, but the checkpoint was taken after {batches} of this pass; "
                "resume with the data that the run was begun with"
            )
    return f"the data were walked to their place, {batches} batches into the pass" if batches else None


def refuse_second_walk(data: Any) -> None:
    """Raises a `DataError` for what can be walked only once."""
    if is_a(data, Iterator):
        raise DataError(
            f"the data are a {kind(data)}, which can be walked once, and a further pass is needed; pass "
            "something whose __iter__ begins anew, such as a list, a DataLoader or a class with __iter__"
        )


def is_a(value: object, of: Any) -> bool:
    """`isinstance` that narrows nothing: torch's generic classes would make a user's `Any` partly unknown."""
    return isinstance(value, of)
