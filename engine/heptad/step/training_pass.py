"""`training_pass`: the batches of one pass over the training data in plain order, beside the feed of the run."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy
from typing import Any

import torch
from torch.utils.data import DataLoader

from heptad.config import Components, RunConfig
from heptad.data.build import Place, build_dataset_feed, build_loader_feed
from heptad.data.feed import Feed
from heptad.data.fetch import is_a
from heptad.data.generators import generator_state, seed_all, set_generator_state
from heptad.data.loader import data_generators
from heptad.errors import DataError, kind
from heptad.step.evaluation import generators_preserved, reading_config

NAME = "run.training_pass()"
"""What errors call the data."""


def training_pass(
    components: Components, config: RunConfig, device: torch.device, place: Place, seed: int
) -> Iterator[Any]:
    """Yield the batches of a pass, placed. See `Run.training_pass`.

    Args:
        components: Whose data are read.
        config: That of the training run.
        device: Whose generator is restored at the end, with those of the CPU.
        place: Returns a batch on the device.
        seed: What the global generators are seeded with for the length of the pass, so that ranks draw alike.
    """
    data = components.dataset if components.loader is None else components.loader
    if is_a(data, Iterator):
        raise DataError(
            f"{NAME} needs data that can be iterated again, and a {kind(data)} can be iterated once; pass an object "
            "whose __iter__ begins anew"
        )
    generators = data_generators(components)
    states = [generator_state(generator) for generator in generators]
    with generators_preserved(device):
        seed_all(seed)
        try:
            feed = _feed_of(components, config, place)
            try:
                feed.seed = seed
                feed.open(0, 0)
                while feed.more():
                    yield place(feed.take())
            finally:
                feed.close()
        finally:
            for generator, state in zip(generators, states, strict=True):
                set_generator_state(generator, state)


def _feed_of(components: Components, config: RunConfig, place: Place) -> Feed:
    if components.loader is not None:
        return build_loader_feed(_apart(components.loader), NAME, config.limit_batches, place)
    # a last batch that training drops may be too small for BatchNorm
    changes = {"drop_last": config.drop_last, "limit_batches": config.limit_batches, "persistent_workers": False}
    reading = reading_config(config).model_copy(update=changes)
    return build_dataset_feed(components.dataset, components.collate_fn, reading, NAME, place)


def _apart(loader: Any) -> Any:
    """Return a copy of a `DataLoader` with workers and samplers of its own: the run may be in the middle of a pass."""
    if not is_a(loader, DataLoader):
        return loader
    own, known = copy(loader), {id(loader.dataset): loader.dataset}
    changes: dict[str, Any] = {"_iterator": None, "persistent_workers": False}  # the workers of the run stay with it
    try:
        vars(own).update(
            changes, sampler=deepcopy(loader.sampler, known), batch_sampler=deepcopy(loader.batch_sampler, known)
        )
    except Exception:  # whatever its own copying raises: what it draws is restored all the same
        vars(own).update(changes)
    return own
