"""Telling what a batch or an output looks like, for the note on an exception: types and shapes, no values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch

from heptad.errors import kind

DEPTH = 3
WIDTH = 4


def told(value: Any, depth: int = DEPTH) -> str:
    """Returns a value in words, such as `a list of 2: float32 of shape (4, 8), int64 of shape (4,)`.

    Nothing is read from a device. What cannot be looked at is named by its type.
    """
    try:
        return _told(value, depth)
    except Exception:  # a container of the user's own may raise anything, and would hide what this is told for
        return f"a {kind(value)}"


def _told(value: Any, depth: int) -> str:
    if isinstance(value, torch.Tensor):
        device = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}{device}"
    name = f"a {kind(value)}"
    if isinstance(value, Mapping):
        held = cast("Mapping[Any, Any]", value)
        return _container(name, len(held), (f"{key!r}: {_told(held[key], depth - 1)}" for key in held), depth)
    if isinstance(value, list | tuple):
        items = cast("list[Any]", value)
        if items and not any(isinstance(item, torch.Tensor | Mapping | list | tuple) for item in items):
            return f"{name} of {len(items)} {' or '.join(dict.fromkeys(map(kind, items)))}"
        return _container(name, len(items), (_told(item, depth - 1) for item in items), depth)
    return name


def _container(name: str, size: int, parts: Iterable[str], depth: int) -> str:
    name = f"{name} of {size}"
    if depth <= 0 or not size:
        return name
    shown = [part for part, _ in zip(parts, range(WIDTH), strict=False)]
    return f"{name}: {', '.join(shown)}{', …' if size > WIDTH else ''}"
