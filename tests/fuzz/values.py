"""JSON that almost is what it was: one place of it is odd, missing, there twice, or taken from elsewhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

RAW = {
    "@deep@": "[" * 50_000 + "]" * 50_000,
    "@deep objects@": '{"a":' * 5_000 + "0" + "}" * 5_000,
    "@long@": "[" + "[]," * 200_000 + "[]]",
    "@many keys@": "{" + ",".join(f'"{number}":0' for number in range(50_000)) + "}",
    "@digits@": "9" * 5_000,
    "@nan@": "NaN",
    "@twice@": '{"a":1,"a":2}',
}
"""What `json.dumps` does not write, by the text that stands for it until then."""

NUMBERS = [
    0,
    1,
    -1,
    2,
    255,
    65_536,
    2**31,
    2**53 + 1,
    2**62,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    0.5,
    -0.0,
    1e308,
]
TEXTS = ["", "x", "\x00", "\ud800", "é\n", "../x", "/etc/passwd", "tensor", "[]", "0x10", "x" * 10_000]
OTHERS = [None, True, False, [], {}, [[]], [0], [None], {"": None}, {"tensor": "x"}, {"int": "0x7"}, {"float": "00"}]

Change = Callable[[Any, Any, Any, Random], None]
"""Changes a container at one key; it also gets the whole value."""


def mutated(value: Any, draw: Random) -> Any:
    """Return a copy of a value with one place of it changed."""
    holder = {"": copy.deepcopy(value)}
    container, key = _place(holder, draw)
    draw.choice(CHANGES)(container, key, holder, draw)
    return holder.get("")


def odd(draw: Random) -> Any:
    """Return a value that few expect."""
    return copy.deepcopy(
        draw.choice(draw.choice([NUMBERS, TEXTS, OTHERS, list(RAW) if draw.random() < 0.1 else NUMBERS]))
    )


def dumped(value: Any, **options: Any) -> bytes:
    """Return a value as JSON, with what stands for raw text in place of it."""
    return expanded(json.dumps(value, **options).encode())


def expanded(content: bytes) -> bytes:
    """Return JSON with raw text in the places of what stands for it; the result may be none that can be parsed."""
    for marker, raw in RAW.items():
        content = content.replace(f'"{marker}"'.encode(), raw.encode())
    return content


def _place(root: Any, draw: Random) -> tuple[Any, Any]:
    """Return a container somewhere in a value, and a key of it; each level is as likely as another."""
    container = root
    while True:
        key = draw.choice(_keys(container))
        child = container[key]
        if not (isinstance(child, dict | list) and child) or draw.random() < 0.1:
            return container, key
        container = child


def _keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


def _replace(container: Any, key: Any, root: Any, draw: Random) -> None:
    container[key] = odd(draw)


def _graft(container: Any, key: Any, root: Any, draw: Random) -> None:
    other, place = _place(root, draw)
    container[key] = copy.deepcopy(other[place])


def _swap(container: Any, key: Any, root: Any, draw: Random) -> None:
    other = draw.choice(_keys(container))
    container[key], container[other] = container[other], container[key]


def _remove(container: Any, key: Any, root: Any, draw: Random) -> None:
    del container[key]


def _double(container: Any, key: Any, root: Any, draw: Random) -> None:
    again = copy.deepcopy(container[key])
    if isinstance(container, list):
        container.insert(draw.randrange(len(container) + 1), again)
    else:
        container[f"{key}{draw.choice(['', ' ', '_', '.0'])}x"] = again


def _rename(container: Any, key: Any, root: Any, draw: Random) -> None:
    if isinstance(container, dict):
        container[draw.choice([*TEXTS, *map(str, _keys(container))])] = container.pop(key)
    else:
        container.reverse()


def _nudge(container: Any, key: Any, root: Any, draw: Random) -> None:
    value = container[key]
    if isinstance(value, bool) or value is None:
        container[key] = not value
    elif isinstance(value, int | float):
        container[key] = draw.choice([value + 1, value - 1, -value, value * 2, value + 0.5, str(value)])
    elif isinstance(value, str):
        at = draw.randrange(len(value) + 1)
        container[key] = draw.choice(
            [value[:at], value[at:], value + value, value.upper(), f"{value[:at]}0{value[at:]}"]
        )
    else:
        container[key] = draw.choice([[value], {"tuple": value}, {"dict": value}, {"items": value}, {"Counter": value}])


CHANGES: list[Change] = [_replace, _replace, _graft, _swap, _remove, _double, _rename, _nudge, _nudge]
