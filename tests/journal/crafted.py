"""Journals as a stranger may write them: rows with right checksums and wrong contents.

`Crafted` copies a sound journal and changes it; `seal` gives a row the checksum of what it holds now.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from builders import batches, small_engine
from heptad import Run
from heptad.history.journal import schema
from heptad_plugins import Journal

SEALED = ("meta", "session", "chunk", "note", "failure", "accumulation", "stop")
"""The tables whose rows have a checksum."""

_UNGUARDED = {"note": ("number",), "chunk": ("body",), "meta": ("key",)}
"""Columns that the checksum does not cover. Of `session` it covers `facts` alone."""


def sound(path: Path, steps: int = 6, **options: Any) -> Path:
    """Write a small journal with notes, recorded values, traced calls and a skipped update, and return its path."""
    engine = small_engine(batches(steps), [Journal(path)], trace_handlers=True, accumulation=2, **options)

    def speak(run: Run) -> None:
        run.note("a note")
        run.record("score", 0.5)

    engine.on_exit("after_step")(speak)
    engine.on_enter("optimizer_update", once=True)(lambda run: run.skip_update("as a test"))
    engine.run()
    return path


class Crafted:
    """A copy of a journal, to be changed.

    Args:
        original: The journal.
        path: Where to put the copy.
    """

    def __init__(self, original: Path, path: Path) -> None:
        self.path = Path(shutil.copy(original, path))

    def sql(self, *statements: str, values: tuple[Any, ...] = ()) -> Crafted:
        """Execute statements; `values` are those of each. Schema and rows may be changed alike."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            connection.execute("PRAGMA writable_schema = ON")
            for statement in statements:
                connection.execute(statement, values)
        finally:
            connection.close()
        return self

    def set(self, table: str, column: str, value: Any, where: str = "1") -> Crafted:
        """Set a column in those rows of a table, and seal them."""
        self.sql(f'UPDATE {table} SET "{column}" = ? WHERE {where}', values=(value,))
        return self.seal(table)

    def edit(self, table: str, column: str, change: Callable[[Any], Any], where: str = "1") -> Crafted:
        """Change what a column holds as JSON in the first of those rows, and seal it."""
        (text,) = self._asked(f'SELECT "{column}" FROM {table} WHERE {where}')
        held = json.loads(text)
        changed = change(held)
        return self.set(table, column, json.dumps(held if changed is None else changed), where)

    def body(self, held: bytes, where: str = "1") -> Crafted:
        """Set what the body of a chunk inflates to."""
        return self.sql(f"UPDATE chunk SET body = ? WHERE {where}", values=(zlib.compress(held, 9),))

    def lead_astray(self, table: str) -> Crafted:
        """Let all pages of a table that has several be one page, which is read again and again, for hours."""
        (root,) = self._asked(f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'")
        content = bytearray(self.path.read_bytes())
        size = int.from_bytes(content[16:18], "big")
        page = content[(root - 1) * size : root * size]
        assert page[0] == 5, f"{table} has one page"
        cells = [int.from_bytes(page[at : at + 2], "big") for at in range(12, 12 + 2 * page[4], 2)]
        below = page[cells[0] : cells[0] + 4]
        for level in range(8):
            for at in [*cells, 8]:
                page[at : at + 4] = below
            if level < 7:
                content += page
                below = (len(content) // size).to_bytes(4, "big")
        content[(root - 1) * size : root * size] = page
        content[28:32] = (len(content) // size).to_bytes(4, "big")
        self.path.write_bytes(content)
        return self

    def _asked(self, statement: str) -> tuple[Any, ...]:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(statement).fetchone()
        finally:
            connection.close()

    def seal(self, table: str) -> Crafted:
        """Give each row of a table the checksum of what it holds."""
        if table not in SEALED:
            return self
        connection = sqlite3.connect(self.path)
        try:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            covered = [name for name in columns if name != "crc" and name not in _UNGUARDED.get(table, ())]
            if table == "session":
                covered = ["facts"]
            names = ", ".join(f'"{name}"' for name in covered)
            key = "key" if table == "meta" else "rowid"
            for place, *row in connection.execute(f"SELECT {key}, {names} FROM {table}").fetchall():
                connection.execute(f"UPDATE {table} SET crc = ? WHERE {key} = ?", (schema.crc(*row), place))
            connection.commit()
        finally:
            connection.close()
        return self
