"""Limits for a file that a stranger may have made: what SQLite may do with it, and what its tables may be.

The schema of an SQLite file is a program: a view in place of a table computes its rows, for ever if it likes, and a
trigger changes rows behind a statement. So a file is used only if its tables are those that Heptad makes, and a
statement may take only as many steps as a file of its size can need.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from heptad.history.journal import schema
from heptad.history.journal.head import size_beside

STEPS_A_BYTE = 16
"""Steps of SQLite's virtual machine for each byte of a file. The smallest rows need about 2."""

_STEPS = 2_000_000
"""Steps for a file of no size."""

_STRIDE = 100_000
"""Steps between two calls of the progress handler."""

_SCHEMA_STEPS = 2_000
"""Steps in which the schema must be read: about 10 for each table, index and view."""

_SCHEMA_STRIDE = 100
"""As above, meanwhile."""

_LONGEST_OBJECT = 1 << 13
"""Bytes of the text of a table, an index or a view. Those of Heptad have 600 at most."""

_LONGEST = 1 << 20
"""Bytes of the longest field that any file may have; a larger file may have one as large as itself."""

_ANY_LENGTH = 1_000_000_000
"""SQLite's own limit."""

_OBJECTS = 64
"""Tables, indices and views that are looked at: twice as many as Heptad makes."""

_COLUMN = r'"?(\w+)"?(?: (?:INT|INTEGER|TEXT|REAL|NUM|BLOB))?'


class Limits:
    """What may be done with one file through one connection.

    Args:
        connection: A connection, before its first statement.
        path: The file.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._unread = self.bytes = 0
        # SQLite parses the schema before the first statement: it takes 80 bytes of memory for each byte of a text.
        self._left, self._stride = _SCHEMA_STEPS, _SCHEMA_STRIDE
        self._any_text = connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _LONGEST_OBJECT)
        connection.set_progress_handler(self._count, self._stride)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA mmap_size = 0")  # a file that another process cuts would end this one
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 0)

    def admit(self) -> None:
        """Check the schema; then questions may be asked.

        Raises:
            ValueError: If the tables are not those that Heptad makes.
        """
        check_schema(self._connection)
        self._stride = _STRIDE
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, self._any_text)
        self._connection.set_progress_handler(self._count, self._stride)
        self.renew()

    def renew(self) -> None:
        """Begin a question: it may take as many steps as the file has bytes for."""
        self.bytes = _size(self._path)
        self._left = _STEPS + STEPS_A_BYTE * self.bytes
        self._unread = max(self.bytes, _LONGEST)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._unread)

    def spend(self, row: Sequence[Any]) -> None:
        """Count the texts and blobs of a row that was read.

        Raises:
            ValueError: If those of a question are longer together than the file.
        """
        for field in row:
            if isinstance(field, str | bytes):
                self._unread -= len(field)
        if self._unread < 0:
            raise ValueError("its texts are longer together than the file that holds them")

    def lift(self) -> None:
        """End the limits of steps and lengths: the tables are Heptad's own, and what comes is from the run."""
        self._connection.set_progress_handler(None, 0)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _ANY_LENGTH)

    @property
    def reached(self) -> bool:
        """Whether a question has taken more steps than it may."""
        return self._left < 0

    def _count(self) -> bool:
        self._left -= self._stride
        return self.reached


def _size(path: Path) -> int:
    try:
        return path.stat().st_size + size_beside(path, "-wal")
    except OSError:  # removed while it is read
        return _LONGEST


def check_schema(connection: sqlite3.Connection) -> None:
    """Refuse a file whose tables are not those that Heptad makes.

    Views of other texts are fine: they are for people, and no statement of Heptad reads one.

    Raises:
        ValueError: If one is missing, differs or was added, or if there is a trigger.
    """
    # `sqlite_master` is no table of the file's own: no view can stand in its place.
    rows = connection.execute(
        f"SELECT type, name, sql FROM sqlite_master WHERE type != 'view' LIMIT {_OBJECTS}"
    ).fetchall()
    missing = {name for _, name in _known()}
    for kind, name, sql in rows:
        if (kind, name) not in _known():
            raise ValueError(f"it has the {kind} {name!r}, which Heptad does not make; drop it in a copy of the file")
        if _form(name, sql) not in _known()[kind, name]:
            raise ValueError(f"its {kind} {name!r} is not as Heptad makes it")
        missing.discard(name)
    if missing:
        raise ValueError(f"no such table or index: {min(missing)}")


@cache
def _known() -> dict[tuple[str, str], set[str]]:
    """Return the forms that each table and index may have, by kind and name: those of both versions."""
    connection = sqlite3.connect(":memory:")
    known: dict[tuple[str, str], set[str]] = {}
    try:
        for statement in schema.statements():
            connection.execute(statement)
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE type != 'view'").fetchall()
    finally:
        connection.close()
    for kind, name, sql in rows:
        form = _form(name, sql)
        # version 1 had no column `data`
        known[kind, name] = {form, re.sub(r"(, data TEXT|,data)\)$", ")", form)}
    return known


def _form(name: str, sql: str | None) -> str:
    """Return the text of a table without what versions of SQLite write differently: white space, types of a copy."""
    if sql is None:  # the index of a key
        return ""
    if name.startswith("superseded_"):
        return ",".join(_copied(name, sql)) + ")"
    return re.sub(r"\s*([(),])\s*", r"\1 ", " ".join(sql.split())).strip()


def _copied(name: str, sql: str) -> Iterator[str]:
    """Yield the columns of a table that was made as a copy of another: names with a type at most.

    Raises:
        ValueError: If there is anything else in it.
    """
    columns = re.fullmatch(rf'CREATE TABLE "?{name}"?\s*\((.*)\)', sql, re.DOTALL)
    for column in columns[1].split(",") if columns else [""]:
        found = re.fullmatch(_COLUMN, column.strip())
        if found is None:
            raise ValueError(f"its table {name!r} is not as Heptad makes it")
        yield found[1]
