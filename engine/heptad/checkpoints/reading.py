"""`read_checkpoint` and `read_summary`: one checkpoint, verified before anything in it is parsed."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heptad.checkpoints.damage import DamagedError, NewerFormatError, unreadable
from heptad.checkpoints.files import Files, read_file, read_pieces
from heptad.checkpoints.layout import MANIFEST, STATE, SUFFIX
from heptad.checkpoints.manifest import MOST_MANIFEST, FileFacts, Manifest, read_manifest
from heptad.checkpoints.packed import MOST_STATE, unpack_snapshot, unpack_summary
from heptad.errors import CheckpointError
from heptad.run.snapshot import Snapshot

_PIECE = 1 << 24
"""Bytes of a file that is verified only, in memory at a time."""


def read_checkpoint(files: Files, path: Path, sections: Collection[str] | None) -> Snapshot:
    """Return what a checkpoint holds; its tensors are on the CPU.

    Args:
        files: The operations.
        path: Its directory.
        sections: Those to return; the others are verified only. All of them if `None`.

    Raises:
        CheckpointError: If it is not, bit for bit, what was written; the message names the file and what is wrong.
    """
    try:
        with _opened(files, path) as directory:
            manifest = _read_manifest_of(files, path, directory)
            content = _read_files(files, path, directory, manifest, sections)
        return unpack_snapshot(path, manifest, content, sections)
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into the memory that there is") from error


def _read_files(
    files: Files, path: Path, directory: int, manifest: Manifest, sections: Collection[str] | None
) -> dict[str, bytes]:
    """Return the content of the files of these sections, by name; the others are verified only."""
    content: dict[str, bytes] = {}
    free = _memory()
    for name, facts in manifest.files.items():
        if name != STATE and sections is not None and name.removesuffix(SUFFIX) not in sections:
            _verify_in_pieces(files, path, directory, name, facts)
            continue
        most = min(facts.size, MOST_STATE) if name == STATE else facts.size
        content[name] = held = _read(files, path, directory, name, most, free)
        _verify(path / name, len(held), hashlib.sha256(held).hexdigest(), facts)
        free -= len(held)
    return content


def read_summary(files: Files, path: Path) -> dict[str, Any]:
    """Return the summary of a checkpoint; only its manifest is read and verified.

    Raises:
        CheckpointError: As `read_checkpoint`.
    """
    with _opened(files, path) as directory:
        return unpack_summary(path, _read_manifest_of(files, path, directory))


@contextmanager
def _opened(files: Files, path: Path) -> Generator[int, None, None]:
    """Hold a directory open, so that all files are of one checkpoint whatever is renamed meanwhile."""
    try:
        directory = files.open_directory(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else "is a link, or not a directory"
        raise DamagedError(f"{path} {what}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        yield directory
    finally:
        files.close(directory)


def _read(files: Files, path: Path, directory: int, name: str, most: int, free: int) -> bytes:
    try:
        return read_file(files, directory, name, min(most, free))
    except OSError as error:
        if error.errno == errno.EFBIG and free < most:
            raise MemoryError from error
        raise unreadable(path / name, error) from error


def _memory() -> int:
    """Return the bytes of memory of this machine: a file with holes takes none of the disk, and all of that."""
    pages = os.sysconf("SC_PHYS_PAGES")
    return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else sys.maxsize


def _verify_in_pieces(files: Files, path: Path, directory: int, name: str, facts: FileFacts) -> None:
    """Verify a file that is not returned, with little of it in memory."""
    digest, size = hashlib.sha256(), 0
    try:
        for piece in read_pieces(files, directory, name, facts.size, _PIECE):
            digest.update(piece)
            size += len(piece)
    except OSError as error:
        raise unreadable(path / name, error) from error
    _verify(path / name, size, digest.hexdigest(), facts)


def _read_manifest_of(files: Files, path: Path, directory: int) -> Manifest:
    content = _read(files, path, directory, MANIFEST, MOST_MANIFEST, MOST_MANIFEST)
    try:
        return read_manifest(content)
    except (DamagedError, NewerFormatError) as error:
        raise type(error)(f"{path / MANIFEST} {error}") from error.__cause__


def _verify(path: Path, size: int, found: str, expected: FileFacts) -> None:
    if size != expected.size:
        raise DamagedError(f"{path} holds {size:,} bytes, but {expected.size:,} were written")
    if found != expected.sha256:
        raise DamagedError(f"{path} is not what was written: its SHA-256 is {found}, not {expected.sha256}")
