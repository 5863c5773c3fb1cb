"""The first bytes of a file: whether it is the log of a run, of which version, and whether its end is missing.

The offsets are those of SQLite's file format, https://www.sqlite.org/fileformat.html, big-endian:

    0   16 bytes   "SQLite format 3" and a zero byte
    16   2 bytes   size of a page; 1 stands for 65,536
    28   4 bytes   size of the database in pages
    60   4 bytes   `user_version`, here the version of the schema
    68   4 bytes   `application_id`
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from heptad.errors import LogError
from heptad.history.journal import schema
from heptad.history.journal.watch import BESIDE, UNDO, refuse_links_beside

IN_RUN_FOLDER = "log.journal"
"""What the journal is called in a folder that holds all of a run."""

_HEAD = 100
_LONG = 500
_MAGIC = b"SQLite format 3\x00"


def check_head(path: Path) -> None:
    """Read the first bytes of a file and refuse what cannot be read as a log.

    Raises:
        LogError: If it is not the log of a run, is of a newer version, or ends too early.
    """
    head = check_owner(path)
    version = int.from_bytes(head[60:64], "big")
    if version > schema.VERSION:
        raise LogError(
            f"{path} has version {version} of the schema, this Heptad knows up to {schema.VERSION}: use the Heptad "
            "that wrote it, or a newer one"
        )
    page = int.from_bytes(head[16:18], "big")
    size, expected = path.stat().st_size, int.from_bytes(head[28:32], "big") * (65536 if page == 1 else page)
    if size < expected and not size_beside(path, "-wal"):
        raise LogError(f"{path} is damaged: it ends after {size} of {expected} bytes; take a complete copy")


def check_owner(path: Path) -> bytes:
    """Return the first bytes of a file, if it is the log of a run.

    Raises:
        LogError: If it is not, or a link lies beside it under a name that SQLite writes to.
    """
    try:
        refuse_links_beside(path)
        head = _beginning(path)
    except FileNotFoundError:
        raise LogError(f"{path}: there is no such file; Journal('{path.name}') among the plugins writes one") from None
    except IsADirectoryError:
        raise LogError(f"{path} is a directory without {IN_RUN_FOLDER}; {_in_directory(path)}") from None
    except (OSError, ValueError) as error:  # a name that no file can have
        raise LogError(f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}") from error
    if not head:
        raise LogError(f"{path} is empty: no run has written its log there")
    if head.startswith(b"{"):
        raise LogError(
            f"{path} holds JSON: an export such as to_jsonl writes cannot be read back; name the journal of the run"
        )
    if not head.startswith(_MAGIC[: len(head)]):
        raise LogError(f"{path} is not the log of a run: it is not an SQLite database")
    if len(head) < _HEAD:
        raise LogError(f"{path} is damaged: it ends after {len(head)} bytes; take a complete copy")
    if int.from_bytes(head[68:72], "big") != schema.APPLICATION_ID:
        raise LogError(f"{path} is not the log of a run: it is an SQLite database of another program")
    return head


def refuse_journals(path: Path) -> None:
    """Refuse to write over the log of a run, this one or another, or under a name that SQLite writes to beside one.

    Raises:
        LogError: If something would.
    """
    if _is_journal(path):
        raise LogError(f"{path} is the journal of a run; name another file to write to")
    for suffix in BESIDE:
        journal = path.with_name(path.name.removesuffix(suffix) or path.name)
        if journal != path and _is_journal(journal):
            raise LogError(f"{path} belongs to the journal {journal}; name another file to write to")


def _is_journal(path: Path) -> bool:
    try:
        head = _beginning(path)
    except (LogError, OSError, ValueError):
        return False
    return head.startswith(_MAGIC) and int.from_bytes(head[68:72], "big") == schema.APPLICATION_ID


def _in_directory(path: Path) -> str:
    """Return what to do with a directory that was named in place of a journal: take the last run in it, if any."""
    runs = sorted(inner.parent for inner in path.glob(f"*/{IN_RUN_FOLDER}"))
    return f"it holds runs, such as {runs[-1]}: name one of them" if runs else "name a journal, or the folder of a run"


def _beginning(path: Path) -> bytes:
    """Return the first bytes of a regular file. Opening does not wait, as it would for the writer of a pipe.

    Raises:
        LogError: If it is a pipe, a device or a socket.
        OSError: If it cannot be read.
    """
    with os.fdopen(
        os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)), "rb"
    ) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise LogError(f"{path} is not the log of a run: it is no regular file, but a pipe or a device")
        return file.read(_HEAD)


def reason(path: Path, error: Exception) -> str:
    """Return why a file cannot be opened: SQLite does not say that a path is too long for it."""
    length = len(os.fsencode(path.absolute()))
    if length <= _LONG or "unable to open" not in str(error):
        return str(error)
    return f"{error}: its path has {length} bytes, and SQLite opens none of more than {_LONG} everywhere"


def is_unmade(path: Path) -> bool:
    """Return whether a process was killed while it made a file, see `check_owner` first.

    SQLite would undo what it had written, and nothing was there before. The file `-journal` says so: it begins with a
    magic number and holds, from byte 16 on, of how many pages the database was.
    """
    if size_beside(path, "-journal") < _HEAD:
        return False
    with path.with_name(path.name + "-journal").open("rb") as file:
        undo = file.read(_HEAD)
    return undo.startswith(UNDO) and undo[16:20] == bytes(4)


def size_beside(path: Path, suffix: str) -> int:
    """Return the size of a file that SQLite keeps beside a database; 0 where there is no such file."""
    beside = path.with_name(path.name + suffix)
    return beside.stat().st_size if beside.exists() else 0
