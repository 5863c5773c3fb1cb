"""The lock on the file of a log: one process writes it, and nobody removes it meanwhile."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from heptad.errors import LogError
from heptad.history.journal.claims import read_writer
from heptad.history.journal.head import check_owner
from heptad.history.journal.meta import get_meta
from heptad.history.journal.stranger import Limits

BUSY_MS = 30_000
"""How long a writer, or a reader at the opening or closing of a file, waits for a lock that is held for an instant."""

_ROUNDS = 3
_PAUSE = 0.2


def lock(connection: sqlite3.Connection, path: Path) -> None:
    """Begin the transaction that a writer keeps open, except for an instant in each commit.

    A live writer may be met in that instant, and would then wait for this one. So step aside and look again a little
    later: meeting the instant each time does not happen.

    Raises:
        LogError: If another process is writing the file.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        for again in reversed(range(_ROUNDS)):
            connection.execute("BEGIN IMMEDIATE")
            if not again or get_meta(connection, "writer") is None:
                break
            connection.execute("ROLLBACK")
            time.sleep(_PAUSE)
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        writer = read_writer(get_meta(connection, "writer"))
        who = f" (process {writer[0]} on {writer[1]})" if writer else ""
        raise LogError(
            f"{path} is being written{who}; let that run end, or close() the engine that was advanced by hand, or name "
            "another file"
        ) from None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")


def discard(path: Path) -> None:
    """Remove the file of a log, whole or damaged, if there is one.

    Raises:
        LogError: If it is being written, or is another program's.
        OSError: If it cannot be removed.
    """
    if not path.exists():
        return
    if path.stat().st_size:
        check_owner(path)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        with suppress(sqlite3.Error, ValueError):  # a file so damaged that it cannot be locked is written by nobody
            Limits(connection, path)
            lock(connection, path)
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    finally:
        connection.close()
