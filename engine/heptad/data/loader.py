"""Iterating a loader that the user made: what it draws at random, and what it carries from pass to pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, DistributedSampler, IterableDataset, Subset

from heptad.config import Components
from heptad.data.cursor import PassKey
from heptad.data.fetch import is_a
from heptad.data.generators import (
    check_states,
    cpu_states,
    generator_state,
    generators_of,
    preserved,
    restore_states,
    set_generator_state,
    stored_state_of,
)
from heptad.data.iterator_cursor import walk_to
from heptad.data.workers import begin_iterating
from heptad.errors import CheckpointError, a_kind

OF_TORCH = ("torch.utils.data", "torchdata.")
"""How the names of modules begin whose loaders and samplers are torch's own."""


_UNVERIFIED = "exact continuation of the data cannot be verified"


class LoaderSource:
    """A loader as a source of passes.

    A loader with `state_dict` and `load_state_dict`, such as torchdata's `StatefulDataLoader`, is brought back to a
    place by these. Any other is walked there anew: from the random states in which the pass was begun and its first
    batch was taken, since that is where loaders draw their order, and from what its samplers were then.

    Attributes:
        reads_early: Whether its batches are the same if they are taken before their step.
        draws: Whether iterating it may draw from the global generators, and they are stored for it.
    """

    def __init__(self, loader: Any, *, sized: bool) -> None:
        self.data = loader
        # torch's RandomSampler draws once more after its last index: a plain loop sees that end, so the order of the
        # next pass depends on it. Only where loader and samplers are of torch's own classes, which keep to their
        # length, so that no batch is fetched there: one of the user's may never end, and is not asked.
        self.drained = sized and self._by_torch()
        self._sized = sized
        self._stateful = is_stateful(loader)
        # read ahead by its workers in any case, and by nothing that acts in this process
        self.reads_early = bool(self._by_torch() and not self._stateful and loader.num_workers)
        self.draws = not isinstance(loader, list | tuple) and not self._stateful

    def length(self) -> int | None:
        """Return the loader's length, asked anew."""
        return len(self.data) if self._sized else None

    def iterate(self, key: PassKey) -> Iterator[Any]:
        """Begin a pass."""
        del key  # the order is the loader's
        return begin_iterating(self.data)

    def before_pass(self) -> list[Any]:
        """Return the states of the global and the loader's own generators, and of its samplers."""
        if not self.draws:
            return []
        generators = [generator_state(generator) for generator in self._generators()]
        return [{"global": cpu_states(), "own": generators, "samplers": self._sampler_states()}]

    def before_first(self, began: list[Any]) -> list[Any]:
        """Add the same once more."""
        return [*began[:1], *self.before_pass()]

    def own(self) -> dict[str, Any]:
        """Return the loader's own state, its generators and its samplers."""
        return {
            "own": self.data.state_dict() if self._stateful else None,
            "generators": [generator_state(generator) for generator in self._generators()],
            "samplers": self._sampler_states(),
        }

    def go_to(self, state: Mapping[str, Any], key: PassKey) -> tuple[Iterator[Any] | None, str | None]:
        """Return an iterator at a place, and what is to be said of it."""
        del key
        if self._stateful and state["own"] is not None:
            with stored_state_of(f"the loader ({a_kind(self.data)})"):
                self.data.load_state_dict(state["own"])
                iterator = begin_iterating(self.data)  # it is this that takes the state in; the next one begins a pass
            self._restore_own(state["generators"], state.get("samplers"))
            lost = self.doubt()
            return (iterator if state["open"] else None), f"{lost}: {_UNVERIFIED}" if lost else None
        iterator, walked = None, None
        if state["open"]:
            with preserved():
                iterator, walked = self._walk(state["taken"], state["began"])
        else:
            self._restore_own(state["generators"], state.get("samplers"))
        lost = self.doubt() if state["walks"] > state["open"] else ""
        if lost:
            lost += f", and earlier passes were not walked again: {_UNVERIFIED}"
        return iterator, "; ".join(filter(None, (walked, lost))) or None

    def _walk(self, taken: int, began: Sequence[Mapping[str, Any]]) -> tuple[Iterator[Any], str | None]:
        if began:
            self._restore_drawn(began[0])
        iterator = begin_iterating(self.data)
        if began[1:]:
            self._restore_drawn(began[1])
        return iterator, walk_to(iterator, taken)

    def _samplers(self) -> list[Any]:
        """Return what gives the order, each once: the loader's sampler, its batch sampler, and the one in that."""
        batches = getattr(self.data, "batch_sampler", None)
        found = (getattr(self.data, "sampler", None), batches, getattr(batches, "sampler", None))
        return list({id(sampler): sampler for sampler in found if sampler is not None}.values())

    def _sampler_states(self) -> list[Any]:
        """Return the state of each sampler, None for one that has none; nothing if the loader's own holds them."""
        return [] if self._stateful else [_sampler_state(sampler) for sampler in self._samplers()]

    def _by_torch(self) -> bool:
        """Return whether loader and samplers are of torch's own classes, which yield as many batches as they say."""
        loader = cast("type[Any]", type(self.data))
        if not is_a(self.data, DataLoader):
            return False
        return all(method.__module__.startswith(OF_TORCH) for method in (loader.__iter__, loader.__len__)) and all(
            type(sampler).__module__.startswith(OF_TORCH) or isinstance(sampler, list | tuple | range)
            for sampler in self._samplers()
        )

    def _generators(self) -> list[Any]:
        return _generators_of_loader(self.data)

    def _restore_drawn(self, state: Mapping[str, Any]) -> None:
        with stored_state_of("what draws the order of the data"):
            check_states(state["global"])
            restore_states(state["global"])
            self._restore_own(state["own"], state.get("samplers"))

    def _restore_own(self, states: Sequence[Any], samplers: Sequence[Any] | None) -> None:
        """Restore the loader's generators and samplers.

        A checkpoint without samplers is older; it lacks the generators of datasets within another one.
        """
        with stored_state_of("what draws the order of the data"):
            self._restore_each(states, samplers)

    def _restore_each(self, states: Sequence[Any], samplers: Sequence[Any] | None) -> None:
        generators = self._generators()
        if samplers is None:
            generators = generators[: len(states)]
        if len(generators) != len(states):
            raise CheckpointError(
                f"the loader, its sampler and its dataset hold {len(generators)} random generators, those of the "
                f"checkpoint held {len(states)}; resume with the data that the run was begun with"
            )
        for generator, state in zip(generators, states, strict=True):
            set_generator_state(generator, state)
        for sampler, state in zip(self._samplers(), samplers or (), strict=False):
            if state is not None:
                _restore_sampler(sampler, state)

    def doubt(self) -> str:
        """Return what may carry something from pass to pass that cannot be seen, or nothing."""
        loader, what = self.data, ""
        if self._stateful:
            # torchdata's stores what the dataset says of itself in each worker, and no random state
            own = is_stateful(getattr(loader, "dataset", None))
            drawing = bool(getattr(loader, "num_workers", 0)) and not own
            return f"the workers of the loader ({a_kind(loader)}) may draw at random unseen" if drawing else ""
        if isinstance(loader, list | tuple):
            return ""
        if not is_a(loader, DataLoader):
            what = f"the loader ({a_kind(loader)}) has no state_dict and load_state_dict"
        elif odd := next((sampler for sampler in self._samplers() if not _is_known(sampler)), None):
            what = f"the sampler ({a_kind(odd)}) has no state_dict and load_state_dict"
        elif is_a(loader.dataset, IterableDataset):
            what = f"the dataset ({a_kind(loader.dataset)}) is iterated anew"
        elif loader.num_workers and loader.persistent_workers:
            what = "the workers draw at random from where they were after the last pass (persistent_workers=True)"
        return what


def data_generators(components: Components) -> list[Any]:
    """Return the random generators that the data of a run hold."""
    if components.loader is not None:
        return _generators_of_loader(components.loader)
    return generators_of(*parts_of_dataset(components.dataset))


def _generators_of_loader(loader: Any) -> list[Any]:
    batches = getattr(loader, "batch_sampler", None)
    return generators_of(
        loader,
        getattr(loader, "sampler", None),
        batches,
        getattr(batches, "sampler", None),
        *parts_of_dataset(getattr(loader, "dataset", None)),
    )


def parts_of_dataset(dataset: Any) -> Iterator[Any]:
    """Yield a dataset, and those that it is a part or a chain of."""
    yield dataset
    if is_a(dataset, Subset):
        yield from parts_of_dataset(dataset.dataset)
    elif is_a(dataset, ConcatDataset | ChainDataset):
        for part in dataset.datasets:
            yield from parts_of_dataset(part)


def is_stateful(value: Any) -> bool:
    """Return whether a value has `state_dict` and `load_state_dict`."""
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))


def _sampler_state(sampler: Any) -> Any:
    """Return a sampler's state: the epoch that `set_epoch` gave it, or its `state_dict`; None if it has neither.

    The epoch of torch's distributed sampler comes first: what torchdata's subclass adds is a place in the pass, which
    is found by walking.
    """
    if is_a(sampler, DistributedSampler) or (_has_epoch(sampler) and not is_stateful(sampler)):
        return {"epoch": sampler.epoch}
    return {"state": sampler.state_dict()} if is_stateful(sampler) else None


def _restore_sampler(sampler: Any, state: Mapping[str, Any]) -> None:
    if "epoch" in state:
        sampler.set_epoch(state["epoch"])
    else:
        sampler.load_state_dict(state["state"])


def _has_epoch(sampler: Any) -> bool:
    return callable(getattr(sampler, "set_epoch", None)) and isinstance(getattr(sampler, "epoch", None), int)


def _is_known(sampler: Any) -> bool:
    """Return whether a sampler carries nothing from pass to pass but what is stored."""
    plain = type(sampler).__module__.startswith("torch.utils.data") or isinstance(sampler, list | tuple | range)
    return plain or _sampler_state(sampler) is not None
