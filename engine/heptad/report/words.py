"""Texts for the page: cut to a length that a page can hold, control characters written out, and numbers."""

from __future__ import annotations

import math
import re

LONGEST = 2_000
"""Characters of a text that the page shows."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tabs and line ends, what turns the direction of a text, and halves of surrogate pairs."""


def harmless(value: object, longest: int = LONGEST) -> str:
    """Return a text that does no harm in a page and is no longer than that; how much was cut is said."""
    text = value if isinstance(value, str) else str(value)
    more = len(text) - longest
    text = _CONTROL.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text[:longest])
    return f"{text} … ({more:,} characters more)" if more > 0 else text


def real(value: float) -> str:
    """Return a number in six digits; NaN and infinities in words."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    return f"{value:.6g}"
