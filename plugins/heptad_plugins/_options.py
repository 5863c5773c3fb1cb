"""Checking a plugin's options where it is built; each says what was found, what was expected, what to do."""

from __future__ import annotations

import math
from collections.abc import Collection

from heptad import PluginError


def whole(plugin: str, option: str, value: object, least: int = 1) -> int:
    """Returns a whole number from `least` on.

    Raises:
        PluginError: For anything else; True and 1.0 are no whole numbers.
    """
    if type(value) is not int or value < least:
        raise PluginError(f"{plugin}({option}=…) must be a whole number from {least} on, got {value!r}")
    return value


def number(plugin: str, option: str, value: object, *, above: float | None = None, least: float | None = None) -> float:
    """Returns a finite number above a bound, or from one on.

    Raises:
        PluginError: For anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        enough = (above is None or value > above) and (least is None or value >= least)
        if enough:
            return float(value)
    bound = f" above {above:g}" if above is not None else f" from {least:g} on" if least is not None else ""
    raise PluginError(f"{plugin}({option}=…) must be a number{bound}, got {value!r}")


def one_of(plugin: str, option: str, value: object, choices: Collection[str]) -> str:
    """Returns one of several words.

    Raises:
        PluginError: For anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise PluginError(f"{plugin}({option}=…) must be {' or '.join(map(repr, choices))}, got {value!r}")
    return value
