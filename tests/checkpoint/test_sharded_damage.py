"""Damage to a checkpoint of two ranks that share tensors: it is named, and passed over by ranks and by one process."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted import put, sign
from disk import CountedFiles, refusing
from safetensors.torch import load, save
from standins import Shards, Shared
from store_ranks import on_ranks, store_of

from heptad import CheckpointError, load_weights
from heptad.checkpoints.files import Files
from heptad.checkpoints.store import Store
from heptad.run.peers import Peers
from heptad.run.snapshot import Snapshot


def snapshot_of(number: int, peers: Peers, shards: Shards) -> Snapshot:
    """Return the snapshot of a rank: a weight, a moment of it, both shared, and a number that is its own."""
    weight = torch.arange(12.0).reshape(6, 2) + number
    return Snapshot(
        {"seq": number},
        {
            "network": {"tensors": {"weight": shards.share(weight), "bias": torch.full((2,), float(number))}},
            "optimizers": [{0: shards.share(weight * 2)}],
            "run": {"own": torch.tensor([number, peers.rank])},
        },
        own=[("run", "own")],
        world=peers.world,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with two checkpoints of two ranks."""

    def work(peers: Peers) -> None:
        shards = Shards(peers.rank, 2)
        store = store_of(tmp_path / "run", peers, shards=shards)
        for number in (1, 2):
            store.save(snapshot_of(number, peers, shards))

    assert on_ranks(2, work) == [None, None]
    return tmp_path / "run"


def newest(directory: Path, world: int) -> list[Any]:
    """Return the number of the newest sound checkpoint and what is wrong with newer ones, as each rank finds it."""

    def work(peers: Peers) -> Any:
        shards = Shards(peers.rank, world)
        entry, found, damage = store_of(directory, peers, shards=shards).newest_sound()
        weight: Any = found.sections["network"]["tensors"]["weight"]
        offset, size = shards.span((6, 2))
        expected = (torch.arange(12.0).reshape(6, 2) + entry.number)[offset[0] : offset[0] + size[0]]
        assert isinstance(weight, Shared)
        assert torch.equal(weight.held.local, expected)
        return entry.number, damage

    return on_ranks(world, work)


def assert_named_and_passed_over(directory: Path, path: Path) -> None:
    """By two ranks, one of which may have read nothing of it, by three, and by one process."""
    for world in (2, 3):
        found = newest(directory, world)
        assert found == [found[0]] * world
        number, damage = found[0]
        assert number == 1
        assert len({line.partition(": ")[2] for line in damage}) == 1
        assert str(path) in damage[0]
    entry, _, damage = Store(directory).newest_sound()
    assert (entry.number, len(damage)) == (1, 1)
    assert str(path) in damage[0]


def refused(path: Path) -> str:
    """Return the error with which one process refuses to load a checkpoint."""
    with pytest.raises(CheckpointError) as caught:
        Store(path.parent).load(path)
    return str(caught.value)


def test_every_byte_counts(directory: Path):
    """Each flipped in turn, a bit that depends on its place: one process reads them, and of some the ranks too."""
    files = sorted((directory / "checkpoint-00000002").iterdir())
    assert [path.name for path in files] == [
        "manifest.json", "network-00000.safetensors", "network-00001.safetensors", "optimizers-00000.safetensors",
        "optimizers-00001.safetensors", "rank-00000.json", "rank-00000.safetensors", "rank-00001.json",
        "rank-00001.safetensors", "state.json",
    ]  # fmt: skip
    for path in files:
        content = path.read_bytes()
        for place in range(len(content)):
            torn = bytearray(content)
            torn[place] ^= 1 << place % 8
            path.write_bytes(torn)
            assert str(path) in refused(path.parent)
        for place in (20, len(content) - 1):
            torn = bytearray(content)
            torn[place] ^= 4
            path.write_bytes(torn)
            assert_named_and_passed_over(directory, path)
        path.write_bytes(content)
    assert newest(directory, 2) == [(2, [])] * 2


CHANGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "extended": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "of another checkpoint": lambda path: shutil.copy(path.parent.parent / "checkpoint-00000001" / path.name, path),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_what_was_written_is_named(directory: Path, change: str):
    """Each of them; those that are alike in both checkpoints may take each other's place."""
    for path in sorted((directory / "checkpoint-00000002").iterdir()):
        content = path.read_bytes()
        CHANGES[change](path)
        if not path.exists() or path.read_bytes() != content:
            if (change, path.name) == ("of another checkpoint", "manifest.json"):
                assert "is not what was written" in refused(path.parent)
            else:
                assert_named_and_passed_over(directory, path)
        path.write_bytes(content)


def test_pieces_in_the_place_of_each_other_are_named(directory: Path):
    path = directory / "checkpoint-00000002" / "network-00001.safetensors"
    shutil.copy(directory / "checkpoint-00000002" / "optimizers-00001.safetensors", path)
    assert_named_and_passed_over(directory, path)


def test_what_is_loaded_is_not_changed_by_a_checkpoint_that_is_refused(directory: Path):
    path = directory / "checkpoint-00000002"
    (path / "network-00001.safetensors").write_bytes(b"")
    network = torch.nn.Linear(2, 6)
    before = network.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"network-00001.safetensors"):
        load_weights(path, network)
    assert torch.equal(network.weight, before)


LINE = "F32[6,2] network-00000[0:3,0:2] network-00001[3:6,0:2]"
CRAFTED = {
    "overlap": ("F32[5,2] network-00000[0:3,0:2] network-00001[2:5,0:2]", "overlap at 2 of dimension 0"),
    "gap": ("F32[7,2] network-00000[0:3,0:2] network-00001[4:7,0:2]", "leave a gap at 3 of dimension 0"),
    "end": ("F32[7,2] network-00000[0:3,0:2] network-00001[3:6,0:2]", "and the tensor at 7"),
    "exchanged": ("F32[6,2] network-00001[0:3,0:2] network-00000[3:6,0:2]", ""),
    "twice": ("F32[6,2] network-00000[0:3,0:2] network-00000[3:6,0:2]", "two pieces of 'weight' in network-00000"),
    "of another section": ("F32[6,2] network-00000[0:3,0:2] optimizers-00001[3:6,0:2]", "which is no file of it"),
    "of a rank": ("F32[6,2] network-00000[0:3,0:2] rank-00001[3:6,0:2]", "which is no file of it"),
    "missing": ("F32[6,2] network-00000[0:3,0:2] network-00002[3:6,0:2]", "which is no file of it"),
    "one only": ("F32[3,2] network-00000[0:3,0:2]", "network-00001.safetensors holds 'weight', which manifest.json"),
    "columns": ("F32[3,4] network-00000[0:3,0:2] network-00001[0:3,2:4]", ""),
    "dtype": ("I32[6,2] network-00000[0:3,0:2] network-00001[3:6,0:2]", r"expected I32 \(3, 2\)"),
    "no dtype": ("F9[6,2] network-00000[0:3,0:2] network-00001[3:6,0:2]", "F9 is no dtype"),
    "sizes": ("F32[6,2] network-00000[0:2,0:2] network-00001[2:6,0:2]", r"holds F32 \(3, 2\) .*expected F32 \(2, 2\)"),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_manifest_that_nobody_wrote_is_refused(directory: Path, what: str):
    """By one process and by ranks, though its digest is right; what is another sound one is read as it says."""
    line, says = CRAFTED[what]
    path = directory / "checkpoint-00000002"
    sign(path, lambda manifest: manifest["tensors"]["network"].update(weight=line))

    def work(peers: Peers) -> None:
        store_of(directory, peers, shards=Shards(peers.rank, 2)).load_shared(path)

    if says:
        with pytest.raises(CheckpointError, match=says):
            Store(directory).load(path)
        found = on_ranks(2, work)
        assert [type(error) for error in found] == [CheckpointError] * 2
        assert str(found[0]) == str(found[1])
    else:
        assert on_ranks(2, work) == [None, None]
        Store(directory).load(path)


def test_a_file_that_holds_more_is_refused_by_ranks_that_need_nothing_of_it(directory: Path):
    """One of them reads it, to verify it."""
    path = directory / "checkpoint-00000002"
    held = load((path / "network-00000.safetensors").read_bytes())
    listed = (path / "manifest.json").read_text()
    put(path, "network-00002.safetensors", save({"more": held["bias"]}))
    sign(path, lambda manifest: manifest["tensors"].update(network=_listed(listed)))

    def work(peers: Peers) -> None:
        store_of(directory, peers, shards=Shards(peers.rank, 2)).load_shared(path)

    for found in on_ranks(2, work):
        assert "network-00002.safetensors holds 'more', which manifest.json does not list" in str(found)


def _listed(manifest: str) -> dict[str, str]:
    return json.loads(manifest)["tensors"]["network"]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_operation_of_a_rank_fails_once(directory: Path, tmp_path: Path, rank: int):
    """All raise the same text; the checkpoint before stays sound; the next save passes, and sweeps."""

    def save(place: Path, number: int, files: Files | None = None) -> list[Any]:
        def work(peers: Peers) -> str:
            shards = Shards(peers.rank, 2)
            store = store_of(place, peers, files if peers.rank == rank else None, shards)
            return store.save(snapshot_of(number, peers, shards)).path.name

        return on_ranks(2, work)

    counted = CountedFiles()
    save(Path(shutil.copytree(directory, tmp_path / "0")), 3, counted)
    for number in range(1, len(counted.calls) + 1):
        place = Path(shutil.copytree(directory, tmp_path / str(number)))
        found = save(place, 3, CountedFiles(number, refusing(errno.ENOSPC)))
        assert [type(error) for error in found] == [CheckpointError] * 2
        assert str(found[0]) == str(found[1])
        assert "ENOSPC" in str(found[0])
        found = newest(place, 2)
        assert found[0] == found[1]
        assert found[0] == (2, [])
        assert save(place, 3) == ["checkpoint-00000003"] * 2
        assert [one.name for one in place.iterdir() if one.name.startswith(".temp")] == []
