"""`load_weights` with arguments that are none of its own, and with networks that `torch.compile` made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from heptad import CheckpointError, load_weights
from heptad.checkpoints.store import Store
from heptad.run.snapshot import Snapshot
from heptad_plugins import RunFolder


def saved(directory: Path, network: nn.Module) -> Path:
    """Write a checkpoint of a network."""
    tensors = dict((*network.named_parameters(), *network.named_buffers()))
    section = {"tensors": {name: tensor.detach() for name, tensor in tensors.items()}}
    return Store(directory).save(Snapshot({}, {"network": section, "plugins": {}})).path


def file(folder: Path) -> Path:
    """Return the file that torch.save wrote."""
    torch.save(nn.Linear(2, 2).state_dict(), folder / "x.pt")
    return folder / "x.pt"


WRONG: dict[str, tuple[Callable[[Path, nn.Module], tuple[Any, Any]], str]] = {
    "the other way round": (lambda folder, network: (network, folder), "takes the directory first, then the network"),
    "no directory": (lambda folder, network: (None, network), "directory of checkpoints as a str or a Path, got None"),
    "a run folder": (lambda folder, network: (RunFolder(folder), network), "got RunFolder; pass its path"),
    "weights": (lambda folder, network: (folder, network.state_dict()), "the network itself and not its state_dict"),
    "a class": (lambda folder, network: (folder, nn.Linear), "takes a network, got the class Linear; make one of it"),
    "a function": (lambda folder, network: (folder, lambda: network), "takes a network, an nn.Module, got function"),
    "a file": (lambda folder, network: (file(folder), network), r"x\.pt is a file; .*load_state_dict\(torch\.load"),
    "a part": (
        lambda folder, network: (saved(folder, network) / "network-00000.safetensors", network),
        "safetensors is a file of a checkpoint; name the checkpoint: .*checkpoint-00000001$",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_arguments_that_are_wrong_are_distinguished(how: str, tmp_path: Path):
    """The message says what was given, and what to give."""
    arguments, message = WRONG[how]
    with pytest.raises(CheckpointError, match=message):
        load_weights(*arguments(tmp_path, nn.Linear(2, 2)))


def plain() -> nn.Sequential:
    """A network with parameters and buffers."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def whole() -> nn.Module:
    """One that was compiled."""
    network: Any = torch.compile(plain(), backend="eager")
    return network


def in_part() -> nn.Module:
    """One of which a part was compiled."""
    network = plain()
    network[1] = torch.compile(network[1], backend="eager")
    return network


@pytest.mark.parametrize("trained", [plain, whole, in_part])
@pytest.mark.parametrize("used", [plain, whole, in_part])
def test_a_compiled_network_has_the_weights_of_the_plain_one(trained: Any, used: Any, tmp_path: Path):
    """What `torch.compile` puts before the names of tensors is no part of them, on neither side."""
    network, other = trained(), used()
    saved(tmp_path, network)
    load_weights(tmp_path, other)
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True))


def test_a_compiled_network_of_another_shape_is_refused(tmp_path: Path):
    """The names in the message are those of the network that was compiled."""
    saved(tmp_path, whole())
    with pytest.raises(CheckpointError, match=r"\n  0\.weight is float32 \(3, 2\) in the checkpoint"):
        load_weights(tmp_path, torch.compile(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), backend="eager"))
