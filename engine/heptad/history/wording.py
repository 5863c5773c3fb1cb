"""Times, rates and values in words, each with its unit: for whoever shows what a log says."""

from __future__ import annotations

import re
from datetime import datetime
from textwrap import shorten

_UNIT = re.compile(r"(?<=[\d.]) (?=(?:ns|µs|us|ms|s|min|h|d|%|B|kB|MB|GB|MiB|GiB)(?![\w/])|(?:updates?|steps?)\b)")
"""The space between a number and its unit."""

HARD = "\u00a0"
"""A space at which no line is broken."""


def with_hard_spaces(text: str) -> str:
    """Return a text in which no line is broken between a number and its unit."""
    return _UNIT.sub(HARD, text)


def readable_time(nanoseconds: float) -> str:
    """Return a duration in hours, minutes, seconds, milliseconds or microseconds, whichever reads best."""
    for unit, size in (("h", 3600e9), ("min", 60e9), ("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:,.3f} {unit}"
    return f"{nanoseconds / 1e3:,.1f} µs"


def long_time(nanoseconds: float) -> str:
    """Return a duration of a run or a part of it: `850 ms`, `12.3 s`, `4 min 10 s`, `3 h 05 min`, `2 d 4 h`."""
    seconds = nanoseconds / 1e9
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h"


def rate(number: float, what: str) -> str:
    """Return a rate with its unit, such as `45.3 updates/s`; of a slow one how long each takes."""
    if number and number < 0.1:
        return f"{1 / number:,.1f} s/{what.removesuffix('s')}"
    return f"{number:,.0f} {what}/s" if number >= 100 else f"{number:.1f} {what}/s"


def short_value(value: float) -> str:
    """Return a recorded value in four digits."""
    return f"{value:.4g}"


def date_and_time(time_ns: int) -> str:
    """Return a moment, local, to the second; in words where no calendar has it, as in a damaged log."""
    try:
        return datetime.fromtimestamp(time_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "no date"


def shown_share(part: float, whole: float) -> str:
    """Return a share in per cent."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def first_words(text: str, most: int) -> str:
    """Return the beginning of a text in one line; what is left out begins between two words, if there are some.

    A word without an end is cut, but not within a number. Of a long text no more is looked at than a few times what is
    shown: it may have a gigabyte.
    """
    beginning = text[: 8 * most]
    line = " ".join(beginning.split())
    if len(line) <= most:
        return f"{line} …" if len(beginning) < len(text) else line
    words = shorten(line, most, placeholder=" …")
    return words if len(words) > most // 2 else f"{line[: most - 1].rstrip('0123456789.,')}…"
