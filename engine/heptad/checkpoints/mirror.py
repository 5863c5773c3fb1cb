"""`Mirror`: copies of committed checkpoints on another file system, each whole or not there.

It owns how one checkpoint is copied there and back, and what is there; `Mirroring` decides which and when. The files of
a checkpoint have the names that they have in its directory. Its manifest is written last and removed first, under its
name at once: a folder without one is no checkpoint. What comes back is compared with size and SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptad.checkpoints.damage import DamagedError, NewerFormatError, unreadable
from heptad.checkpoints.files import Files, os_errors_explained, read_file, read_pieces, remove_tree
from heptad.checkpoints.layout import MANIFEST, TEMPORARY, number_of
from heptad.checkpoints.manifest import MOST_MANIFEST, FileFacts, Manifest, read_manifest
from heptad.checkpoints.packed import unpack_summary
from heptad.checkpoints.remote import Remote, RemoteError
from heptad.checkpoints.writing import write_file, write_last
from heptad.errors import CheckpointError

_PIECE = 1 << 23
"""Bytes that are transferred between two signs of progress."""

_PART = f"{MANIFEST}.part"
"""The name under which a manifest is written."""

Beat = Callable[[], None]
"""Called after each operation: notes progress; raises if the work was abandoned."""


@dataclass(frozen=True)
class Mirrored:
    """A manifest: in a mirror, or of a checkpoint that is to be there.

    Attributes:
        name: That of the checkpoint.
        content: Of the manifest.
        manifest: What it says.
        summary: What the manifest says of the run.
    """

    name: str
    content: bytes = field(repr=False)
    manifest: Manifest = field(repr=False)
    summary: dict[str, Any] = field(repr=False)

    @property
    def number(self) -> int:
        """That of the checkpoint."""
        return number_of(self.name) or 0


class Mirror:
    """Checkpoints in a folder of another file system.

    Args:
        remote: The folder.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.url = remote.url
        self.local = remote.local

    def names(self) -> list[str]:
        """Return the names of the folders of checkpoints, by number; some may have no manifest.

        Raises:
            RemoteError: As all methods, if the file system refuses something or cannot be reached.
        """
        found = [(number, name) for name in self._remote.names() if (number := number_of(name)) is not None]
        return [name for _, name in sorted(found)]

    def look(self, name: str) -> Mirrored | None:
        """Return the manifest of a checkpoint; `None` of a folder without one.

        Raises:
            DamagedError: If it is not what was written.
            NewerFormatError: If a later version wrote it.
        """
        content = self._remote.read(f"{name}/{MANIFEST}", MOST_MANIFEST)
        return None if content is None else described(name, content, f"{self.url}/{name}/{MANIFEST}")

    def upload(self, one: Mirrored, source: Path, files: Files, beat: Beat) -> None:
        """Copy a checkpoint here; a manifest that has this name already is removed first.

        Sizes are compared when the files are there, and the manifest is read back.

        Args:
            one: Its manifest.
            source: Its directory.
            files: The operations on that.
            beat: See `Beat`.

        Raises:
            DamagedError: If a file in the directory is not what was written.
        """
        name = one.name
        self._remote.remove(f"{name}/{MANIFEST}")
        beat()
        self._remote.make_folder(name)
        beat()
        try:
            directory = files.open_directory(source)
        except OSError as error:
            raise unreadable(source, error) from error
        try:
            for file, facts in one.manifest.files.items():
                self._remote.write(f"{name}/{file}", _verified(files, directory, source / file, facts, beat))
                self._check_size(f"{name}/{file}", facts.size)
                beat()
        finally:
            files.close(directory)
        self._remote.write(f"{name}/{_PART}", [one.content])
        beat()
        if self._remote.read(f"{name}/{_PART}", len(one.content)) != one.content:
            raise RemoteError(f"{self.url}/{name}/{_PART} is not what was written there")
        beat()
        self._remote.move(f"{name}/{_PART}", f"{name}/{MANIFEST}")
        beat()
        self._check_size(f"{name}/{MANIFEST}", len(one.content))

    def fetch(self, one: Mirrored, directory: Path, files: Files, beat: Beat) -> Path:
        """Copy a checkpoint to a directory of checkpoints, under the lock of that, as `Store.save` writes one.

        Everything is compared with the manifest, and durable under a temporary name, before it gets its own.

        Returns:
            Its path.

        Raises:
            DamagedError: If something is not what was written.
            CheckpointError: If the operating system refuses something.
        """
        temporary = directory / f"{TEMPORARY}{one.name}-{os.getpid()}-{secrets.token_hex(4)}"
        path = directory / one.name
        try:
            with os_errors_explained("making", temporary):
                files.make_directory(temporary)
            for file, facts in one.manifest.files.items():
                where = f"{self.url}/{one.name}/{file}"
                found = write_file(files, temporary / file, facts.size, self._pieces(one.name, file, facts, beat))
                if found.sha256 != facts.sha256:
                    raise DamagedError(
                        f"{where} is not what was written: its SHA-256 is {found.sha256}, not {facts.sha256}"
                    )
            beat()
            write_last(files, temporary, one.content)
            with os_errors_explained("renaming the finished checkpoint to", path):
                files.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                remove_tree(files, temporary)
            raise
        with os_errors_explained("syncing", directory):
            files.sync_directory(directory)
        return path

    def remove(self, name: str, beat: Beat) -> None:
        """Remove a checkpoint, or what is left of one; the manifest first: without it the folder is no checkpoint."""
        self._remote.remove(f"{name}/{MANIFEST}")
        beat()
        for file in self._remote.names(name):
            self._remote.remove(f"{name}/{file}")
            beat()
        self._remote.remove_folder(name)

    def _pieces(self, name: str, file: str, facts: FileFacts, beat: Beat) -> Iterator[memoryview]:
        """Yield the content of a file, of the size that it must have."""
        where, left = f"{self.url}/{name}/{file}", facts.size
        try:
            for piece in self._remote.pieces(f"{name}/{file}", _PIECE):
                left -= len(piece)
                if left < 0:
                    raise DamagedError(f"{where} is larger than the {facts.size:,} bytes that were written")
                beat()
                yield memoryview(piece)
        except FileNotFoundError:
            raise DamagedError(f"{where} is missing") from None
        if left:
            raise DamagedError(f"{where} holds {facts.size - left:,} bytes, but {facts.size:,} were written")

    def _check_size(self, path: str, size: int) -> None:
        found = self._remote.size(path)
        if found != size:
            what = "is not there" if found is None else f"has {found:,} bytes"
            raise RemoteError(f"{self.url}/{path} {what} after {size:,} were written")


def described(name: str, content: bytes, where: str) -> Mirrored:
    """Return what the content of a manifest says.

    Raises:
        DamagedError: If it is not what was written.
        NewerFormatError: If a later version wrote it.
    """
    try:
        if len(content) > MOST_MANIFEST:
            raise DamagedError(f"is longer than {MOST_MANIFEST:,} bytes")
        manifest = read_manifest(content)
    except (DamagedError, NewerFormatError) as error:
        raise type(error)(f"{where} {error}") from None
    try:
        return Mirrored(name, content, manifest, unpack_summary(Path(name), manifest))
    except CheckpointError as error:
        raise DamagedError(f"{where} holds no summary: {error}") from None


def local_manifest(path: Path, files: Files) -> Mirrored:
    """Return the manifest of a checkpoint in a directory.

    Raises:
        CheckpointError: If it cannot be read, or is not what was written.
    """
    try:
        directory = files.open_directory(path)
        try:
            content = read_file(files, directory, MANIFEST, MOST_MANIFEST)
        finally:
            files.close(directory)
    except OSError as error:
        raise unreadable(path / MANIFEST, error) from error
    return described(path.name, content, str(path / MANIFEST))


def _verified(files: Files, directory: int, path: Path, facts: FileFacts, beat: Beat) -> Iterator[bytes]:
    """Yield the content of a file of a checkpoint, and raise at its end if that is not what was written."""
    digest, size = hashlib.sha256(), 0
    try:
        for piece in read_pieces(files, directory, path.name, facts.size, _PIECE):
            digest.update(piece)
            size += len(piece)
            beat()
            yield piece
    except OSError as error:
        raise unreadable(path, error) from error
    if (size, digest.hexdigest()) != (facts.size, facts.sha256):
        raise DamagedError(f"{path} is not what was written")
