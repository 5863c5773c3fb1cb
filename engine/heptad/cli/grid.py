"""Tables in text that fit the terminal they are printed to: no number and no unit is cut, whole columns are left out.

Columns that have no room are dropped from the right, and a line above the table says which. What stands below a row
(guards and events) has a column where there is room for it. Needs no package: rich cannot draw a line below a row.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from heptad.cli.output import encodable, print_line, visible
from heptad.errors import LogError, nearest
from heptad.history.wording import HARD, with_hard_spaces

GAP = "  "
"""Between two columns."""

IN_A_PIPE = 220
"""How wide a column is at most that is not printed to a terminal. There a row is one line, so that `grep` finds it."""

USUAL = 80
"""How wide a terminal is that does not say so."""

LEAST = 20
"""How wide a terminal is at least, whatever it says."""

NARROWEST = 24
"""How wide a column of words is at least before it is dropped."""

_INDENT = "    "


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading, and its name for `--columns`.
        width: The least width, in characters, where the cells do not say more.
        right: Whether it is aligned to the right, as numbers are.
        wraps: Whether a long cell takes several lines. One that does not is never cut.
        below: Whether it stands on lines below its row where there is no room for it.
    """

    title: str
    width: int = 0
    right: bool = False
    wraps: bool = False
    below: bool = False


def terminal_width() -> int | None:
    """Return the width of the terminal that standard output is; `None` where it is none."""
    if not sys.stdout.isatty():
        return None
    try:
        wide = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(sys.stdout.fileno()).columns
    except (ValueError, OSError):
        wide = 0
    return max(wide, LEAST) if wide else USUAL  # a terminal that does not say how wide it is has 0 columns


class Grid:
    """A table that is printed, a page of rows at a time; the first page decides on the columns.

    Args:
        columns: All columns, the most important first.
        chosen: The titles of those that are wanted, in order; `None` for all.
        width: How wide it may be; by default that of the terminal, and without one no column is dropped.
        ways: Options of the command that show what has no room, in words.

    Raises:
        LogError: If a column that is wanted does not exist.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        chosen: Sequence[str] | None = None,
        width: int | None = None,
        ways: str = "--columns, or --json",
    ) -> None:
        self._ways = ways
        titles = [column.title for column in columns]
        for name in chosen or ():
            if name not in titles:
                raise LogError(f"there is no column '{name}'{nearest(name, titles)} (the columns: {', '.join(titles)})")
        self._order = list(range(len(columns))) if chosen is None else [titles.index(name) for name in chosen]
        self._columns = [columns[number] for number in self._order]
        self._limit = terminal_width() if width is None else width
        self._beside: list[int] = []  # the places of the columns that have room
        self._below: list[int] = []
        self._widths: list[int] = []
        self.begun = False

    def print(self, rows: Sequence[Sequence[str]]) -> None:
        """Print a page, under the headings if it is the first."""
        cells = [[_as_cell(row[number], self._limit) for number in self._order] for row in rows]
        if not self.begun:
            self._choose(cells)
            self._print_head()
        else:
            self._widen(cells)
        for row in cells:
            self._print_row(row)

    # -- which columns

    def _choose(self, cells: Sequence[Sequence[str]]) -> None:
        """Work out which columns have room beside each other, which stand below the rows, and how wide each is."""
        beside = list(range(len(self._columns)))
        limit = self._limit
        if limit is not None:
            if not self._fits(beside, cells, limit):
                self._below = [place for place in beside if self._columns[place].below]
                beside = [place for place in beside if place not in self._below] or [self._below.pop(0)]
            dropped: list[str] = []
            while len(beside) > 1 and not self._fits(beside, cells, limit):
                dropped.insert(0, self._columns[beside.pop()].title)
            if dropped:
                _print_dropped(f"no room for {', '.join(dropped)}: use a wider terminal, {self._ways}", limit)
        self._beside = beside
        self._widths = self._divided(cells)

    def _fits(self, beside: Sequence[int], cells: Sequence[Sequence[str]], limit: int) -> bool:
        return self._together([self._needed(place, cells) for place in beside]) <= limit

    def _needed(self, place: int, cells: Sequence[Sequence[str]]) -> int:
        """Return the least width of a column: that of its longest cell, of one that wraps a part of it."""
        column, longest = self._columns[place], self._longest(place, cells)
        return min(longest, max(NARROWEST, cell_width(column.title))) if column.wraps else longest

    def _longest(self, place: int, cells: Sequence[Sequence[str]]) -> int:
        column = self._columns[place]
        lines = (line for row in cells for line in row[place].split("\n"))
        return max([cell_width(column.title), column.width, *map(cell_width, lines)])

    @staticmethod
    def _together(widths: Sequence[int]) -> int:
        return sum(widths) + len(GAP) * (len(widths) - 1)

    def _divided(self, cells: Sequence[Sequence[str]]) -> list[int]:
        """Return the width of each column: what it needs at least, then what is left to those that wrap."""
        if self._limit is None:
            return [min(self._longest(place, cells), IN_A_PIPE) for place in self._beside]
        widths = [self._needed(place, cells) for place in self._beside]
        left = self._limit - self._together(widths)
        for number, place in enumerate(self._beside):
            more = max(0, min(left, self._longest(place, cells) - widths[number]))
            widths[number] += more
            left -= more
        if len(widths) == 1 and self._columns[self._beside[0]].wraps:
            return [min(widths[0], self._limit)]
        return widths

    def _widen(self, cells: Sequence[Sequence[str]]) -> None:
        """Give columns the room that a later page needs: a row may stand out then, and nothing is cut."""
        for number, place in enumerate(self._beside):
            if not self._columns[place].wraps:
                self._widths[number] = max(self._widths[number], self._longest(place, cells))

    # -- lines

    def _print_head(self) -> None:
        self.begun = True
        self._print_line([self._columns[place].title for place in self._beside])
        print_line("─" * min(self._together(self._widths), self._limit or IN_A_PIPE))

    def _print_row(self, row: Sequence[str]) -> None:
        parts = [
            wrapped(row[place], width) if self._columns[place].wraps and self._limit else row[place].split("\n")
            for place, width in zip(self._beside, self._widths, strict=True)
        ]
        for number in range(max(map(len, parts))):
            self._print_line([lines[number] if number < len(lines) else "" for lines in parts])
        for place in self._below:
            if row[place]:
                for line in wrapped(row[place], (self._limit or IN_A_PIPE) - len(_INDENT)):
                    print_line(f"{_INDENT}{line.replace(HARD, ' ')}")

    def _print_line(self, texts: Sequence[str]) -> None:
        padded = [
            _padded(text, width, self._columns[place].right)
            for text, place, width in zip(texts, self._beside, self._widths, strict=True)
        ]
        print_line(GAP.join(padded).rstrip().replace(HARD, " "))


def print_grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    chosen: Sequence[str] | None = None,
    ways: str = "--columns, or --json",
) -> None:
    """Print a table of one page; the arguments are those of `Grid`."""
    Grid(columns, chosen, ways=ways).print(rows)


def print_fields(rows: Mapping[str, Sequence[str]], optional: Collection[str] = ()) -> None:
    """Print a line for each title; of its parts as many as have room, and how many more there are.

    Without a terminal all parts are printed. A first part that is too long for a line takes several.

    Args:
        rows: The parts by title.
        optional: Titles of which nobody misses what has no room.
    """
    separator = "; "
    indent = max(map(cell_width, rows), default=0) + len(GAP)
    width = terminal_width()
    for title, parts in rows.items():
        text = (
            separator.join(parts)
            if width is None
            else _fitting(parts, separator, width - indent, title not in optional)
        )
        cell = _as_cell(text, width)
        lines = [cell] if width is None else wrapped(cell, width - indent)
        for number, line in enumerate(lines):
            print_line(f"{'' if number else title:{indent}}{line.replace(HARD, ' ')}".rstrip())


def print_text(text: object) -> None:
    """Print lines; at a terminal one that is too long is broken between two words, and what follows is indented."""
    width = terminal_width()
    for line in str(text).split("\n"):
        if width is None:
            print_line(line)
            continue
        indent = f"{line[: len(line) - len(line.lstrip(' '))]}{_INDENT}"
        for number, part in enumerate(wrapped(_as_cell(line, width), width, width - len(indent))):
            print_line(f"{indent if number else ''}{part.replace(HARD, ' ')}")


def _fitting(parts: Sequence[str], separator: str, room: int, counts: bool) -> str:
    """Return as many parts as have room; the first one at least."""
    for number in range(len(parts), 1, -1):
        left = len(parts) - number
        text = separator.join(parts[:number]) + (f"{separator}{left} more" if left and counts else "")
        if cell_width(visible(text)) <= room:
            return text
    more = f"{separator}{len(parts) - 1} more" if len(parts) > 1 and counts else ""
    return f"{parts[0]}{more}" if parts else ""


def _print_dropped(text: str, width: int) -> None:
    for line in wrapped(text, width):
        print_line(line)


def _padded(text: str, width: int, right: bool) -> str:
    room = " " * max(0, width - cell_width(text))
    return room + text if right else text + room


def _as_cell(text: str, limit: int | None) -> str:
    """Return a text as it is printed, with a hard space before each unit; in one line where there is no terminal."""
    text = encodable(visible(text)).replace("\t", "    ")
    return text.replace("\n", " ") if limit is None else with_hard_spaces(text)


def wrapped(text: str, width: int, further: int | None = None) -> list[str]:
    """Return a text in lines of a width; one that is wider holds a number that alone is.

    Lines are broken at spaces; a word that is too long by itself after one of `./_-` or between two letters, but not
    within a number. The lines of a paragraph that are `further` than its first may have a width of their own.
    """
    further = width if further is None else further
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line, room = "", width
        for word in _words_for(paragraph, min(width, further)):
            if word.strip(" ") and line and cell_width(line) + cell_width(word.rstrip(" ")) > room:
                lines.append(line.rstrip(" "))
                line, room = "", further
            line += word
        lines.append(line.rstrip(" "))
    return lines


def _words_for(text: str, width: int) -> Iterator[str]:
    """Yield words, each with the space behind it, and the parts of those that are too long for a line."""
    for word in re.findall(r"[^ ]* ?", text):
        if cell_width(word.rstrip(" ")) <= width:
            yield word
            continue
        for part in re.findall(r"[\d.,:+\-#e%]*\d[\d.,:+\-#e%]*[./_-]?|[^\d./_-]*[./_-]?|.", word):
            if cell_width(part) <= width or re.search(r"\d", part):
                yield part
            else:
                yield from part  # letters without an end, such as a text in Chinese


def cell_width(text: str) -> int:
    """Return how many places a terminal takes for a text: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(_character_width(sign) for sign in text)


def _character_width(sign: str) -> int:
    if unicodedata.category(sign) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1
