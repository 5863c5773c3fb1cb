"""The files of one checkpoint: those of each rank, and the manifest, which rank 0 writes last."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from heptad.checkpoints import tensors
from heptad.checkpoints.digest import LARGE, Digest, ThreadedDigest
from heptad.checkpoints.files import Files, os_errors_explained
from heptad.checkpoints.layout import MANIFEST, SUFFIX
from heptad.checkpoints.manifest import FileFacts
from heptad.checkpoints.packed import PackedSnapshot


def write_files(files: Files, directory: Path, packed: PackedSnapshot) -> dict[str, FileFacts]:
    """Write and sync the files of a rank in a directory that is there; return what they hold.

    Raises:
        CheckpointError: If the operating system refuses something, with path and cause.
    """
    written: dict[str, FileFacts] = {}
    for group, held in packed.tensors.items():
        file = f"{packed.file_of(group)}{SUFFIX}"
        written[file] = write_file(files, directory / file, *tensors.pieces(held, group))
    for file, content in packed.files.items():
        written[file] = write_file(files, directory / file, len(content), [memoryview(content)])
    return written


def write_last(files: Files, directory: Path, manifest: bytes) -> None:
    """Write the manifest, and sync the names of all files.

    It comes last, since it holds the digests of the others; a directory without one is never sound.

    Raises:
        CheckpointError: As `write_files`.
    """
    write_file(files, directory / MANIFEST, len(manifest), [memoryview(manifest)])
    with os_errors_explained("syncing", directory):
        files.sync_directory(directory)


def write_file(files: Files, path: Path, size: int, pieces: Iterable[memoryview]) -> FileFacts:
    """Write and sync a new file of a given size. What failed is not tried again on the same file.

    Raises:
        CheckpointError: As `write_files`.
    """
    with os_errors_explained("writing", path):
        descriptor = files.create(path)
        try:
            with (ThreadedDigest if size >= LARGE else Digest)() as digest:
                for piece in pieces:
                    digest.update(piece)
                    left = piece
                    while left:
                        left = left[files.write(descriptor, left) :]
                files.sync(descriptor)  # inside: a large file is still being hashed meanwhile
        except BaseException:
            with suppress(OSError):  # the file is given up, so an error on closing says nothing more
                files.close(descriptor)
            raise
        files.close(descriptor)
    return FileFacts(size=size, sha256=digest.hexdigest())
