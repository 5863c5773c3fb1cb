"""Insert many rows with few statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Any

WIDTH = 7
"""Columns of the tables that get many rows: `transition` and `value`."""

_BLOCKS = (4096, 512, 64, 8, 1)
"""Rows that one statement inserts. The largest has 28,672 values; SQLite allows 32,766."""


def insert(connection: sqlite3.Connection, table: str, flat: Sequence[Any], width: int = WIDTH) -> None:
    """Insert rows.

    A statement releases the interpreter lock once, and where training keeps the interpreter busy it waits 5 ms to get
    it back. `executemany` does so for each row: some hundred rows would take a second.

    Args:
        connection: The connection.
        table: The table.
        flat: The values of the first row, then those of the second, and so on.
        width: Columns of the table, `WIDTH` at most.
    """
    at = 0
    for rows in _BLOCKS:
        size = rows * width
        while len(flat) - at >= size:
            connection.execute(_statement(table, rows, width), flat[at : at + size])
            at += size


@cache
def _statement(table: str, rows: int, width: int) -> str:
    """Return the text of an INSERT. The connection keeps the compiled statement of each text."""
    return f"INSERT INTO {table} VALUES {', '.join([f'({marks(width)})'] * rows)}"


def marks(count: int) -> str:
    """Return the place holders of that many values."""
    return ", ".join("?" * count)
