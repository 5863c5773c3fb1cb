"""`heptad weights`: the weights of a checkpoint as one safetensors file, whole or not there, and its errors."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from disk import CountedFiles, refusing
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from heptad import CheckpointError, load_weights
from heptad.checkpoints.manifest import FileFacts, read_manifest, write_manifest
from heptad.checkpoints.store import Store
from heptad.checkpoints.weights_file import write_weights
from heptad.cli.main import main
from heptad.run.snapshot import Snapshot

KEPT = Path(__file__).parent


class Answer(NamedTuple):
    """What the command printed, and its exit code."""

    code: int
    out: str
    err: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return a function that runs `heptad weights` in this process."""

    def run(*argv: object) -> Answer:
        capsys.readouterr()
        code = main(["weights", *map(str, argv)])
        return Answer(code, *capsys.readouterr())

    return run


class Net(nn.Module):
    """Tied weights, persistent buffers and one that is not, tensors of no dimension and without elements."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(2, 3, dtype=torch.bfloat16)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("nothing", torch.zeros(0, 3))


def held(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and all buffers, as a checkpoint holds them."""
    found = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    return {name: tensor.detach() for name, tensor in found.items()}


def saved(directory: Path, network: nn.Module, monitor: float | None = None, **section: Any) -> Path:
    """Write a checkpoint of a network, with an average that is everywhere 1 more."""
    summary = {} if monitor is None else {"monitor": {"name": "loss", "mode": "min", "value": monitor}}
    average = {name: tensor.float() + 1 for name, tensor in held(network).items()}
    sections = {
        "network": {"tensors": held(network), "not_persistent": ["cache"], **section},
        "plugins": {"EMA": {"state": {"tensors": average}}},
    }
    return Store(directory).save(Snapshot(summary, sections)).path


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)


def test_a_fresh_network_loads_the_file(ask: Ask, tmp_path: Path):
    """Strictly: the names are those of its state_dict, tied weights under each, buffers but for the fleeting one."""
    network = Net()
    path = saved(tmp_path / "runs", network)
    answer = ask(tmp_path / "runs", "-o", tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    line = f"11 tensors of {path} in {tmp_path / 'model.safetensors'}, {size:,} bytes\n"
    assert answer == (0, line, "")
    found = load_file(tmp_path / "model.safetensors")
    equal(found, network.state_dict())
    fresh = Net()
    fresh.load_state_dict(found, strict=True)
    equal(fresh.state_dict(), network.state_dict())
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.safetensors", "runs"]


@pytest.mark.parametrize("kept", ["run_of_format_1", "run_of_format_2", "ranks_of_format_2"])
def test_kept_checkpoints_are_written_as_load_weights_reads_them(ask: Ask, tmp_path: Path, kept: str):
    """Of format 1, of one rank and of two."""
    assert ask(KEPT / kept, "-o", tmp_path / "model.safetensors").code == 0
    found = load_file(tmp_path / "model.safetensors")
    if kept == "ranks_of_format_2":
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2)).double()
        load_weights(KEPT / kept, network)
        equal(found, network.state_dict())
    (path,) = (KEPT / kept).glob("checkpoint-*")
    equal(found, Store(path.parent).load(path, ["network"]).sections["network"]["tensors"])


def test_tensors_of_several_pieces_are_joined(ask: Ask, tmp_path: Path):
    """As the ranks of a sharded run write them: rewritten by hand from a whole checkpoint."""
    weight = torch.arange(20.0).reshape(5, 4)
    path = saved(tmp_path / "runs", nn.Linear(4, 5, bias=False))
    sharded(path, {"weight": [weight[:3], weight[3:]]})
    assert ask(tmp_path / "runs", "-o", tmp_path / "model.safetensors").code == 0
    equal(load_file(tmp_path / "model.safetensors"), {"weight": weight})


def sharded(path: Path, parts: dict[str, list[torch.Tensor]]) -> None:
    """Rewrite the network of a checkpoint so that each tensor lies in two files."""
    manifest = read_manifest((path / "manifest.json").read_bytes())
    files = dict(manifest.files)
    lines: dict[str, str] = {}
    for name, (first, second) in parts.items():
        rows, columns = len(first), first.shape[1]
        end = rows + len(second)
        lines[name] = (
            f"F32[{end},{columns}] network-00000[0:{rows},0:{columns}] network-00001[{rows}:{end},0:{columns}]"
        )
    for number in range(2):
        content = save({name: pieces[number].contiguous() for name, pieces in parts.items()})
        file = f"network-{number:05d}.safetensors"
        (path / file).write_bytes(content)
        files[file] = FileFacts(size=len(content), sha256=sha256(content).hexdigest())
    content = write_manifest(manifest.world, manifest.summary, files, {**manifest.tensors, "network": lines})
    (path / "manifest.json").write_bytes(content)


def test_newest_best_and_average(ask: Ask, tmp_path: Path):
    """The average is written in the dtypes of the weights."""
    networks = [Net(), Net()]
    for network, value in zip(networks, (1.0, 2.0), strict=True):
        saved(tmp_path / "runs", network, value)

    def written(*more: str) -> dict[str, torch.Tensor]:
        answer = ask(tmp_path / "runs", "--overwrite", *more, "-o", tmp_path / "model.safetensors")
        assert (answer.code, answer.err) == (0, "")
        return load_file(tmp_path / "model.safetensors")

    def average(network: nn.Module) -> dict[str, torch.Tensor]:
        return {name: (tensor.float() + 1).to(tensor.dtype) for name, tensor in network.state_dict().items()}

    equal(written(), networks[1].state_dict())
    equal(written("--which", "best"), networks[0].state_dict())
    equal(written("--which", "ema"), average(networks[1]))
    equal(written("--which", "best", "--average"), average(networks[0]))


def test_one_checkpoint_is_named(ask: Ask, tmp_path: Path):
    networks = [Net(), Net()]
    first, _ = (saved(tmp_path / "runs", network) for network in networks)
    assert ask(first, "-o", tmp_path / "model.safetensors").code == 0
    equal(load_file(tmp_path / "model.safetensors"), networks[0].state_dict())


def test_json_is_printed_in_place_of_text(ask: Ask, tmp_path: Path):
    path = saved(tmp_path / "runs", Net())
    answer = ask(tmp_path / "runs", "-o", tmp_path / "deep" / "er" / "model.safetensors", "--json")
    file = tmp_path / "deep" / "er" / "model.safetensors"
    expected = {"path": str(file), "checkpoint": str(path), "tensors": 11, "bytes": file.stat().st_size}
    assert json.loads(answer.out) == expected


def test_what_torch_compile_adds_to_names_is_left_out(ask: Ask, tmp_path: Path):
    wrapped = nn.Sequential()
    wrapped.add_module("_orig_mod", nn.Linear(2, 3))
    saved(tmp_path / "runs", wrapped)
    assert ask(tmp_path / "runs", "-o", tmp_path / "model.safetensors").code == 0
    equal(load_file(tmp_path / "model.safetensors"), wrapped[0].state_dict())


def test_extra_state_that_is_no_tensor_is_named_and_left_out(ask: Ask, tmp_path: Path):
    extra = {"": torch.tensor([1, 2]), "first": {"count": 3}}
    saved(tmp_path / "runs", nn.Linear(2, 3), extra=extra)
    answer = ask(tmp_path / "runs", "-o", tmp_path / "model.safetensors")
    assert answer.err == "heptad: left out, since only tensors can be written: first._extra_state (dict)\n"
    assert load_file(tmp_path / "model.safetensors").keys() == {"weight", "bias", "_extra_state"}


def test_a_damaged_one_is_passed_over_and_named(ask: Ask, tmp_path: Path):
    networks = [Net(), Net()]
    _, last = (saved(tmp_path / "runs", network) for network in networks)
    (last / "state.json").write_bytes(b"{}")
    answer = ask(tmp_path / "runs", "-o", tmp_path / "model.safetensors")
    assert answer.code == 0
    assert answer.err.startswith(f"heptad: passed over: {last / 'state.json'} holds 2 bytes")
    equal(load_file(tmp_path / "model.safetensors"), networks[0].state_dict())


def test_bad_input_is_an_error_in_a_line_and_writes_nothing(ask: Ask, tmp_path: Path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    path = saved(runs, Net())
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"mine")
    (tmp_path / "folder.safetensors").mkdir()
    damaged = saved(tmp_path / "damaged", Net())
    (damaged / "manifest.json").write_bytes(b"{}")
    Store(tmp_path / "other").save(Snapshot({}, {"own": {"a": 1}}))
    good = out / "model.safetensors"
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "lost", "-o", good), "lost is not a directory"),
        ((tmp_path / "empty", "-o", good), "empty holds no checkpoint"),
        ((tmp_path / "file.safetensors", "-o", good), "is a file; heptad weights takes a directory of checkpoints"),
        ((path / "state.json", "-o", good), f"is a file of a checkpoint; name the checkpoint: {path}"),
        ((damaged, "-o", good), "manifest.json says that its digest is None"),
        ((tmp_path / "other", "-o", good), "holds no weights of a network"),
        ((runs, "-o", good, "--which", "best"), "no checkpoint in"),
        ((runs, "-o", out / "model.bin"), "a file whose name ends in .safetensors; got"),
        ((runs, "-o", "-"), "a file whose name ends in .safetensors; got '-'"),
        ((runs, "-o", ""), "a file whose name ends in .safetensors; got ''"),
        ((runs, "-o", tmp_path / "file.safetensors"), "is there already; name another file, or say --overwrite"),
        ((runs, "-o", tmp_path / "folder.safetensors", "--overwrite"), "is there and is not a file"),
        ((runs, "-o", path / "network-00000.safetensors", "--overwrite"), "lies in a checkpoint"),
        ((runs, "-o", path / "state.json" / "model.safetensors"), "state.json failed: EEXIST"),
        ((runs, "-o", tmp_path / f"{'n' * 300}.safetensors"), "failed: ENAMETOOLONG"),
    ]
    for argv, text in cases:
        answer = ask(*argv)
        assert (answer.code, answer.out) == (2, ""), argv
        assert answer.err.startswith("heptad: "), argv
        assert text in answer.err, (argv, answer.err)
        assert answer.err.count("\n") == 1, answer.err
    assert not out.exists()
    assert (tmp_path / "file.safetensors").read_bytes() == b"mine"


def test_a_place_that_cannot_be_written_to_is_named(ask: Ask, tmp_path: Path):
    saved(tmp_path / "runs", Net())
    answer = ask(tmp_path / "runs", "-o", "/proc/model.safetensors")
    assert answer.code == 2
    assert answer.err.startswith("heptad: writing /proc/.heptad-")


def test_an_unknown_argument_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for argv in (["weights", str(tmp_path)], ["weights", str(tmp_path), "-o", "a.safetensors", "--which", "worst"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_of_a_link_the_file_that_it_points_to_is_replaced(ask: Ask, tmp_path: Path):
    saved(tmp_path / "runs", Net())
    (tmp_path / "real.safetensors").write_bytes(b"old")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real.safetensors")
    assert ask(tmp_path / "runs", "-o", tmp_path / "link.safetensors").code == 2
    assert ask(tmp_path / "runs", "-o", tmp_path / "link.safetensors", "--overwrite").code == 0
    assert (tmp_path / "link.safetensors").is_symlink()
    assert len(load_file(tmp_path / "real.safetensors")) == 11


def test_where_an_operation_fails_the_old_file_stays(tmp_path: Path):
    """Each operation once: the file is the old one or the whole new one, and nothing lies beside it."""
    network = Net()
    saved(tmp_path / "runs", network)
    target = tmp_path / "model.safetensors"
    counted = CountedFiles()
    write_weights(tmp_path / "runs", target, files=counted)
    names = [name for name, *_ in counted.calls]
    assert names == ["create", "write", "sync", "close", "rename", "sync_directory"]
    for place, name in enumerate(names, 1):
        target.write_bytes(b"old")
        with pytest.raises(CheckpointError, match="failed: ENOSPC") as caught:
            write_weights(tmp_path / "runs", target, overwrite=True, files=CountedFiles(place, refusing(errno.ENOSPC)))
        assert isinstance(caught.value.__cause__, OSError)
        if name == "sync_directory":
            equal(load_file(target), network.state_dict())
        else:
            assert target.read_bytes() == b"old"
        assert sorted(one.name for one in tmp_path.iterdir()) == ["model.safetensors", "runs"]


def test_transformers_loads_the_file(ask: Ask, tmp_path: Path):
    """`from_pretrained`, with weights that are tied."""
    transformers = pytest.importorskip("transformers")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11, "n_positions": 6}
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    Store(tmp_path / "runs").save(Snapshot({}, {"network": {"tensors": tensors}}))
    network.config.save_pretrained(tmp_path / "model")
    assert ask(tmp_path / "runs", "-o", tmp_path / "model" / "model.safetensors").code == 0
    loaded, found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(found.values())
    equal(loaded.state_dict(), network.state_dict())
