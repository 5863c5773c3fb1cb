"""Placing batches on a device, and counting the samples in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from typing import Any, cast

import torch

from heptad.errors import ConfigError


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device of that name; `"auto"` is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: If this machine has no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    device = torch.device(name)
    if not _is_here(device):
        raise ConfigError(
            f"RunConfig.device is '{name}', but torch sees {_accelerators()} here; use 'auto' or 'cpu'"
            + (", or one of these" if torch.accelerator.is_available() else "")
        )
    return device


def _is_here(device: torch.device) -> bool:
    if device.type == "cuda":  # counted only: opening a context there would take memory
        return (device.index or 0) < torch.cuda.device_count()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):  # torch raises any of these for a device that is absent
        return False
    return True


def _accelerators() -> str:
    """Return the names of the accelerators of this machine."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return "no accelerator"
    return ", ".join(f"'{found.type}:{index}'" for index in range(torch.accelerator.device_count()))


def place(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor in it on `device`; containers keep their kind, all else stays as it is.

    An object that has a method `to` is asked to move itself. Of a dataclass, or an object of attrs or pydantic, the
    fields are moved, in a copy.

    Copies from pinned memory need no device sync.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, MutableMapping):
        # copied, not built: the constructor of a user's class may take more than items
        clone = copy(cast("MutableMapping[Any, Any]", batch))
        for key, value in clone.items():
            clone[key] = place(value, device)
        return clone
    if isinstance(batch, Mapping):
        items = cast("Mapping[Any, Any]", batch).items()
        return cast("Any", type(batch))({key: place(value, device) for key, value in items})  # pyright: ignore[reportUnknownArgumentType] - the type of a user's own mapping
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # pyright: ignore[reportUnknownArgumentType] - a named tuple
        return cast("Any", type(batch))(*(place(value, device) for value in cast("tuple[Any, ...]", batch)))  # pyright: ignore[reportUnknownArgumentType] - as above
    if isinstance(batch, list | tuple):
        return cast("Any", type(batch))([place(value, device) for value in cast("Sequence[Any]", batch)])  # pyright: ignore[reportUnknownArgumentType] - as above
    if callable(move := getattr(batch, "to", None)):
        return move(device)
    if names := field_names(batch):
        # copied, and set past what freezes it: the constructor may take more than the fields, or other things
        clone = copy(batch)
        for name in names:
            object.__setattr__(clone, name, place(getattr(clone, name), device))
        return clone
    return batch


def field_names(batch: Any) -> list[str]:
    """Return the names of the attributes that a dataclass, or an object of attrs or pydantic, holds; else none."""
    cls = cast("Any", type(batch))
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    elif hasattr(cls, "__attrs_attrs__"):
        names = [field.name for field in cls.__attrs_attrs__]
    elif hasattr(cls, "__pydantic_fields__"):
        names = list(cls.__pydantic_fields__)
    else:
        return []
    # what it has computed and kept, such as a cached property, goes with the fields; one with slots has no __dict__
    names += getattr(batch, "__dict__", {})
    return [name for name in dict.fromkeys(names) if hasattr(batch, name)]


def read_numbers(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Return the numbers in 0-dim tensors of one device: one device sync for all of them."""
    return cast("list[float]", torch.stack([tensor.double() for tensor in tensors]).tolist())


def count_samples(batch: Any) -> int:
    """Return how many samples a batch holds: the length of the first tensor in it, outer ones before inner ones.

    Two lists of one length, one of them without tensors, hold one sample an item: images and the dicts that describe
    them. A list without a tensor counts its items; what has no length counts as one sample.
    """
    return 1 if (found := _samples_in(batch)) is None else found


def _samples_in(batch: Any) -> int | None:
    """Return how many samples there are in a part of a batch; `None` where it does not say."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.dim() else None
    if isinstance(batch, Mapping):
        return _samples_of(list(cast("Mapping[Any, Any]", batch).values()))
    if not isinstance(batch, list | tuple):
        return _samples_of([getattr(batch, name) for name in field_names(batch)])
    parts = list(cast("Sequence[Any]", batch))
    found = _samples_of(parts)
    return max(1, len(parts)) if found is None else found


def _samples_of(parts: list[Any]) -> int | None:
    for part in parts:
        if isinstance(part, torch.Tensor) and part.dim():
            return part.shape[0]
    lists = [cast("Sequence[Any]", part) for part in parts if isinstance(part, list | tuple) and part]
    for number, one in enumerate(lists):
        same = any(len(one) == len(other) for place, other in enumerate(lists) if place != number)
        if same and not any(isinstance(item, torch.Tensor | list | tuple) for item in one):
            return len(one)
    return next((found for part in parts if (found := _nested(part)) is not None), None)


def _nested(part: Any) -> int | None:
    """Return what a container in a batch says; nothing where it is empty."""
    held = part if isinstance(part, Mapping | list | tuple) else field_names(part)  # pyright: ignore[reportUnknownVariableType] - only whether it is empty
    return _samples_in(part) if held else None
