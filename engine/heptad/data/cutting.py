"""Cutting a batch into parts of nearly equal numbers of samples, where memory does not hold the whole."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch

from heptad.data.placement import field_names
from heptad.errors import DataError, a_kind, counted, summarize


def cut(batch: Any, samples: int, parts: int) -> list[Any]:
    """Return the parts of a batch, in order; containers keep their kind, tensors are views.

    A tensor or an array whose first dimension is the number of samples is cut along it, and so is a list of as many
    items without such a tensor. One whose first dimension is 1, numbers and text belong to each part whole.

    Args:
        batch: The batch.
        samples: How many samples it holds.
        parts: Into how many parts it is cut, at most `samples`.

    Raises:
        DataError: If something in it does not say which part of it belongs to which sample.
    """
    bounds = [number * samples // parts for number in range(parts + 1)]
    return [_part(batch, samples, begin, end, 0) for begin, end in pairwise(bounds)]


def _part(value: Any, samples: int, begin: int, end: int, depth: int) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        shape: Sequence[int] = cast("Any", value).shape
        if not shape or (shape[0] == 1 and samples != 1):
            return cast("Any", value)
        if shape[0] != samples:
            raise DataError(f"it holds {summarize(value)} beside {counted(samples, 'sample')}")
        return cast("Any", value)[begin:end]
    if isinstance(value, MutableMapping):
        clone = copy(cast("MutableMapping[Any, Any]", value))
        for key, item in clone.items():
            clone[key] = _part(item, samples, begin, end, depth + 1)
        return clone
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return cast("Any", type(value))({k: _part(item, samples, begin, end, depth + 1) for k, item in items})  # pyright: ignore[reportUnknownArgumentType] - the type of a user's own mapping
    if isinstance(value, list | tuple):
        return _part_of_list(cast("Sequence[Any]", value), samples, begin, end, depth)
    if callable(getattr(value, "to", None)):
        raise DataError(f"nothing is known of how {a_kind(value)} is cut")
    if names := field_names(value):
        clone = copy(value)
        for name in names:
            object.__setattr__(clone, name, _part(getattr(clone, name), samples, begin, end, depth + 1))
        return clone
    return value


def _part_of_list(value: Sequence[Any], samples: int, begin: int, end: int, depth: int) -> Any:
    """Cut a list: one item a sample, or a container of parts that are cut each for itself, such as (data, target)."""
    parts = list(value)
    cuttable = [_has_samples(part, samples) for part in parts]
    lists = [cast("Sequence[Any]", part) for part in parts if isinstance(part, list | tuple)]
    columns = not depth and len(lists) == len(parts) and all(len(part) == samples for part in lists)  # two of two
    if len(parts) == samples and not any(cuttable) and not columns and not hasattr(value, "_fields"):
        parts = parts[begin:end]
    elif len(parts) == samples and depth and all(cuttable):
        raise DataError(f"{summarize(value)} may hold {counted(samples, 'sample')}, or tensors of as many")
    else:
        parts = [_part(part, samples, begin, end, depth + 1) for part in parts]
    return cast("Any", type(value))(*parts) if hasattr(value, "_fields") else cast("Any", type(value))(parts)


def _has_samples(value: Any, samples: int) -> bool:
    """Return whether there is a tensor or an array of that many samples in a value."""
    if isinstance(value, torch.Tensor | np.ndarray):
        shape: Sequence[int] = cast("Any", value).shape
        return bool(shape) and shape[0] == samples
    if isinstance(value, Mapping):
        return any(_has_samples(part, samples) for part in cast("Mapping[Any, Any]", value).values())
    if isinstance(value, list | tuple):
        return any(_has_samples(part, samples) for part in cast("Sequence[Any]", value))
    return any(_has_samples(getattr(value, name), samples) for name in field_names(value))


def joined(outputs: Sequence[Any]) -> Any:
    """Return the outputs for the parts of a batch as one for the whole; `None` where nothing is known of that."""
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        whole = all(isinstance(one, torch.Tensor) and one.shape[1:] == first.shape[1:] for one in outputs)
        return torch.cat([one.detach() for one in outputs]) if whole and first.dim() else None
    if isinstance(first, Mapping):
        found = {key: joined([one[key] for one in outputs]) for key in cast("Mapping[Any, Any]", first)}
        return _rebuilt(cast("Any", first), found)
    if isinstance(first, list | tuple):
        parts = [joined(part) for part in zip(*outputs, strict=True)]
        return cast("Any", type(first))(*parts) if hasattr(first, "_fields") else cast("Any", type(first))(parts)  # pyright: ignore[reportUnknownArgumentType] - a named tuple
    return None


def _rebuilt(first: Any, found: Mapping[Any, Any]) -> Any:
    """Return a mapping of a user's own kind, such as the outputs of transformers, with other values."""
    clone = copy(first)
    for key, value in found.items():
        clone[key] = value
    return clone
