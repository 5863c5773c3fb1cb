"""`load_weights`: the right checkpoint, all of its weights or none, into the tensors that the network has."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from heptad import CheckpointError, load_weights
from heptad.checkpoints.store import Store
from heptad.run.snapshot import Snapshot


class Net(nn.Module):
    """Parameters, buffers of both kinds, and tied weights."""

    def __init__(self, width: int = 3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(2, width, dtype=dtype)
        self.second = nn.Linear(2, width, dtype=dtype)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def held(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and all buffers, as a checkpoint holds them: tied ones under each name."""
    named = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in named}


def filled(value: float, network: nn.Module | None = None) -> nn.Module:
    """Return a network of which every element is this number."""
    network = network or Net()
    with torch.no_grad():
        for tensor in held(network).values():
            tensor.fill_(value)
    return network


def values(network: nn.Module) -> set[float]:
    """Return all different elements of a network."""
    return {element for tensor in held(network).values() for element in tensor.flatten().tolist()}


def saved(directory: Path, value: float, monitor: Any = None, plugins: Any = None, **section: Any) -> Path:
    """Write a checkpoint of a network of which every element is this number."""
    network = {"tensors": held(filled(value)), **section}
    summary = {} if monitor is None else {"monitor": monitor}
    return Store(directory).save(Snapshot(summary, {"network": network, "plugins": plugins or {}})).path


def watched(value: float, mode: str = "min") -> dict[str, Any]:
    """Return a monitored value as a summary holds it."""
    return {"name": "loss", "mode": mode, "value": value}


def test_the_newest_is_loaded(tmp_path: Path):
    """Parameters, buffers and those that are not persistent; its path is returned."""
    saved(tmp_path, 1)
    path = saved(tmp_path, 2)
    network = filled(0)
    assert load_weights(tmp_path, network) == path
    assert values(network) == {2}


def test_one_checkpoint_is_loaded(tmp_path: Path):
    """By its path, as a str too, under another name too."""
    path = saved(tmp_path, 1)
    saved(tmp_path, 2)
    network = filled(0)
    assert load_weights(str(path), network, "best") == path
    assert values(network) == {1}
    kept = path.rename(tmp_path / "kept")
    filled(0, network)
    assert load_weights(kept, network) == kept
    assert values(network) == {1}


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_best_is_loaded(tmp_path: Path, mode: str, best: int):
    """By the monitored value, in its direction."""
    for number, value in enumerate((0.5, 0.1, 0.9, 0.4), 1):
        saved(tmp_path, number, watched(value, mode))
    network = filled(0)
    assert load_weights(tmp_path, network, which="best").name == f"checkpoint-0000000{best}"
    assert values(network) == {best}


def test_without_a_monitored_value_none_is_the_best(tmp_path: Path):
    """The error says how to have one."""
    saved(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"none is the best; train with Checkpoint\(monitor=…\), or take the newest"
    ):
        load_weights(tmp_path, Net(), which="best")


def test_the_average_is_loaded(tmp_path: Path):
    """What the plugin EMA kept, in place of the weights that were trained."""
    path = saved(tmp_path, 1, plugins={"EMA": {"class": "EMA", "state": {"tensors": held(filled(7)), "n_averaged": 3}}})
    network = filled(0)
    assert load_weights(tmp_path, network, which="ema") == path
    assert values(network) == {7}


@pytest.mark.parametrize(
    ("plugins", "text"),
    [
        ({}, r"no plugin named EMA or SWA \(its plugins: none\)"),
        ({"Progress": {}, "Clip": {"state": {}}}, r"no plugin named EMA or SWA \(its plugins: Clip, Progress\)"),
        ({"EMA": {"state": {}}}, "written before EMA had one"),
        ({"EMA": {"state": None}}, "written before EMA had one"),
    ],
)
def test_without_an_average_the_error_says_what_there_is(tmp_path: Path, plugins: Any, text: str):
    """And the network stays as it was."""
    saved(tmp_path, 1, plugins=plugins)
    network = filled(5)
    with pytest.raises(CheckpointError, match=text):
        load_weights(tmp_path, network, which="ema")
    assert values(network) == {5}


def test_which_is_one_of_three(tmp_path: Path):
    """A misspelt one is refused, not taken for the default."""
    with pytest.raises(CheckpointError, match="one of 'newest', 'best', 'ema', got 'last'"):
        load_weights(tmp_path, Net(), which="last")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("which", ["newest", "best"])
@pytest.mark.parametrize("file", ["network-00000.safetensors", "manifest.json"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path, which: Any, file: str):
    """It names the file, and the checkpoint that was taken; the line is the caller's."""
    first = saved(tmp_path, 1, watched(0.5))
    second = saved(tmp_path, 2, watched(0.1))
    (second / file).write_bytes(b"")
    network = filled(0)
    with pytest.warns(UserWarning, match=f"{first} is loaded, because .* damaged: {second / file}") as caught:
        assert load_weights(tmp_path, network, which=which) == first
    assert caught[0].filename == __file__
    assert values(network) == {1}


def test_without_a_sound_one_nothing_is_loaded(tmp_path: Path):
    """Neither from a directory nor from one checkpoint."""
    path = saved(tmp_path, 1, watched(0.1))
    (path / "manifest.json").unlink()
    network = filled(5)
    for directory, which in ((tmp_path, "newest"), (tmp_path, "best"), (path, "newest"), (tmp_path / "no", "newest")):
        with pytest.raises(CheckpointError, match=r"manifest.json is missing|no is not a directory"):
            load_weights(directory, network, which)  # pyright: ignore[reportArgumentType]
    assert values(network) == {5}


def test_a_network_that_does_not_fit_is_refused_with_all_differences(tmp_path: Path):
    """Names, shapes and dtypes, at once, and nothing is loaded: not even what fits."""
    path = saved(tmp_path, 1)

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 3)
            self.norm = nn.BatchNorm1d(3, dtype=torch.float64)
            self.head = nn.Linear(1, 1)

    network = filled(5, Other())
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path, network)
    assert str(caught.value).splitlines() == [
        f"{path} does not fit this Other, and nothing was loaded:",
        "  the checkpoint lacks head.bias, head.weight",
        "  the network lacks cache, second.bias, second.weight",
        "  first.weight is float32 (3, 2) in the checkpoint, float32 (3, 4) in the network",
        "  norm.weight is float32 (3,) in the checkpoint, float64 (3,) in the network",
        "  norm.bias is float32 (3,) in the checkpoint, float64 (3,) in the network",
        "  norm.running_mean is float32 (3,) in the checkpoint, float64 (3,) in the network",
        "  norm.running_var is float32 (3,) in the checkpoint, float64 (3,) in the network",
    ]
    assert values(network) == {5}


def test_of_many_differences_some_are_named(tmp_path: Path):
    """A message is to be read."""
    saved(tmp_path, 1)
    network = nn.ModuleList([nn.Linear(1, 1) for _ in range(15)])
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks 0.bias, .* and 10 more\n"):
        load_weights(tmp_path, network)


def test_a_buffer_that_is_not_persistent_may_be_missing_in_the_checkpoint(tmp_path: Path):
    """It keeps what the network's constructor gave it."""
    saved(tmp_path, 1)
    network = filled(0)
    network.register_buffer("table", torch.full((2,), 9.0), persistent=False)
    load_weights(tmp_path, network)
    assert values(network) == {1, 9}
    network.register_buffer("count", torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks count$"):
        load_weights(tmp_path, network)


def test_a_buffer_that_was_not_persistent_may_be_missing_in_the_network(tmp_path: Path):
    """Where the checkpoint says so of it."""
    saved(tmp_path, 1, not_persistent=["cache"])
    network = filled(0)
    del network.cache
    load_weights(tmp_path, network)
    assert values(network) == {1}


def test_tensors_stay_where_they_are(tmp_path: Path):
    """In place, so that optimizers and tied weights hold; `requires_grad`, mode and order in memory are left alone."""
    saved(tmp_path, 1)
    network: Any = filled(0).eval()
    network.first.bias.requires_grad_(False)
    before = {name: tensor.data_ptr() for name, tensor in held(network).items()}
    load_weights(tmp_path, network)
    assert {name: tensor.data_ptr() for name, tensor in held(network).items()} == before
    assert network.second.weight is network.first.weight
    assert not network.first.bias.requires_grad
    assert network.first.weight.requires_grad
    assert not network.training


@pytest.mark.parametrize("name", ["first.weight", "second.weight"])
def test_of_tied_weights_one_name_is_enough(tmp_path: Path, name: str):
    """The average that EMA keeps has each tensor once."""
    tensors = held(filled(7))
    del tensors[name]
    saved(tmp_path, 1, plugins={"EMA": {"state": {"tensors": tensors}}})
    network = filled(0)
    load_weights(tmp_path, network, which="ema")
    assert values(network) == {7}


def test_weights_that_were_not_tied_do_not_fit_tied_ones(tmp_path: Path):
    """One of the two would be lost. Equal ones fit, NaN included."""
    path = saved(tmp_path, 1)
    tensors = {**held(filled(1)), "second.weight": torch.full((3, 2), 2.0)}
    Store(tmp_path).save(Snapshot({}, {"network": {"tensors": tensors}}))
    network = filled(5)
    with pytest.raises(CheckpointError, match=r"first.weight and second.weight are one tensor in the network, and two"):
        load_weights(tmp_path, network)
    assert values(network) == {5}
    nan = {**held(filled(1)), **{f"{name}.weight": torch.full((3, 2), float("nan")) for name in ("first", "second")}}
    Store(tmp_path).save(Snapshot({}, {"network": {"tensors": nan}}))
    assert load_weights(tmp_path, network) != path
    assert network.first.weight.isnan().all()


@pytest.mark.parametrize(
    "make", [lambda: nn.LazyLinear(3), lambda: nn.Linear(2, 3, device="meta")], ids=["lazy", "meta"]
)
def test_a_network_without_memory_is_refused(tmp_path: Path, make: Any):
    """Copying to it would do nothing, or fail half way."""
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"no memory yet for weight, bias; run one batch .*to_empty"):
        load_weights(tmp_path, make())


def test_a_checkpoint_without_a_network_is_refused(tmp_path: Path):
    """It is sound, but holds something else."""
    path = Store(tmp_path).save(Snapshot({}, {"run": {}})).path
    with pytest.raises(CheckpointError, match=f"{path} holds no weights"):
        load_weights(tmp_path, Net())
