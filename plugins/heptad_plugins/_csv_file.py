"""`CSVFile`: a CSV file whose newest row may still grow, and whose columns are added as names come."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from heptad import PluginError
from heptad.plugin import replacing
from heptad_plugins._stored import count_in, mapping
from heptad_plugins._watched import WatchedFile

PLACE = ("step", "update", "epoch")
"""The first columns: how many were complete when the values of the row were recorded."""

MOST_COLUMNS = 16_384
"""As many as a spreadsheet opens. Each new one costs a copy of the file: with more, a run would do little else."""

Place = tuple[int, int, int]


class CSVFile:
    """Rows of values, one for each position, in a file that is a sound table after every write.

    Rows are appended. The newest one stays in memory, and is written over, longer, if more values come at its position.
    For a name that comes later the file is rewritten, whole, beside itself, and put in place at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        self._columns: dict[str, None] = {}  # in order; empty until the file is adopted
        self._rows: list[tuple[Place, dict[str, str]]] = []  # the newest row of the file, and those still to be written
        self._written = 0  # rows of the file before these
        self._end = 0  # where the first of them begins
        self._changed = False  # they hold something that the file does not
        self._watched: WatchedFile | None = None  # as the file was left; nothing once it was found changed
        self._restored = False
        self.lacks = 0
        """Rows that were written before the checkpoint and were missing when the file was adopted, if above 0."""

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._file is not None

    @property
    def is_adopted(self) -> bool:
        """Whether the file is this run's."""
        return bool(self._columns)

    def open(self) -> None:
        """Open the file, which was adopted.

        Raises:
            PluginError: If it is not as it was left when the run was paused.
        """
        left = self._watched
        self._file = io.FileIO(self._path, "r+")
        self._watched = WatchedFile("CSVLogger", self._path)
        if left is not None and left.size != self._watched.size:
            self.close()
            raise PluginError(
                f"CSVLogger: {self._path} was changed while the run was paused: it has {self._watched.size} bytes in "
                f"place of {left.size}; put back what was there"
            )

    def check(self) -> None:
        """Look whether the file is as it was left.

        Raises:
            PluginError: If it is not: once, and nothing more is written then.
        """
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.check()
            self._watched = watched

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows are complete, and the newest one, which may still grow."""
        return {"rows": self._written, "newest": [[list(place), dict(row)] for place, row in self._rows[-1:]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both; rows beyond are dropped when the file is adopted."""
        written = count_in(state, "rows")
        self._rows = [(_stored_place(place), _stored_row(row)) for place, row in state["newest"]]
        self._restored, self._written = True, written

    # -- making a file this run's

    def held_values(self) -> bool:
        """Return whether the file holds rows; a header alone is what a run leaves that failed before its first value.

        Raises:
            PluginError: If the path is not a regular file, or the file is not one of this class.
        """
        return self._held() not in (b"", _csv_line(PLACE))

    def set_aside(self) -> None:
        """Rename the file, with `.before` behind its name, or `.before2` and so on where others were renamed."""
        number, beside = 1, self._path.with_name(f"{self._path.name}.before")
        while beside.exists():
            number += 1
            beside = self._path.with_name(f"{self._path.name}.before{number}")
        self._path.rename(beside)

    def adopt(self, keep: bool) -> bool:
        """Make the file this run's; return whether there was one to continue.

        Args:
            keep: Whether its rows stay: those of the run that continues, up to the state that was restored.
        """
        held = self._held() if keep else b""
        columns = _header(held) if held else list(PLACE)
        held = held[: held.rfind(b"\n") + 1]  # a line that was torn by a kill is dropped
        if self._restored:
            # no row has a line end in it; only names may, and these are in the header alone
            head = len(_csv_line(columns))
            rows = held[head:].splitlines(keepends=True)
            self.lacks = self._written - len(rows) if held else 0
            held = held[:head] + b"".join(rows[: self._written])
        continued = bool(held)
        if not continued:
            held = _csv_line(columns)
            self._written = 0
            self._rows = []
        self._columns, self._end = dict.fromkeys(columns), len(held)
        self._changed = bool(self._rows)
        self._replace(held)
        return continued

    def _held(self) -> bytes:
        path = self._path
        if path.is_dir():
            raise PluginError(f"CSVLogger: {path} is a directory; name a file in it, such as values.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # such as /dev/null, which would be replaced by a file
            raise PluginError(f"CSVLogger: {path} is no regular file; name one that is, or a new one")
        held = path.read_bytes() if path.exists() else b""
        if held and tuple(_header(held)[: len(PLACE)]) != PLACE:
            raise PluginError(
                f"CSVLogger: {path} does not begin with the columns {', '.join(PLACE)}: it is no file of "
                "CSVLogger's, and is left alone, overwrite=True or not; name another file"
            )
        return held

    # -- writing

    def put(self, place: Place, name: str, value: float) -> None:
        """Add a value to the row of its position; a name that has a value there already opens a second row."""
        name = name.encode(errors="backslashreplace").decode()  # half a surrogate pair stands in the file as its escape
        if not self._rows or self._rows[-1][0] != place or name in self._rows[-1][1]:
            self._rows.append((place, {}))
        self._rows[-1][1][name] = repr(value)
        self._changed = True

    def write(self) -> None:
        """Write the rows that the file lacks, with one write to the operating system."""
        if self._file is None or not self._changed:
            return
        self.check()
        if self._watched is None:
            return
        late = dict.fromkeys(name for _, row in self._rows for name in row if name not in self._columns)
        if len(self._columns) + len(late) > MOST_COLUMNS:
            self._changed = False  # so that closing does not raise it again
            raise PluginError(
                f"CSVLogger: {self._path} has a column for each name of a recorded value, and at most {MOST_COLUMNS} "
                f"of them; {len(self._columns) + len(late)} are needed with '{next(iter(late))}'. Record under fewer "
                "names, or use Journal, which has a row for each value"
            )
        self._columns |= late
        named = list(self._columns)[len(PLACE) :]
        # numbers need no quotes
        lines = [
            f"{','.join([*map(str, place), *(row.get(name, '') for name in named)])}\n".encode()
            for place, row in self._rows
        ]
        if late:
            self._rewrite(lines)
        else:
            self._file.seek(self._end)
            left = b"".join(lines)
            try:
                while left:  # one write, unless the disk is full or a signal comes
                    left = left[self._file.write(left) :]
            finally:
                self._watched.size = os.fstat(self._file.fileno()).st_size
        self._end += sum(map(len, lines[:-1]))
        self._written += len(lines) - 1
        del self._rows[:-1]
        self._changed = False

    def _rewrite(self, lines: list[bytes]) -> None:
        """Replace the file by one with all columns: the rows before, padded, then `lines`."""
        before = io.StringIO(self._path.read_bytes()[: self._end].decode(), newline="")
        held = [row + [""] * (len(self._columns) - len(row)) for row in list(csv.reader(before))[1:]]
        kept = b"".join(map(_csv_line, [self._columns, *held]))
        self.close()
        self._replace(kept + b"".join(lines))
        self._watched = None
        self.open()
        self._end = len(kept)

    def _replace(self, content: bytes) -> None:
        with replacing(self._path) as file:
            file.write(content)


def _header(held: bytes) -> list[str]:
    """Return the columns that a file begins with; none if it is empty or not CSV."""
    try:
        for columns in csv.reader(io.StringIO(held.decode(errors="replace"), newline="")):
            return columns
    except csv.Error:  # such as a field that never ends
        pass
    return []


def _csv_line(cells: Iterable[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # given another line end it would not quote cells that hold \r
    return (line.getvalue().removesuffix("\r\n") + "\n").encode()


def _stored_place(stored: object) -> Place:
    """Return the place of a row; a ValueError says that it is none."""
    numbers = cast("list[Any]", stored) if isinstance(stored, list | tuple) else []
    if len(numbers) != 3 or any(type(number) is not int for number in numbers):
        raise ValueError("the place of a row is three numbers")
    return numbers[0], numbers[1], numbers[2]


def _stored_row(stored: object) -> dict[str, str]:
    """Return the cells of a row; a ValueError says that they are none."""
    cells = dict(mapping(stored, "a row"))
    if any(not isinstance(cell, str | int | float) for cell in cells.values()):
        raise ValueError("the cells of a row are texts")
    return cells
