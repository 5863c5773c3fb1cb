"""The operations on files that the store makes, one method each, so that tests can let any of them fail."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from heptad.errors import CheckpointError

SIDE = 1 << 20
"""Bytes from which on a file is hashed in a second thread beside the writing of it; a thread costs about 0.1 ms."""

_MOST_LAG = 1 << 28
"""Bytes that may have been written and not hashed yet."""

_MOST_READ = 1 << 30
"""Bytes that one call reads at most: Linux gives up at 2 GiB."""


class Files:
    """What the operating system is asked for. A path is never followed through a link in its last part."""

    def make_directory(self, path: Path) -> None:
        """Makes a directory that is not there yet."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """Returns a descriptor to write to a file that is not there yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Writes some of the data and returns how many bytes."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Returns when the file's content is on the medium."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Lets go of a descriptor."""
        os.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Returns when the names in a directory are on the medium."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Gives a directory another name, at once."""
        source.rename(target)

    def remove(self, path: Path) -> None:
        """Removes a file or a link."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Removes an empty directory."""
        path.rmdir()

    def names(self, path: Path) -> list[str]:
        """Returns the names in a directory."""
        return sorted(child.name for child in path.iterdir())

    def open_directory(self, path: Path) -> int:
        """Returns a descriptor of a directory."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def open(self, name: str, directory: int) -> int:
        """Returns a descriptor to read a file in an open directory; does not wait where it is a pipe."""
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)

    def read(self, descriptor: int, most: int) -> bytes:
        """Returns the next bytes, none at the end."""
        return os.read(descriptor, most)


@dataclass(frozen=True, slots=True)
class Written:
    """What a file came to.

    Attributes:
        size: Bytes.
        sha256: The digest of its content, in hexadecimal.
    """

    size: int
    sha256: str


@contextmanager
def told(doing: str, path: Path) -> Generator[None, None, None]:
    """Raises what the operating system refuses as a `CheckpointError` with path and cause."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{doing} {path} failed: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Returns the name of an error, and what it means: `ENOSPC (No space left on device)`."""
    return f"{errno.errorcode.get(error.errno or 0, 'an error')} ({error.strerror or error})"


def write_file(files: Files, path: Path, size: int, pieces: Iterable[memoryview]) -> Written:
    """Writes a new file, and returns when it is on the medium. What failed is not tried again on the same file.

    Args:
        files: The operations.
        path: Of the file.
        size: Bytes that the pieces come to.
        pieces: The content; each is hashed while it is being written.

    Raises:
        OSError: As the operating system says.
    """
    descriptor = files.create(path)
    try:
        with (SideDigest if size >= SIDE else Digest)() as digest:
            for piece in pieces:
                digest.update(piece)
                left = piece
                while left:
                    left = left[files.write(descriptor, left) :]
            files.sync(descriptor)
    except BaseException:
        with suppress(OSError):  # the file is given up: what closing it says does not matter any more
            files.close(descriptor)
        raise
    files.close(descriptor)
    return Written(size, digest.hexdigest())


def read_file(files: Files, directory: int, name: str, most: int) -> bytes:
    """Returns the content of a file in an open directory.

    Raises:
        OSError: As the operating system says; `EFBIG` if it is larger than `most`, `EINVAL` if it is no regular file.
    """
    descriptor = files.open(name, directory)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"{found.st_size:,} bytes, where at most {most:,} are expected")
        parts: list[bytes] = []
        left = most + 1  # one more, which is there if the file has grown since
        while left and (part := files.read(descriptor, min(left, _MOST_READ))):
            parts.append(part)
            left -= len(part)
    finally:
        files.close(descriptor)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def remove_tree(files: Files, path: Path) -> None:
    """Removes a directory and all in it; links are removed, not followed."""
    for name in files.names(path):
        child = path / name
        if child.is_dir() and not child.is_symlink():
            remove_tree(files, child)
        else:
            files.remove(child)
    files.remove_directory(path)


class Digest:
    """SHA-256 of the pieces it is given."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, piece: memoryview) -> None:
        """Takes a piece, which must stay as it is until the digest is left."""
        self._hash.update(piece)

    def hexdigest(self) -> str:
        """Returns the digest, once it was left."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class SideDigest(Digest):
    """The same in a thread of its own: hashing and writing both let go of the interpreter's lock.

    Hashing is the slower of the two, so it lags, and goes on while the file is being synced. By how many bytes is
    limited, for a copy of a tensor that was made for writing is held until it is hashed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pieces: deque[memoryview] = deque()
        self._lag = 0
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="heptad-digest", daemon=True)

    def update(self, piece: memoryview) -> None:
        """Puts a piece in line."""
        with self._changed:
            while self._pieces and self._lag + len(piece) > _MOST_LAG:
                self._changed.wait()
            self._pieces.append(piece)
            self._lag += len(piece)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._pieces and not self._ended:
                    self._changed.wait()
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
            self._hash.update(piece)
            with self._changed:
                self._lag -= len(piece)
                self._changed.notify()
            del piece

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            if error is not None:
                self._pieces.clear()  # the file is given up
            self._ended = True
            self._changed.notify()
        self._thread.join()
