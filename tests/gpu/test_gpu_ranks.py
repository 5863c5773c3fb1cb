"""On CUDA: a process that torchrun has started, with NCCL. More than one device has not been at hand."""

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
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset
from heptad import Components, Engine, RunConfig


def train(strategy):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    rows = torch.randn(60, 16, generator=torch.Generator().manual_seed(1))
    parts = Components(
        network=network,
        dataset=TensorDataset(rows, rows[:, :4].argmax(1)),
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    )
    config = RunConfig(epochs=2, batch_size=8, accumulation=2, remainder="flush", drop_last=False, strategy=strategy)
    run = Engine(parts, config).run()
    return run, torch.cat([parameter.detach().cpu().reshape(-1) for parameter in network.parameters()])


run, there = train("auto")
_, alone = train("none")
print(json.dumps([run.device.type, run.world, dist.get_backend(), float((there - alone).abs().max())]))
"""


@pytest.mark.gpu("one process under torchrun trains as a process alone does", covers=("ddp",))
def test_one_process_under_torchrun_trains_as_one_alone(cuda: torch.device, tmp_path: Path):
    device, world, backend, difference = train_under_torchrun(tmp_path)
    assert (device, world) == (cuda.type, 1)
    assert "nccl" in backend
    assert difference < 1e-6


def train_under_torchrun(folder: Path) -> list[Any]:
    """Return the device, the number of ranks, the backend, and how far the weights are apart."""
    script = folder / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
