"""Checkpoints that were written once and are kept as files: every later version must load them, bit for bit.

`format_1` was written by `Store(…).save(kept())` of the version that introduced format 1, `format_2` by the one that
introduced format 2; neither is written again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from test_codec import alike

from heptad import load_weights
from heptad.checkpoints.decoding import ValueDecoder
from heptad.checkpoints.store import Store
from heptad.checkpoints.tensors import DTYPES
from heptad.run.snapshot import Snapshot

KEPT = [Path(__file__).parent / name for name in ("format_1", "format_2")]
of_each_format = pytest.mark.parametrize("directory", KEPT, ids=lambda path: path.name)


def kept() -> Snapshot:
    """Return what the kept checkpoints hold: one of everything that can be stored; two are a rank's own in format 2."""
    weight = torch.arange(6.0).reshape(2, 3) / 7
    bits = (torch.arange(16) % 3 % 2).to(torch.uint8)
    places, rows = torch.tensor([[2, 0, 2]]), torch.tensor([[1.0], [2.0], [3.0]])
    return Snapshot(
        summary={"seq": 12, "state": "after_step", "monitor": {"name": "loss", "mode": "min", "value": 0.25}},
        sections={
            "network": {
                "tensors": {"layer.weight": weight, "layer.bias": torch.tensor([-0.0, 1e-40]), "n": torch.tensor(3)},
                "modes": {"": True, "layer": False},
            },
            "gradients": {"layer.weight": weight.t().contiguous().t(), "layer.bias": None},
            "values": {
                "dtypes": {str(dtype): bits.view(dtype) for dtype in DTYPES},
                "sparse": torch.sparse_coo_tensor(places, rows, (4, 1), check_invariants=True),
                "empty": torch.empty(0, 3),
                "image": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
                "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
                "numpy": [np.float32(0.1), np.bool_(True), np.complex128(1j)],
            },
            "plain": {
                "numbers": [0, -(2**63), 2**200, 0.1, -0.0, float("inf"), float("nan"), True, None],
                "text": "ü 𝄞 \0",
                "bytes": b"\xff\0",
                "keys": {1: "int", None: "None", 1.5: "float", ("a", 2): "tuple", False: "bool", b"b": "bytes"},
                "nested": (1, (2, [3, ()])),
                "counter": Counter("abca"),
                "ordered": OrderedDict([("z", 1), ("a", 2)]),
                "torch": [torch.Size((2, 3)), torch.bfloat16, torch.device("cuda", 1)],
                "tagged": {"tuple": [1], "dict": {}},
            },
        },
        own=[("values", "array"), ("values", "numpy")],
    )  # fmt: skip


@of_each_format
def test_a_checkpoint_loads_for_ever(directory: Path):
    """Everything it holds, with types, bits, strides and order of keys."""
    entry, found, damage = Store(directory).newest_sound()
    assert (entry.number, damage) == (1, [])
    assert found.summary == kept().summary
    for name, section in kept().sections.items():
        assert alike(found.sections[name], section), name
    assert list(found.sections) == list(kept().sections)


@of_each_format
def test_it_holds_one_of_everything(directory: Path):
    """Each kind of JSON object that the codec knows, and each dtype."""
    path = directory / "checkpoint-00000001"
    text = "".join(file.read_text() for file in path.glob("*.json"))
    assert [tag for tag in ValueDecoder._kinds if f'{{"{tag}":' not in text] == []
    content = b"".join(file.read_bytes() for file in path.glob("*.safetensors"))
    assert [name for name in DTYPES.values() if f'"dtype":"{name}"'.encode() not in content] == []


def test_what_is_written_now_is_what_was_written_then(tmp_path: Path):
    """The files of the same values are the same, byte for byte, but for the versions in the manifest."""
    path = Store(tmp_path).save(kept()).path
    then = KEPT[-1] / "checkpoint-00000001"
    names = sorted(file.name for file in then.iterdir())
    assert sorted(file.name for file in path.iterdir()) == names
    for name in names:
        if name != "manifest.json":
            assert (path / name).read_bytes() == (then / name).read_bytes(), name


@of_each_format
def test_its_weights_load(directory: Path):
    """By what the manifest calls the best; reading writes nothing."""
    before = sorted(directory.rglob("*"))
    network = torch.nn.Module()
    network.layer = torch.nn.Linear(3, 2)
    network.register_buffer("n", torch.tensor(0))
    load_weights(directory, network, "best")
    assert torch.equal(network.layer.weight, kept().sections["network"]["tensors"]["layer.weight"])
    assert network.n == 3
    assert sorted(directory.rglob("*")) == before
