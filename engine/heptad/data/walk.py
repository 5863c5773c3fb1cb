"""Walking a loader that the user made, or an iterable dataset, pass after pass; and finding back to a place in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
)

from heptad.config import RunConfig
from heptad.data.fetch import Collate, PassKey, Stream, as_it_is, ignore_interrupts
from heptad.data.generators import capture_cpu, own_generators, preserved, put_state, restore, state_of
from heptad.errors import DataError, kind

NOTHING: Any = object()


class Walk:
    """Walks a loader. One pass is open at a time.

    A loader with `state_dict` and `load_state_dict`, such as torchdata's `StatefulDataLoader`, is brought back to a
    place by these. Any other is walked there anew: from the random states in which the pass was begun and its first
    batch was taken, since that is where loaders draw their order, and from what its samplers were then.

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
            "samplers": self._sampler_states(),
        }

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Goes to a place.

        Returns:
            What it took, in words, where the loader had to be walked, and what may have been lost with earlier passes.

        Raises:
            DataError: If the loader ends before that place.
        """
        del key
        self._walks, self.taken, self._began = state["walks"], state["taken"], list(state["began"])
        if self._is_stateful and state["own"] is not None:
            self._loader.load_state_dict(state["own"])
            self.iterator = iter(self._loader)  # it is this that takes the state in; the next one begins a pass
            self._put_own(state["generators"], state.get("samplers"))
            if not state["open"]:
                self.iterator = None
            return None
        walked = None
        if state["open"]:
            with preserved():
                walked = self._walk_to(state["taken"])
        else:
            self._put_own(state["generators"], state.get("samplers"))
        lost = self._not_told() if state["walks"] > state["open"] else ""
        return "; ".join(filter(None, (walked, lost))) or None

    def _walk_to(self, taken: int) -> str | None:
        if self._began:
            self._put_random_state(self._began[0])
        self.iterator = iter(self._loader)
        if self._began[1:]:
            self._put_random_state(self._began[1])
        return walk_on(self.iterator, taken)

    @property
    def _is_stateful(self) -> bool:
        return _is_stateful(self._loader)

    @property
    def _draws(self) -> bool:
        """Whether walking may draw random numbers."""
        return not isinstance(self._loader, list | tuple) and not self._is_stateful

    def _samplers(self) -> list[Any]:
        """Returns what gives the order, each once: the loader's sampler, its batch sampler, and the one in that."""
        batches = getattr(self._loader, "batch_sampler", None)
        found = (getattr(self._loader, "sampler", None), batches, getattr(batches, "sampler", None))
        return list({id(sampler): sampler for sampler in found if sampler is not None}.values())

    def _sampler_states(self) -> list[Any]:
        """Returns how each sampler stands, None for one that does not tell; nothing if the loader tells it all."""
        return [] if self._is_stateful else [_sampler_state(sampler) for sampler in self._samplers()]

    def _generators(self) -> Sequence[Any]:
        batches = getattr(self._loader, "batch_sampler", None)
        return own_generators(
            self._loader,
            getattr(self._loader, "sampler", None),
            batches,
            getattr(batches, "sampler", None),
            *_within(getattr(self._loader, "dataset", None)),
        )

    def _random_state(self) -> dict[str, Any]:
        own = [state_of(generator) for generator in self._generators()]
        return {"global": capture_cpu(), "own": own, "samplers": self._sampler_states()}

    def _put_random_state(self, state: Mapping[str, Any]) -> None:
        restore(state["global"])
        self._put_own(state["own"], state.get("samplers"))

    def _put_own(self, states: Sequence[Any], samplers: Sequence[Any] | None) -> None:
        """Puts back what is the loader's own: its generators and its samplers.

        A checkpoint that tells of no samplers is older; it has the generators of no dataset within another one.
        """
        generators = self._generators()
        if samplers is None:
            generators = generators[: len(states)]
        if len(generators) != len(states):
            raise DataError(
                f"the loader, its sampler and its dataset hold {len(generators)} random generators, those of the "
                f"checkpoint held {len(states)}; resume with the data that the run was begun with"
            )
        for generator, state in zip(generators, states, strict=True):
            put_state(generator, state)
        for sampler, state in zip(self._samplers(), samplers or (), strict=False):
            if state is not None:
                _put_sampler(sampler, state)

    def _not_told(self) -> str:
        """Returns in words what may carry something from pass to pass that nobody can see, or nothing."""
        loader, what = self._loader, ""
        if self._is_stateful or is_a(loader, list | tuple):
            return ""
        if not is_a(loader, DataLoader):
            what = f"the loader (a {kind(loader)}) has no state_dict and load_state_dict"
        elif odd := next((sampler for sampler in self._samplers() if not _is_known(sampler)), None):
            what = f"the sampler (a {kind(odd)}) has no state_dict and load_state_dict"
        elif is_a(loader.dataset, IterableDataset):
            what = f"the dataset (a {kind(loader.dataset)}) is iterated anew"
        elif loader.num_workers and loader.persistent_workers:
            what = "the workers draw at random from where they were after the last pass (persistent_workers=True)"
        if not what:
            return ""
        return (
            f"{what}, and earlier passes were not walked again: that the data go on as they would have cannot be told"
        )


def _within(dataset: Any) -> Iterator[Any]:
    """Yields a dataset, and those that it is a part or a chain of."""
    yield dataset
    if is_a(dataset, Subset):
        yield from _within(dataset.dataset)
    elif is_a(dataset, ConcatDataset | ChainDataset):
        for part in dataset.datasets:
            yield from _within(part)


def _sampler_state(sampler: Any) -> Any:
    """Returns how a sampler stands: the epoch that `set_epoch` gave it, or its `state_dict`; None if it has neither.

    The epoch of torch's distributed sampler comes first: what torchdata's subclass adds is a place in the pass, which
    is found by walking.
    """
    if is_a(sampler, DistributedSampler) or (_has_epoch(sampler) and not _is_stateful(sampler)):
        return {"epoch": sampler.epoch}
    return {"state": sampler.state_dict()} if _is_stateful(sampler) else None


def _put_sampler(sampler: Any, state: Mapping[str, Any]) -> None:
    if "epoch" in state:
        sampler.set_epoch(state["epoch"])
    else:
        sampler.load_state_dict(state["state"])


def _is_stateful(value: Any) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))


def _has_epoch(sampler: Any) -> bool:
    return callable(getattr(sampler, "set_epoch", None)) and isinstance(getattr(sampler, "epoch", None), int)


def _is_known(sampler: Any) -> bool:
    """Tells whether a sampler carries nothing from pass to pass but what is stored."""
    plain = type(sampler).__module__.startswith("torch.utils.data") or is_a(sampler, list | tuple | range)
    return plain or _sampler_state(sampler) is not None


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
        self._began: list[Any] = []
        """States of the generators that the dataset holds itself, when the pass was begun."""

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
        self._began = self._random_states()
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
        place = {"walks": self._walks, "taken": self._taken, "open": self._iterator is not None}
        return {**place, "began": self._began, "generators": self._random_states()}

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Goes to a place; says so where that took reading the data anew."""
        self._walks, self._taken = state["walks"], state["taken"]
        self._began = list(state.get("began", ()))
        own = self._began if state["open"] else state.get("generators", ())
        for generator, at in zip(own_generators(*_within(self._dataset)), own, strict=False):
            put_state(generator, at)
        if not state["open"]:
            return None
        self._iterator = self._iterate(key)
        return walk_on(self._iterator, self._taken)

    def _random_states(self) -> list[Any]:
        return [state_of(generator) for generator in own_generators(*_within(self._dataset))]

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
