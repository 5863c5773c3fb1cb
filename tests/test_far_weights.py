"""Weights on an accelerator are never read, and a target is counted while it is on the host. Without a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from builders import batches, equal, small_components, small_network, weights
from heptad import Engine, LossOutput, RunConfig
from heptad.run.weight import known_weight

DOUBLE = torch.float64


class Far(torch.Tensor):
    """A tensor that says that it is not on the host, and must not be read."""

    is_cpu = False

    def item(self) -> Any:
        raise AssertionError("the host waits for the device")

    __bool__ = __float__ = __int__ = tolist = item


def far(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=DOUBLE).as_subclass(Far)


def run_of(given: list[float], k: int, *, on_device: bool, bad: bool = False, epochs: int = 1) -> Any:
    """Return a run whose steps weigh so much; the loss of one of weight 0 is NaN, if `bad`, with a gradient of 0."""
    network = small_network(DOUBLE)
    steps = iter(given * epochs)

    def compute_loss(network: nn.Module, batch: Any) -> LossOutput:
        weight = next(steps)
        loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
        if bad and not weight:
            loss = loss * 0 + torch.tensor(float("nan"), dtype=DOUBLE)
        return LossOutput(loss, weight=far(weight) if on_device else weight)

    parts = small_components(
        network,
        compute_loss=compute_loss,
        loader=batches(len(given), dtype=DOUBLE),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
    )
    return Engine(parts, RunConfig(epochs=epochs, accumulation=k, device="cpu")).run()


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize(
    "given", [[2.0, 3.0, 5.0], [0.0, 3.0, 5.0], [2.0, 0.0, 5.0], [2.0, 3.0, 0.0], [0.0, 0.0, 4.0]], ids=str
)
def test_a_window_weighs_what_it_does_on_the_host(given, bad):
    """Also where the first weights are 0: the reference is the first above it."""
    there, here = run_of(given, 3, on_device=True, bad=bad), run_of(given, 3, on_device=False, bad=bad)
    assert there.update == here.update == 1
    for one, other in zip(weights(there.network), weights(here.network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    mean, expected = torch.Tensor(there.mean_loss.as_subclass(torch.Tensor)), here.mean_loss
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_a_window_that_weighs_0_there_steps_with_zero_gradients(k):
    """Nobody has read that it weighs nothing: the update is made, and momentum moves the weights on."""
    run = run_of([2.0] * k + [0.0] * k, k, on_device=True)
    network = small_network(DOUBLE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for batch in batches(2 * k, dtype=DOUBLE)[:k]:
        (nn.functional.cross_entropy(network(batch[0]), batch[1]) / k).backward()
    optimizer.step()
    for parameter in network.parameters():
        parameter.grad.zero_()
    optimizer.step()
    assert run.update == 2
    for one, other in zip(weights(run.network), weights(network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_tensor_on_the_host_is_read_and_one_elsewhere_is_not():
    """The bits of a window are those of plain numbers then."""
    assert type(known_weight(torch.tensor(3))) is int
    assert isinstance(known_weight(far(-1.0)), Far)


def placing_engine(data: list[Any], criterion: nn.Module, k: int) -> Engine:
    """Return an engine that places batches, as on an accelerator."""
    network = small_network(DOUBLE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    engine = Engine(
        small_components(network, loader=data, criterion=criterion, optimizer=optimizer),
        RunConfig(epochs=1, accumulation=k, device="cpu"),
    )
    engine.current._runtime.places = True
    return engine


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(torch.ones(3).double())], ids=str)
def test_targets_are_counted_before_they_are_placed(k, criterion):
    """A window of ignored ones is skipped without a look at the device; others are as they are on the host."""
    data = batches(6, 3, DOUBLE)
    data[0][1][1] = -100
    for number in (3, 4, 5):
        data[number][1].fill_(-100)
    run = placing_engine(data, criterion, k).run()
    assert (run.update, run.windows, len(run.log.notes("skip"))) == (3 // k, 6 // k, 3 // k)
    engine = placing_engine(data, criterion, k)
    engine.current._runtime.places = False
    assert equal(weights(run.network), weights(engine.run().network))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_target_that_a_handler_replaces_is_counted_anew(in_place):
    """Also one that it writes into."""
    engine = placing_engine(batches(3, dtype=DOUBLE), nn.CrossEntropyLoss(), 3)

    @engine.on_enter("process_batch", every=2)
    def ignore(run: Any) -> None:
        if in_place:
            run.batch[1].fill_(-100)
        else:
            run.batch = (run.batch[0], torch.full_like(run.batch[1], -100))

    run = engine.run()
    kept = batches(3, dtype=DOUBLE)[::2]
    expected = placing_engine(kept, nn.CrossEntropyLoss(), 2).run()
    for one, other in zip(weights(run.network), weights(expected.network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
