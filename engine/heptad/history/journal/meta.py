"""The table `meta`: a few facts of the file by name, as JSON with a checksum."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from heptad.history.journal import schema


def get_meta(connection: sqlite3.Connection, key: str) -> Any:
    """Return a fact; `None` if the file has no such fact.

    Raises:
        ValueError: If it does not fit its checksum.
    """
    row = connection.execute("SELECT value, crc FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    if schema.crc(row[0]) != row[1]:
        raise ValueError(f"its '{key}' does not fit its checksum")
    return schema.parsed_json(row[0])


def put_meta(connection: sqlite3.Connection, key: str, value: Any) -> None:
    """Store a fact in place of the one of that name."""
    text = json.dumps(value)
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, schema.crc(text)))
