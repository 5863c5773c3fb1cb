"""`Store`: checkpoints in a directory, each whole or not there.

A checkpoint is a directory `checkpoint-00000012` with a `manifest.json`, a `state.json`, a `rank-00000.json` for each
rank of the run, and safetensors files for sections and ranks that hold tensors. A process that is killed at any point
leaves it whole or not there, see `Store._save`. Reading verifies size and SHA-256 of every file before anything in it
is used, and never unpickles. Only a writer needs the lock.

The ranks of a run have a store each, on one directory. After `join`, all of them call the methods that write, and those
that look for a sound checkpoint. Rank 0 alone has the lock, sweeps and removes.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from heptad.checkpoints.copies import Copies
from heptad.checkpoints.copying import copied
from heptad.checkpoints.directory import Directory, plain_rows
from heptad.checkpoints.entry import Entry, best_of
from heptad.checkpoints.files import Files, StoppableFiles, os_errors_explained, remove_tree
from heptad.checkpoints.layout import TEMPORARY, is_there, name_of
from heptad.checkpoints.lock import Lock
from heptad.checkpoints.manifest import FileFacts, write_manifest
from heptad.checkpoints.mirroring import mirrored
from heptad.checkpoints.packed import PackedSnapshot, merge_listings, pack_snapshot
from heptad.checkpoints.saving import Saving
from heptad.checkpoints.writing import write_files, write_last
from heptad.errors import CheckpointError
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot

WrittenPart = dict[str, Any]
"""What a rank has written of a checkpoint, as plain data: sizes and digests of its files, and its tensors."""


class Store(Directory):
    """The checkpoints in a directory, to be written, read and removed.

    Args:
        directory: Made, with its parents, when it is first written to.
        files: The operations on files.
        mirror: The URL of a folder that fsspec understands, where copies are kept.

    Attributes:
        directory: See above.
        copies: Those that are kept in the mirror.
    """

    def __init__(self, directory: str | Path, files: Files | None = None, mirror: str | None = None) -> None:
        super().__init__(directory, files)
        self.copies = Copies(mirrored(mirror, self.directory, self._files))
        self._keep = (1, 0)
        self._lock = Lock(self.directory)
        self._turn = threading.Lock()  # of a thread: else it would sweep away what another one is writing
        self._open: list[Saving] = []  # what threads of the ranks are writing: not swept away

    # -- who may write

    def join(self, run: Run) -> None:
        """Act together with the stores of the run's other ranks from now on; alone, this changes nothing."""
        super().join(run)
        self.copies.join(self._ranks)

    @property
    def shared(self) -> bool:
        """Whether other ranks act on the directory together with this one."""
        return self._ranks.others

    def on_first(self, call: Callable[[], object]) -> None:
        """Call a function on rank 0 alone, where it may use this store; if it raises, all ranks do.

        Raises:
            CheckpointError: What it raised.
        """

        def called() -> None:
            call()

        self._ranks.first(called)

    def lock(self) -> None:
        """Lock the directory for writing, and remove what a killed process left half written.

        Raises:
            CheckpointError: If another run holds the lock, with its process number.
        """
        self._ranks.first(self._acquire)

    def _acquire(self) -> None:
        if not self._lock.held:
            self._make_directory()
            self._lock.acquire()
            try:
                self._sweep()
            except BaseException:
                self._lock.release()
                raise

    def unlock(self) -> None:
        """Release the lock."""
        self._lock.release()

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        """Hold the lock for a call, and remove what was left half written; one thread at a time."""
        with self._turn:
            held = self._lock.held
            if held:
                self._sweep()
            else:
                self._acquire()
            try:
                yield
            finally:
                if not held:
                    self.unlock()

    # -- writing

    def save(self, snapshot: Snapshot | Callable[[], Snapshot]) -> Entry:
        """Write a checkpoint with the number after the highest one, and return when it is durable.

        The tensors are read meanwhile, and must not change. If saving fails, there is no new checkpoint, and the
        earlier ones stay as they are.

        Args:
            snapshot: What it holds, or what takes that: where it raises on one of several ranks, all of them raise.

        Raises:
            CheckpointError: If something cannot be stored, before anything is written; or if the operating system
                refuses something, with path and cause. Nothing is tried again: after a failed sync the system may
                report success for data that it lost, so the next save writes new files.
        """
        take = snapshot if callable(snapshot) else lambda: snapshot
        return self._save(lambda: self._pack(take()))

    def save_packed(self, packed: PackedSnapshot) -> Entry:
        """Write a packed snapshot, as `save` does; from any thread, where there is one rank.

        Raises:
            CheckpointError: As `save`.
        """
        return self._save(lambda: packed)

    def begin(self, snapshot: Callable[[], Snapshot]) -> tuple[Saving, Callable[[], WrittenPart]]:
        """Begin a checkpoint of which each rank writes its part at its own pace; then `commit` it, or `drop` it.

        Args:
            snapshot: Takes what it holds; where it raises on one of the ranks, all of them raise.

        Returns:
            The checkpoint; and what writes this rank's files, from a copy and on any thread. What that returns, or
            raises, is for `commit`.

        Raises:
            CheckpointError: As `save`, before the first file is written.
        """
        with ExitStack() as held:
            saving, packed = self._begin(held, lambda: copied(self._pack(snapshot())))
            self._open.append(saving)
        return saving, partial(self._write, saving, packed, StoppableFiles(self._files, saving.given_up))

    def commit(self, saving: Saving, written: Callable[[], WrittenPart]) -> Entry:
        """Make a checkpoint of what all ranks have written, on the thread that drives the run.

        Args:
            saving: The checkpoint.
            written: Returns, or raises, what came of writing this rank's files.

        Raises:
            CheckpointError: As `save`.
        """
        try:
            with ExitStack() as held:

                def outcome() -> WrittenPart:
                    if not self._ranks.rank:
                        held.enter_context(self._locked())
                        held.enter_context(self._removed_on_error(saving.temporary))
                    return written()

                parts = self._ranks.each(outcome)
                self._ranks.first(lambda: self._finish(saving, parts))
        finally:
            self.drop(saving)
        return saving.entry

    def drop(self, saving: Saving) -> None:
        """Leave a checkpoint that was begun to the next sweep, unless it was committed."""
        self._open = [other for other in self._open if other is not saving]

    def _save(self, pack: Callable[[], PackedSnapshot]) -> Entry:
        """Write a checkpoint so that it is whole or not there, wherever a process is killed.

        The order is the protocol. Each rank packs its part, and rank 0 makes a directory with a temporary name; each
        writes and syncs its files there; rank 0 writes the manifest and renames the directory. After each of the three
        the ranks exchange what came of it, and where one has failed, all raise, and rank 0 removes the directory. In
        the background a thread of each rank makes the second, between `begin` and `commit`.

        Content and names are synced before the directory gets its real name, else a power failure could leave that name
        with empty files in it. The rename is atomic. It is synced before this returns, since the caller then removes
        older checkpoints.
        """
        with ExitStack() as held:
            saving, packed = self._begin(held, pack)
            written = self._ranks.each(lambda: self._write(saving, packed, self._files))
            self._ranks.first(lambda: self._finish(saving, written))
        return saving.entry

    def _pack(self, snapshot: Snapshot) -> PackedSnapshot:
        """Return what this rank writes of a snapshot; nothing is copied."""
        return pack_snapshot(snapshot, self._ranks.rank, self._shards)

    def _begin(self, held: ExitStack, pack: Callable[[], PackedSnapshot]) -> tuple[Saving, PackedSnapshot]:
        """Pack this rank's part; rank 0 makes the temporary directory under the lock, both held by a stack."""
        packed: list[PackedSnapshot] = []

        def begin() -> list[Any] | None:
            packed.append(pack())
            return None if self._ranks.rank else self._make_temporary(held, packed[0])

        number, hidden = self._ranks.each(begin)[0]
        entry = Entry(number, self.directory / name_of(number))
        return Saving(entry, self.directory / hidden, packed[0].summary, packed[0].size), packed[0]

    def _make_temporary(self, held: ExitStack, packed: PackedSnapshot) -> list[Any]:
        """Make a temporary directory under the lock, both held by a stack; return number and name."""
        held.enter_context(self._locked())
        taken = [*self.entries(), *(saving.entry for saving in self._open)]
        number = max(self.copies.mirror.highest, *(entry.number for entry in taken), 0) + 1
        temporary = self.directory / f"{TEMPORARY}{name_of(number)}-{os.getpid()}-{secrets.token_hex(4)}"
        held.enter_context(self._removed_on_error(temporary))
        with self._explained(packed.size), os_errors_explained("making", temporary):
            self._files.make_directory(temporary)
            if self._ranks.others:  # the other ranks look for it, perhaps on other nodes
                self._files.sync_directory(self.directory)
        return [number, temporary.name]

    def _write(self, saving: Saving, packed: PackedSnapshot, operations: Files) -> WrittenPart:
        """Write this rank's files; return what they hold, and its tensors, as plain data."""
        temporary = saving.temporary
        with self._explained(saving.size):
            if not is_there(temporary):
                raise CheckpointError(
                    f"{temporary}, which rank 0 has made, is not there: the ranks do not share this directory; "
                    "name one on a file system that all nodes have under the same path"
                )
            facts = write_files(operations, temporary, packed)
        return {"files": {name: [one.size, one.sha256] for name, one in facts.items()}, "tensors": packed.listing()}

    def _finish(self, saving: Saving, written: list[WrittenPart]) -> None:
        """Write the manifest of what all ranks have written, and give the directory its name."""
        temporary, path = saving.temporary, saving.entry.path
        files = {
            name: FileFacts(size=size, sha256=digest)
            for facts in written
            for name, (size, digest) in facts["files"].items()
        }
        with self._explained(saving.size):
            listed = merge_listings([facts["tensors"] for facts in written], self._shards.any)
            write_last(self._files, temporary, write_manifest(len(written), saving.summary, files, listed))
            with os_errors_explained("renaming the finished checkpoint to", path):
                self._files.rename(temporary, path)
            with self._removed_on_error(path), os_errors_explained("syncing", self.directory):
                self._files.sync_directory(self.directory)

    @contextmanager
    def _removed_on_error(self, path: Path) -> Generator[None, None, None]:
        """Remove a directory if it cannot be finished; if that fails too, the next save does it."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self._remove(path)
            raise

    @contextmanager
    def _explained(self, size: int) -> Generator[None, None, None]:
        """Add to an error what has become of the other checkpoints, and if the disk is full, by how much."""
        try:
            yield
        except CheckpointError as error:
            cause = error.__cause__
            space = ""
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                with suppress(OSError):
                    free = shutil.disk_usage(self.directory).free
                    space = f"; the checkpoint needs {size:,} bytes, and {free:,} are free there"
            text = f"no checkpoint was written: {error}{space}; those that are in {self.directory} stay as they were"
            raise CheckpointError(text) from cause

    def _make_directory(self) -> None:
        """Make the directory and its missing parents; each new name is synced in its parent."""
        missing: list[Path] = []
        path = self.directory.absolute()
        with os_errors_explained("looking for", self.directory):  # its name may be too long
            while not path.exists():
                missing.append(path)
                path = path.parent
        for path in reversed(missing):
            with os_errors_explained("making", path), suppress(FileExistsError):
                self._files.make_directory(path)
            with os_errors_explained("syncing", path.parent):
                self._files.sync_directory(path.parent)

    # -- removing

    def rotate(self, keep_last: int, keep_best: int = 0, *, wait: bool = True) -> list[Entry]:
        """Remove all but the newest checkpoints and the best, then bring the mirror up to date.

        Called when the newest is durable. The first rank copies; no failure of the mirror is raised.

        Checkpoints that this store found damaged count as none of those to keep. They are removed too, if there are
        others, and so is what a killed process left half written or half removed. One that is being copied stays.

        Args:
            keep_last: How many of the newest stay, at least 1.
            keep_best: For how many of the best monitored values a checkpoint stays, if it is not among the newest.
            wait: Whether it returns when the mirror is up to date, see `Copies.follow`.

        Returns:
            Those that were removed.

        Raises:
            CheckpointError: If the operating system refuses something.
        """
        self._keep = keep_last, keep_best
        gone, self.copies.exist = self._ranks.first(lambda: [self._rotate(keep_last, keep_best), self.copies.exist])
        self.copies.follow(self.entries, self._keep, wait=wait)
        return [Entry(number, self.directory / name) for number, name in gone]

    def end_copies(self, run: Run) -> None:
        """Try once more to copy what the mirror lacks, since the run pauses or ends; say in the log what is missing."""
        self.copies.finish()
        if self.copies.exist:
            self._ranks.first(lambda: self._rotate(*self._keep))  # what stayed because it was being copied
            self.copies.retry(self.entries, self._keep)
        self.copies.mirror.end(run)

    def _rotate(self, keep_last: int, keep_best: int) -> list[list[Any]]:
        with self._locked():
            entries = self.entries()
            summaries = self._summaries(entries, []) if keep_best else []
            sound = [entry for entry in entries if entry not in self._damaged]
            best = best_of([row for row in summaries if row[0] in sound], keep_best)
            copied = [entry for entry in sound if entry.path.name == self.copies.mirror.copying]
            keep = {*sound[-max(keep_last, 1) :], *best, *copied}
            gone = [entry for entry in entries if entry not in keep] if sound else []
            self._remove_entries(gone)
        return plain_rows(gone)

    def refill(self) -> list[str]:
        """Fetch the newest sound checkpoint from the mirror to an empty directory; return what is worth knowing of it.

        The first rank alone calls it.

        Raises:
            CheckpointError: If the mirror cannot be asked, or all that it holds is damaged: what there is to resume
                from is not known then.
        """
        if not self.copies.exist or self.entries():
            return []
        with self._locked():
            return self.copies.mirror.fetch(self.directory)

    def clear(self) -> None:
        """Remove all checkpoints."""
        self._ranks.first(self._clear)

    def _clear(self) -> None:
        with self._locked():
            self._remove_entries(self.entries())

    def _remove_entries(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            with os_errors_explained("removing", entry.path):
                self._remove(entry.path)

    def _remove(self, path: Path) -> None:
        """Remove a directory. It is renamed first, atomically, so that half of it is never taken for a checkpoint."""
        hidden = path
        if not path.name.startswith(TEMPORARY):
            hidden = path.with_name(f"{TEMPORARY}{path.name}-removed")
            self._files.rename(path, hidden)
        if hidden.is_dir() and not hidden.is_symlink():
            remove_tree(self._files, hidden)
        elif is_there(hidden):
            self._files.remove(hidden)

    def _sweep(self) -> None:
        """Remove what has a temporary name. Under the lock nobody else writes there; this run may, see `begin`."""
        with os_errors_explained("listing", self.directory):
            names = self._files.names(self.directory)
        being_written = {saving.temporary.name for saving in self._open}
        for name in names:
            if name.startswith(TEMPORARY) and name not in being_written:
                with os_errors_explained("removing", self.directory / name):
                    self._remove(self.directory / name)
