"""On an accelerator: placement, random generators, and data that are kept there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from builders import equal, weights
from heptad import Components, Engine, RunConfig
from heptad_plugins import Checkpoint


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4))


def data(samples: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(samples, 16, generator=generator)
    return TensorDataset(rows, torch.randint(0, 4, (samples,), generator=generator))


def engine(plugins: Any = (), dropout: float = 0.0, **config: Any) -> Engine:
    model = network(dropout)
    parts = Components(
        network=model,
        dataset=data(),
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    )
    return Engine(parts, RunConfig(**{"epochs": 2, "batch_size": 8, **config}), plugins=plugins)


@pytest.mark.gpu("network and batches are placed, and a run has the bits of a plain loop there", covers=("training",))
@pytest.mark.parametrize("k", [1, 4])
def test_a_run_has_the_bits_of_a_plain_loop(device: torch.device, k: int):
    seen: list[torch.Tensor] = []
    one = engine(accumulation=k)

    @one.on_exit("before_step")
    def keep(run: Any) -> None:
        seen.append([part.clone() for part in run.batch])

    run = one.run()
    assert {part.device.type for batch in seen for part in batch} == {device.type}
    assert {parameter.device.type for parameter in run.network.parameters()} == {device.type}
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for number, (rows, target) in enumerate(seen):
        if number % k == 0:
            optimizer.zero_grad()
        (nn.functional.cross_entropy(model(rows), target) / k).backward()
        if number % k == k - 1:
            optimizer.step()
    assert equal(weights(run.network), weights(model))


@pytest.mark.gpu("the generator of the device is captured and restored", covers=("training",))
@pytest.mark.parametrize("step", [3, 8, 11])
def test_dropout_continues_where_it_was(device: torch.device, step: int, tmp_path: Path):
    straight = engine(dropout=0.5).run()
    first = engine([Checkpoint(tmp_path, at="after_step")], dropout=0.5)
    first.run(until=lambda run: run.step == step)
    first.close()
    torch.rand(7, device=device)  # what the process did in between
    second = engine([Checkpoint(tmp_path, at="after_step")], dropout=0.5).run(resume=tmp_path)
    assert equal(weights(second.network), weights(straight.network))


@pytest.mark.gpu("a dataset is kept on the device and gathered there", covers=("data_on_device",))
def test_data_on_the_device_have_the_same_bits(device: torch.device):
    run = engine(data_on_device=True).run()
    assert equal(weights(run.network), weights(engine().run().network))
    assert device.type == run.device.type


@pytest.mark.gpu("a device is chosen by its number", covers=("training",))
def test_the_second_device_is_taken_by_its_number(device: torch.device):
    if torch.accelerator.device_count() < 2:
        pytest.skip("there is one device")
    run = engine(device=f"{device.type}:1").run()
    assert {parameter.device.index for parameter in run.network.parameters()} == {1}
