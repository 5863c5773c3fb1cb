"""A file system of fsspec whose operations fail, hang, tear what is written, or kill; and mirrors that use it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heptad.checkpoints.mirroring import Mirroring
from heptad.checkpoints.store import Store

OPERATIONS = ("ls", "open", "info", "makedirs", "mv", "rm_file", "rmdir")
OF_FILES = ("read", "write", "close")


class FaultyFileSystem:
    """Counts the operations and, before the n-th, calls a function that may raise, hang or kill.

    What would be written then is torn first: half of it is there.

    Attributes:
        calls: The operations so far: name and path.
        place: The number, from 1 on, of the operation before which `strike` is called; 0 for none.
        strike: See above; it gets the operation's name.
        ever: Whether it is called before all that follow too.
    """

    def __init__(self, files: Any, place: int = 0, strike: Callable[[str], object] = str, ever: bool = False) -> None:
        self._files = files
        self.calls: list[tuple[str, str]] = []
        self.place, self.strike, self.ever = place, strike, ever

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._files, name)
        if name not in OPERATIONS:
            return found

        def counted(path: str, *arguments: Any, **options: Any) -> Any:
            self.count(name, path)
            result = found(path, *arguments, **options)
            return _File(self, result, path) if name == "open" else result

        return counted

    def count(self, name: str, path: str) -> None:
        """Count an operation."""
        self.calls.append((name, path))
        if len(self.calls) == self.place or (self.ever and 0 < self.place <= len(self.calls)):
            self.strike(name)

    def names(self) -> list[str]:
        """Return the names of the operations so far."""
        return [name for name, _ in self.calls]


class _File:
    """A file of that file system."""

    def __init__(self, files: FaultyFileSystem, file: Any, path: str) -> None:
        self._files, self._file, self._path = files, file, path

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, most: int) -> bytes:
        self._files.count("read", self._path)
        return self._file.read(most)

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._files.count("write", self._path)
        self._file.write(data[half:])
        return len(data)

    def close(self) -> None:
        try:
            self._files.count("close", self._path)
        finally:
            self._file.close()


def mirroring_of(store: Store) -> Mirroring:
    """Return what mirrors a store."""
    assert isinstance(store.copies.mirror, Mirroring)
    return store.copies.mirror


def made_faulty(
    store: Store, place: int = 0, strike: Callable[[str], object] = str, ever: bool = False
) -> FaultyFileSystem:
    """Put a faulty file system below the mirror of a store."""
    remote = mirroring_of(store)._mirror._remote
    remote._files = FaultyFileSystem(remote._files, place, strike, ever)
    return remote._files


def refused(name: str) -> None:
    """Fail as a network does."""
    raise ConnectionError(f"{name}: connection reset by peer")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of the files of all checkpoints in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("checkpoint-*/*"))}


def sound_in(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints that have a manifest, once all of these are sound."""
    store = Store(folder)
    found = [entry for entry in store.entries() if (entry.path / "manifest.json").exists()]
    for entry in found:
        store.load(entry)
    return [entry.number for entry in found]


def emptied(directory: Path) -> Path:
    """Remove a directory, as a disk that is lost."""
    shutil.rmtree(directory, ignore_errors=True)
    return directory
