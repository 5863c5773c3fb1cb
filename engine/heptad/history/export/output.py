"""Files that are whole or not there: written beside their name, and moved to it when they are done.

What is no plain file, such as a pipe or a device, cannot be replaced: it is given all of it at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

Target = str | Path | IO[bytes]
"""Where a log may be written to: a path, or what is open for bytes."""

_IN_MEMORY = 1 << 20
"""Bytes that are held in memory for a target that cannot be replaced; beyond them a temporary file holds all."""


@contextmanager
def written(target: Target) -> Generator[IO[bytes]]:
    """Opens a file for the length of a block; what stood under that name stays until the block is through.

    A symbolic link stays, and what it points to is replaced. A pipe, a device or a stream is written to once the block
    is through, so that the block may go back in its file wherever it will end up.

    Raises:
        OSError: If it cannot be written.
    """
    if isinstance(target, str | Path):
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory; name a file")
        if path.is_file() or not path.exists():
            with _beside(Path(os.path.realpath(path))) as file:
                yield file
            return
    with SpooledTemporaryFile(_IN_MEMORY) as file:
        yield file
        file.seek(0)
        with Path(target).open("wb") if isinstance(target, str | Path) else nullcontext(target) as out:
            shutil.copyfileobj(file, out)
            out.flush()


@contextmanager
def _beside(path: Path) -> Generator[IO[bytes]]:
    beside = path.with_name(f"{path.name}.new")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
