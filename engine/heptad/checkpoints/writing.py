"""`write_checkpoint`: the files of one checkpoint, in a directory that is not there yet."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from heptad.checkpoints import tensors
from heptad.checkpoints.digest import LARGE, Digest, ThreadedDigest
from heptad.checkpoints.files import Files, os_errors_explained
from heptad.checkpoints.layout import MANIFEST, STATE, SUFFIX
from heptad.checkpoints.manifest import FileFacts, write_manifest
from heptad.checkpoints.packed import PackedSnapshot


def write_checkpoint(files: Files, directory: Path, packed: PackedSnapshot) -> None:
    """Write the files of a checkpoint, and sync them and their names.

    The manifest comes last, since it holds the digests of the others; a directory without one is never sound.

    Raises:
        CheckpointError: If the operating system refuses something, with path and cause.
    """
    with os_errors_explained("making", directory):
        files.make_directory(directory)
    written: dict[str, FileFacts] = {}
    for name, held in packed.tensors.items():
        file = f"{name}{SUFFIX}"
        written[file] = _write_file(files, directory / file, *tensors.pieces(held, name))
    written[STATE] = _write_file(files, directory / STATE, len(packed.state), [memoryview(packed.state)])
    manifest = write_manifest(packed.summary, written)
    _write_file(files, directory / MANIFEST, len(manifest), [memoryview(manifest)])
    with os_errors_explained("syncing", directory):
        files.sync_directory(directory)


def _write_file(files: Files, path: Path, size: int, pieces: Iterable[memoryview]) -> FileFacts:
    """Write and sync a new file of a given size. What failed is not tried again on the same file."""
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
