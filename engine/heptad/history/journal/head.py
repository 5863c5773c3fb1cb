"""The first bytes of a file: whether it is the log of a run, of which version, and whether its end is there."""

from __future__ import annotations

from pathlib import Path

from heptad.errors import LogError
from heptad.history.journal import schema

_HEAD = 100
_MAGIC = b"SQLite format 3\x00"


def check_head(path: Path) -> None:
    """Reads the first bytes of a file, which tell what it is, before anything is made of it.

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
        raise LogError(f"{path} is damaged: it ends after {size} of {expected} bytes; take a copy that is whole")


def check_owner(path: Path) -> bytes:
    """Returns the first bytes of a file, if it is the log of a run.

    Raises:
        LogError: If it is not.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise LogError(f"{path}: there is no such file; Journal('{path.name}') among the plugins writes one") from None
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise LogError(f"{path} is empty: no run has written its log there")
    if head.startswith(b"{"):
        raise LogError(
            f"{path} holds JSON: an export such as to_jsonl writes cannot be read back; name the journal of the run"
        )
    if not head.startswith(_MAGIC[: len(head)]):
        raise LogError(f"{path} is not the log of a run: it is no SQLite database")
    if len(head) < _HEAD:
        raise LogError(f"{path} is damaged: it ends after {len(head)} bytes; take a copy that is whole")
    if int.from_bytes(head[68:72], "big") != schema.APPLICATION_ID:
        raise LogError(f"{path} is not the log of a run: it is an SQLite database of another program")
    return head


def size_beside(path: Path, suffix: str) -> int:
    """Returns the size of one of the files that SQLite keeps beside a database; 0 where there is none."""
    beside = path.with_name(path.name + suffix)
    return beside.stat().st_size if beside.exists() else 0
