"""What commands print: lines and JSON. Tables are in `grid`."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NEAR = {
    **{"─": "-", "━": "-", "µ": "u", "×": "x", "…": "...", "’": "'", "·": "."},
    **dict(zip("▁▂▃▄▅▆▇█", "_..--==#", strict=True)),  # a sparkline
}
"""Replacements for the characters of our own that the terminal's encoding may lack."""

_AS_NEAR = "heptad.as_near"

_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")
"""Control characters but for tabs and line ends."""


@contextmanager
def printable() -> Generator[None]:
    """Replace characters that standard output cannot encode, within a block, instead of raising.

    A character is replaced by a similar one, or else by its escape.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    codecs.register_error(_AS_NEAR, _as_near)
    errors = stream.errors
    stream.reconfigure(errors=_AS_NEAR)
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)


def _as_near(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_NEAR.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in lacking), error.end


def print_error(text: object) -> None:
    """Print a line to standard error, unless it is closed."""
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison] - it is None after `2>&-`
        sys.stderr.write(f"heptad: {text}\n")
        sys.stderr.flush()


def is_stdout(path: Path) -> bool:
    """Return whether a path is the file that standard output writes to, such as /dev/stdout."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except OSError:  # there is no such file, or standard output is no file
        return False


def print_line(text: object = "") -> None:
    """Print a line."""
    sys.stdout.write(f"{visible(str(text))}\n")


def visible(text: str) -> str:
    """Return a text with its control characters as escapes: a note may hold what would command a terminal."""
    return text if text.isprintable() else _CONTROL.sub(lambda sign: f"\\x{ord(sign[0]):02x}", text)


def encodable(text: str) -> str:
    """Return a text as standard output will show it, with what its encoding lacks replaced: to be measured."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        codecs.register_error(_AS_NEAR, _as_near)
        return text.encode(encoding, _AS_NEAR).decode(encoding)
    return text


def print_json(row: Mapping[str, Any]) -> None:
    """Print a line of JSON."""
    print_line(json.dumps(row, allow_nan=False))
