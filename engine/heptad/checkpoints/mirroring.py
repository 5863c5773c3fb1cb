"""`Mirroring`: when which checkpoints of a directory are copied to its mirror, and what becomes of it where that fails.

A `Store` has one and calls `follow` after commits, in the background on a thread; the first rank alone has it. No
failure of the mirror ends a run. What happened is kept until `tell` says it in the log, on the thread that drives the
run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.entry import Entry, best_of
from heptad.checkpoints.files import Files
from heptad.checkpoints.layout import number_of
from heptad.checkpoints.mirror import Beat, Mirror, Mirrored, local_manifest
from heptad.checkpoints.patience import Patience
from heptad.checkpoints.remote import Remote, RemoteError
from heptad.errors import CheckpointError, PluginError, in_a_line
from heptad.record.checkpoint_events import MirrorFailed, MirrorRestored, NotMirrored
from heptad.record.events import Event
from heptad.run.run import Run

T = TypeVar("T")

LIMIT = 120.0
"""Seconds that an operation on the mirror may take: a transfer of 8 MiB, a listing, a removal."""

MOST_SKIPPED = 63
"""Saves that pass without a try at most, after many failures in a row."""


class Mirrors(Protocol):
    """What a store does with its mirror.

    Attributes:
        highest: The highest number of a checkpoint there.
        copying: The name of the checkpoint that is being copied there; empty between two.
    """

    highest: int
    copying: str

    def fetch(self, directory: Path) -> list[str]:
        """Fetch the newest sound checkpoint to an empty directory; return what is worth knowing of it, in words."""
        ...

    def claim(self, run_id: str, resumed: bool, overwrite: bool) -> None:
        """Refuse a mirror that holds checkpoints of another run, or remove these."""
        ...

    def follow(self, entries: Callable[[], Sequence[Entry]], keep_last: int, keep_best: int) -> None:
        """Copy what the directory holds, and remove what need not be kept."""
        ...

    def tell(self, run: Run) -> None:
        """Say in the log what happened."""
        ...

    def retry(self, entries: Callable[[], Sequence[Entry]], keep_last: int, keep_best: int) -> None:
        """Do what `follow` does if something is missing, however often it failed."""
        ...

    def end(self, run: Run) -> None:
        """Say in the log what happened and what is not there, since the run pauses or ends."""
        ...


class NoMirror:
    """A directory that has none."""

    highest = 0
    copying = ""

    def fetch(self, directory: Path) -> list[str]:
        """Return nothing."""
        return []

    def claim(self, run_id: str, resumed: bool, overwrite: bool) -> None:
        """Do nothing."""

    def follow(self, entries: Callable[[], Sequence[Entry]], keep_last: int, keep_best: int) -> None:
        """Do nothing."""

    def tell(self, run: Run) -> None:
        """Do nothing."""

    def retry(self, entries: Callable[[], Sequence[Entry]], keep_last: int, keep_best: int) -> None:
        """Do nothing."""

    def end(self, run: Run) -> None:
        """Do nothing."""


class Mirroring:
    """The copies of one directory.

    A mirror that has failed n times in a row is tried again at the 1st, 2nd, 4th, … save after that: 2^(n - 1) - 1
    saves pass without a try, `MOST_SKIPPED` at most.

    Args:
        mirror: Where they are.
        files: The operations on the directory.
        limit: Seconds after which an operation on the mirror counts as failed.
    """

    def __init__(self, mirror: Mirror, files: Files, limit: float = LIMIT) -> None:
        self._mirror = mirror
        self._files = files
        self._patience = Patience(limit)
        self._there: dict[str, Mirrored] = {}
        """What the mirror holds, by name."""
        self._is_known = False
        """Whether that was asked since the last failure."""
        self._left: set[str] = set()
        """Folders there that hold no sound checkpoint."""
        self._damaged: set[str] = set()
        """Those of them that hold a damaged one, as far as that was found."""
        self._local: list[Mirrored] = []
        """The manifests of the sound checkpoints in the directory, the oldest first."""
        self._keep = (1, 0)
        self._directory = Path()
        self._claim: Callable[[Beat], None] | None = None
        """To be done before anything is written: the mirror could not be asked whose it is."""
        self._refused = False
        """Whether the mirror is another run's: nothing is copied then."""
        self._failures = 0
        """Those in a row."""
        self._skip = 0
        """Saves that are to pass without a try."""
        self._error = ""
        self._reports: deque[partial[Event]] = deque()
        self.highest = 0
        self.copying = ""

    # -- at the start

    def fetch(self, directory: Path) -> list[str]:
        """See `Mirrors`; the directory is locked.

        Raises:
            CheckpointError: If the mirror cannot be asked, or holds checkpoints of which none is sound; if the
                operating system refuses something.
        """
        try:
            return self._wait(partial(self._fetch_newest, directory))
        except (RemoteError, TimeoutError) as error:
            raise CheckpointError(
                f"{directory} holds no checkpoint, and whether its mirror does cannot be known: {self._said(error)}; "
                "so the run does not begin afresh. Try again when the mirror can be reached; or, to begin a run of its "
                "own, leave out resume=…, or mirror=…"
            ) from None

    def _fetch_newest(self, directory: Path, beat: Beat) -> list[str]:
        damage: list[str] = []
        for name in reversed(self._mirror.names()):
            beat()
            try:
                one = self._mirror.look(name)
                beat()
                if one is None:
                    continue
                self._mirror.fetch(one, directory, self._files, beat)
            except DamagedError as error:
                damage.append(str(error))
                self._damaged.add(name)
                continue
            return [f"{name} was fetched from the mirror {self._mirror.url}: {directory} held no checkpoint", *damage]
        if damage:
            found = "".join(f"\n  {line}" for line in damage)
            raise CheckpointError(
                f"{directory} holds no checkpoint, and its mirror {self._mirror.url} no sound one:{found}"
            )
        return []

    def claim(self, run_id: str, resumed: bool, overwrite: bool) -> None:
        """Refuse a mirror that holds checkpoints of another run, or remove these if the run is to overwrite them.

        Where the mirror cannot be asked, it is asked again before anything is written there.

        Raises:
            CheckpointError: If it is another run's.
        """
        self._refused, self._is_known, self._failures, self._skip = False, False, 0, 0
        self._claim = claim = partial(self._claimed, run_id, resumed, overwrite)
        try:
            self._wait(claim)
        except (RemoteError, TimeoutError) as error:
            self._failed(error)

    def _claimed(self, run_id: str, resumed: bool, overwrite: bool, beat: Beat) -> None:
        there = self._listed(beat)
        others = {name for name, one in there.items() if not resumed or one.summary.get("run") != run_id}
        others |= set() if resumed else self._damaged  # of a run that is resumed, damaged ones count as its own
        if others and (len(others) < len(there) or not overwrite):
            raise CheckpointError(
                f"the mirror {self._mirror.url} holds checkpoints of another run ({max(others)} is the newest); resume "
                "from them with Engine.run(resume='auto') and an empty directory, name another mirror, remove them, or "
                "say overwrite=True"
            )
        for name in sorted(others):
            self._mirror.remove(name, beat)
            there.pop(name, None)
            self._left.discard(name)
        self.highest = max((number_of(name) or 0 for name in (*there, *self._left)), default=0)
        self._claim = None

    # -- after each commit

    def follow(self, entries: Callable[[], Sequence[Entry]], keep_last: int, keep_best: int) -> None:
        """Copy the checkpoints of the directory that are to be kept and are not there yet, the newest first.

        Then remove there what the rule of the directory does not keep. Called when a checkpoint is durable. A
        failure raises nothing: the log says it, and a later save tries again.

        Args:
            entries: Returns what the directory holds.
            keep_last: See `Store.rotate`; the rule is applied to what mirror and directory hold together.
            keep_best: As above.
        """
        if not self._look(entries, keep_last, keep_best):
            return
        if self._skip:
            self._skip -= 1
        else:
            self._try()

    def retry(self, entries: Callable[[], Sequence[Entry]], keep_last: int, keep_best: int) -> None:
        """See `Mirrors`; saves that would pass without a try count no more."""
        if self._look(entries, keep_last, keep_best) and (self._failures or self._missing()):
            self._try()

    def _look(self, entries: Callable[[], Sequence[Entry]], keep_last: int, keep_best: int) -> bool:
        """Look what the directory holds, and return whether it could be listed."""
        self._keep = (max(keep_last, 1), keep_best)
        try:
            there = entries()
        except CheckpointError as error:
            self._failed(error)
            return False
        self._local = []
        for entry in there:
            with suppress(CheckpointError):  # damaged: there is nothing to copy
                self._local.append(local_manifest(entry.path, self._files))
                self._directory = entry.path.parent
        return True

    def _try(self) -> None:
        if self._refused:
            return
        try:
            self._wait(self._bring)
        except Exception as error:  # of every kind: the run does not depend on the mirror
            self._failed(error)
            return
        if self._failures:
            self._reports.append(partial(MirrorRestored))
        self._failures, self._skip, self._error = 0, 0, ""

    def _bring(self, beat: Beat) -> None:
        """Make the mirror hold what it is to hold."""
        if self._claim is not None:
            try:
                self._claim(beat)
            except RemoteError:
                raise
            except CheckpointError:
                self._refused = True
                raise
        there = self._listed(beat)
        for one in reversed(self._local):
            if one.name in self._kept() and not self._has(one):
                try:
                    there.pop(one.name, None)
                    self._left.add(one.name)
                    self.copying = one.name
                    self._mirror.upload(one, self._directory / one.name, self._files, beat)
                except DamagedError:  # in the directory itself: there is nothing to copy
                    self._local.remove(one)
                    continue
                finally:
                    self.copying = ""
                there[one.name] = one
                self._left.discard(one.name)
                self._damaged.discard(one.name)
        if not self._local or not self._has(self._local[-1]):
            return
        kept = self._kept()
        for name in sorted(name for name in there if name not in kept):
            self._mirror.remove(name, beat)
            del there[name]
        for name in sorted(self._left):
            self._mirror.remove(name, beat)
            self._left.remove(name)

    def _listed(self, beat: Beat) -> dict[str, Mirrored]:
        """Return what the mirror holds, which is asked once, and again after a failure."""
        if not self._is_known:
            there: dict[str, Mirrored] = {}
            self._left = set()
            for name in self._mirror.names():
                beat()
                try:
                    one = self._mirror.look(name)
                except DamagedError:
                    self._damaged.add(name)
                    one = None
                if one is None or name in self._damaged:
                    self._left.add(name)
                else:
                    there[name] = one
            self._there, self._is_known = there, True
        return self._there

    def _has(self, one: Mirrored) -> bool:
        found = self._there.get(one.name)
        return found is not None and found.content == one.content

    def _kept(self) -> set[str]:
        """Return the names of the checkpoints that the rule keeps, of those of mirror and directory together."""
        known = {one.name: one for one in (*self._there.values(), *self._local)}
        rows = sorted((Entry(one.number, Path(one.name)), one.summary) for one in known.values())
        last, best = self._keep
        newest = [entry for entry, _ in rows[-last:]]
        return {entry.path.name for entry in (*newest, *best_of(rows, best))}

    def _missing(self) -> int:
        """Return how many checkpoints of the directory are to be in the mirror, and are not."""
        kept = self._kept()
        return sum(one.name in kept and not self._has(one) for one in self._local)

    # -- what is said

    def tell(self, run: Run) -> None:
        """See `Mirrors`."""
        while self._reports:
            run.emit(self._reports.popleft())

    def end(self, run: Run) -> None:
        """See `Mirrors`."""
        self.tell(run)
        if missing := self._missing():
            run.emit(NotMirrored, error=self._error, missing=missing)

    def _failed(self, error: BaseException) -> None:
        self._is_known, self.copying = False, ""
        self._failures += 1
        self._skip = min((1 << (self._failures - 1)) - 1, MOST_SKIPPED)
        self._error = self._said(error)
        if self._failures == 1:
            self._reports.append(partial(MirrorFailed, error=self._error, missing=self._missing()))

    def _said(self, error: BaseException) -> str:
        return str(error) if isinstance(error, CheckpointError) else f"{self._mirror.url}: {in_a_line(error)}"

    def _wait(self, work: Callable[[Beat], T]) -> T:
        return self._patience.wait(lambda pulse: work(pulse.beat))


def mirrored(url: str | None, directory: Path, files: Files) -> Mirrors:
    """Return the mirror of a directory, which may have none.

    Raises:
        PluginError: If the URL is that of no folder, or of the directory itself; if fsspec, or what that needs for
            this URL, is not installed.
    """
    if url is None:
        return NoMirror()
    mirror = Mirror(Remote(url))
    if mirror.local is not None and Path(mirror.local).resolve() == directory.resolve():
        raise PluginError(f"Checkpoint(mirror={mirror.url!r}) is the directory of the checkpoints itself; name another")
    return Mirroring(mirror, files)
