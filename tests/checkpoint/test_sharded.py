"""Tensors that ranks share: each writes its piece, and any number of ranks read theirs, or one process the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from standins import Cut, Shards, Shared, blocks, columns, rows
from store_ranks import on_ranks, store_of
from torch import Tensor

from heptad.checkpoints.store import Store
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
