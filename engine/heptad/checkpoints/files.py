"""`Files`: the operations on files that the store uses, one method each, so that tests can make any of them fail."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from heptad.errors import CheckpointError

_MOST_READ = 1 << 30
"""Bytes that one call reads at most: Linux transfers less than 2 GiB a call."""


class Files:
    """The operations. A link in the last part of a path is never followed."""

    def make_directory(self, path: Path) -> None:
        """Make a directory that is not there yet."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """Return a descriptor to write to a file that is not there yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the data and return how many bytes."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Sync a file: return when its content is on the medium."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Sync a directory: return when the names in it are on the medium."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a directory, atomically."""
        source.rename(target)

    def remove(self, path: Path) -> None:
        """Remove a file or a link."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def names(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(child.name for child in path.iterdir())

    def open_directory(self, path: Path) -> int:
        """Return a descriptor of a directory."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def open(self, name: str, directory: int) -> int:
        """Return a descriptor to read a file in an open directory; a pipe is not waited for."""
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)

    def read(self, descriptor: int, most: int) -> bytes:
        """Return the next bytes, none at the end."""
        return os.read(descriptor, most)


class StoppableFiles(Files):
    """Operations of a thread that writes, until they are given up: each that follows fails.

    Args:
        files: The operations.
        given_up: Set, on another thread, when nothing more is to be written.
    """

    def __init__(self, files: Files, given_up: threading.Event) -> None:
        self._files, self._given_up = files, given_up

    def create(self, path: Path) -> int:
        """See `Files`."""
        self._look()
        return self._files.create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        """See `Files`."""
        self._look()
        return self._files.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """See `Files`."""
        self._look()
        self._files.sync(descriptor)

    def close(self, descriptor: int) -> None:
        """See `Files`."""
        self._files.close(descriptor)

    def _look(self) -> None:
        if self._given_up.is_set():
            raise OSError(errno.ECANCELED, "the run has failed")


@contextmanager
def os_errors_explained(doing: str, path: Path) -> Generator[None, None, None]:
    """Raise an OSError as a `CheckpointError` with what was being done, path and cause."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{doing} {path} failed: {describe_os_error(error)}") from error


def describe_os_error(error: OSError) -> str:
    """Return the name of an error and what it means: `ENOSPC (No space left on device)`."""
    return f"{errno.errorcode.get(error.errno or 0, 'an error')} ({error.strerror or error})"


def read_file(files: Files, directory: int, name: str, most: int) -> bytes:
    """Return the content of a file in an open directory.

    Raises:
        OSError: As `read_pieces`.
    """
    parts = list(read_pieces(files, directory, name, most))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_pieces(files: Files, directory: int, name: str, most: int, piece: int = _MOST_READ) -> Iterator[bytes]:
    """Yield the content of a file in an open directory, at most `piece` bytes at a time.

    Raises:
        OSError: From the operating system; `EFBIG` for a file larger than `most`, `EINVAL` for what is not a file.
    """
    descriptor = files.open(name, directory)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"{found.st_size:,} bytes, where at most {most:,} are expected")
        left = found.st_size + 1  # one more, which is there if the file has grown since; a manifest can claim any size
        while left and (part := files.read(descriptor, min(left, piece))):
            left -= len(part)
            yield part
    finally:
        files.close(descriptor)


def remove_tree(files: Files, path: Path) -> None:
    """Remove a directory and all in it, however deep; links are removed, not followed."""
    waiting, empty = [path], [path][:0]
    while waiting:
        directory = waiting.pop()
        empty.append(directory)
        for name in files.names(directory):
            child = directory / name
            if child.is_dir() and not child.is_symlink():
                waiting.append(child)
            else:
                files.remove(child)
    for directory in reversed(empty):  # those within come after those that hold them
        files.remove_directory(directory)
