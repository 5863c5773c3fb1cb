"""`read_checkpoint` and `read_summary`: one checkpoint, verified before anything that it holds is used."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heptad.checkpoints.assembly import Assembly, empty, group_of, is_rank
from heptad.checkpoints.damage import DamagedError, NewerFormatError, unreadable
from heptad.checkpoints.encoding import ALL_WHOLE
from heptad.checkpoints.files import Files, read_file, read_pieces
from heptad.checkpoints.format_1 import OWN_OF_FORMAT_1
from heptad.checkpoints.layout import MANIFEST, RANK, STATE, SUFFIX, part_name, rank_file
from heptad.checkpoints.manifest import MOST_MANIFEST, FileFacts, Manifest, read_manifest
from heptad.checkpoints.packed import MOST_STATE, unpack_snapshot, unpack_summary
from heptad.checkpoints.streaming import HashedStream
from heptad.checkpoints.tensors import header_size, read_header
from heptad.errors import CheckpointError
from heptad.run.shards import Shards
from heptad.run.snapshot import Snapshot

_PIECE = 1 << 20
"""Bytes of a file of tensors that are read at a time."""


@dataclass(frozen=True)
class Share:
    """Which part of the reading is this process's: its rank, and the number of ranks that read."""

    rank: int = 0
    world: int = 1


def read_checkpoint(
    files: Files,
    path: Path,
    sections: Collection[str] | None,
    share: Share = Share(),
    shards: Shards = ALL_WHOLE,
) -> tuple[Snapshot, str]:
    """Return what a checkpoint holds, and the digest of its manifest; its tensors are on the CPU.

    What is a rank's own is that of this rank if there was one of its number, else that of rank 0. Where fewer ranks
    read than wrote, each takes over what is own of some that are no more. Each file is verified
    by one of the ranks that read, at least: what all need, by all.

    Each file is read once, and the bytes that are wanted of it are put where they stay: no more memory is needed than
    for them. What they mean is looked at when all is verified.

    Args:
        files: The operations.
        path: Its directory.
        sections: Those to return; the others are verified only. All of them if `None`.
        share: Which part of the reading is this process's.
        shards: Which tensors ranks share: of these what this rank is to hold is returned.

    Raises:
        CheckpointError: If it is not, bit for bit, what was written; the message names the file and what is wrong.
    """
    try:
        with _opened(files, path) as directory:
            manifest, digest = _read_manifest_of(files, path, directory)
            rank = share.rank if share.rank < manifest.world else 0
            # what is summed over ranks is not to be lost where fewer resume
            taken = range(share.rank + share.world, manifest.world, share.world) if sections is None else ()
            assembly = Assembly(path, manifest, _groups(manifest, sections, (rank, *taken)), shards)
            reader = _Reader(files, path, directory, assembly)
            content = reader.read(manifest, {STATE, *map(rank_file, (rank, *taken))}, share)
        if manifest.format == 1:
            content[rank_file(0)] = OWN_OF_FORMAT_1
        return unpack_snapshot(path, manifest, content, assembly, sections, rank, taken), digest
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into the memory that there is") from error


def _groups(manifest: Manifest, sections: Collection[str] | None, ranks: Iterable[int]) -> set[str]:
    """Return whose tensors are put together: those of these sections, and what is the ranks' own in them."""
    stored = {group_of(name.removesuffix(SUFFIX)) for name in manifest.files if name.endswith(SUFFIX)}
    groups = {group for group in stored | manifest.tensors.keys() if not is_rank(group)}
    own = {part_name(RANK, rank) for rank in ranks} & (stored | manifest.tensors.keys())
    if sections is None:
        return groups | own
    begins = tuple(f"{section}." for section in sections)
    return (groups & {*sections}) | {
        group for group in own if any(name.startswith(begins) for name in manifest.tensors.get(group, {}))
    }


class _Reader:
    """Reads and verifies the files of a checkpoint, each once.

    Args:
        files: The operations.
        path: The checkpoint, for messages.
        directory: A descriptor of it.
        assembly: Takes the tensors.
    """

    def __init__(self, files: Files, path: Path, directory: int, assembly: Assembly) -> None:
        self._files = files
        self._path = path
        self._directory = directory
        self._assembly = assembly
        self._free = _memory()
        self._odd: list[CheckpointError] = []

    def read(self, manifest: Manifest, wanted: Collection[str], share: Share) -> dict[str, bytes]:
        """Return the content of the files that are wanted and hold no tensors, by name, when all are verified.

        Of the files of which nothing is wanted, those of a share are verified.

        Raises:
            CheckpointError: If a file is not what was written, or its tensors are not those of the manifest.
        """
        content: dict[str, bytes] = {}
        for number, (name, facts) in enumerate(manifest.files.items()):
            if name in wanted:
                content[name] = self._read_text(name, facts)
            elif self._assembly.needs(name) or number % share.world == share.rank:
                self._read_tensors(name, facts)
        if self._odd:
            raise self._odd[0]
        return content

    def _read_text(self, name: str, facts: FileFacts) -> bytes:
        held = _read(self._files, self._path, self._directory, name, min(facts.size, MOST_STATE), self._free)
        _verify(self._path / name, len(held), hashlib.sha256(held).hexdigest(), facts)
        self._free -= len(held)
        return held

    def _read_tensors(self, name: str, facts: FileFacts) -> None:
        """Verify a file, and put what is wanted of it where it belongs; what is odd in it is kept until all is read."""
        most = facts.size
        if self._assembly.needs_all(name):
            most = min(most, self._free)
            empty((most,), torch.uint8)  # to learn at once, and not after hours of hashing, that there is no memory
            self._free -= facts.size
        try:
            stream = HashedStream(read_pieces(self._files, self._directory, name, most, _PIECE))
            if self._assembly.knows(name):
                try:
                    self._fill(stream, name, facts.size)
                except CheckpointError as error:
                    self._odd.append(error)
            found = stream.finish()
        except OSError as error:
            if error.errno == errno.EFBIG and most < facts.size:
                raise MemoryError from error
            raise unreadable(self._path / name, error) from error
        _verify(self._path / name, stream.size, found, facts)

    def _fill(self, stream: HashedStream, name: str, size: int) -> None:
        where = str(self._path / name)
        length = header_size(stream.take(8), size, where)
        header = read_header(stream.take(length), size - 8 - length, where)
        for target in self._assembly.targets(name, header):
            if isinstance(target, int):
                stream.skip(target)
            else:
                stream.fill(target)


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
