"""Pieces: a manifest says where each tensor lies, in one piece or several, and what does not cover it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted import put, sign
from safetensors.torch import save

from heptad import CheckpointError, load_weights
from heptad.checkpoints import manifest as manifests
from heptad.checkpoints.pieces import format_facts, parse_facts, whole_facts
from heptad.checkpoints.store import Store
from heptad.run.snapshot import Snapshot

WEIGHT = torch.arange(24.0).reshape(6, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint whose network has one weight."""
    return Store(tmp_path / "run").save(Snapshot({}, {"network": {"tensors": {"weight": WEIGHT}}})).path


def shard(path: Path, line: str, *parts: torch.Tensor) -> None:
    """Put parts of the weight into files of their own, and a line into the manifest."""
    for number, part in enumerate(parts):
        put(path, f"network-0000{number}.safetensors", save({"weight": part.contiguous()}))
    sign(path, lambda manifest: manifest["tensors"]["network"].update(weight=line))


SHARDED = {
    "rows": ("F32[6,4] network-00000[0:4,0:4] network-00001[4:6,0:4]", (WEIGHT[:4], WEIGHT[4:])),
    "columns": ("F32[6,4] network-00000[0:6,0:1] network-00001[0:6,1:4]", (WEIGHT[:, :1], WEIGHT[:, 1:])),
    "both": (
        "F32[6,4] network-00000[0:2,0:3] network-00001[0:2,3:4] network-00002[2:6,0:3] network-00003[2:6,3:4]",
        (WEIGHT[:2, :3], WEIGHT[:2, 3:], WEIGHT[2:, :3], WEIGHT[2:, 3:]),
    ),
}


@pytest.mark.parametrize("form", SHARDED)
def test_a_tensor_of_several_pieces_is_joined(path: Path, form: str):
    """Without any process group, by `load_weights` too."""
    line, parts = SHARDED[form]
    shard(path, line, *parts)
    assert torch.equal(Store(path.parent).load(path).sections["network"]["tensors"]["weight"], WEIGHT)
    network = torch.nn.Linear(4, 6, bias=False)
    load_weights(path, network)
    assert torch.equal(network.weight, WEIGHT)


@pytest.mark.parametrize("form", SHARDED)
def test_a_file_of_pieces_that_is_missing_is_named(path: Path, form: str):
    line, parts = SHARDED[form]
    shard(path, line, *parts)
    (path / "network-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"network-00001.safetensors is missing"):
        Store(path.parent).load(path)


WRONG = {
    "a gap": ("F32[6,4] network-00000[0:3,0:4] network-00001[4:6,0:4]", "leave a gap at 3 of dimension 0"),
    "an overlap": ("F32[6,4] network-00000[0:5,0:4] network-00001[4:6,0:4]", "overlap at 4 of dimension 0"),
    "the end": (
        "F32[7,4] network-00000[0:4,0:4] network-00001[4:6,0:4]",
        "end at 6 of dimension 0, and the tensor at 7",
    ),
    "twice": ("F32[6,4] network-00000[0:6,0:4] network-00001[0:6,0:4]", "two pieces cover the same elements"),
    "a hole": ("F32[6,4] network-00000[0:4,0:4] network-00001[4:6,1:4]", "leave a gap at 0 of dimension 1"),
    "order": ("F32[6,4] network-00001[4:6,0:4] network-00000[0:4,0:4]", "not in the order of their places"),
    "one part": ("F32[6,4] network-00000[0:4,0:4]", "the piece is not the whole tensor"),
    "dimensions": ("F32[6,4] network-00000[0:4] network-00001[4:6]", "a piece has other dimensions"),
    "empty": ("F32[6,4] network-00000[0:4,0:4] network-00001[4:4,0:4]", "a piece is empty"),
    "backwards": ("F32[6,4] network-00000[4:0,0:4] network-00001[4:6,0:4]", "a piece is empty"),
    "no piece": ("F32[6,4]", "expected a line such as"),
    "a path": ("F32[6,4] ../network-00000[0:6,0:4]", "expected a line such as"),
    "zeros in front": ("F32[6,04] network-00000[0:6,0:4]", "expected a line such as"),
    "a long number": (f"F32[{9**40},4] network-00000[0:6,0:4]", "expected a line such as"),
    "many dimensions": (f"F32[{','.join('1' * 70)}] network-00000[{','.join(['0:1'] * 70)}]", "other dimensions"),
    "another section's": ("F32[6,4] optimizers-00000[0:6,0:4]", "which is no file of it"),
    "no such file": ("F32[6,4] network-00007[0:6,0:4]", "which is no file of it"),
    "dtype": (
        "F16[6,4] network-00000[0:4,0:4] network-00001[4:6,0:4]",
        r"holds F32 \(4, 4\) under the name 'weight', expected F16 \(4, 4\)",
    ),
    "beyond the file's data": (
        "F32[8,4] network-00000[0:4,0:4] network-00001[4:8,0:4]",
        r"network-00001 holds F32 \(2, 4\) under the name 'weight', expected F32 \(4, 4\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_pieces_that_do_not_cover_the_tensor_once_are_refused(path: Path, what: str):
    """Though all digests are right."""
    line, says = WRONG[what]
    shard(path, line, WEIGHT[:4], WEIGHT[4:])
    with pytest.raises(CheckpointError, match=says):
        Store(path.parent).load(path)


def test_a_tensor_that_the_manifest_does_not_list_is_refused(path: Path):
    put(path, "network-00000.safetensors", save({"weight": WEIGHT, "more": WEIGHT + 1}))
    sign(path, lambda manifest: manifest["tensors"]["network"].pop("more"))
    with pytest.raises(CheckpointError, match=r"holds 'more', which manifest.json does not list"):
        Store(path.parent).load(path)


def test_a_tensor_that_is_listed_and_not_there_is_refused(path: Path):
    line = "F32[6,4] network-00000[0:6,0:4]"
    sign(path, lambda manifest: manifest["tensors"]["network"].update(more=line))
    with pytest.raises(CheckpointError, match=r"network-00000 holds nothing under the name 'more'"):
        Store(path.parent).load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda manifest: manifest.update(world=2), "2 ranks wrote it, and it lists 1 of their files"),
        (lambda manifest: manifest.update(world=0), "world"),
        (lambda manifest: manifest.update(world=10**9), "world"),
        (lambda manifest: manifest["files"].pop("rank-00000.json"), "1 ranks wrote it, and it lists 0"),
        (lambda manifest: manifest["tensors"].update(odd={}), "lists tensors of 'odd'"),
        (lambda manifest: manifest.update(format=1), "format 1 has no such field"),
        (lambda manifest: manifest.pop("tensors"), "tensors"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(path: Path, change: Any, says: str):
    sign(path, change)
    with pytest.raises(CheckpointError, match=says):
        Store(path.parent).load(path)


def test_what_is_a_ranks_own_has_its_place_in_a_section(path: Path):
    for own in ([[["network"], 1]], [[["network", "x", "y"], 1]], [[["else", "x"], 1]], [["network", 1]], [7]):
        put(path, "rank-00000.json", json.dumps({"own": own}).encode())
        with pytest.raises(CheckpointError, match=r"rank-00000.json (is not what a checkpoint|speaks of)"):
            Store(path.parent).load(path)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)])
def test_a_line_is_read_as_it_was_written(shape: tuple[int, ...]):
    facts = whole_facts(torch.empty(shape, dtype=torch.bfloat16), "network-00000")
    assert parse_facts(format_facts(facts)) == facts


@pytest.mark.parametrize("world", [8, 64, 1024])
def test_a_manifest_of_many_ranks_is_within_its_bound(world: int):
    """A hundred gradients of each rank, and a network in pieces of each."""
    files = {f"rank-{rank:05d}.json": manifests.FileFacts(size=1, sha256="0" * 64) for rank in range(world)}
    files["state.json"] = files["rank-00000.json"]
    spans = [(rank * 4, rank * 4 + 4) for rank in range(world)]
    pieces = " ".join(f"network-{rank:05d}[{start}:{end},0:8]" for rank, (start, end) in enumerate(spans))
    tensors = {"network": {f"blocks.{n}.weight": f"F32[{world * 4},8] {pieces}" for n in range(100)}}
    for rank in range(world):
        own = {f"optimizers.gradients.blocks.{n}.weight": f"F32[4,8] rank-{rank:05d}[0:4,0:8]" for n in range(100)}
        tensors[f"rank-{rank:05d}"] = own
    content = manifests.write_manifest(world, {}, files, tensors)
    found = manifests.read_manifest(content)
    assert found.world == world
    facts = parse_facts(found.tensors["network"]["blocks.7.weight"])
    assert sum(piece.size[0] for piece in facts.pieces) == world * 4


def test_a_manifest_that_would_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifests, "MOST_MANIFEST", 1000)
    with pytest.raises(CheckpointError, match=r"the manifest of 9 tensors comes to [\d,]+ bytes, and 1,000 are stored"):
        Store(tmp_path).save(Snapshot({}, {"network": {f"layer {n}": torch.zeros(1) for n in range(9)}}))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_the_weights_that_two_ranks_have_stored_are_loaded_by_one_process():
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)
    ).double()
    path = load_weights(Path(__file__).parent / "ranks_of_format_2", network)
    assert json.loads((path / "manifest.json").read_text())["world"] == 2
    assert int(network[1].num_batches_tracked) == 7
