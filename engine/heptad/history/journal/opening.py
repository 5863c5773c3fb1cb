"""Opening the file of a log to write: make it if it is missing, switch to write-ahead mode, take the lock."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from heptad.errors import LogError
from heptad.history.journal import schema
from heptad.history.journal.head import check_head
from heptad.history.journal.lock import BUSY_MS, lock
from heptad.history.journal.meta import put_meta
from heptad.history.journal.stranger import Limits
from heptad.history.journal.watch import refuse_links_beside
from heptad.history.table_form import table_to_plain
from heptad.table import Table


def open_to_write(path: Path, table: Table, run: str) -> tuple[sqlite3.Connection, bool]:
    """Open the file of a log, and begin the transaction of the one who writes it.

    Args:
        path: The file. It is made where it is missing or empty.
        table: What a new file is for: the table of the run.
        run: Likewise: the id of the run.

    Returns:
        The connection, and whether the file is new.

    Raises:
        LogError: If the file is another program's, or is being written.
        sqlite3.Error: If it cannot be read or written.
    """
    refuse_links_beside(path)
    held = path.exists() and path.stat().st_size
    if held:
        check_head(path)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        if held:
            limits = Limits(connection, path)
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            limits.admit()
            limits.lift()
        new = _make_log(connection, table, run)
        _write_ahead(connection, path)
        lock(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection, new


def _make_log(connection: sqlite3.Connection, table: Table, run: str) -> bool:
    """Make an empty log where there is nothing, and return whether this did it."""
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    # The schema is written before the file enters write-ahead mode. So its head is in the file itself, not beside it.
    if _is_log(connection):
        return False
    connection.execute("PRAGMA synchronous = OFF")  # waiting for the disk is most of the cost, and nothing can be lost
    connection.execute("BEGIN IMMEDIATE")
    if _is_log(connection):  # another process was faster
        connection.execute("ROLLBACK")
        return False
    for statement in schema.statements():
        connection.execute(statement)
    put_meta(connection, "run", run)
    put_meta(connection, "table", table_to_plain(table))
    connection.executemany("INSERT INTO arc VALUES (?, ?, ?, ?, ?)", schema.arcs(table))
    connection.execute("COMMIT")
    return True


def _is_log(connection: sqlite3.Connection) -> bool:
    return connection.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)


def _write_ahead(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LogError(
            f"{path} lies in a file system in which SQLite cannot write ahead (it stays in mode '{mode}'); write the "
            "log to a local disk and copy it afterwards"
        )
    connection.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing committed, a power cut the newest commits
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
