"""What commands print: lines, plain data as JSON, tables.

Tables are drawn by rich, an extra that is imported when the first one is; all else works without it.
"""

from __future__ import annotations

import codecs
import io
import json
import math
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
"""Columns where nobody says how many there are: so that a program that reads finds a row in a line."""

_NEAR = {"─": "-", "━": "-", "µ": "u", "×": "x", "…": "...", "’": "'"}
"""What is printed in place of the signs that we use, where a terminal has none of them."""

_AS_NEAR = "heptad.as_near"


@contextmanager
def printable() -> Generator[None]:
    """Lets standard output take any text for the length of a block, whatever its encoding.

    A sign that it lacks is printed as one that is near, or by its number.
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
    signs = error.object[error.start : error.end]
    return "".join(_NEAR.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs), error.end


def complain(text: object) -> None:
    """Prints a line on standard error, if there is one."""
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison] - it is `None` where it was closed
        sys.stderr.write(f"heptad: {text}\n")
        sys.stderr.flush()


def is_stdout(path: Path) -> bool:
    """Tells whether a path is another name for what standard output goes to, such as /dev/stdout."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except OSError:  # there is no such file, or standard output is none
        return False


def line(text: object = "") -> None:
    """Prints a line."""
    sys.stdout.write(f"{text}\n")


def data(plain: Mapping[str, Any]) -> None:
    """Prints plain data as a line of JSON."""
    line(json.dumps(plain, allow_nan=False))


def number(value: float) -> float | str:
    """Returns a number as JSON can say it: not all of them, where it is not finite."""
    return value if math.isfinite(value) else str(value)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, how wide it is at least, whether it holds numbers, whether it may wrap."""

    title: str
    width: int = 0
    right: bool = False
    wraps: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], title: str = "", header: bool = True) -> None:
    """Prints a table.

    Raises:
        LogError: If rich is not installed.
    """
    try:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - an extra is imported where it is used
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.table import Table  # noqa: PLC0415 - as above
    except ImportError:
        raise LogError("tables need rich; install it with: pip install 'heptad[rich]', or say --json") from None
    drawn = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, show_header=header, show_edge=False)
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
    text = io.StringIO()  # and not stdout, at whose end rich would leave the program by itself
    Console(file=text, width=width, force_terminal=terminal, markup=False, emoji=False, highlight=False).print(drawn)
    sys.stdout.writelines(f"{row.rstrip()}\n" for row in text.getvalue().splitlines())


def duration(nanoseconds: float) -> str:
    """Returns a time in the unit that reads well."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:,.3f} {unit}"
    return f"{nanoseconds / 1e3:,.1f} µs"
