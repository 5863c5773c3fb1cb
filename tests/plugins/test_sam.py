"""`SAM`: the gradients at the worst weights nearby, and the weights put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Optimizer

from builders import CLASSES, FEATURES, batches, equal, small_components, small_network, weights
from heptad import ConfigError, Engine, Plugin, PluginError, Run, RunConfig
from heptad_plugins import SAM, Checkpoint, GradientClipping, NonFiniteGuard

EVEN = batches(4, 3)
UNEVEN = [*batches(2, 3), *batches(1, 4), *batches(1, 2)]


def sgd(network: nn.Module) -> Optimizer:
    return SGD(network.parameters(), lr=0.1, momentum=0.9)


def noisy_network() -> nn.Module:
    """Return a network that draws random numbers, and counts in buffers, in each forward pass."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, CLASSES))


def engine_of(network: nn.Module, plugins: Any, rows: Any = EVEN, optimizer: Any = sgd, **config: Any) -> Engine:
    parts = small_components(network, loader=rows, optimizer=optimizer)
    return Engine(parts, RunConfig(**{"epochs": 3, "remainder": "flush", "seed": None, **config}), plugins)


def backward(network: nn.Module, window: list[Any], k: int) -> None:
    """Leave the gradients of a window, weighed by samples."""
    ratios = [len(target) / len(window[0][1]) for _, target in window]
    network.zero_grad()
    for (data, target), ratio in zip(window, ratios, strict=True):
        (nn.functional.cross_entropy(network(data), target) * (ratio / k)).backward()
    factor = k / sum(ratios) if k > 1 else 1.0
    for parameter in network.parameters():
        parameter.grad *= factor


def plain(
    network: nn.Module, rows: list[Any], k: int, rho: float, adaptive: bool, clip: float | None = None
) -> nn.Module:
    """Train as the authors of the method do: climb, compute the gradients again, put the weights back, step."""
    optimizer = sgd(network)
    network.train()
    for window in [rows[start : start + k] for _ in range(3) for start in range(0, len(rows), k)]:
        backward(network, window, k)
        old = weights_of(network)
        with torch.no_grad():
            norms = [((p.abs() if adaptive else 1.0) * p.grad).norm(p=2) for p in network.parameters()]
            scale = rho / (torch.stack(norms).norm(p=2) + 1e-12)
            for p in network.parameters():
                p.add_((torch.pow(p, 2) if adaptive else 1.0) * p.grad * scale)
        backward(network, window, k)
        with torch.no_grad():
            for p, weight in zip(network.parameters(), old, strict=True):
                p.copy_(weight)
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    return network


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.parametrize("rows", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("rho", "adaptive"), [(0.05, False), (0.5, True)])
def test_it_is_the_plain_loop_of_the_method(rho, adaptive, k, rows):
    """Over whole windows, corrected for the weights of their steps, the last one not full."""
    run = engine_of(small_network(), [SAM(rho, adaptive)], rows, accumulation=k).run()
    assert equal(weights(run.network), weights(plain(small_network(), rows, k, rho, adaptive)))
    assert not equal(weights(run.network), weights(engine_of(small_network(), [], rows, accumulation=k).run().network))


def test_dropout_draws_again_and_a_batch_norm_counts_both_passes():
    run = engine_of(noisy_network(), [SAM()], accumulation=2).run()
    assert equal(weights(run.network), weights(plain(noisy_network(), EVEN, 2, 0.05, False)))


@pytest.mark.parametrize("order", [1, -1])
def test_clipping_bounds_the_gradients_that_are_applied(order):
    run = engine_of(small_network(), [SAM(), GradientClipping(max_norm=0.3)][::order]).run()
    assert equal(weights(run.network), weights(plain(small_network(), EVEN, 1, 0.05, False, clip=0.3)))


def test_the_weights_come_back_bit_for_bit():
    network = small_network()
    before = weights(network)
    run = engine_of(network, [SAM(3.0)], optimizer=lambda net: SGD(net.parameters(), lr=0.0)).run()
    assert equal(weights(run.network), before)


class Fails(nn.Module):
    """Raises in one of its calls."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.layer, self.call, self.calls = small_network(), call, 0

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.call:
            raise ValueError("planned")
        return self.layer(data)


def test_the_weights_come_back_where_the_network_fails():
    network = Fails(2)
    before = weights(network)
    with pytest.raises(ValueError, match="planned"):
        engine_of(network, [SAM()]).run()
    assert equal(weights(network), before)


@pytest.mark.parametrize("step", range(1, 12))
def test_resuming_is_exact(step, tmp_path):
    """From every step, in mid-window too: the batches of the window are in the checkpoint."""

    def engine() -> Engine:
        plugins = [SAM(), Checkpoint(tmp_path, at=("after_step", "optimizer_update"))]
        return engine_of(noisy_network(), plugins, UNEVEN, accumulation=3)

    engine().run(until=lambda run: run.step == step and run.state != "after_step")
    straight = engine_of(noisy_network(), [SAM()], UNEVEN, accumulation=3).run()
    assert equal(weights(engine().run(resume="auto").network), weights(straight.network))


class Poisons(Plugin):
    """Puts a NaN into the data of one step."""

    def on_enter_process_batch(self, run: Run) -> None:
        if run.step == 2:
            data, target = run.batch
            run.batch = data * float("nan"), target


@pytest.mark.parametrize("order", [1, -1])
def test_a_gradient_that_is_not_finite_is_skipped_by_the_guard(order):
    run = engine_of(small_network(), [Poisons(), *[SAM(), NonFiniteGuard("skip")][::order]]).run()
    assert (run.step, run.update) == (12, 11)
    assert all(weight.isfinite().all() for weight in weights(run.network))


def test_a_skipped_update_computes_nothing():
    calls: list[int] = []

    class Skips(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            run.skip_update("test")

    network = small_network()
    network.register_forward_hook(lambda *_: calls.append(1))
    engine_of(network, [Skips(), SAM()]).run()
    assert len(calls) == 12


def test_an_optimizer_with_a_closure_is_refused():
    with pytest.raises(ConfigError, match="SAM changes the gradients"):
        engine_of(small_network(), [SAM()], optimizer=lambda net: LBFGS(net.parameters())).run()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rho": -0.1}, "rho=…"),
        ({"rho": "a"}, "rho=…"),
        ({"rho": float("nan")}, "rho"),
        ({"adaptive": 1}, "adaptive=…"),
    ],
)
def test_options_are_checked(options, says):
    with pytest.raises(PluginError, match=says):
        SAM(**options)


@pytest.mark.parametrize("again", ["SAM", "L-BFGS"])
def test_gradients_of_a_side_optimizer_are_left_to_its_plugin(again):
    """They were put there before the window is computed again."""

    class Tempers(Plugin):
        def on_exit_process_batch(self, run):
            nn.functional.cross_entropy(run.output / heat, run.batch[1]).backward()

        def on_exit_optimizer_update(self, run):
            slopes.append(heat.grad.item())
            run.side_optimizers["heat"].step()

    network, heat, slopes = small_network(), nn.Parameter(torch.ones(())), []
    main = torch.optim.LBFGS(network.parameters(), max_iter=2) if again == "L-BFGS" else None
    parts = small_components(
        network,
        loader=batches(4),
        optimizer=main or torch.optim.SGD(network.parameters(), lr=0.1),
        side_optimizers={"heat": torch.optim.SGD([heat], lr=0.1)},
    )
    Engine(parts, RunConfig(epochs=1, accumulation=2), [Tempers(), *([] if main else [SAM()])]).run()
    assert len(slopes) == 2
    assert heat.item() == pytest.approx(1 - 0.1 * sum(slopes))
    assert heat.item() != 1.0
