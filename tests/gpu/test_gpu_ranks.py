"""On CUDA: one process that torchrun has started, with NCCL, by either strategy. More devices were not at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from programs import environment

SCRIPT = """
import json
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset
from heptad import Components, Engine, RunConfig, load_weights
from heptad_plugins import Checkpoint


def build(strategy, folder=None, **config):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(16, 33), nn.Dropout(config.pop("dropout", 0.0)), nn.ReLU(), nn.Linear(33, 4))
    rows = torch.randn(60, 16, generator=torch.Generator().manual_seed(1))
    parts = Components(
        network=network,
        dataset=TensorDataset(rows, rows[:, :4].argmax(1)),
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    )
    given = {"epochs": 2, "batch_size": 8, "accumulation": 2, "remainder": "flush", "drop_last": False, **config}
    stores = [Checkpoint(folder, at="optimizer_update", keep_last=100)] if folder else []
    return Engine(parts, RunConfig(strategy=strategy, **given), stores)


def flat(network):
    whole = (one.full_tensor() if hasattr(one, "full_tensor") else one for one in network.parameters())
    return torch.cat([one.detach().float().cpu().reshape(-1) for one in whole])


def train(strategy, **config):
    run = build(strategy, **config).run()
    return run, flat(run.network)


strategy, folder = sys.argv[1:]
run, there = train(strategy)
_, alone = train("none")
_, mixed = train(strategy, precision="bf16-mixed")
_, mixed_alone = train("none", precision="bf16-mixed")
_, unbroken = train(strategy, folder=folder, dropout=0.3)
with build(strategy, folder + "-2", dropout=0.3) as engine:
    again = engine.run(resume=folder + "/checkpoint-00000003")
    resumed = flat(again.network)
network = build("none").current.network
load_weights(folder, network)
print(json.dumps({
    "device": run.device.type,
    "world": run.world,
    "backend": dist.get_backend(),
    "difference": float((there - alone).abs().max()),
    "difference in bf16": float((mixed - mixed_alone).abs().max()),
    "resumed": torch.equal(unbroken, resumed),
    "loaded": torch.equal(unbroken, flat(network)),
    "sharded": any(hasattr(one, "full_tensor") for one in run.network.parameters()),
}))
"""


@pytest.fixture(params=["auto", "fsdp"], scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process under torchrun finds, by a strategy."""
    return train_under_torchrun(request.param, tmp_path_factory.mktemp(request.param))


BY = {"auto": "ddp", "fsdp": "fsdp"}


def claims(claim: str, strategy: str) -> Any:
    """Return a strategy as a parameter, with the mark of its claim."""
    mark = pytest.mark.gpu(f"one process under torchrun, {BY[strategy]}: {claim}", covers=(BY[strategy],))
    return pytest.param(strategy, marks=mark)


def by_strategy(claim: str) -> Any:
    return pytest.mark.parametrize("trained", [claims(claim, one) for one in BY], indirect=True)


@by_strategy("trains as a process alone does")
def test_it_trains_as_a_process_alone_does(cuda: torch.device, trained: dict[str, Any]):
    assert (trained["device"], trained["world"]) == (cuda.type, 1)
    assert "nccl" in trained["backend"]
    assert trained["difference"] < 1e-6


@by_strategy("resumes to the bit, and a network that is whole loads what it stored")
@pytest.mark.usefixtures("cuda")
def test_it_is_resumed_to_the_bit(trained: dict[str, Any]):
    assert trained["resumed"]
    assert trained["loaded"]


@by_strategy("trains in bf16-mixed near to a process alone")
@pytest.mark.usefixtures("cuda")
def test_it_trains_in_bf16(trained: dict[str, Any]):
    assert trained["difference in bf16"] < 5e-2


def train_under_torchrun(strategy: str, folder: Path) -> dict[str, Any]:
    """Return what the script has found."""
    script = folder / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"), str(script)]
    command += [strategy, str(folder / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
