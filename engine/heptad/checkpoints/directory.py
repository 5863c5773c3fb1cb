"""`Directory`: the checkpoints in a directory, as those see them who only read: found, verified and loaded.

`load_weights` and the resumption of a run use it, by way of `Store`, which adds writing. Nothing here needs the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.encoding import ALL_WHOLE
from heptad.checkpoints.entry import Entry, rank
from heptad.checkpoints.files import Files, os_errors_explained
from heptad.checkpoints.layout import MANIFEST, is_there, number_of, why_none
from heptad.checkpoints.reading import Share, read_checkpoint, read_summary
from heptad.checkpoints.together import OneRank, Together, together
from heptad.errors import CheckpointError
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot


class Directory:
    """The checkpoints in a directory.

    Args:
        directory: Where they are.
        files: The operations on files.

    Attributes:
        directory: See above.
    """

    def __init__(self, directory: str | Path, files: Files | None = None) -> None:
        self.directory = Path(directory)
        self._files = Files() if files is None else files
        self._damaged: set[Entry] = set()
        self._ranks: Together = OneRank()
        self._shards = ALL_WHOLE

    def join(self, run: Run) -> None:
        """Act together with the run's other ranks from now on; alone, this changes nothing."""
        self._ranks = together(run._runtime.peers)
        self._shards = run._runtime.shards

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
        what = self._ranks.first(lambda: why_none(self.directory))
        raise CheckpointError(f"{self.directory} {what}")

    def _list(self, ranked: Callable[[list[str]], list[Entry]]) -> tuple[list[Entry], list[str]]:
        """Return what `ranked` returns on rank 0, and what it finds damaged."""
        damage: list[str] = []
        rows, texts = self._ranks.first(lambda: [plain_rows(ranked(damage)), damage])
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


def plain_rows(entries: Iterable[Entry]) -> list[list[Any]]:
    """Return entries as plain data: number and name."""
    return [[entry.number, entry.path.name] for entry in entries]


def _path_of(entry: Entry | str | Path) -> Path:
    return entry.path if isinstance(entry, Entry) else Path(entry)
