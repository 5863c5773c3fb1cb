"""Opening what a command was given: a journal, or lines of JSON."""

from __future__ import annotations

from pathlib import Path

from heptad.errors import LogError
from heptad.history.query import TransitionLog


def open_log(path: str) -> TransitionLog:
    """Returns the log in a file; nothing is written to it.

    Raises:
        LogError: If it is missing, empty, something else, damaged, or of a newer version.
        OSError: If it cannot be read.
    """
    return TransitionLog.from_jsonl(path) if is_lines(path) else TransitionLog.load(path)


def is_lines(path: str) -> bool:
    """Tells whether a file begins as lines of JSON do.

    Raises:
        LogError: If it is missing, a directory, or empty.
        OSError: If it cannot be read.
    """
    file = Path(path)
    if not file.exists():
        raise LogError(f"{path} does not exist; name the file that Journal or to_jsonl wrote")
    if file.is_dir():
        raise LogError(f"{path} is a directory; name the file in it that Journal or to_jsonl wrote")
    with file.open("rb") as opened:
        begins = opened.read(1)
    if not begins:
        raise LogError(f"{path} is empty; name a file that Journal or to_jsonl wrote")
    return begins == b"{"
