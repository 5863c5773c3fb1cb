"""Write a file so that it is either whole or as it was before.

A regular file is written beside its place and moved there at the end. A pipe, a device or a stream cannot be replaced:
it gets everything at the end, so that an error leaves nothing in it.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from secrets import token_hex
from tempfile import SpooledTemporaryFile
from typing import IO, cast

from heptad.history.journal.head import refuse_journals

Target = str | Path | IO[bytes]
"""Where a log is written to: a path, or a binary stream."""

_IN_MEMORY = 1 << 20
"""Bytes for a pipe, device or stream that are held in memory; more are held in a temporary file."""


@contextmanager
def replacing(target: Target) -> Generator[IO[bytes]]:
    """Open a file for the length of a block; the target changes only when the block ends without an error.

    A symbolic link stays, and the file that it points to is replaced. A path that ends in `.gz` is compressed.

    Raises:
        LogError: If the target is the journal of a run, or belongs to one.
        OSError: If it cannot be written.
    """
    path = Path(target) if isinstance(target, str | Path) else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory; name a file")
        if path.is_file() or not path.exists():
            real = Path(os.path.realpath(path))
            refuse_journals(real)
            with _beside(real) as file, _packed(file, path) as packed:
                yield packed
            return
    with SpooledTemporaryFile(_IN_MEMORY) as file:
        with _packed(file, path) as packed:
            yield packed
        file.seek(0)
        with path.open("wb") if path is not None else nullcontext(cast("IO[bytes]", target)) as out:
            shutil.copyfileobj(file, out)
            out.flush()


def _packed(file: IO[bytes], path: Path | None) -> AbstractContextManager[IO[bytes]]:
    """Return a file that compresses what it is given if the path says so by its name, `….gz`."""
    if path is None or path.suffix != ".gz":
        return nullcontext(file)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0))  # the same bytes each time


@contextmanager
def _beside(path: Path) -> Generator[IO[bytes]]:
    # A name that nobody can foresee, and "x": neither a file of the user's nor what a link points to is written over.
    beside = path.with_name(f".heptad-{token_hex(8)}.new")
    try:
        with beside.open("xb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
