"""Random number generators: seeding them, deriving seeds, capturing and restoring their states."""

from __future__ import annotations

import random
import struct
from collections.abc import Generator as Yields
from collections.abc import Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch

from heptad.errors import CheckpointError, EngineError, in_a_line

CPU_GENERATORS = frozenset(("torch", "python", "numpy"))
"""The names of the states of the CPU's global generators; any other name is that of a type of device."""

_TWISTER = 624
"""Numbers that a Mersenne twister draws in advance."""

_HEAD = struct.Struct("=8xi4xq")
"""Of a state of torch's CPU generator: how many of these are left, and the place of the next."""


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
    """Return the states of the global generators, those of all accelerators in use too (waits for these devices)."""
    return {**cpu_states(), **_accelerator_states()}


def _accelerator_states() -> dict[str, list[torch.Tensor]]:
    """Return the states of the accelerator's generators, by the type of the device; none if it was not used yet."""
    device = torch.accelerator.current_accelerator()
    module = None if device is None else _module_of(device.type)
    if device is None or module is None:
        return {}
    # asked where it can answer: to read the state would open a context, which takes memory
    in_use = module.is_initialized() if hasattr(module, "is_initialized") else module.device_count() > 0
    if not in_use:
        return {}
    return {device.type: module.get_rng_state_all() if _has_several(module) else [module.get_rng_state()]}


def _module_of(kind: str) -> Any:
    """Return torch's module for a type of device, such as `torch.cuda`; `None` if this torch has none."""
    try:
        return torch.get_device_module(kind)
    except RuntimeError:
        return None


def _has_several(module: Any) -> bool:
    """Return whether a device module numbers its devices: `torch.mps` has one, and takes no number."""
    return hasattr(module, "get_rng_state_all")


def restore_states(states: Mapping[str, Any]) -> None:
    """Restore the global generators to what one of the above returned; a generator without a state is left alone."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    for kind in states.keys() - CPU_GENERATORS:
        module = _module_of(kind)
        for number, state in enumerate(states[kind]):
            if module is not None and number < module.device_count():
                module.set_rng_state(state, *([number] if _has_several(module) else []))


def check_states(states: Mapping[str, Any]) -> None:
    """Look at states from a file, before `restore_states` takes them: numpy and torch do not look.

    Raises:
        ValueError: If one leads its generator out of its memory.
    """
    for name in CPU_GENERATORS & states.keys():
        _check_places(states[name])


def _check_places(state: Any) -> None:
    """Refuse a place outside of the numbers that a generator has drawn in advance: it would be read from there."""
    match state:
        case (str(), _, place, *_) | {"bit_generator": str(), "state": {"pos": place}}:  # numpy's
            _refuse_place(place, _TWISTER)
        case torch.Tensor() if state.dtype is torch.uint8 and state.dim() == 1 and state.numel() > 8 * _TWISTER:
            left, place = _HEAD.unpack(bytes(cast("list[int]", state[: _HEAD.size].tolist())))
            _refuse_place(left + place, _TWISTER + 1)
        case _:
            pass  # python looks itself
    match state:
        case {"bit_generator": str(), "buffer_pos": place}:  # of numpy's Philox
            _refuse_place(place, 4)
        case _:
            pass


def _refuse_place(place: Any, most: int) -> None:
    if not isinstance(place, int) or not 0 <= place <= most:
        raise ValueError(f"a random generator has no place {place!r:.40}")


@contextmanager
def device_preserved(device: torch.device) -> Yields[None]:
    """Restore the global generator of an accelerator at the end of a block; for the CPU do nothing."""
    module: Any = None if device.type == "cpu" else _module_of(device.type)
    if not hasattr(module, "get_rng_state"):
        yield
        return
    which = [device] if _has_several(module) else []
    state = module.get_rng_state(*which)
    try:
        yield
    finally:
        module.set_rng_state(state, *which)


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


@contextmanager
def stored_state_of(what: str) -> Yields[None]:
    """Raise what is wrong with a state that a checkpoint holds as a `CheckpointError`; only its owner can tell."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what} cannot load the state in the checkpoint: {in_a_line(error)}") from error


Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


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
        case np.random.RandomState():
            return generator.get_state()
        case random.Random():
            return generator.getstate()


def set_generator_state(generator: Generator, state: Any) -> None:
    """Restore a generator to a state that `generator_state` returned.

    Raises:
        Exception: If it is no state of this generator, of whatever kind its owner raises.
    """
    _check_places(state)
    match generator:
        case torch.Generator():
            generator.set_state(state)
        case np.random.Generator():
            generator.bit_generator.state = state
        case np.random.RandomState():
            generator.set_state(state)
        case random.Random():
            generator.setstate(state)
