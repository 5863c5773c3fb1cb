"""Mixed precision and host waits on an accelerator: `make test-gpu`. What needs none is tested beside this."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import AdamW

from builders import batches, equal, small_components, weights
from heptad import Components, Engine, Plugin, Run, RunConfig
from heptad_plugins import EMA, GradientClipping

DTYPES = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}


def perceptron() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 16))


def data(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    rows = [(torch.randn(32, 64, generator=generator), torch.arange(32) % 16) for _ in range(count)]
    rows[1][1].fill_(-100)
    rows[2][1][:7] = -100
    return rows


def parts(loud: float = 1.0) -> Components:
    def loss_of(network: nn.Module, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(network(batch[0]), batch[1]) * loud

    given: dict[str, Any] = {"criterion": ..., "compute_loss": loss_of} if loud != 1.0 else {}
    return small_components(perceptron(), loader=data(24), optimizer=lambda n: AdamW(n.parameters(), lr=1e-3), **given)


class Watches(Plugin):
    """Tells torch what to do where the device is waited for, once the run has warmed up."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def on_exit_optimizer_update(self, run: Run) -> None:
        torch.cuda.set_sync_debug_mode(self.mode if 3 <= run.windows < 6 else "default")

    def close(self, run: Run) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu("no step in fp32 or bf16 waits for the device")
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_no_step_waits_for_the_device(precision, k):
    plugins = [GradientClipping(max_norm=1.0), EMA(decay=0.9), Watches("error")]
    config = RunConfig(epochs=1, accumulation=k, device="cuda", precision=precision)
    assert Engine(parts(), config, plugins).run().windows == 24 // k


@pytest.mark.gpu("fp16 waits for the device once an update")
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("k", [1, 4])
def test_fp16_waits_once_a_window(k):
    config = RunConfig(epochs=1, accumulation=k, device="cuda", precision="fp16-mixed")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Engine(parts(), config, [Watches("warn")]).run()
    assert sum("synchronizing" in str(one.message) for one in told) == 3


@pytest.mark.gpu(
    "mixed precision has the bits of the loop by hand, overflows included", covers=("bf16-mixed", "fp16-mixed")
)
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("precision", DTYPES)
def test_a_run_is_the_loop_by_hand(precision, k):
    """Gradients that overflow in earnest included."""
    rows, loud = [row for row in data(24) if (row[1] >= 0).all()][: 5 * k], 200.0 * k
    torch.manual_seed(3)
    network = perceptron().cuda()
    optimizer = AdamW(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16-mixed")
    torch.manual_seed(3)
    for start in range(0, len(rows), k):
        for inputs, target in rows[start : start + k]:
            with torch.autocast("cuda", DTYPES[precision]):
                loss = functional.cross_entropy(network(inputs.cuda()), target.cuda()) * loud / k
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    own = parts(loud).model_copy(update={"loader": rows})
    run = Engine(own, RunConfig(epochs=1, accumulation=k, device="cuda", precision=precision, seed=3)).run()
    assert equal(weights(run.network), weights(network))
    assert (run.update < run.windows) is (precision == "fp16-mixed")


@pytest.mark.gpu("the scale of fp16 lies on the device of the network")
@pytest.mark.usefixtures("cuda")
def test_the_network_is_where_the_scale_is():
    run = Engine(small_components(loader=batches(4)), RunConfig(epochs=1, device="cuda", precision="fp16-mixed")).run()
    assert run._position.window.scale is not None
    assert run._position.window.scale.device == next(run.network.parameters()).device
