"""What a metric object computed, as numbers and arrays by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from heptad.errors import EngineError, summarize

Array = np.ndarray[Any, Any]

MOST_NAMES = 1024
"""A vector of more values is kept as an array: each value has a name of its own in logs."""


def split(name: str, value: Any, class_names: Sequence[str]) -> tuple[dict[str, float], dict[str, Array]]:
    """Return what a metric computed as numbers and as arrays, by name.

    A mapping, or a named tuple, gives a value for each of its names: `name/<key>`. A vector gives `name/0`, `name/1`
    and so on, or `name/<class>` where there are as many class names. What has more dimensions is an array.

    Args:
        name: The metric's; empty for one that stands alone, whose keys are names.
        value: What it computed.
        class_names: The names of the classes.

    Raises:
        EngineError: If it is none of these.
    """
    numbers: dict[str, float] = {}
    arrays: dict[str, Array] = {}
    for key, part in _named_parts(name, value):
        array = _as_array(key, part)
        if not array.ndim:
            numbers[key] = float(array)
        elif array.ndim > 1 or array.size > MOST_NAMES:
            arrays[key] = array
        else:
            named = class_names if len(class_names) == array.size else range(array.size)
            numbers |= {f"{key}/{one}": float(number) for one, number in zip(named, array, strict=True)}
    return numbers, arrays


def _named_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return the parts of a value that have names of their own."""
    items: list[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        items = list(cast("Mapping[Any, Any]", value).items())
    elif isinstance(value, tuple) and hasattr(cast("Any", value), "_fields"):
        items = list(cast("Any", value)._asdict().items())
    elif isinstance(value, tuple | list) and any(_has_dimensions(part) for part in cast("Sequence[Any]", value)):
        items = list(enumerate(cast("Sequence[Any]", value)))  # such as precision, recall and thresholds of a curve
    if items is None:
        return [(name, value)]
    return [part for key, one in items for part in _named_parts(f"{name}/{key}" if name else str(key), one)]


def _has_dimensions(value: Any) -> bool:
    return isinstance(value, tuple | list | Mapping) or getattr(value, "ndim", 0) > 0


def _as_array(name: str, value: Any) -> Array:
    """Return a number, a list of numbers, a tensor or an array of numbers as an array on the host."""
    array = value
    if isinstance(value, tuple | list):
        parts = cast("Sequence[Any]", value)
        array = np.array([part.item() if isinstance(part, torch.Tensor) else part for part in parts])
    elif isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        array = (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
    elif isinstance(value, int | float | np.generic):
        array = np.asarray(value)
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf":
        return cast("Array", array)
    raise EngineError(
        f"metrics[{name!r}].compute() must return numbers: one, a vector, an array, or a mapping of these by name; got "
        f"{summarize(value)}"
    )
