"""The lock: one run at a time writes to a directory, and a dead process does not hold it."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crafted import bounded
from disk import number_of, snapshot, stored

from heptad import CheckpointError
from heptad.checkpoints.store import Store


class Holder:
    """A child that calls a function, says so, and stays until it is killed, or for half a minute if nobody does."""

    def __init__(self, work: Callable[[], object]) -> None:
        receive, send = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                kept = work()  # a store that is no longer referenced releases its lock
                os.write(send, b".")
                time.sleep(30)
                del kept
            finally:
                os._exit(1)
        os.close(send)
        assert os.read(receive, 1) == b"."
        os.close(receive)

    def kill(self) -> None:
        """Kill it and wait until it is dead."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def locked(directory: Path) -> Store:
    """Return a store that holds the lock."""
    store = Store(directory)
    store.lock()
    return store


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path):
    """The error names directory and process; after SIGKILL nothing has to be removed by hand."""
    first = Holder(lambda: locked(tmp_path))
    second = Store(tmp_path)
    try:
        with pytest.raises(CheckpointError, match=rf"{tmp_path} is in use: the process {first.pid} writes") as caught:
            second.lock()
        assert "another directory" in str(caught.value)
        with pytest.raises(CheckpointError, match="is in use"):
            second.save(snapshot(1))
        assert second.entries() == []
    finally:
        first.kill()
    second.lock()
    assert second.save(snapshot(1)).number == 1


def test_what_a_living_run_is_writing_is_left_alone(tmp_path: Path):
    """What is half written is removed only by who holds the lock."""
    half = tmp_path / ".temporary-checkpoint-00000001-1"

    def write() -> Store:
        store = locked(tmp_path)
        half.mkdir()
        (half / "state.json").touch()
        return store

    first = Holder(write)
    try:
        for ask in (Store(tmp_path).lock, lambda: Store(tmp_path).rotate(1)):
            with pytest.raises(CheckpointError, match="is in use"):
                ask()
        assert Store(tmp_path).entries() == []
        assert (half / "state.json").exists()
    finally:
        first.kill()
    Store(tmp_path).lock()
    assert not half.exists()


def test_reading_needs_no_lock(tmp_path: Path):
    """Weights can be taken from a run that continues."""
    store = stored(tmp_path, 1)
    store.lock()
    assert number_of(Store(tmp_path).newest_sound()[1]) == 1


def test_another_store_in_the_same_process_is_refused(tmp_path: Path):
    """Two engines in one process are two runs."""
    first, second = Store(tmp_path), Store(tmp_path)
    first.lock()
    first.lock()
    with pytest.raises(CheckpointError, match="another Checkpoint in this process"):
        second.lock()
    first.unlock()
    first.unlock()
    second.lock()


def test_a_lock_that_is_held_stays_held_over_a_save(tmp_path: Path):
    """And where it was not, it is released afterwards."""
    first, second = Store(tmp_path), Store(tmp_path)
    first.save(snapshot(1))
    second.lock()
    second.save(snapshot(2))
    second.rotate(1)
    with pytest.raises(CheckpointError, match="is in use"):
        first.save(snapshot(3))


def test_a_store_that_is_forgotten_holds_nothing(tmp_path: Path):
    """Its lock goes with it."""
    Store(tmp_path).lock()
    Store(tmp_path).lock()


def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path: Path):
    """Loader workers are forked with all open files; they need seconds to see that their parent is dead."""
    note = tmp_path / "worker"

    def run() -> Store:
        store = locked(tmp_path)
        note.write_text(str(Holder(lambda: None).pid))
        return store

    first = Holder(run)
    worker = int(note.read_text())
    try:
        with pytest.raises(CheckpointError, match="is in use"):
            Store(tmp_path).lock()
        first.kill()
        os.kill(worker, 0)  # it lives
        Store(tmp_path).lock()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_child_cannot_write_beside_its_parent(tmp_path: Path):
    """It does not hold the lock; and that it ends does not take the lock from the parent."""
    store = Store(tmp_path)
    store.lock()
    child = os.fork()
    if child == 0:
        try:
            store.save(snapshot(1))
        except CheckpointError:
            os._exit(3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    with pytest.raises(CheckpointError, match="is in use"):
        Store(tmp_path).lock()
    assert store.save(snapshot(1)).number == 1


def test_a_link_in_place_of_the_lock_is_refused(tmp_path: Path):
    """What it leads to is not touched."""
    (tmp_path / "mine").write_text("keep")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"locking .*\.lock failed: ELOOP"):
        Store(tmp_path / "run").lock()
    assert (tmp_path / "mine").read_text() == "keep"


def test_another_link_to_a_file_in_place_of_the_lock_is_refused(tmp_path: Path):
    """Not a byte of that file is changed."""
    (tmp_path / "mine").write_text("12345")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").hardlink_to(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"\.lock is one of several links to a file, so it is no lock"):
        Store(tmp_path / "run").save(snapshot(1))
    assert (tmp_path / "mine").read_text() == "12345"
    assert Store(tmp_path / "run").entries() == []


def test_a_file_of_something_else_in_place_of_the_lock_is_refused(tmp_path: Path):
    """It may be all that somebody has of it."""
    for content in ("keep", "1234567890\n" * 3, "\n\nx"):
        (tmp_path / ".lock").write_text(content)
        with pytest.raises(CheckpointError, match="holds something else than the number of a process"):
            Store(tmp_path).lock()
        assert (tmp_path / ".lock").read_text() == content


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)])
def test_what_is_no_file_in_place_of_the_lock_is_refused(make: Callable[[Path], object], tmp_path: Path):
    """A pipe is not waited for."""
    make(tmp_path / ".lock")
    found = bounded(Store(tmp_path).lock, seconds=5)
    assert re.match(r"CheckpointError: .*\.lock (is not a regular file|failed: (EISDIR|ENXIO))", found)


def test_the_lock_of_an_earlier_version_is_taken(tmp_path: Path):
    """It held the number on the left."""
    (tmp_path / ".lock").write_text("123456\n")
    first = Holder(lambda: locked(tmp_path))
    try:
        assert int((tmp_path / ".lock").read_text()) == first.pid
        with pytest.raises(CheckpointError, match=rf"the process {first.pid} writes"):
            Store(tmp_path).lock()
    finally:
        first.kill()


def test_what_was_left_half_written_is_removed_however_deep_it_is(tmp_path: Path):
    """Deeper than Python calls itself."""
    deep = tmp_path / ".temporary-deep"
    deep.mkdir()
    inner = os.open(deep, os.O_RDONLY)
    for _ in range(1050):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
    os.mkfifo(deep / "pipe")
    Store(tmp_path).lock()
    assert [child.name for child in tmp_path.iterdir()] == [".lock"]


def test_without_fcntl_the_error_says_where_checkpoints_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Windows has no such module; nothing is made in the directory."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(CheckpointError, match=r"needs Python's module fcntl, .*\(Windows has none\); run on Linux"):
        Store(tmp_path).lock()
    assert not list(tmp_path.iterdir())


def test_the_room_can_be_imported_without_the_flags_that_windows_lacks():
    """A program that writes no checkpoint runs there."""
    code = """
import os, sys
sys.modules["fcntl"] = None
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY"):
    delattr(os, name)
import heptad.checkpoints.store, heptad_plugins.checkpoint
"""
    subprocess.run([sys.executable, "-c", code], check=True)
