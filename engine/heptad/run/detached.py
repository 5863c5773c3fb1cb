"""`detached`: outputs as handlers and metrics see them, without the graph that they were computed by."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, cast

import torch


def detached(value: Any) -> Any:
    """Return a tensor, or a container of tensors, detached from its graph; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value)
        clone = copy(items)  # keeps a class of its own, such as a model's named outputs
        for key, item in items.items():
            clone[key] = detached(item)
        return clone
    if isinstance(value, tuple | list):
        kind, parts = cast("Any", type(value)), [detached(item) for item in cast("Sequence[Any]", value)]  # pyright: ignore[reportUnknownArgumentType] - the user's own class
        return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
    return value
