"""A backward pass inside `compute_loss` would be added to the engine's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from builders import batches, equal, small_components, small_network, weights
from heptad import Engine, EngineError, RunConfig
from heptad_plugins import Checkpoint

ADVICE = (
    r"compute_loss made a backward pass of its own: 'weight' and 1 more got a gradient from it.*call no backward\(\)"
)


def loss_of(network: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def engine_of(compute_loss: Any, network: Any = None, **config: Any) -> Engine:
    parts = small_components(network, compute_loss=compute_loss, loader=batches(4))
    return Engine(parts, RunConfig(**{"epochs": 1, **config}))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("first", [0, 1], ids=["at once", "after a step without a loss"])
def test_a_backward_pass_inside_compute_loss_is_an_error(k, first):
    """In the first step that gives a loss, before anything is updated."""
    steps = iter(range(4))

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        if next(steps) < first:
            return None
        loss = loss_of(network, batch)
        loss.backward(retain_graph=True)
        return loss

    engine = engine_of(compute_loss, accumulation=k)
    with pytest.raises(EngineError, match=ADVICE):
        engine.run()
    assert (engine.current.state, engine.current.step, engine.current.update) == ("failed", first, 0)


def test_a_backward_pass_inside_a_criterion_is_an_error():
    """As inside of anything that the step function calls."""

    def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(output, target)
        loss.backward(retain_graph=True)
        return loss

    parts = small_components(criterion=criterion, loader=batches(2))
    with pytest.raises(EngineError, match="criterion made a backward pass of its own"):
        Engine(parts, RunConfig(epochs=1)).run()


def test_an_optimizer_that_clears_to_zeros_does_not_hide_it():
    """A gradient that is there before the step is compared, not only looked for."""

    class Zeroing(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = False) -> None:
            super().zero_grad(set_to_none=False)

    network = small_network()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = Zeroing(network.parameters(), lr=0.1)

    def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor:
        loss = loss_of(network, batch)
        loss.backward(retain_graph=True)
        return loss

    def build(loss: Any) -> Engine:
        parts = small_components(network, compute_loss=loss, loader=batches(2), optimizer=optimizer)
        return Engine(parts, RunConfig(epochs=1))

    with pytest.raises(EngineError, match=ADVICE):
        build(compute_loss).run()
    assert build(loss_of).run().update == 2


def test_a_backward_pass_that_reaches_only_other_parameters_is_fine():
    """A critic with an optimizer of its own, trained inside `compute_loss`: bit-equal to the plain loop."""

    def parts() -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        critic = nn.Linear(3, 1)
        nn.init.constant_(critic.weight, 0.5)
        nn.init.zeros_(critic.bias)
        return small_network(), critic, torch.optim.SGD(critic.parameters(), lr=0.1)

    def train_critic(network: nn.Module, critic: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Any:
        optimizer.zero_grad()
        critic(network(batch[0]).detach()).mean().backward()
        optimizer.step()
        return critic(network(batch[0])).square().mean()

    network, critic, optimizer = parts()
    run = engine_of(lambda net, batch: train_critic(net, critic, optimizer, batch), network).run()
    plain, other, other_optimizer = parts()
    main = torch.optim.SGD(plain.parameters(), lr=0.1)
    for batch in batches(4):
        main.zero_grad()
        train_critic(plain, other, other_optimizer, batch).backward()
        main.step()
    assert run.update == 4
    assert equal(weights(run.network) + weights(critic), weights(plain) + weights(other))


def test_gradients_that_are_taken_without_backward_are_fine():
    """A penalty on the gradient, by `torch.autograd.grad`, in training and with inputs named."""

    def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor:
        data = batch[0].clone().requires_grad_()
        output = network(data)
        slope = torch.autograd.grad(output.sum(), data, create_graph=True)[0]
        output.sum().backward(inputs=[data], retain_graph=True)
        return output.square().mean() + slope.square().mean()

    assert engine_of(compute_loss).run().update == 4


def test_a_handler_before_the_step_may_add_to_the_gradients():
    """What is there when the step begins is nobody's mistake."""
    engine = engine_of(loss_of)
    engine.on_enter("process_batch")(lambda run: sum(p.square().sum() for p in run.network.parameters()).backward())
    assert engine.run().update == 4


@pytest.mark.parametrize("first", [0, 1], ids=["at once", "after a step without a loss"])
def test_gradients_that_compute_loss_drops_in_an_open_window_are_an_error(first):
    """Those of the steps before would be missing from the update."""
    steps = iter(range(8))
    network = small_network()

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        if next(steps) < first:
            return None
        network.zero_grad()
        return loss_of(network, batch)

    with pytest.raises(EngineError, match="compute_loss dropped gradients that the window had gathered: those of 'wei"):
        engine_of(compute_loss, network, accumulation=4).run()
    assert engine_of(compute_loss, network).run().update == 4  # where each window has one step, there are none to lose


@pytest.mark.parametrize("resumed", [False, True], ids=["whole", "resumed in the window"])
def test_the_attack_of_adversarial_training_is_seen_in_an_open_window(resumed, tmp_path):
    """A backward pass for the slope of the data, and `zero_grad` after it."""

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        data = batch[0].clone().requires_grad_()
        loss_of(network, (data, batch[1])).backward()
        network.zero_grad()
        return loss_of(network, (data.detach() + 0.1 * data.grad.sign(), batch[1]))

    if resumed:
        network = small_network()
        parts = small_components(network, compute_loss=loss_of, loader=batches(4))
        plain = Engine(parts, RunConfig(epochs=1, accumulation=2), [Checkpoint(tmp_path, at="after_step")])
        plain.run(until=lambda run: run.step == 1 and run.state == "before_step")
    parts = small_components(compute_loss=compute_loss, loader=batches(4))
    engine = Engine(parts, RunConfig(epochs=1, accumulation=2), [Checkpoint(tmp_path, at="after_step")])
    with pytest.raises(EngineError, match="compute_loss dropped gradients"):
        engine.run(resume=tmp_path if resumed else None)
    assert engine.current.step == 1


def test_zeros_that_a_pass_of_its_own_leaves_are_no_error():
    """`zero_grad(set_to_none=False)` leaves what adds nothing."""

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        loss_of(network, batch).backward()
        network.zero_grad(set_to_none=False)
        return loss_of(network, batch)

    def plain(network: nn.Module, batch: Any) -> Any:
        return loss_of(network, batch)

    runs = [engine_of(loss).run() for loss in (compute_loss, plain)]
    assert equal(*(weights(run.network) for run in runs))


def test_weights_that_are_changed_before_the_backward_pass_say_whose_the_pass_is():
    """torch's error alone speaks of a version."""

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        loss = loss_of(network, batch)
        with torch.no_grad():
            network[1].weight.add_(1.0)
        return loss

    two = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="inplace operation") as caught:
        engine_of(compute_loss, two).run()
    assert "the backward pass, which is the engine's: does compute_loss step an optimizer" in str(
        caught.value.__notes__
    )
