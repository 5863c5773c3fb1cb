"""Random generators: seeding them, deriving seeds, and putting the global ones back."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """Returns a seed of 63 bits that is a function of all parts and of nothing else."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seeds the global generators of torch (all devices), python and numpy."""
    torch.manual_seed(seed)
    seed_cpu(seed)


def seed_cpu(seed: int) -> None:
    """Seeds the global CPU generators of torch, python and numpy; those of devices are the network's."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes 32 bits


def capture_cpu() -> dict[str, Any]:
    """Returns the states of the global CPU generators of torch, python and numpy."""
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }


def capture() -> dict[str, Any]:
    """Returns the states of the global generators, those of all CUDA devices in use too, which waits for them."""
    states = capture_cpu()
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore(states: Mapping[str, Any]) -> None:
    """Puts the global generators back to where one of the above found them; one that it did not see is left alone."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    for device, state in enumerate(states.get("cuda", ())):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


@contextmanager
def preserved() -> Generator[None]:
    """Puts the global CPU generators of torch, python and numpy back to where they were on entry.

    Costs about 25 µs, so it is used once a batch and not once a sample.
    """
    states = capture_cpu()
    try:
        yield
    finally:
        restore(states)


Own = torch.Generator | np.random.Generator | random.Random


def own_generators(*holders: object) -> list[Own]:
    """Returns the generators that these objects hold as attributes, each once, in the order in which they stand."""
    found: dict[int, Own] = {}
    for holder in holders:
        for value in cast("dict[str, object]", getattr(holder, "__dict__", {})).values():
            if isinstance(value, Own):
                found.setdefault(id(value), value)
    return list(found.values())


def state_of(generator: Own) -> Any:
    """Returns the state of one generator."""
    match generator:
        case torch.Generator():
            return generator.get_state()
        case np.random.Generator():
            return generator.bit_generator.state
        case random.Random():
            return generator.getstate()


def put_state(generator: Own, state: Any) -> None:
    """Puts a generator to a state that `state_of` returned."""
    match generator:
        case torch.Generator():
            generator.set_state(state)
        case np.random.Generator():
            generator.bit_generator.state = state
        case random.Random():
            generator.setstate(state)
