"""`JournalWatch`: whether the files of a journal are still those that its writer opened, and none of them shorter.

SQLite writes on through its descriptors when a file is renamed, replaced or cut, and so the run would end as if its log
were where it was. The file may only grow; beside it lie the newest transactions (`-wal`) and their index (`-shm`).
"""

from __future__ import annotations

import os
from pathlib import Path

from heptad.errors import LogError

SUFFIXES = ("", "-wal", "-shm")
"""The file, and those that SQLite keeps beside it while it is open."""

BESIDE = (*SUFFIXES[1:], "-journal")
"""What SQLite writes beside a file, with the one that it undoes a transaction by."""

SHRINKS_TO = 64 << 20
"""Bytes that SQLite cuts the file `-wal` to, when all in it has been moved into the file and it is begun again."""


UNDO = bytes.fromhex("d9d505f920a163d7")
"""What a file `-journal` begins with. One that ends with it, behind a name, is of a transaction of several files."""


class JournalChangedError(LogError):
    """A file of the journal is not what its writer left."""


class JournalWatch:
    """Compares the files with what they were. Two calls of `stat` for each file and transaction.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._paths = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
        self._found: dict[Path, tuple[int, int, int]] = {}

    def note(self) -> None:
        """Take the files as they are now; after each transaction."""
        for path in self._paths:
            try:
                found = path.stat()
            except OSError:  # where SQLite holds `-shm` in memory; `check` misses one that was there
                continue
            if self._identity(path) in (None, (found.st_dev, found.st_ino)):
                self._found[path] = found.st_dev, found.st_ino, found.st_size

    def check(self) -> None:
        """Look at the files before the next transaction.

        Raises:
            JournalChangedError: If one of them was removed, renamed, replaced or cut.
        """
        for path, suffix in zip(self._paths, SUFFIXES, strict=True):
            change = self._change(path)
            if change:
                subject = f"has lost '{path.name}', which belongs to it: that" if suffix else ""
                raise JournalChangedError(f"{subject} {change}".lstrip())

    def _change(self, path: Path) -> str:
        """Return what became of a file, or nothing."""
        if path not in self._found:
            return ""
        size = self._found[path][2]
        try:
            found = path.stat()
        except OSError:
            return "is gone: it was removed or renamed while the run was writing it"
        if (found.st_dev, found.st_ino) != self._identity(path):
            return "was replaced by another file while the run was writing it"
        if found.st_size < min(size, SHRINKS_TO if path.name.endswith("-wal") else size):
            return f"was cut while the run was writing it: it ends after {found.st_size} of {size} bytes"
        return ""

    def _identity(self, path: Path) -> tuple[int, int] | None:
        found = self._found.get(path)
        return None if found is None else found[:2]


def refuse_links_beside(path: Path) -> None:
    """Refuse a journal beside which SQLite would write through a link, into something that is no file, or elsewhere.

    Raises:
        LogError: If there is one.
    """
    for suffix in BESIDE:
        beside = path.with_name(path.name + suffix)
        if beside.is_symlink() or (os.path.lexists(beside) and not beside.is_file()):
            raise LogError(
                f"{path} has '{beside.name}' beside it, which is a link or no regular file: SQLite would write through "
                "it. Remove it, or name another file"
            )
    undo = path.with_name(path.name + "-journal")
    if undo.exists() and _tail(undo) == UNDO:
        raise LogError(
            f"{path} has '{undo.name}' beside it, which names a further file: SQLite would remove that. Remove "
            f"'{undo.name}', or name another file"
        )


def _tail(path: Path) -> bytes:
    """Return the last bytes of a file, as many as `UNDO` has."""
    with path.open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - len(UNDO), 0))
        return file.read(len(UNDO))
