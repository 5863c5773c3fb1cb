"""Strict JSON: every key once, no NaN, so many values at most; what does not conform is damage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from heptad.checkpoints.damage import DamagedError

MOST_CONTAINERS = 1 << 20
"""Objects and lists in a text: an empty one takes two bytes there, and up to 240 bytes of memory."""

MOST_VALUES = 1 << 23
"""Values and keys in a text: a number takes two bytes there, and 40 bytes of memory."""

_LONG = 1 << 26
"""Bytes: a longer text holds ASCII only, since one other character makes four bytes of each in a string."""

_STRINGS = re.compile(rb'"[^"]*"')
"""Of a text without escapes; a pattern that knows of these takes 100 bytes of memory for each byte of a string."""


def write_json(value: Any) -> bytes:
    """Return a value as JSON in ASCII; NaN and infinities are a ValueError."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def read_json(content: bytes) -> Any:
    """Return the value of JSON text.

    Raises:
        DamagedError: If it is not JSON, has a key twice, NaN or an infinity, is nested too deep, or holds too much: it
            is counted first, since what it takes in memory is a multiple of its length.
    """
    if too_much := excess(content):
        raise DamagedError(f"is not readable JSON: {too_much}")
    try:
        return json.loads(content.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 is a ValueError too
        raise DamagedError(f"is not readable JSON: {error}") from error


def excess(content: bytes) -> str:
    """Return of what JSON text holds more than is read; nothing for one that is read."""
    if not content.isascii() or (len(content) > _LONG and b"\\u" in content):
        return "it holds characters beyond ASCII as they are never written"
    quotes = content.count(b'"') - content.count(b'\\"')
    if quotes > 2 * MOST_VALUES:
        return f"it holds {quotes // 2:,} texts, at most {MOST_VALUES:,} values are read"
    if found := _more_than_are_read(content):  # an upper bound: what stands in strings was counted too
        found = _more_than_are_read(_STRINGS.sub(b"", content.replace(b"\\\\", b"").replace(b'\\"', b"")))
    return found


def _more_than_are_read(content: bytes) -> str:
    containers = content.count(b"[") + content.count(b"{")
    if containers > MOST_CONTAINERS:
        return f"it holds {containers:,} lists and objects, at most {MOST_CONTAINERS:,} are read"
    values = containers + content.count(b",") + content.count(b":")
    return f"it holds {values:,} values, at most {MOST_VALUES:,} are read" if values > MOST_VALUES else ""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {_first_twice(name for name, _ in pairs)!r:.100} is there twice in an object")
    return found


def _first_twice(names: Iterable[str]) -> str:
    """Return the first name that was there before, in one pass."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
