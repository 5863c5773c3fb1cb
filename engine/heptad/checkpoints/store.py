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
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from heptad.checkpoints.copying import copied
from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.encoding import ALL_WHOLE
from heptad.checkpoints.entry import Entry, best_of, rank
from heptad.checkpoints.files import Files, StoppableFiles, os_errors_explained, remove_tree
from heptad.checkpoints.layout import MANIFEST, TEMPORARY, is_there, name_of, number_of
from heptad.checkpoints.lock import Lock
from heptad.checkpoints.manifest import FileFacts, write_manifest
from heptad.checkpoints.mirroring import NoMirror, mirrored
from heptad.checkpoints.packed import PackedSnapshot, merge_listings, pack_snapshot
from heptad.checkpoints.reading import Share, read_checkpoint, read_summary
from heptad.checkpoints.saving import Saving
from heptad.checkpoints.together import OneRank, Together, together
from heptad.checkpoints.uploading import Uploading
from heptad.checkpoints.writing import write_files, write_last
from heptad.errors import CheckpointError
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot

WrittenPart = dict[str, Any]
"""What a rank has written of a checkpoint, as plain data: sizes and digests of its files, and its tensors."""


class Store:
    """The checkpoints in a directory.

    Args:
        directory: Made, with its parents, when it is first written to.
        files: The operations on files.
        mirror: The URL of a folder that fsspec understands, where copies are kept.

    Attributes:
        directory: See above.
        mirror: What is done with the copies.
    """

    def __init__(self, directory: str | Path, files: Files | None = None, mirror: str | None = None) -> None:
        self.directory = Path(directory)
        self._files = Files() if files is None else files
        self.mirror = mirrored(mirror, self.directory, self._files)
        self._mirrors = mirror is not None  # whether rank 0 has one; others learn it at the first rotation
        self._uploading, self._may_upload = Uploading(), False
        self._keep = (1, 0)
        self._lock = Lock(self.directory)
        self._turn = threading.Lock()  # of a thread: else it would sweep away what another one is writing
        self._open: list[Saving] = []  # what threads of the ranks are writing: not swept away
        self._damaged: set[Entry] = set()
        self._ranks: Together = OneRank()
        self._shards = ALL_WHOLE

    # -- who may write

    def join(self, run: Run) -> None:
        """Act together with the stores of the run's other ranks from now on; alone, this changes nothing."""
        self._ranks = together(run._runtime.peers)
        self._shards = run._runtime.shards
        if self._ranks.rank:
            self.mirror, self._mirrors = NoMirror(), False

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

    # -- what there is

    def entries(self) -> list[Entry]:
        """Return the checkpoints by number, the oldest first; none is opened.

        Raises:
            CheckpointError: If the directory cannot be listed.
        """
        with os_errors_explained("listing", self.directory):
            try:
                names = self._files.names(self.directory)
            except FileNotFoundError:
                return []
        numbered = ((number_of(name), self.directory / name) for name in names)
        return sorted(Entry(number, path) for number, path in numbered if number is not None)

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
        number = max(self.mirror.highest, *(entry.number for entry in taken), 0) + 1
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
            wait: Whether it returns when the mirror is up to date. If not, a thread copies, and `finish_copies` waits
                for it; while one does, what is new waits for a later call.

        Returns:
            Those that were removed.

        Raises:
            CheckpointError: If the operating system refuses something.
        """
        self._keep = keep_last, keep_best
        gone, self._mirrors = self._ranks.first(lambda: [self._rotate(keep_last, keep_best), self._mirrors])
        follow = partial(self.mirror.follow, self.entries, keep_last, keep_best)
        if wait:
            self._copy(follow)
        elif self._mirrors and not self._uploading.is_under_way:
            self._start_copying(follow)
        return [Entry(number, self.directory / name) for number, name in gone]

    def finish_copies(self) -> None:
        """Wait until nothing is being copied to the mirror; the ranks wait together, however long it takes."""
        if self._may_upload:
            self._ranks.await_first(self._uploading.ended)
        self._may_upload = False

    def abandon_copies(self) -> None:
        """Wait until this process copies nothing, where the other ranks may be gone."""
        if self._uploading.is_under_way:
            self._uploading.ended.wait()
        self._may_upload = False

    def end_copies(self, run: Run) -> None:
        """Try once more to copy what the mirror lacks, since the run pauses or ends; say in the log what is missing."""
        self.finish_copies()
        if self._mirrors:
            self._ranks.first(lambda: self._rotate(*self._keep))  # what stayed because it was being copied
            self._copy(partial(self.mirror.retry, self.entries, *self._keep))
        self.mirror.end(run)

    def _copy(self, work: Callable[[], object]) -> None:
        """Do work on the mirror, and wait for it.

        With several ranks a thread does it: it may take longer than these wait for one another without a sign.
        """
        self.finish_copies()
        if self._mirrors and self._ranks.others:
            self._start_copying(work)
            self.finish_copies()
        elif self._mirrors:
            work()

    def _start_copying(self, work: Callable[[], object]) -> None:
        self._may_upload = True
        if not self._ranks.rank:
            self._uploading.start(work)

    def _rotate(self, keep_last: int, keep_best: int) -> list[list[Any]]:
        with self._locked():
            entries = self.entries()
            summaries = self._summaries(entries, []) if keep_best else []
            sound = [entry for entry in entries if entry not in self._damaged]
            best = best_of([row for row in summaries if row[0] in sound], keep_best)
            copied = [entry for entry in sound if entry.path.name == self.mirror.copying]
            keep = {*sound[-max(keep_last, 1) :], *best, *copied}
            gone = [entry for entry in entries if entry not in keep] if sound else []
            self._remove_entries(gone)
        return _plain(gone)

    def refill(self) -> list[str]:
        """Fetch the newest sound checkpoint from the mirror if there is none here; return what is worth knowing of it.

        The first rank alone calls it.

        Raises:
            CheckpointError: If the mirror cannot be asked, or all that it holds is damaged: what there is to resume
                from is not known then.
        """
        if isinstance(self.mirror, NoMirror) or self.entries():
            return []
        with self._locked():
            return self.mirror.fetch(self.directory)

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

    # -- reading

    def load(self, entry: Entry | str | Path, sections: Collection[str] | None = None) -> Snapshot:
        """Return what a checkpoint holds; its tensors are on the CPU.

        Args:
            entry: The checkpoint, or the path of its directory, which may lie elsewhere.
            sections: Those to return; the others are verified only. All of them if `None`.

        Raises:
            CheckpointError: If it is not, bit for bit, what was written; the message names the file and what is wrong.
        """
        return read_checkpoint(self._files, _path_of(entry), sections)[0]

    def load_shared(self, path: Path) -> Snapshot:
        """Return what a checkpoint holds, on all ranks: of what is a rank's own, this one's, see `read_checkpoint`.

        Raises:
            CheckpointError: As `load`, on all ranks.
        """
        loaded: list[Snapshot] = []
        if wrong := self._verdicts(path, None, loaded):
            raise DamagedError(wrong[0])
        return loaded[0]

    def _verdicts(self, path: Path, sections: Collection[str] | None, loaded: list[Snapshot]) -> list[str]:
        """Load a checkpoint on all ranks, into a list; return what they found to be damaged."""
        ranks = self._ranks
        share = Share(ranks.rank, ranks.world)

        def verdict() -> list[str]:
            try:
                snapshot, digest = read_checkpoint(self._files, path, sections, share, self._shards)
            except DamagedError as error:
                return [str(error), ""]
            loaded.append(snapshot)
            return ["", digest]

        found: list[list[str]] = ranks.each(verdict)
        named = [f"rank {rank}: {text}" if ranks.others else text for rank, (text, _) in enumerate(found) if text]
        if not named and len({digest for _, digest in found}) > 1:
            named = [f"{path / MANIFEST} is not the same on all ranks: they do not share this directory"]
        return named

    def summary(self, entry: Entry | str | Path) -> dict[str, Any]:
        """Return the summary of a checkpoint; only its manifest is read and verified.

        Raises:
            CheckpointError: As `load`.
        """
        return read_summary(self._files, _path_of(entry))

    def newest_sound(self, sections: Collection[str] | None = None) -> tuple[Entry, Snapshot, list[str]]:
        """Return the newest checkpoint that is as it was written, what it holds, and what is wrong with newer ones.

        Args:
            sections: As for `load`.

        Raises:
            CheckpointError: If no checkpoint is sound, with what is wrong with each; if a later version of Heptad wrote
                the newest; or if the system refuses to read it for a reason that is not damage.
        """
        return self._first_sound(lambda damage: self.entries()[::-1], sections)

    def best_sound(self, sections: Collection[str] | None = None) -> tuple[Entry, Snapshot, list[str]]:
        """Return the checkpoint with the best monitored value, as `newest_sound` returns the newest.

        Raises:
            CheckpointError: Also if none was written with a monitored value.
        """

        def ranked(damage: list[str]) -> list[Entry]:
            entries = self.entries()
            found = rank(self._summaries(entries, damage))
            if entries and not found and not damage:
                raise CheckpointError(
                    f"no checkpoint in {self.directory} was written with a monitored value, so none is the best; "
                    "train with Checkpoint(monitor=…), or take the newest. A value counts for the checkpoints that are "
                    "written after it and before the next update"
                )
            return found

        return self._first_sound(ranked, sections)

    def _first_sound(
        self, ranked: Callable[[list[str]], list[Entry]], sections: Collection[str] | None
    ) -> tuple[Entry, Snapshot, list[str]]:
        """Return the first sound one of what `ranked` returns, which adds what it finds damaged to a list."""
        entries, damage = self._list(ranked)
        while entries:
            entry = entries.pop(0)
            loaded: list[Snapshot] = []
            wrong = self._verdicts(entry.path, sections, loaded)
            if not wrong:
                return entry, loaded[0], damage
            if not self._ranks.first(lambda entry=entry: is_there(entry.path)):
                entries, damage = self._list(ranked)  # a run that writes here has removed it: there are newer ones now
                continue
            self._damaged.add(entry)
            damage += wrong
        if damage:
            found = "".join(f"\n  {line}" for line in damage)
            raise CheckpointError(f"{self.directory} holds no sound checkpoint; what there is:{found}")
        what = "holds no checkpoint" if self._ranks.first(self.directory.is_dir) else "is not a directory"
        raise CheckpointError(f"{self.directory} {what}")

    def _list(self, ranked: Callable[[list[str]], list[Entry]]) -> tuple[list[Entry], list[str]]:
        """Return what `ranked` returns on rank 0, and what it finds damaged."""
        damage: list[str] = []
        rows, texts = self._ranks.first(lambda: [_plain(ranked(damage)), damage])
        return [Entry(number, self.directory / name) for number, name in rows], texts

    def _summaries(self, entries: Iterable[Entry], damage: list[str]) -> list[tuple[Entry, dict[str, Any]]]:
        """Return the summaries of those with a sound manifest, and add what is wrong with the others to a list."""
        found: list[tuple[Entry, dict[str, Any]]] = []
        for entry in entries:
            try:
                found.append((entry, self.summary(entry)))
            except DamagedError as error:
                if is_there(entry.path):
                    self._damaged.add(entry)
                    damage.append(str(error))
        return found


def _plain(entries: Iterable[Entry]) -> list[list[Any]]:
    """Return entries as plain data: number and name."""
    return [[entry.number, entry.path.name] for entry in entries]


def _path_of(entry: Entry | str | Path) -> Path:
    return entry.path if isinstance(entry, Entry) else Path(entry)
