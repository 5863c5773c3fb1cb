"""Several ranks write one checkpoint: all succeed, or all raise the same, and what has its name is whole."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import pytest
import torch
from disk import CountedFiles, number_of, refusing, stored
from store_ranks import Died, on_ranks, snapshot_of, store_of

from heptad import CheckpointError
from heptad.checkpoints.files import Files
from heptad.checkpoints.store import Store
from heptad.run.peers import Peers
from heptad.run.snapshot import Snapshot


def save_and_rotate(directory: Path, number: int, files: dict[int, Files] | None = None) -> Callable[[Peers], Any]:
    """Return what a rank does at a checkpoint."""

    def work(peers: Peers) -> str:
        store = store_of(directory, peers, (files or {}).get(peers.rank))
        path = store.save(snapshot_of(number, peers)).path
        store.rotate(2)
        return path.name

    return work


def written(directory: Path, count: int, world: int = 2) -> Path:
    """Write so many checkpoints."""
    for number in range(1, count + 1):
        assert on_ranks(world, save_and_rotate(directory, number)) == [f"checkpoint-{number:08d}"] * world
    return directory


def number_in(found: Snapshot, rank: int) -> int:
    """Return the number of a snapshot, once all of it agrees on it, and on the rank."""
    own = found.sections.pop("own")
    number = number_of(found)
    assert own["rank"] == rank
    assert torch.equal(own["tensor"], torch.full((3,), number + rank / 10))
    return number


def loaded(directory: Path, world: int = 2) -> list[Any]:
    """Return the numbers of the newest sound checkpoint, and the damage, as each rank finds it."""

    def work(peers: Peers) -> tuple[int, int, list[str]]:
        entry, found, damage = store_of(directory, peers).newest_sound()
        return entry.number, number_in(found, peers.rank if peers.rank < found.world else 0), damage

    return on_ranks(world, work)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_each_rank_writes_its_own_and_rank_0_what_is_one_for_all(tmp_path: Path):
    path = written(tmp_path, 1, 3) / "checkpoint-00000001"
    own = [f"rank-0000{rank}.{kind}" for rank in range(3) for kind in ("json", "safetensors")]
    assert names(path) == sorted(
        ["manifest.json", "state.json", "network-00000.safetensors", "optimizers-00000.safetensors", *own]
    )
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["world"] == 3
    assert manifest["tensors"]["rank-00002"] == {"own.tensor": "F32[3] rank-00002[0:3]"}


def test_each_rank_reads_its_own(tmp_path: Path):
    assert loaded(written(tmp_path, 2)) == [(2, 2, []), (2, 2, [])]


@pytest.mark.parametrize("world", [1, 3])
def test_a_rank_that_is_new_reads_what_is_rank_0s(tmp_path: Path, world: int):
    assert loaded(written(tmp_path, 2), world) == [(2, 2, [])] * world


def test_a_save_is_three_exchanges_and_rotating_one(tmp_path: Path):
    counts: list[int] = []

    def work(peers: Any) -> None:
        store = store_of(tmp_path, peers)
        for step in (lambda: store.save(snapshot_of(1, peers)), lambda: store.rotate(2)):
            step()
            if not peers.rank:
                counts.append(peers._hall.exchanges)

    on_ranks(2, work)
    assert counts == [3, 4]


def operations(directory: Path, rank: int) -> list[str]:
    """Return the operations that a rank makes when it saves and rotates, with two checkpoints there."""
    files = CountedFiles()
    on_ranks(2, save_and_rotate(directory, 3, {rank: files}))
    return [call[0] for call in files.calls]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_operation_of_a_rank_fails_once(tmp_path: Path, rank: int):
    """All raise the same text, which names the rank; one checkpoint is sound; the next save passes and sweeps."""
    two = written(tmp_path / "two", 2)
    count = len(operations(Path(shutil.copytree(two, tmp_path / "0")), rank))
    assert count > (25 if rank == 0 else 7)
    kept: set[int] = set()
    for place in range(1, count + 1):
        directory = Path(shutil.copytree(two, tmp_path / str(place)))
        found = on_ranks(2, save_and_rotate(directory, 3, {rank: CountedFiles(place, refusing(errno.ENOSPC))}))
        assert [type(error) for error in found] == [CheckpointError] * 2, place
        assert str(found[0]) == str(found[1])
        assert f"rank {rank}: " in str(found[0])
        assert "ENOSPC" in str(found[0])
        ((number, content, damage), other) = loaded(directory)
        assert (number, content, damage) == other
        assert number == content in (2, 3)
        assert damage == []
        kept.add(number)
        assert on_ranks(2, save_and_rotate(directory, number + 1)) == [f"checkpoint-{number + 1:08d}"] * 2
        assert [name for name in names(directory) if name.startswith(".temp")] == []
    assert kept == ({2, 3} if rank == 0 else {2})


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_dies_before_some_operation(tmp_path: Path, rank: int):
    """The others raise; what is there is the old or the new checkpoint; what is left is swept by the next save."""

    two = written(tmp_path / "two", 2)
    count = len(operations(Path(shutil.copytree(two, tmp_path / "0")), rank))
    for place in sorted({*random.Random(rank).sample(range(1, count + 1), 6), count}):
        directory = Path(shutil.copytree(two, tmp_path / str(place)))

        def work(peers: Peers, directory: Path = directory, place: int = place) -> None:
            files = Dying(place, peers) if peers.rank == rank else None
            store = store_of(directory, peers, files)
            store.save(snapshot_of(3, peers))
            store.rotate(2)

        found = on_ranks(2, work)
        assert isinstance(found[rank], Died | BrokenBarrierError)
        assert isinstance(found[1 - rank], BrokenBarrierError)
        ((number, content, damage), other) = loaded(directory)
        assert (number, content, damage) == other
        assert number == content in (2, 3)
        assert damage == []
        assert on_ranks(2, save_and_rotate(directory, number + 1)) == [f"checkpoint-{number + 1:08d}"] * 2
        assert [name for name in names(directory) if name.startswith(".temp")] == []


class Dying(CountedFiles):
    """Files of a rank whose process is killed before an operation: it does nothing more, and the others notice."""

    def __init__(self, place: int, peers: Any) -> None:
        super().__init__(place, self._die, ever=True)
        self._peers = peers

    def _die(self, name: str) -> None:
        self._peers._hall.barrier.abort()
        raise Died


def test_a_rank_that_cannot_pack_its_part_fails_all_before_anything_is_written(tmp_path: Path):
    def work(peers: Peers) -> None:
        snapshot = snapshot_of(1, peers)
        if peers.rank:
            snapshot.sections["own"]["rank"] = 1j
        store_of(tmp_path, peers).save(snapshot)

    found = on_ranks(2, work)
    assert str(found[0]) == str(found[1])
    assert str(found[0]).startswith("rank 1: own['rank'] is a complex, which a checkpoint cannot hold")
    assert [name for name in names(tmp_path) if name != ".lock"] == []


def test_an_error_of_another_kind_is_a_checkpoint_error_on_all(tmp_path: Path):
    class Broken(Files):
        def create(self, path: Path) -> int:
            raise ZeroDivisionError("odd")

    found = on_ranks(2, save_and_rotate(tmp_path, 1, {1: Broken()}))
    assert [f"{type(error).__name__}: {error}" for error in found] == [
        "CheckpointError: rank 1: ZeroDivisionError: odd"
    ] * 2


def test_a_directory_that_is_not_shared_is_refused_at_once(tmp_path: Path):
    """Each node has one of that name; nothing is left of the attempt."""

    def work(peers: Peers) -> None:
        store_of(tmp_path / str(peers.rank), peers).save(snapshot_of(1, peers))

    found = on_ranks(2, work)
    assert str(found[0]) == str(found[1])
    assert "rank 1: " in str(found[0])
    assert "the ranks do not share this directory; name one on a file system that all nodes have" in str(found[0])
    assert [name for name in names(tmp_path / "0") if name != ".lock"] == []


def test_only_rank_0_has_the_lock(tmp_path: Path):
    """A directory in use is refused on all ranks with the same text."""
    holder = Store(tmp_path)
    holder.lock()
    found = on_ranks(2, lambda peers: store_of(tmp_path, peers).lock())
    holder.unlock()
    assert str(found[0]) == str(found[1])
    assert str(found[0]).startswith(f"rank 0: {tmp_path} is in use")
    assert on_ranks(2, lambda peers: store_of(tmp_path, peers).lock()) == [None, None]


def test_clearing_removes_all_and_is_done_by_rank_0(tmp_path: Path):
    written(tmp_path, 2)
    files = CountedFiles()
    on_ranks(2, lambda peers: store_of(tmp_path, peers, files if peers.rank else None).clear())
    assert Store(tmp_path).entries() == []
    assert files.calls == []


def test_what_one_rank_finds_damaged_all_pass_over(tmp_path: Path):
    """Each file of the newest in turn, and the manifest."""
    newest = written(tmp_path, 2) / "checkpoint-00000002"
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for change in (_cut, Path.unlink, _flip):
            change(path)
            first, second = loaded(tmp_path)
            assert first == second
            assert first[:2] == (1, 1)
            assert str(path) in first[2][0]
            assert first[2][0].startswith("rank ")
            path.write_bytes(content)
    assert loaded(tmp_path)[0][0] == 2


def test_a_file_of_another_checkpoint_is_damage(tmp_path: Path):
    """Of the same world, for each file; they have the same size."""
    directory = written(tmp_path, 2)
    for name in names(directory / "checkpoint-00000002"):
        one, other = (directory / f"checkpoint-0000000{number}" / name for number in (1, 2))
        kept = other.read_bytes()
        if one.read_bytes() != kept and name != "manifest.json":
            shutil.copy(one, other)
            assert [row[:2] for row in loaded(directory)] == [(1, 1), (1, 1)]
            other.write_bytes(kept)


def test_where_the_reading_world_is_another_every_file_is_verified_all_the_same(tmp_path: Path):
    directory = written(tmp_path, 2, 3)
    for rank in range(3):
        path = directory / "checkpoint-00000002" / f"rank-0000{rank}.safetensors"
        content = path.read_bytes()
        _flip(path)
        for world in (1, 2):
            assert [row[0] for row in loaded(directory, world)] == [1] * world
        path.write_bytes(content)


def test_a_rank_that_sees_another_directory_is_found(tmp_path: Path):
    """Both checkpoints are sound, of one name."""
    for rank in range(2):
        stored(tmp_path / str(rank), 1 + rank)

    def work(peers: Peers) -> Any:
        return store_of(tmp_path / str(peers.rank), peers).newest_sound()

    shutil.copytree(tmp_path / "1" / "checkpoint-00000002", tmp_path / "1" / "x")
    shutil.rmtree(tmp_path / "1" / "checkpoint-00000001")
    (tmp_path / "1" / "x").rename(tmp_path / "1" / "checkpoint-00000001")
    found = on_ranks(2, work)
    assert (
        str(found[0]).partition("\n")[2].partition(" is ")[2] == str(found[1]).partition("\n")[2].partition(" is ")[2]
    )
    assert "is not the same on all ranks" in str(found[0])


def test_the_weights_of_many_ranks_are_read_by_one_process(tmp_path: Path):
    found = Store(written(tmp_path, 1, 3)).load(tmp_path / "checkpoint-00000001", ["network"])
    assert list(found.sections) == ["network"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
