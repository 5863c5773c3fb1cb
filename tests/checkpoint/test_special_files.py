"""Special files in place of a checkpoint, or of one of its files: refused at once, by name, wherever one is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from crafted import bounded

from heptad import load_weights
from heptad.checkpoints.store import Store
from scenario import full_engine, network

SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}
FILES = ("manifest.json", "state.json", "network-00000.safetensors")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory of checkpoints of one run."""
    full_engine(tmp_path / "a", at="after_step").run(until=lambda run: run.step == 4)
    return tmp_path / "a"


def reads(directory: Path, path: Path) -> list[Callable[[], object]]:
    """Return all that reads one checkpoint."""
    return [
        lambda: Store(directory).load(path),
        lambda: load_weights(path, network()),
        lambda: full_engine(directory, at="after_step").run(resume=path),
    ]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", SPECIAL)
def test_in_place_of_a_file_it_is_refused_and_not_waited_for(what: str, name: str, directory: Path):
    """With the file that it stands for; the checkpoint before it is taken."""
    before, newest = (entry.path for entry in Store(directory).entries()[-2:])
    (newest / name).unlink()
    SPECIAL[what](newest / name)
    for read in reads(directory, newest):
        found = bounded(read, megabytes=2048, seconds=20)
        assert found.startswith("DamagedError: ")
        assert f"{newest / name} is not a regular file" in found
    assert Store(directory).newest_sound()[0].path == before
    Store(directory).rotate(1)
    assert newest not in [entry.path for entry in Store(directory).entries()[:-1]]


@pytest.mark.parametrize("what", ["pipe", "socket"])
def test_in_place_of_a_checkpoint_it_is_refused_and_passed_over(what: str, directory: Path):
    """And it is removed as any damaged one is, when there is a newer."""
    newest = Store(directory).entries()[-1].path
    special = newest.with_name("checkpoint-00000099")
    SPECIAL[what](special)
    for read in reads(directory, special):
        found = bounded(read, megabytes=2048, seconds=20)
        assert found.split(":")[0] in ("DamagedError", "CheckpointError")
        assert str(special) in found
    store = Store(directory)
    assert store.newest_sound()[0].path == newest
    store.rotate(1)
    assert [entry.path for entry in store.entries()] == [newest]


def test_the_directory_itself_may_be_none(tmp_path: Path):
    """A pipe by the name of a directory of checkpoints."""
    pipe = tmp_path / "run"
    os.mkfifo(pipe)
    for read in (lambda: load_weights(pipe, network()), lambda: full_engine(tmp_path / "b").run(resume=pipe)):
        found = bounded(read, megabytes=2048, seconds=20)
        assert found.startswith("CheckpointError: ")
        assert str(pipe) in found
