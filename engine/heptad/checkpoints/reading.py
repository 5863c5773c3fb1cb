"""`read_checkpoint` and `read_summary`: one checkpoint, verified before anything in it is parsed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heptad.checkpoints.damage import DamagedError, NewerFormatError, unreadable
from heptad.checkpoints.files import Files, read_file
from heptad.checkpoints.layout import MANIFEST, STATE, SUFFIX
from heptad.checkpoints.manifest import MOST_MANIFEST, FileFacts, Manifest, read_manifest
from heptad.checkpoints.packed import MOST_STATE, unpack_snapshot, unpack_summary
from heptad.run.snapshot import Snapshot


def read_checkpoint(files: Files, path: Path, sections: Collection[str] | None) -> Snapshot:
    """Return what a checkpoint holds; its tensors are on the CPU.

    Args:
        files: The operations.
        path: Its directory.
        sections: Those to return; the others are verified only. All of them if `None`.

    Raises:
        CheckpointError: If it is not, bit for bit, what was written; the message names the file and what is wrong.
    """
    content: dict[str, bytes] = {}
    with _opened(files, path) as directory:
        manifest = _read_manifest_of(files, path, directory)
        for name, facts in manifest.files.items():
            held = _read(files, path, directory, name, min(facts.size, MOST_STATE) if name == STATE else facts.size)
            _verify(path / name, held, facts)
            if sections is None or name == STATE or name.removesuffix(SUFFIX) in sections:
                content[name] = held
    return unpack_snapshot(path, manifest, content, sections)


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


def _read(files: Files, path: Path, directory: int, name: str, most: int) -> bytes:
    try:
        return read_file(files, directory, name, most)
    except OSError as error:
        raise unreadable(path / name, error) from error


def _read_manifest_of(files: Files, path: Path, directory: int) -> Manifest:
    content = _read(files, path, directory, MANIFEST, MOST_MANIFEST)
    try:
        return read_manifest(content)
    except (DamagedError, NewerFormatError) as error:
        raise type(error)(f"{path / MANIFEST} {error}") from error.__cause__


def _verify(path: Path, content: bytes, expected: FileFacts) -> None:
    if len(content) != expected.size:
        raise DamagedError(f"{path} holds {len(content):,} bytes, but {expected.size:,} were written")
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise DamagedError(f"{path} is not what was written: its SHA-256 is {found}, not {expected.sha256}")
