"""Plain data for a checkpoint, from state that holds what JSON would alter: tuples, and keys that are no str."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast


def to_plain(value: Any) -> Any:
    """Returns a value with its tuples, dicts and Counters written as lists that say what they were."""
    if isinstance(value, dict):
        items = [[key, to_plain(item)] for key, item in cast("dict[Any, Any]", value).items()]
        return {"Counter" if isinstance(value, Counter) else "dict": items}
    if isinstance(value, tuple):
        return {"tuple": [to_plain(item) for item in cast("tuple[Any, ...]", value)]}
    if isinstance(value, list):
        return [to_plain(item) for item in cast("list[Any]", value)]
    return value


def from_plain(value: Any) -> Any:
    """Returns what `to_plain` was given."""
    if isinstance(value, list):
        return [from_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        ((kind, items),) = cast("dict[str, list[Any]]", value).items()
        if kind == "tuple":
            return tuple(from_plain(item) for item in items)
        pairs = {key: from_plain(item) for key, item in items}
        return Counter(pairs) if kind == "Counter" else pairs
    return value
