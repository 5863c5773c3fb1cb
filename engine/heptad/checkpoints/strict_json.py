"""Strict JSON: every key once, no NaN; what does not conform is damage."""

from __future__ import annotations

import json
from typing import Any

from heptad.checkpoints.damage import DamagedError


def write_json(value: Any) -> bytes:
    """Return a value as JSON in ASCII; NaN and infinities are a ValueError."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def read_json(content: bytes) -> Any:
    """Return the value of JSON text.

    Raises:
        DamagedError: If it is not JSON, has a key twice, NaN or an infinity, or is nested too deep.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 is a ValueError too
        raise DamagedError(f"is not readable JSON: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice in an object"
        )
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
