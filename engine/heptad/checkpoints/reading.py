"""`read_checkpoint` and `read_summary`: one checkpoint, verified before anything in it is parsed."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptad.checkpoints.damage import DamagedError, NewerFormatError, unreadable
from heptad.checkpoints.files import Files, read_file, read_pieces
from heptad.checkpoints.format_1 import as_file_of_format_2, as_files_of_format_2
from heptad.checkpoints.layout import MANIFEST, RANK, STATE, SUFFIX, part_name, rank_file
from heptad.checkpoints.manifest import MOST_MANIFEST, FileFacts, Manifest, read_manifest
from heptad.checkpoints.packed import MOST_STATE, unpack_snapshot, unpack_summary
from heptad.errors import CheckpointError
from heptad.run.snapshot import Snapshot

_PIECE = 1 << 24
"""Bytes of a file that is verified only, in memory at a time."""


@dataclass(frozen=True)
class Share:
    """Which part of the reading is this process's: its rank, and the number of ranks that read."""

    rank: int = 0
    world: int = 1


def read_checkpoint(
    files: Files, path: Path, sections: Collection[str] | None, share: Share = Share()
) -> tuple[Snapshot, str]:
    """Return what a checkpoint holds, and the digest of its manifest; its tensors are on the CPU.

    What is a rank's own is that of this rank if there was one of its number, else that of rank 0. Where fewer ranks
    read than wrote, each takes over what is own of some that are no more. Each file is verified
    by one of the ranks that read, at least: what all need, by all.

    Args:
        files: The operations.
        path: Its directory.
        sections: Those to return; the others are verified only. All of them if `None`.
        share: Which part of the reading is this process's.

    Raises:
        CheckpointError: If it is not, bit for bit, what was written; the message names the file and what is wrong.
    """
    try:
        with _opened(files, path) as directory:
            manifest, digest = _read_manifest_of(files, path, directory)
            rank = share.rank if share.rank < manifest.world else 0
            # what is summed over ranks is not to be lost where fewer resume
            taken = range(share.rank + share.world, manifest.world, share.world) if sections is None else ()
            wanted = _wanted(manifest, sections, rank) | {
                file for other in taken for file in _own_files(manifest, other)
            }
            content = _read_files(files, path, directory, manifest, wanted, share)
        if manifest.format == 1:
            content, listed = as_files_of_format_2(content, str(path))
            names = [as_file_of_format_2(name) for name in manifest.files]
            files_now = dict(zip(names, manifest.files.values(), strict=True))
            manifest = manifest.model_copy(update={"files": files_now, "tensors": listed})
        return unpack_snapshot(path, manifest, content, sections, rank, taken), digest
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into the memory that there is") from error


def _wanted(manifest: Manifest, sections: Collection[str] | None, rank: int) -> set[str]:
    """Return the names of the files that are parsed: of these sections, and what is the rank's own in them."""
    own = part_name(RANK, rank)
    names = {STATE, rank_file(rank)}
    for name in manifest.files:
        group = name.removesuffix(SUFFIX)
        section = group.partition("-")[0]
        if group == name:
            continue
        if group == own:
            begins = tuple(f"{section}." for section in sections or ())
            listed = manifest.tensors.get(own, {})
            if sections is None or any(tensor.startswith(begins) for tensor in listed):
                names.add(name)
        elif section != RANK and (sections is None or section in sections):
            names.add(name)
    return names


def _own_files(manifest: Manifest, rank: int) -> set[str]:
    """Return the names of the files of what is a rank's own."""
    return {rank_file(rank), part_name(RANK, rank) + SUFFIX} & manifest.files.keys()


def _read_files(
    files: Files, path: Path, directory: int, manifest: Manifest, wanted: Collection[str], share: Share
) -> dict[str, bytes]:
    """Return the content of the files that are wanted, by name; of the others, those of this share are verified."""
    content: dict[str, bytes] = {}
    free = _memory()
    for number, (name, facts) in enumerate(manifest.files.items()):
        if name not in wanted:
            if number % share.world == share.rank:
                _verify_in_pieces(files, path, directory, name, facts)
            continue
        most = facts.size if name.endswith(SUFFIX) else min(facts.size, MOST_STATE)
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
        return unpack_summary(path, _read_manifest_of(files, path, directory)[0])


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


def _read_manifest_of(files: Files, path: Path, directory: int) -> tuple[Manifest, str]:
    """Return the manifest, and the digest of its content."""
    content = _read(files, path, directory, MANIFEST, MOST_MANIFEST, MOST_MANIFEST)
    try:
        return read_manifest(content), hashlib.sha256(content).hexdigest()
    except (DamagedError, NewerFormatError) as error:
        raise type(error)(f"{path / MANIFEST} {error}") from error.__cause__


def _verify(path: Path, size: int, found: str, expected: FileFacts) -> None:
    if size != expected.size:
        raise DamagedError(f"{path} holds {size:,} bytes, but {expected.size:,} were written")
    if found != expected.sha256:
        raise DamagedError(f"{path} is not what was written: its SHA-256 is {found}, not {expected.sha256}")
