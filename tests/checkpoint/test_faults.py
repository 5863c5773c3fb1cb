"""Faults: whatever operation on files fails, and wherever the process dies, the old or the new checkpoint is sound."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disk import OPERATIONS, CountedFiles, die, in_child, number_of, refusing, snapshot, stored

from heptad import CheckpointError
from heptad.checkpoints.files import Files
from heptad.checkpoints.store import Store


def save_and_rotate(directory: Path, files: Files) -> None:
    """Do what a run does at a checkpoint, the third in its directory."""
    store = Store(directory, files)
    store.save(snapshot(3))
    store.rotate(2)


def temporary(directory: Path) -> list[str]:
    """Return what is in a directory beside its checkpoints and the lock."""
    return [path.name for path in directory.iterdir() if not path.name.startswith(("checkpoint-", ".lock"))]


def assert_old_or_new(directory: Path) -> int:
    """The newest is the second or the third, whole; nothing under a checkpoint's name is anything but whole."""
    store = Store(directory)
    entry, found, damage = store.newest_sound()
    assert damage == []
    assert number_of(found) == entry.number
    assert entry.number in (2, 3)
    for other in store.entries():
        assert number_of(store.load(other)) == other.number
    return entry.number


def assert_continues(directory: Path) -> None:
    """The next save succeeds and removes what was left half written."""
    store = Store(directory)
    newest = store.newest_sound()[0].number
    assert store.save(snapshot(newest + 1)).number == newest + 1
    assert temporary(directory) == []
    store.rotate(2)
    assert [entry.number for entry in store.entries()] == [newest, newest + 1]


def places(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Yield 1, 2, 3 … with a directory of two checkpoints each, until all operations have had their turn."""
    files = CountedFiles()
    stored(tmp_path / "two", 2)
    shutil.copytree(tmp_path / "two", tmp_path / "0")
    save_and_rotate(tmp_path / "0", files)
    assert {call[0] for call in files.calls} == set(OPERATIONS) - {"open_directory", "open", "read"}
    for place in range(1, len(files.calls) + 1):
        directory = tmp_path / str(place)
        shutil.copytree(tmp_path / "two", directory)
        yield place, directory


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["disk full", "disk broken"])
def test_every_operation_fails_once(tmp_path: Path, number: int):
    """The error names path and cause; the old or the new checkpoint is sound; the next save passes."""
    results = []
    for place, directory in places(tmp_path):
        files = CountedFiles(place, refusing(number))
        with pytest.raises(CheckpointError) as caught:
            save_and_rotate(directory, files)
        cause = caught.value.__cause__
        assert isinstance(cause, OSError)
        assert cause.errno == number
        assert str(directory) in str(caught.value)
        assert f"{errno.errorcode[number]} ({os.strerror(number)})" in str(caught.value)
        results.append(assert_old_or_new(directory))
        if results[-1] == 2:
            assert temporary(directory) == []
            assert "stay as they were" in str(caught.value) or "listing" in str(caught.value)
        assert_continues(directory)
    assert results == sorted(results)
    assert set(results) == {2, 3}


def test_every_operation_fails_from_some_point_on(tmp_path: Path):
    """Cleaning up fails too then; what is left is removed by the next save."""
    for place, directory in places(tmp_path):
        with pytest.raises(CheckpointError):
            save_and_rotate(directory, CountedFiles(place, refusing(errno.EIO), ever=True))
        assert_old_or_new(directory)
        assert_continues(directory)


def test_a_run_continues_after_a_save_that_failed_and_could_not_be_cleaned_up(tmp_path: Path):
    """It holds the lock all along: its next save removes what is left, and passes."""
    for place, directory in places(tmp_path):
        files = CountedFiles()
        store = Store(directory, files)
        store.lock()
        files.calls.clear()
        files.place, files.ever, files.strike = place, True, refusing(errno.EIO)
        with pytest.raises(CheckpointError):
            store.save(snapshot(3))
            store.rotate(2)
        files.place = 0
        number = store.newest_sound()[0].number + 1
        assert number_of(store.load(store.save(snapshot(number)))) == number
        assert temporary(directory) == []


def test_the_process_dies_before_every_operation(tmp_path: Path):
    """Nothing is cleaned up by it."""
    results = []
    left = 0
    for place, directory in places(tmp_path):
        files = CountedFiles(place, die)
        assert in_child(lambda files=files, directory=directory: save_and_rotate(directory, files)) == -9
        left += bool(temporary(directory))
        results.append(assert_old_or_new(directory))
        assert_continues(directory)
    assert results == sorted(results)
    assert set(results) == {2, 3}
    assert left > 5


def test_the_process_dies_in_the_middle_of_every_write(tmp_path: Path):
    """Half of the bytes are there."""

    class Torn(CountedFiles):
        def write(self, descriptor: int, data: memoryview) -> int:
            if [call[0] for call in self.calls].count("write") + 1 == self.at:
                super().write(descriptor, data[: len(data) // 2])
                die("write")
            return super().write(descriptor, data)

    for at in range(1, 5):
        directory = tmp_path / str(at)
        stored(directory, 2)
        files = Torn()
        files.at = at
        assert in_child(lambda files=files, directory=directory: save_and_rotate(directory, files)) == -9
        assert assert_old_or_new(directory) == 2
        assert_continues(directory)


def test_short_writes_are_gone_on_with(tmp_path: Path):
    """The system may take fewer bytes than it is given."""
    drawn = random.Random(0)

    class Short(Files):
        def write(self, descriptor: int, data: memoryview) -> int:
            return super().write(descriptor, data[: drawn.randint(1, 50)])

    store = Store(tmp_path, Short())
    assert number_of(store.load(store.save(snapshot(1)))) == 1


def test_short_reads_are_gone_on_with(tmp_path: Path):
    """And may give fewer than it is asked for."""
    drawn = random.Random(0)

    class Short(Files):
        def read(self, descriptor: int, most: int) -> bytes:
            return super().read(descriptor, min(most, drawn.randint(1, 50)))

    stored(tmp_path, 1)
    assert number_of(Store(tmp_path, Short()).newest_sound()[1]) == 1


def test_the_first_save_fails_at_every_operation(tmp_path: Path):
    """Where there is no checkpoint yet, nor the directory, the next save passes all the same."""
    files = CountedFiles()
    Store(tmp_path / "0" / "run", files).save(snapshot(1))
    assert len(files.calls) > 15
    for place in range(1, len(files.calls) + 1):
        directory = tmp_path / str(place) / "run"
        with pytest.raises(CheckpointError, match="ENOSPC"):
            Store(directory, CountedFiles(place, refusing(errno.ENOSPC))).save(snapshot(1))
        assert Store(directory).entries() == []
        assert Store(directory).save(snapshot(1)).number == 1
        assert temporary(directory) == []


def test_a_failed_sync_is_not_tried_again(tmp_path: Path):
    """What the system says after it is not to be relied on: the file is given up, and the next save writes new ones."""
    synced = 0
    for place, directory in places(tmp_path):
        files = CountedFiles(place, refusing(errno.EIO))
        with pytest.raises(CheckpointError):
            save_and_rotate(directory, files)
        failed, rest = files.calls[place - 1], files.calls[place:]
        if failed[0] == "sync":
            synced += 1
            assert failed not in rest
            assert [call[0] for call in rest if call[0] in ("create", "write", "sync", "rename")] == []
            assert rest[0] == ("close", failed[1])
            assert temporary(directory) == []
            assert assert_old_or_new(directory) == 2
        if failed[0] == "sync_directory":
            assert failed not in rest
    assert synced == 5


def test_a_full_disk_says_how_much_is_needed(tmp_path: Path):
    """And how much is free."""
    with pytest.raises(
        CheckpointError, match=r"the checkpoint needs [\d,]+ bytes, and [\d,]+ are free there; those that"
    ):
        Store(tmp_path, CountedFiles(4, refusing(errno.ENOSPC))).save(snapshot(1))


def test_ctrl_c_cleans_up_and_is_raised(tmp_path: Path):
    """Ctrl-C in the middle of a save is no `CheckpointError`."""

    def press(name: str) -> None:
        raise KeyboardInterrupt

    for place, directory in places(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            save_and_rotate(directory, CountedFiles(place, press))
        assert_old_or_new(directory)
        assert_continues(directory)


def test_everything_is_synced_before_it_is_relied_on(tmp_path: Path):
    """Each file, then the names of the files, then the rename, then the new name; only then is an old one removed."""
    stored(tmp_path, 2)
    files = CountedFiles()
    save_and_rotate(tmp_path, files)
    names = [call[0] for call in files.calls if call[0] not in ("names", "write")]
    written = ["make_directory", *["create", "sync", "close"] * 5, "sync_directory", "rename", "sync_directory"]
    assert names == [*written, "rename", *["remove"] * 5, "remove_directory"]
    made = next(call[1] for call in files.calls if call[0] == "make_directory")
    synced = [call[1] for call in files.calls if call[0] == "sync_directory"]
    assert synced == [made, tmp_path]


class PowerFailure(BaseException):
    """The machine stops: nothing more reaches the medium."""


class Losing(CountedFiles):
    """Files of which the content that was not synced is lost when the power fails, in one of several ways."""

    def __init__(self, place: int) -> None:
        super().__init__(place, self._fail, ever=True)
        self.unsynced: dict[int, Path] = {}

    def _fail(self, name: str) -> None:
        raise PowerFailure

    def _counted(self, name: str, *arguments: Any) -> Any:
        result = super()._counted(name, *arguments)
        if name == "create":
            self.unsynced[result] = arguments[0]
        if name == "sync":
            self.unsynced.pop(arguments[0])
        return result


@pytest.mark.parametrize(
    "keep", [lambda size: 0, lambda size: size // 2, lambda size: size], ids=["none", "half", "all"]
)
def test_the_power_fails_before_every_operation(tmp_path: Path, keep: Callable[[int], int]):
    """None, half or all of what was not synced is on the medium; what has a checkpoint's name is whole."""
    for place, directory in places(tmp_path):
        files = Losing(place)
        with pytest.raises(PowerFailure):
            save_and_rotate(directory, files)
        for path in files.unsynced.values():
            os.truncate(path, keep(path.stat().st_size))
        assert_old_or_new(directory)
        assert_continues(directory)
