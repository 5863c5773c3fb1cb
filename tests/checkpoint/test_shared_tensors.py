"""Tensors that ranks share: each writes its piece, and any number of ranks read theirs, or one process the whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from crafted import bounded
from standins import Cut, Shards, Shared, blocks, columns, rows
from store_ranks import on_ranks, store_of
from torch import Tensor

from heptad import CheckpointError
from heptad.checkpoints.files import Files
from heptad.checkpoints.reading import Share, read_checkpoint
from heptad.checkpoints.store import Store
from heptad.run.peers import NoPeers
from heptad.run.snapshot import Snapshot


def tensors() -> dict[str, Tensor]:
    """Return tensors of odd shapes and dtypes, all of them shared."""
    generator = torch.Generator().manual_seed(0)
    drawn = {f"of {size}": torch.randn(size, 3, generator=generator) for size in (1, 2, 3, 4, 7, 16)}
    return {
        **drawn,
        "half": torch.randn(5, 2, generator=generator).bfloat16(),
        "double": torch.randn(6, 2, 1, 3, generator=generator).double(),
        "truth": torch.rand(9, generator=generator) > 0.5,
        "bytes": torch.arange(11, dtype=torch.uint8),
        "vector": torch.randn(4, generator=generator),
        "turned": torch.randn(3, 8, generator=generator).t(),
        "no rows": torch.empty(0, 3),
        "no columns": torch.empty(4, 0),
    }


def snapshot_of(peers: Any, shards: Shards) -> Snapshot:
    """Return the snapshot of a rank: a network, its optimizer's states, a plugin, and what is its own."""
    share = shards.share
    held = {name: share(tensor) for name, tensor in tensors().items()}
    held["tied"] = held["of 7"]
    held["whole"] = torch.full((2, 2), 7.0)
    held["one number"] = torch.tensor(3.0)
    states = [{"step": torch.tensor(2.0), "exp_avg": share(tensor * 2)} for tensor in drawn_from()]
    return Snapshot(
        {"seq": 1},
        {
            "network": {"tensors": held},
            "optimizers": [{"state": dict(enumerate(states))}],
            "plugins": {"EMA": {"state": {"tensors": {"of 7": share(tensors()["of 7"] / 3)}}}},
            "own": {"rank": peers.rank, "tensor": torch.full((3,), float(peers.rank))},
        },
        own=[("own", "rank"), ("own", "tensor")],
        world=peers.world,
    )


def drawn_from() -> list[Tensor]:
    return [tensors()[name] for name in ("of 1", "of 7", "of 16")]


def written(directory: Path, world: int, cut: Cut = rows) -> Path:
    """Write a checkpoint by so many ranks; return its path."""

    def work(peers: Any) -> Path:
        shards = Shards(peers.rank, peers.world, cut)
        return store_of(directory, peers, shards=shards).save(snapshot_of(peers, shards)).path

    paths = on_ranks(world, work)
    assert paths == [paths[0]] * world
    return paths[0]


def assert_equal(found: Any, expected: Tensor, shards: Shards | None) -> None:
    """Whole in one process; a part of the right elements where ranks share."""
    if shards is None or type(found) is Tensor:
        assert type(found) is Tensor
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        return
    offset, size = shards.span(tuple(expected.shape))
    part = expected[tuple(slice(start, start + length) for start, length in zip(offset, size, strict=True))]
    assert (found.held.offset, found.held.shape) == (offset, tuple(expected.shape))
    torch.testing.assert_close(found.held.local, part.contiguous(), rtol=0, atol=0)


def check(found: Snapshot, rank: int, shards: Shards | None) -> None:
    """All that is loaded is what was saved."""
    held = found.sections["network"]["tensors"]
    expected = tensors()
    assert list(held) == [*expected, "tied", "whole", "one number"]
    for name, tensor in expected.items():
        assert_equal(held[name], tensor, shards)
    assert_equal(held["tied"], expected["of 7"], shards)
    assert_equal(held["whole"], torch.full((2, 2), 7.0), None)
    assert_equal(held["one number"], torch.tensor(3.0), None)
    for number, tensor in enumerate(drawn_from()):
        assert_equal(found.sections["optimizers"][0]["state"][number]["exp_avg"], tensor * 2, shards)
    assert_equal(found.sections["plugins"]["EMA"]["state"]["tensors"]["of 7"], expected["of 7"] / 3, shards)
    assert found.sections["own"]["rank"] == rank
    assert_equal(found.sections["own"]["tensor"], torch.full((3,), float(rank)), None)


@pytest.mark.parametrize("cut", [rows, columns])
@pytest.mark.parametrize("then", [1, 2, 3, 5])
def test_what_some_ranks_wrote_any_number_reads(tmp_path: Path, then: int, cut: Cut):
    """1, 2, 3 and 5 of them, by parts that are cut in the same way; one process reads the whole."""
    path = written(tmp_path, then, cut)
    check(Store(tmp_path).load(path), 0, None)
    for now in (1, 2, 3, 5):

        def work(peers: Any, now: int = now) -> None:
            shards = Shards(peers.rank, now, cut)
            found = store_of(tmp_path, peers, shards=shards).load_shared(path)
            assert any(isinstance(one, Shared) for one in found.sections["network"]["tensors"].values()) == (then > 1)
            check(found, peers.rank if peers.rank < then else 0, shards)

        assert on_ranks(now, work) == [None] * now


@pytest.mark.parametrize("cut", [rows, columns, blocks])
def test_parts_of_another_cut_are_found_in_the_pieces(tmp_path: Path, cut: Cut):
    """What was cut by rows is read by columns, and the reverse; and what is cut in two dimensions by both."""

    def save(peers: Any) -> Path:
        shards = Shards(peers.rank, 4, cut)
        held = {
            "a": shards.share(torch.arange(60.0).reshape(5, 4, 3)),
            "b": shards.share(torch.arange(14).reshape(7, 2)),
        }
        return store_of(tmp_path, peers, shards=shards).save(Snapshot({}, {"network": {"tensors": held}})).path

    path = on_ranks(4, save)[0]
    for other in (rows, columns, blocks):

        def work(peers: Any, other: Cut = other) -> None:
            shards = Shards(peers.rank, 4, other)
            held = store_of(tmp_path, peers, shards=shards).load_shared(path).sections["network"]["tensors"]
            assert_equal(held["a"], torch.arange(60.0).reshape(5, 4, 3), shards)
            assert_equal(held["b"], torch.arange(14).reshape(7, 2), shards)

        assert on_ranks(4, work) == [None] * 4


@pytest.mark.parametrize("now", [1, 2, 3])
def test_what_was_stored_whole_is_read_in_part_where_ranks_expect_to_share_it(tmp_path: Path, now: int):
    """As ddp wrote it, and one process: in one file, and one piece. Strides of the whole do not matter to a part."""
    path = Store(tmp_path).save(Snapshot({}, {"network": {"tensors": tensors()}, "other": tensors()})).path

    class Expecting(Shards):
        def expects(self, section: str, name: str, shape: tuple[int, ...]) -> bool | None:
            return section == "network" and bool(shape)

    def work(peers: Any) -> None:
        shards = Expecting(peers.rank, now)
        found = store_of(tmp_path, peers, shards=shards).load_shared(path).sections
        for name, tensor in tensors().items():
            assert isinstance(found["network"]["tensors"][name], Shared)
            assert_equal(found["network"]["tensors"][name], tensor, shards)
            assert_equal(found["other"][name], tensor, None)

    assert on_ranks(now, work) == [None] * now


def test_what_ranks_expect_to_hold_whole_is_read_whole(tmp_path: Path):
    """Of several pieces too."""
    path = written(tmp_path, 3)

    class Expecting(Shards):
        def expects(self, section: str, name: str, shape: tuple[int, ...]) -> bool | None:
            return False

    def work(peers: Any) -> None:
        held = store_of(tmp_path, peers, shards=Expecting(peers.rank, 2)).load_shared(path).sections["network"]
        for name, tensor in tensors().items():
            assert_equal(held["tensors"][name], tensor, None)

    assert on_ranks(2, work) == [None] * 2


def test_the_manifest_names_all_pieces(tmp_path: Path):
    """Empty parts are none; of a tensor without elements there is one, of rank 0; and no rank writes an empty file."""
    path = written(tmp_path, 5)
    manifest = json.loads((path / "manifest.json").read_text())
    lines = manifest["tensors"]["network"]
    assert lines["of 1"] == "F32[1,3] network-00000[0:1,0:3]"
    assert lines["of 7"] == (
        "F32[7,3] network-00000[0:2,0:3] network-00001[2:4,0:3] network-00002[4:6,0:3] network-00003[6:7,0:3]"
    )
    assert lines["no rows"] == "F32[0,3] network-00000[0:0,0:3]"
    assert lines["no columns"] == "F32[4,0] network-00000[0:4,0:0]"
    assert lines["whole"] == "F32[2,2] network-00000[0:2,0:2]"
    assert manifest["tensors"]["rank-00003"] == {"own.tensor": "F32[3] rank-00003[0:3]"}
    assert list(manifest) == ["format", "created_by", "world", "summary", "files", "tensors", "digest"]
    assert set(manifest["files"]) == {one.name for one in path.iterdir()} - {"manifest.json"}
    assert "plugins-00004.safetensors" not in manifest["files"]


def test_one_process_writes_the_same_whether_it_shares_or_not(tmp_path: Path):
    """Byte for byte, but for the strides of what is turned: a part is contiguous."""
    held = {name: tensor for name, tensor in tensors().items() if name != "turned"}
    shards = Shards(0, 1)
    shared = {name: shards.share(tensor) for name, tensor in held.items()}
    plain = Store(tmp_path / "plain").save(Snapshot({}, {"network": {"tensors": held}})).path
    store = Store(tmp_path / "shared")
    store.join(cast("Any", SimpleNamespace(_runtime=SimpleNamespace(peers=NoPeers(), shards=shards))))
    path = store.save(Snapshot({}, {"network": {"tensors": shared}})).path
    for one in plain.iterdir():
        assert one.read_bytes() == (path / one.name).read_bytes()


Change = Callable[[dict[str, Tensor], Shards], object]
"""Changes the tensors of a rank."""

DISAGREEMENTS: dict[str, tuple[Change, str]] = {
    "lacking": (lambda held, shards: held.pop("a"), "network.a is not all of it"),
    "shape": (lambda held, shards: held.update(a=shards.share(torch.ones(6, 5))), r"network.a: it is F32\[6,.*F32\[6,"),
    "dtype": (lambda held, shards: held.update(a=shards.share(torch.ones(6, 4).double())), "network.a: it is F.*64"),
    "whole": (lambda held, shards: held.update(a=torch.ones(6, 4)), "network.a is not all of it"),
    "cut": (lambda held, shards: held.update(a=Shards(0, 3).share(torch.ones(6, 4))), "network.a is not all of it"),
    "more": (lambda held, shards: held.update(c=shards.share(torch.ones(6, 4))), "network.c is not all of it"),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree_on_a_tensor_store_nothing(tmp_path: Path, rank: int, what: str):
    """All raise the same, with its name."""
    change, says = DISAGREEMENTS[what]

    def work(peers: Any) -> None:
        shards = Shards(peers.rank, 2)
        held = {"a": shards.share(torch.ones(6, 4)), "b": shards.share(torch.ones(3))}
        if peers.rank == rank:
            change(held, shards)
        store_of(tmp_path, peers, shards=shards).save(Snapshot({}, {"network": {"tensors": held}}))

    found = on_ranks(2, work)
    assert str(found[0]) == str(found[1])
    assert isinstance(found[0], CheckpointError)
    assert re.search(says, str(found[0]))
    assert [one.name for one in tmp_path.iterdir() if one.name != ".lock"] == []


def test_what_is_each_ranks_own_holds_nothing_that_ranks_share(tmp_path: Path):
    def work(peers: Any) -> None:
        shards = Shards(peers.rank, 2)
        snapshot = snapshot_of(peers, shards)
        snapshot.own = [("plugins", "EMA")]
        store_of(tmp_path, peers, shards=shards).save(snapshot)

    found = on_ranks(2, work)
    assert str(found[0]) == str(found[1])
    assert "plugins.EMA.state.tensors.of 7 is a tensor that ranks share, in a place that is each rank's own" in str(
        found[0]
    )


def test_a_shared_tensor_that_no_checkpoint_can_hold_is_named(tmp_path: Path):
    def work(peers: Any) -> None:
        shards = Shards(peers.rank, 2)
        held = {"a": shards.share(torch.ones(4, dtype=torch.complex128))}
        store_of(tmp_path, peers, shards=shards).save(Snapshot({}, {"network": held}))

    found = on_ranks(2, work)
    assert "network['a'] is a tensor that a checkpoint cannot hold: the safetensors format has no dtype" in str(
        found[0]
    )


def test_where_nothing_is_shared_such_a_tensor_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"network\['a'\] is a Shared, which a checkpoint cannot hold"):
        Store(tmp_path).save(Snapshot({}, {"network": {"a": Shards(0, 2).share(torch.ones(4))}}))


def test_saving_and_loading_take_what_is_loaded_and_little_more(tmp_path: Path):
    """A whole network of 128 MB in 160 MB more address space, half of it in 96, and nothing is copied to be written."""
    held = {f"layer{number}": torch.ones(1 << 10, 1 << 11) for number in range(16)}
    path = Store(tmp_path / "run").save(Snapshot({}, {"network": {"tensors": held}})).path

    class Expecting(Shards):
        def expects(self, section: str, name: str, shape: tuple[int, ...]) -> bool | None:
            return True

    assert bounded(lambda: Store(tmp_path / "other").save(Snapshot({}, {"network": {"tensors": held}})), 32) == ""
    assert bounded(lambda: Store(path.parent).load(path), 160) == ""
    assert bounded(lambda: read_checkpoint(Files(), path, None, Share(1, 2), Expecting(1, 2)), 96) == ""
    assert "does not fit into the memory" in bounded(lambda: Store(path.parent).load(path), 96)
