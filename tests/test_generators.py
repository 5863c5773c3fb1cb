"""Random generators of accelerators: captured, restored and preserved, by a stand-in for torch's device module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from builders import equal, small_engine, weights
from heptad.data.generators import device_preserved, global_states, restore_states
from heptad_plugins import Checkpoint


class Xpu:
    """A device module such as `torch.cuda` and `torch.xpu`: numbered devices, in use once they are initialized."""

    def __init__(self, devices: int = 2, used: bool = True) -> None:
        self.generators = [torch.Generator().manual_seed(number) for number in range(devices)]
        self.used = used

    def is_initialized(self) -> bool:
        return self.used

    def device_count(self) -> int:
        return len(self.generators)

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self.generators]

    def get_rng_state(self, device: Any) -> torch.Tensor:
        return self.generators[torch.device(device).index or 0].get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = 0) -> None:
        number = device if isinstance(device, int) else torch.device(device).index or 0
        self.generators[number].set_state(state)

    def draw(self) -> list[float]:
        return [torch.rand(1, generator=generator).item() for generator in self.generators]


class Mps:
    """A device module such as `torch.mps`: one device, without a number, of which nobody says whether it is in use."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.there = 1

    def device_count(self) -> int:
        return self.there

    def get_rng_state(self) -> torch.Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.generator.set_state(state)

    def draw(self) -> list[float]:
        return [torch.rand(1, generator=self.generator).item()]


@pytest.fixture(params=["xpu", "mps"])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the device module of an accelerator that torch is made to see."""
    module = {"xpu": Xpu, "mps": Mps}[request.param]()
    stand_in(module, request.param, monkeypatch)
    return module


def stand_in(module: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def module_of(device: Any = None) -> Any:
        if str(device) != kind:
            raise RuntimeError(f"no module for {device}")
        return module

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind))
    monkeypatch.setattr(torch, "get_device_module", module_of)


def test_the_generators_of_the_accelerator_are_captured_and_restored(accelerator: Any):
    states = global_states()
    drawn = accelerator.draw()
    assert accelerator.draw() != drawn
    restore_states(states)
    assert accelerator.draw() == drawn


def test_a_block_leaves_the_generator_of_its_device_as_it_was(accelerator: Any):
    kind = "mps" if isinstance(accelerator, Mps) else "xpu"
    before = global_states()[kind]
    with pytest.raises(KeyError), device_preserved(torch.device(kind)):
        accelerator.draw()
        raise KeyError
    assert torch.equal(global_states()[kind][0], before[0])
    with device_preserved(torch.device("cpu")), device_preserved(torch.device("meta")):
        accelerator.draw()
    assert not torch.equal(global_states()[kind][0], before[0])


@pytest.mark.parametrize("module", [Xpu(used=False), Xpu(devices=0, used=False)])
def test_a_device_that_is_not_in_use_is_left_alone(module: Xpu, monkeypatch: pytest.MonkeyPatch):
    """To read its state would open a context, which takes memory."""
    stand_in(module, "xpu", monkeypatch)
    monkeypatch.setattr(module, "get_rng_state_all", lambda: pytest.fail("it was read"), raising=False)
    assert global_states().keys() == {"torch", "python", "numpy"}


def test_an_mps_device_that_is_not_there_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    module = Mps()
    module.there = 0
    stand_in(module, "mps", monkeypatch)
    assert global_states().keys() == {"torch", "python", "numpy"}


def test_states_of_devices_that_are_not_here_are_passed_over(monkeypatch: pytest.MonkeyPatch):
    """A checkpoint of two devices is continued on one, or where torch does not know such a device."""
    two, one = Xpu(2), Xpu(1)
    stand_in(two, "xpu", monkeypatch)
    states = global_states()
    drawn = two.draw()
    stand_in(one, "xpu", monkeypatch)
    one.draw()
    restore_states(states)
    assert one.draw() == drawn[:1]
    stand_in(Mps(), "mps", monkeypatch)
    restore_states(states)


class Noisy(nn.Linear):
    """A network that draws noise from the accelerator's generator."""

    def __init__(self, module: Any) -> None:
        super().__init__(4, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.1)
        self._module = [module]

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return super().forward(data) * (1 + self._module[0].draw()[0])


def test_a_run_that_draws_on_the_accelerator_is_resumed_bit_for_bit(accelerator: Any, tmp_path: Path):
    """Dropout on such a device is drawn there."""
    state = accelerator.get_rng_state() if isinstance(accelerator, Mps) else accelerator.get_rng_state("xpu:0")

    def engine(folder: str) -> Any:
        checkpoint = Checkpoint(tmp_path / folder, at="after_step")
        return small_engine(4, [checkpoint], network=Noisy(accelerator), epochs=2, device="cpu")

    straight = engine("a").run()
    accelerator.set_rng_state(state)
    first = engine("b")
    first.run(until=lambda run: run.step == 5)
    first.close()
    accelerator.draw()  # what the process did in between
    resumed = engine("b").run(resume=tmp_path / "b")
    assert equal(weights(resumed.network), weights(straight.network))
