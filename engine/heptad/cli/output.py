"""What commands print: lines, JSON, tables.

Tables are drawn by rich, an extra that is imported with the first table; all else works without it.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import shutil
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptad.errors import LogError

NOT_A_TERMINAL = 220
"""The width of tables that are not printed to a terminal: wide enough that a row stays in one line for `grep`."""

_NEAR = {"─": "-", "━": "-", "µ": "u", "×": "x", "…": "...", "’": "'"}
"""Replacements for the characters of our own that the terminal's encoding may lack."""

_AS_NEAR = "heptad.as_near"


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
    sys.stdout.write(f"{text}\n")


def print_json(row: Mapping[str, Any]) -> None:
    """Print a line of JSON."""
    print_line(json.dumps(row, allow_nan=False))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        width: The least width, in characters.
        right: Whether it is aligned to the right, as numbers are.
        wraps: Whether a long cell wraps.
    """

    title: str
    width: int = 0
    right: bool = False
    wraps: bool = False


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], header: bool = True) -> None:
    """Print a table.

    Raises:
        LogError: If rich is not installed.
    """
    try:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - an extra is imported where it is used
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.table import Table  # noqa: PLC0415 - as above
    except ImportError:
        raise LogError("tables need rich; install it with: pip install 'heptad[rich]', or use --json") from None
    drawn = Table(box=SIMPLE_HEAD, show_header=header, show_edge=False)
    for column in columns:
        drawn.add_column(
            column.title,
            min_width=column.width,
            justify="right" if column.right else "left",
            no_wrap=not column.wraps,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*row)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else NOT_A_TERMINAL
    text = io.StringIO()  # rich would exit the program by itself when stdout is a closed pipe
    Console(file=text, width=width, force_terminal=terminal, markup=False, emoji=False, highlight=False).print(drawn)
    sys.stdout.writelines(f"{row.rstrip()}\n" for row in text.getvalue().splitlines())


def readable_time(nanoseconds: float) -> str:
    """Return a duration in seconds, milliseconds or microseconds, whichever reads best."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:,.3f} {unit}"
    return f"{nanoseconds / 1e3:,.1f} µs"
