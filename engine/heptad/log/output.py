"""Files that are whole or not there: written beside their name, and moved to it when they are done."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written(path: str | Path) -> Generator[BinaryIO]:
    """Opens a file for the length of a block; what stood under that name stays until the block is through.

    Raises:
        OSError: If it cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory; name a file")
    beside = target.with_name(f"{target.name}.new")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
