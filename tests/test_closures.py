"""Optimizers whose step needs a closure: equal to the plain `optimizer.step(closure)`, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from builders import CLASSES, FEATURES, batches, equal, small_components, small_network, weights
from heptad import CheckpointError, Components, ConfigError, Engine, EngineError, LossOutput, Plugin, Run, RunConfig
from heptad.checkpoints.store import Store
from heptad_plugins import Checkpoint, GradientClipping, LRSchedule, NonFiniteGuard

EVEN = batches(5, 4)
UNEVEN = [*batches(2, 3), *batches(2, 4), *batches(1, 2)]
"""Batches of unequal size, so that a window of them is corrected."""


def lbfgs(search: str | None = None) -> Callable[[nn.Module], Optimizer]:
    return lambda network: LBFGS(network.parameters(), lr=0.5, max_iter=4, history_size=3, line_search_fn=search)


def noisy_network() -> nn.Module:
    """Return a network that draws random numbers, and counts in buffers, in each forward pass."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, CLASSES))


def windows(rows: list[Any], k: int, epochs: int) -> list[list[Any]]:
    """Return the windows of a run under `remainder="flush"`."""
    return [rows[start : start + k] for _ in range(epochs) for start in range(0, len(rows), k)]


def plain(network: nn.Module, make: Any, rows: list[Any], k: int = 1, epochs: int = 2, before: Any = None) -> nn.Module:
    """Train by a plain loop whose closure takes the mean over all samples of a window, a micro-batch at a time."""
    optimizer = make(network)
    network.train()
    for window in windows(rows, k, epochs):
        ratios = [len(target) / len(window[0][1]) for _, target in window]
        factor = k / sum(ratios) if k > 1 else 1.0

        def closure(window: Any = window, ratios: Any = ratios, factor: Any = factor) -> torch.Tensor:
            optimizer.zero_grad()
            parts = []
            for (data, target), ratio in zip(window, ratios, strict=True):
                loss = nn.functional.cross_entropy(network(data), target)
                loss = loss / k if ratio == 1 else loss * (ratio / k)
                loss.backward()
                parts.append(loss.detach())
            if factor != 1:
                for parameter in network.parameters():
                    parameter.grad.mul_(factor)
            return sum(parts[1:], parts[0]) * factor

        if before is not None:
            before(closure, network)
        optimizer.step(closure)
    return network


def engine_of(network: nn.Module, make: Any, rows: list[Any], plugins: Any = (), **config: Any) -> Engine:
    parts = small_components(network, loader=rows, optimizer=make)
    return Engine(parts, RunConfig(**{"epochs": 2, "remainder": "flush", "seed": None, **config}), plugins)


@pytest.mark.parametrize("rows", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_closure_is_that_of_the_plain_loop(k, search, rows):
    """In full windows and in the last one, which is not full."""
    run = engine_of(small_network(), lbfgs(search), rows, accumulation=k).run()
    assert run.update == len(windows(rows, k, 2))
    assert equal(weights(run.network), weights(plain(small_network(), lbfgs(search), rows, k)))


def test_a_network_that_draws_and_counts_is_run_as_often_as_in_the_plain_loop():
    """The first call of a closure does not run it again."""
    run = engine_of(noisy_network(), lbfgs(), EVEN, accumulation=2).run()
    drawn = torch.rand(3)
    assert equal(weights(run.network), weights(plain(noisy_network(), lbfgs(), EVEN, 2)))
    assert torch.equal(drawn, torch.rand(3))


def test_a_window_is_one_large_batch():
    """To rounding, where the steps hold unequal numbers of samples."""
    rows = [(data.double(), target) for data, target in UNEVEN]
    whole = [tuple(map(torch.cat, zip(*rows, strict=True)))]
    split = engine_of(small_network(torch.float64), lbfgs(), rows, accumulation=5, epochs=3).run()
    large = engine_of(small_network(torch.float64), lbfgs(), whole, epochs=3).run()
    for one, other in zip(weights(split.network), weights(large.network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_weights_may_be_given(tensor):
    """By `compute_loss`: the same as those that the criterion gives."""

    def loss_of(network: nn.Module, batch: Any) -> LossOutput:
        data, target = batch
        weight = torch.tensor(len(target)) if tensor else len(target)
        loss = nn.functional.cross_entropy(network(data), target)
        return LossOutput(loss, weight=weight, logs={"seen": loss.detach()})

    parts = Components(network=small_network(), loader=UNEVEN, compute_loss=loss_of, optimizer=lbfgs())
    run = Engine(parts, RunConfig(epochs=2, accumulation=2, remainder="flush")).run()
    for one, other in zip(weights(run.network), weights(plain(small_network(), lbfgs(), UNEVEN, 2)), strict=True):
        torch.testing.assert_close(one, other)
    assert len(run.history("seen")) == run.step, "values are recorded once a step"


def test_loss_and_counters_are_those_of_the_steps():
    """Whatever the closure computes."""
    losses: list[torch.Tensor] = []

    class Looks(Plugin):
        def on_exit_process_batch(self, run: Run) -> None:
            losses.append(run.loss)

        def on_exit_optimizer_update(self, run: Run) -> None:
            assert run.loss is not None
            assert torch.equal(run.loss, losses[-1])
            assert run.batch is None
            assert run.output is None

    run = engine_of(small_network(), lbfgs(), EVEN, [Looks()], accumulation=2).run()
    assert (run.step, run.samples, run.update) == (10, 40, 6)


def test_one_with_a_schedule_is_stepped_with_a_closure_too():
    def scheduled(network: nn.Module) -> Optimizer:
        optimizer = lbfgs()(network)
        optimizer.schedule = ExponentialLR(optimizer, 0.9)
        return optimizer

    one = engine_of(small_network(), scheduled, EVEN).run()
    assert equal(weights(one.network), weights(plain(small_network(), lbfgs(), EVEN)))
    schedule = LRSchedule(lambda optimizer: ExponentialLR(optimizer, 0.5))
    run = engine_of(small_network(), lbfgs(), EVEN, [schedule]).run()
    assert run.history("lr") == [0.5 * 0.5**number for number in range(10)]


@pytest.mark.parametrize("first", [True, False])
def test_of_several_each_finds_what_the_one_before_left(first):
    """The second one's closure computes the window again in its first call: the weights are others by then."""

    def makes(network: nn.Module) -> list[Optimizer]:
        made = [LBFGS([network.weight], lr=0.5, max_iter=3), SGD([network.bias], lr=0.1)]
        return made if first else made[::-1]

    network, other = small_network(), small_network()
    run = engine_of(network, makes(network), EVEN).run()
    optimizers = makes(other)
    for data, target in EVEN * 2:

        def closure(data: Any = data, target: Any = target) -> torch.Tensor:
            other.zero_grad()
            loss = nn.functional.cross_entropy(other(data), target)
            loss.backward()
            return loss

        if not first:
            closure()
        for optimizer in optimizers:
            optimizer.step(*([closure] if isinstance(optimizer, LBFGS) else []))
    assert equal(weights(run.network), weights(other))


def test_a_skipped_update_computes_nothing():
    calls: list[int] = []

    class Skips(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            if run.step == 2:
                run.skip_update("test")
                assert run.update_skipped
            else:
                assert not run.update_skipped

    network = small_network()
    network.register_forward_hook(lambda *_: calls.append(1))
    run = engine_of(network, lambda net: LBFGS(net.parameters(), max_iter=1), EVEN, [Skips(), NonFiniteGuard()]).run()
    assert (run.step, run.update, len(calls)) == (10, 9, 10)


# -- checkpoints


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("step", range(1, 10, 2))
def test_resuming_is_exact(step, k, tmp_path):
    """From every step, in mid-window too: the batches of the window are in the checkpoint."""

    def engine() -> Engine:
        checkpoint = Checkpoint(tmp_path, at=("after_step", "optimizer_update"))
        return engine_of(noisy_network(), lbfgs("strong_wolfe"), UNEVEN, [checkpoint], accumulation=k)

    engine().run(until=lambda run: run.step == step and run.state != "after_step")
    resumed = engine().run(resume="auto")
    straight = engine_of(noisy_network(), lbfgs("strong_wolfe"), UNEVEN, accumulation=k).run()
    assert equal(weights(resumed.network), weights(straight.network))


def test_between_two_windows_a_checkpoint_holds_no_batch(tmp_path):
    engine = engine_of(small_network(), lbfgs(), EVEN, accumulation=2)
    run = engine.run(until=lambda run: run.step == 3 and run.state == "before_step")
    assert len(run.snapshot().sections["run"]["position"]["kept"]["batches"]) == 1
    engine.run(until=lambda run: run.update == 2 and run.state == "before_step")
    assert run.snapshot().sections["run"]["position"]["kept"] is None


class Looks(Plugin):
    """Asks for the window again."""

    keeps_window = True


def test_a_window_that_was_not_kept_is_refused(tmp_path):
    """Where a plugin that needs it came since."""

    def engine(*plugins: Plugin) -> Engine:
        checkpoint = Checkpoint(tmp_path, at=("after_step", "optimizer_update"), keep_last=9)
        return engine_of(
            small_network(), lambda net: SGD(net.parameters(), lr=0.1), EVEN, [*plugins, checkpoint], accumulation=2
        )

    engine().run(until=lambda run: run.step == 4)
    assert len(Store(tmp_path).entries()) == 4  # after the first step, the second, the update, the third
    with pytest.raises(CheckpointError, match="of a window of which 1 steps are done, and their batches were not kept"):
        engine(Looks()).run(resume=tmp_path / "checkpoint-00000004")
    assert engine(Looks()).run(resume=tmp_path / "checkpoint-00000003").state == "finished"


# -- what does not go together


@pytest.mark.parametrize("made", [True, False], ids=["optimizer", "function"])
def test_clipping_beside_a_closure_is_refused(made):
    """Only the first of its calls would be clipped."""
    network = small_network()
    optimizer = lbfgs()(network) if made else lbfgs()
    with pytest.raises(
        ConfigError, match=r"GradientClipping changes the gradients .* the step of LBFGS, which needs a"
    ):
        engine_of(network, optimizer, EVEN, [GradientClipping(max_norm=1.0)]).run()


@pytest.mark.parametrize("state", ["before_step", "after_step", "optimizer_update"])
def test_recompute_is_for_entry_to_the_update(state):
    def ask(run: Run) -> None:
        run.recompute()

    engine = engine_of(small_network(), lbfgs(), EVEN)
    engine.on_exit(state)(ask)
    with pytest.raises(EngineError, match="recompute is for on_enter_optimizer_update"):
        engine.run()


def test_recompute_needs_a_plugin_that_says_so():
    engine = engine_of(small_network(), lambda net: SGD(net.parameters(), lr=0.1), EVEN)
    engine.on_enter("optimizer_update")(lambda run: run.recompute() and None)
    with pytest.raises(EngineError, match="keeps_window = True"):
        engine.run()


def test_recompute_gives_the_gradients_and_the_loss_of_the_window():
    """At the same weights they are those that are there already."""
    seen: list[Any] = []

    class Asks(Plugin):
        keeps_window = True

        def on_enter_optimizer_update(self, run: Run) -> None:
            before = [parameter.grad.clone() for parameter in run.network.parameters()]
            loss = run.recompute()
            assert equal(before, [parameter.grad for parameter in run.network.parameters()])
            seen.append(loss)

    rows = UNEVEN[1:3]
    engine_of(
        small_network(), lambda net: SGD(net.parameters(), lr=0.1), rows, [Asks()], accumulation=2, epochs=1
    ).run()
    data, target = map(torch.cat, zip(*rows, strict=True))
    torch.testing.assert_close(seen, [nn.functional.cross_entropy(small_network()(data), target).detach()])


def test_a_run_without_closures_keeps_no_batch():
    run = engine_of(small_network(), lambda net: SGD(net.parameters(), lr=0.1), EVEN).run()
    assert run._position.kept is None
    assert run._runtime.recomputation is None


def test_a_plan_leaves_the_kept_batches_alone():
    engine = engine_of(small_network(), lbfgs(), EVEN, accumulation=3)
    engine.run(until=lambda run: run.step == 2 and run.state == "before_step")
    list(engine.plan())
    assert len(engine.current._position.kept.batches) == 2
