"""What commands print: lines, JSON, tables.

Tables are drawn by rich, an extra that is imported with the first table; all else works without it.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from heptad.errors import LogError

_GAP = 3
"""Characters that a column takes beside its own."""

NOT_A_TERMINAL = 220
"""The width of tables that are not printed to a terminal: wide enough that a row stays in one line for `grep`."""

_NEAR = {"─": "-", "━": "-", "µ": "u", "×": "x", "…": "...", "’": "'"}
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
        spare: Where the terminal is too narrow for all, the column with the highest number is left out first; one with
            0 never is.
    """

    title: str
    width: int = 0
    right: bool = False
    wraps: bool = False
    spare: int = 0


def fitting(columns: Sequence[Column], width: int) -> list[int]:
    """Return the numbers of the columns that have room side by side, going by their least widths."""
    kept = list(range(len(columns)))
    while sum(max(columns[number].width, len(columns[number].title)) + _GAP for number in kept) > width:
        spare = max(kept, key=lambda number: columns[number].spare)
        if not columns[spare].spare:
            break
        kept.remove(spare)
    return kept


def _widths(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int, length: Callable[[str], int]
) -> list[int]:
    """Return the width of each column: what its cells need; of one that wraps, as much of that as there is room for."""
    least = [max(column.width, len(column.title)) for column in columns]
    wanted = [max([room, *(length(row[number]) for row in cells)]) for number, room in enumerate(least)]
    widths = [room if column.wraps else most for column, room, most in zip(columns, least, wanted, strict=True)]
    left = width - sum(widths) - _GAP * len(widths)
    for number, most in enumerate(wanted):
        more = max(0, min(left, most - widths[number]))
        widths[number] += more
        left -= more
    return widths


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], header: bool = True) -> None:
    """Print a table. Columns that have no room are left out, and a line above says which.

    Raises:
        LogError: If rich is not installed.
    """
    try:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - an extra is imported where it is used
        from rich.cells import cell_len  # noqa: PLC0415 - as above
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.table import Table  # noqa: PLC0415 - as above
    except ImportError:
        raise LogError("tables need rich; install it with: pip install 'heptad[rich]', or use --json") from None
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else NOT_A_TERMINAL
    kept = fitting(columns, width)
    left_out = [column.title for number, column in enumerate(columns) if number not in kept]
    if left_out and header:
        print_line(fill(f"no room for {', '.join(left_out)}: use a wider terminal, or --json", width))
    shown = [columns[number] for number in kept]
    cells = [[visible(row[number]) for number in kept] for row in rows]
    drawn = Table(box=SIMPLE_HEAD, show_header=header, show_edge=False)
    for column, room in zip(shown, _widths(shown, cells, width, cell_len), strict=True):
        justify = "right" if column.right else "left"
        drawn.add_column(column.title, width=room, justify=justify, no_wrap=not column.wraps, overflow="fold")
    for row in cells:
        drawn.add_row(*row)
    text = io.StringIO()  # rich would exit the program by itself when stdout is a closed pipe
    Console(  # without a height a "dumb" terminal counts as 80 wide
        file=text, width=width, height=25, force_terminal=terminal, markup=False, emoji=False, highlight=False
    ).print(drawn)
    sys.stdout.writelines(f"{row.rstrip()}\n" for row in text.getvalue().splitlines())
