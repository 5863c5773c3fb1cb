"""`Store`: checkpoints in a directory, each whole or not there.

A checkpoint is a directory `checkpoint-00000012` with a `manifest.json`, a `state.json` and a safetensors file for each
section that holds tensors. It is written under a temporary name and synced, then renamed, and the renaming is synced: a
process that is killed at any point leaves it whole or not there. Reading verifies size and SHA-256 of every file before
anything is parsed, and nothing on the way is a pickle. Only who writes needs the lock.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from heptad.checkpoints import tensors
from heptad.checkpoints.files import Files, Written, read_file, reason, remove_tree, told, write_file
from heptad.checkpoints.lock import Lock
from heptad.checkpoints.manifest import (
    MANIFEST,
    MOST_MANIFEST,
    STATE,
    SUFFIX,
    DamagedError,
    Manifest,
    NewerFormatError,
    read_manifest,
    write_manifest,
)
from heptad.checkpoints.packed import Packed, pack, read_summary, unpack
from heptad.errors import CheckpointError
from heptad.run.snapshot import Snapshot

_NAME = re.compile(r"checkpoint-(\d{8,18})")
_TEMPORARY = ".temporary-"

_DAMAGE = {
    errno.ENOENT: "is missing",
    errno.ELOOP: "is a link, which is not followed",
    errno.EIO: "cannot be read: the medium is damaged",
    errno.EINVAL: "is not a regular file",
    errno.ENXIO: "is not a regular file",
    errno.EISDIR: "is not a regular file",
}
"""What says of a checkpoint that it is damaged. Other errors (no right to read it, too many open files) say nothing."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A checkpoint in a directory.

    Attributes:
        number: Grows by one with each that is written.
        path: Its directory.
    """

    number: int
    path: Path


class Store:
    """The checkpoints in a directory.

    Args:
        directory: Made, with its parents, when it is first written to.
        files: The operations on files.

    Attributes:
        directory: See above.
    """

    def __init__(self, directory: str | Path, files: Files | None = None) -> None:
        self.directory = Path(directory)
        self._files = Files() if files is None else files
        self._lock = Lock(self.directory)
        self._damaged: set[Entry] = set()

    # -- who may write

    def lock(self) -> None:
        """Makes this the one that writes to the directory, and removes what a killed process left half written.

        Raises:
            CheckpointError: If another run holds the directory, with its process number.
        """
        if not self._lock.held:
            self._make_directory()
            self._lock.acquire()
            try:
                self._sweep()
            except BaseException:
                self._lock.release()
                raise

    def unlock(self) -> None:
        """Lets others write to it."""
        self._lock.release()

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        """Locks for the length of a call, where it is not locked; what was left half written is removed either way."""
        held = self._lock.held
        if held:
            self._sweep()
        else:
            self.lock()
        try:
            yield
        finally:
            if not held:
                self.unlock()

    # -- what there is

    def entries(self) -> list[Entry]:
        """Returns the checkpoints by number, the oldest first; none is opened.

        Raises:
            CheckpointError: If the directory cannot be listed.
        """
        with told("listing", self.directory):
            try:
                names = self._files.names(self.directory)
            except FileNotFoundError:
                return []
        found = ((_NAME.fullmatch(name), self.directory / name) for name in names)
        return sorted(Entry(int(match[1]), path) for match, path in found if match)

    # -- writing

    def save(self, snapshot: Snapshot) -> Entry:
        """Writes a checkpoint with the number after the highest one, and returns when it is durable.

        The tensors are read while this goes on, and nobody may change them. A save that fails leaves no checkpoint, and
        the earlier ones as they are.

        Raises:
            CheckpointError: If something cannot be stored, before anything is written; or the operating system refuses
                something, with path and cause. Nothing is tried again: what the system says after a failed sync
                is not to be relied on, so the next save writes new files.
        """
        packed = pack(snapshot)
        with self._locked():
            number = max((entry.number for entry in self.entries()), default=0) + 1
            entry = Entry(number, self.directory / f"checkpoint-{number:08d}")
            temporary = self.directory / f"{_TEMPORARY}{entry.path.name}-{os.getpid()}"
            with self._explained(packed):
                with self._given_up(temporary):
                    self._write(temporary, packed)
                    with told("renaming the finished checkpoint to", entry.path):
                        self._files.rename(temporary, entry.path)
                with self._given_up(entry.path), told("syncing", self.directory):
                    self._files.sync_directory(self.directory)
        return entry

    def _write(self, temporary: Path, packed: Packed) -> None:
        with told("making", temporary):
            self._files.make_directory(temporary)
        written: dict[str, Written] = {}
        for name, held in packed.tensors.items():
            file = f"{name}{SUFFIX}"
            written[file] = self._put(temporary / file, *tensors.pieces(held, name))
        written[STATE] = self._put(temporary / STATE, len(packed.state), [memoryview(packed.state)])
        manifest = write_manifest(packed.summary, written)
        self._put(temporary / MANIFEST, len(manifest), [memoryview(manifest)])
        with told("syncing", temporary):
            self._files.sync_directory(temporary)

    def _put(self, path: Path, size: int, content: Iterable[memoryview]) -> Written:
        with told("writing", path):
            return write_file(self._files, path, size, content)

    @contextmanager
    def _given_up(self, path: Path) -> Generator[None, None, None]:
        """Removes a directory if it cannot be finished; where that fails too, the next save does it."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self._remove(path)
            raise

    @contextmanager
    def _explained(self, packed: Packed) -> Generator[None, None, None]:
        """Adds to an error what has become of the other checkpoints, and where the disk is full, by how much."""
        try:
            yield
        except CheckpointError as error:
            cause = error.__cause__
            space = ""
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                with suppress(OSError):
                    free = shutil.disk_usage(self.directory).free
                    space = f"; the checkpoint needs {packed.size:,} bytes, and {free:,} are free there"
            text = f"no checkpoint was written: {error}{space}; those that are in {self.directory} stay as they were"
            raise CheckpointError(text) from cause

    def _make_directory(self) -> None:
        missing: list[Path] = []
        path = self.directory.absolute()
        while not path.exists():
            missing.append(path)
            path = path.parent
        for path in reversed(missing):
            with told("making", path), suppress(FileExistsError):
                self._files.make_directory(path)
            with told("syncing", path.parent):
                self._files.sync_directory(path.parent)

    # -- removing

    def rotate(self, keep_last: int, keep_best: int = 0) -> list[Entry]:
        """Removes all but the newest checkpoints and the best; call it when the newer one is durable.

        Removed are also those that this store found damaged, which count as none of those to keep (where there are
        others), and what a killed process left half written or half removed.

        Args:
            keep_last: How many of the newest stay, at least 1.
            keep_best: How many of those with the best monitored value stay, if they are not among the newest.

        Returns:
            Those that were removed.

        Raises:
            CheckpointError: If the operating system refuses something.
        """
        with self._locked():
            entries = self.entries()
            ranked = best(self._summaries(entries, [])) if keep_best else []
            sound = [entry for entry in entries if entry not in self._damaged]
            keep = {*sound[-max(keep_last, 1) :], *[entry for entry in ranked if entry in sound][:keep_best]}
            gone = [entry for entry in entries if entry not in keep] if sound else []
            for entry in gone:
                with told("removing", entry.path):
                    self._remove(entry.path)
        return gone

    def clear(self) -> None:
        """Removes all checkpoints."""
        with self._locked():
            for entry in self.entries():
                with told("removing", entry.path):
                    self._remove(entry.path)

    def _summaries(self, entries: Iterable[Entry], damage: list[str]) -> list[tuple[Entry, dict[str, Any]]]:
        """Returns the summaries of those whose manifest is sound, and adds to a list what is wrong with the others."""
        found: list[tuple[Entry, dict[str, Any]]] = []
        for entry in entries:
            try:
                found.append((entry, self.summary(entry)))
            except DamagedError as error:
                if _exists(entry.path):
                    self._damaged.add(entry)
                    damage.append(str(error))
        return found

    def _remove(self, path: Path) -> None:
        """Takes a directory out of sight first, at once, so that no half of it is ever taken for a checkpoint."""
        hidden = path
        if not path.name.startswith(_TEMPORARY):
            hidden = path.with_name(f"{_TEMPORARY}{path.name}-removed")
            self._files.rename(path, hidden)
        if hidden.is_dir() and not hidden.is_symlink():
            remove_tree(self._files, hidden)
        elif _exists(hidden):
            self._files.remove(hidden)

    def _sweep(self) -> None:
        """Removes what is under a temporary name. Under the lock no living process writes there."""
        with told("listing", self.directory):
            names = self._files.names(self.directory)
        for name in names:
            if name.startswith(_TEMPORARY):
                with told("removing", self.directory / name):
                    self._remove(self.directory / name)

    # -- reading

    def load(self, entry: Entry | str | Path, sections: Collection[str] | None = None) -> Snapshot:
        """Returns what a checkpoint holds; its tensors are on the CPU.

        Args:
            entry: The checkpoint, or the path of its directory, which may lie elsewhere.
            sections: Those to return; the others are verified only. All of them if `None`.

        Raises:
            CheckpointError: If it is not, bit for bit, what was written; the message names the file and what is wrong.
        """
        path = _path(entry)
        content: dict[str, bytes] = {}
        with self._opened(path) as directory:
            manifest = self._manifest(path, directory)
            for name, facts in manifest.files.items():
                held = self._read(path, directory, name, facts.size)
                _verify(path / name, held, Written(facts.size, facts.sha256))
                if sections is None or name == STATE or name.removesuffix(SUFFIX) in sections:
                    content[name] = held
        return unpack(path, manifest, content, sections)

    def summary(self, entry: Entry | str | Path) -> dict[str, Any]:
        """Returns the summary of a checkpoint; only its manifest is read and verified.

        Raises:
            CheckpointError: As `load`.
        """
        path = _path(entry)
        with self._opened(path) as directory:
            return read_summary(path, self._manifest(path, directory))

    def newest_sound(self, sections: Collection[str] | None = None) -> tuple[Entry, Snapshot, list[str]]:
        """Returns the newest checkpoint that is as it was written, what it holds, and what is wrong with newer ones.

        Args:
            sections: As for `load`.

        Raises:
            CheckpointError: If there is none, with all that was found; if a later version of Heptad wrote the newest;
                or if the system refuses to read it for a reason that is no damage.
        """
        return self._first_sound(lambda damage: self.entries()[::-1], sections)

    def best_sound(self, sections: Collection[str] | None = None) -> tuple[Entry, Snapshot, list[str]]:
        """Returns the checkpoint with the best monitored value, as `newest_sound` returns the newest.

        Raises:
            CheckpointError: Also if none was written with a monitored value.
        """

        def ranked(damage: list[str]) -> list[Entry]:
            entries = self.entries()
            found = best(self._summaries(entries, damage))
            if entries and not found and not damage:
                raise CheckpointError(
                    f"no checkpoint in {self.directory} was written with a monitored value, so none is the best; "
                    "train with Checkpoint(monitor=…), or take the newest"
                )
            return found

        return self._first_sound(ranked, sections)

    def _first_sound(
        self, ranked: Callable[[list[str]], list[Entry]], sections: Collection[str] | None
    ) -> tuple[Entry, Snapshot, list[str]]:
        """Returns the first that is sound of what `ranked` gives, which adds to a list what it finds damaged."""
        damage: list[str] = []
        entries = ranked(damage)
        while entries:
            entry = entries.pop(0)
            try:
                return entry, self.load(entry, sections), damage
            except DamagedError as error:
                if not _exists(entry.path):  # a run that goes on has removed it: there are newer ones now
                    damage = []
                    entries = ranked(damage)
                    continue
                self._damaged.add(entry)
                damage.append(str(error))
        if damage:
            found = "".join(f"\n  {line}" for line in damage)
            raise CheckpointError(f"{self.directory} holds no sound checkpoint; what there is:{found}")
        what = "holds no checkpoint" if self.directory.is_dir() else "is no directory"
        raise CheckpointError(f"{self.directory} {what}")

    @contextmanager
    def _opened(self, path: Path) -> Generator[int, None, None]:
        """Holds the directory open, so that all files are of one checkpoint whatever is renamed meanwhile."""
        try:
            directory = self._files.open_directory(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "is not there" if isinstance(error, FileNotFoundError) else "is a link, or not a directory"
            raise DamagedError(f"{path} {what}") from error
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            yield directory
        finally:
            self._files.close(directory)

    def _read(self, path: Path, directory: int, name: str, most: int) -> bytes:
        try:
            return read_file(self._files, directory, name, most)
        except OSError as error:
            raise _unreadable(path / name, error) from error

    def _manifest(self, path: Path, directory: int) -> Manifest:
        content = self._read(path, directory, MANIFEST, MOST_MANIFEST)
        try:
            return read_manifest(content)
        except (DamagedError, NewerFormatError) as error:
            raise type(error)(f"{path / MANIFEST} {error}") from error.__cause__


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _path(entry: Entry | str | Path) -> Path:
    return entry.path if isinstance(entry, Entry) else Path(entry)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    """Returns the error for a file that cannot be read."""
    if error.errno == errno.EFBIG:
        return DamagedError(f"{path} is larger than was written: {error.strerror}")
    if error.errno in _DAMAGE:
        return DamagedError(f"{path} {_DAMAGE[error.errno]}")
    return CheckpointError(f"reading {path} failed: {reason(error)}")


def _verify(path: Path, content: bytes, expected: Written) -> None:
    if len(content) != expected.size:
        raise DamagedError(f"{path} holds {len(content):,} bytes, but {expected.size:,} were written")
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise DamagedError(f"{path} is not what was written: its SHA-256 is {found}, not {expected.sha256}")


def best(summaries: Iterable[tuple[Entry, dict[str, Any]]]) -> list[Entry]:
    """Returns the checkpoints by their monitored value, the best first, of equals the newest.

    Compared are those that monitor what the newest of them does; NaN is no value.

    Args:
        summaries: Checkpoints with their summaries, see `Snapshot.summary`.
    """
    found = [(entry, monitor) for entry, summary in summaries if (monitor := _monitor(summary)) is not None]
    if not found:
        return []
    name, mode, _ = max(found)[1]
    sign = 1 if mode == "min" else -1
    ranked = [(sign * monitor[2], -entry.number, entry) for entry, monitor in found if monitor[:2] == (name, mode)]
    return [entry for _, _, entry in sorted(ranked)]


def _monitor(summary: dict[str, Any]) -> tuple[str, str, float] | None:
    match summary.get("monitor"):
        case {"name": str(name), "mode": "min" | "max" as mode, "value": int() | float() as value}:
            return None if math.isnan(value) else (name, cast("str", mode), float(value))
        case _:
            return None
