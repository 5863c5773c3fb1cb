"""Random number generators: seeding them, deriving seeds, capturing and restoring their states."""

from __future__ import annotations

import random
from collections.abc import Generator as Yields
from collections.abc import Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """Return a seed of 63 bits that is a function of all parts and of nothing else."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seed the global generators of torch (all devices), python and numpy."""
    torch.manual_seed(seed)
    seed_cpu(seed)


def seed_cpu(seed: int) -> None:
    """Seed the global CPU generators of torch, python and numpy; those of devices are the network's."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes 32 bits


def cpu_states() -> dict[str, Any]:
    """Return the states of the global CPU generators of torch, python and numpy."""
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }


def global_states() -> dict[str, Any]:
    """Return the states of the global generators, those of all CUDA devices in use too (waits for these devices)."""
    states = cpu_states()
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_states(states: Mapping[str, Any]) -> None:
    """Restore the global generators to what one of the above returned; a generator without a state is left alone."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    for device, state in enumerate(states.get("cuda", ())):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


@contextmanager
def preserved() -> Yields[None]:
    """Restore the global CPU generators of torch, python and numpy at the end of a block.

    Costs about 25 µs, so it is used once a batch and not once a sample.
    """
    states = cpu_states()
    try:
        yield
    finally:
        restore_states(states)


Generator = torch.Generator | np.random.Generator | random.Random


def generators_of(*holders: object) -> list[Generator]:
    """Return the generators that these objects hold as attributes, each once, in the order in which they stand."""
    found: dict[int, Generator] = {}
    for holder in holders:
        for value in cast("dict[str, object]", getattr(holder, "__dict__", {})).values():
            if isinstance(value, Generator):
                found.setdefault(id(value), value)
    return list(found.values())


def generator_state(generator: Generator) -> Any:
    """Return the state of one generator."""
    match generator:
        case torch.Generator():
            return generator.get_state()
        case np.random.Generator():
            return generator.bit_generator.state
        case random.Random():
            return generator.getstate()


def set_generator_state(generator: Generator, state: Any) -> None:
    """Restore a generator to a state that `generator_state` returned."""
    match generator:
        case torch.Generator():
            generator.set_state(state)
        case np.random.Generator():
            generator.bit_generator.state = state
        case random.Random():
            generator.setstate(state)
