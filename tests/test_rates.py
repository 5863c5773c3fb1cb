"""`find_learning_rate`: a range test over learning rates, after which the run is the one that had none."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.utils.data import TensorDataset

from builders import CLASSES, FEATURES, Unsized, batches, sgd, small_components, small_engine, small_network
from heptad import ConfigError, Engine, EngineError, LossOutput, Plugin, Run, RunConfig, find_learning_rate
from heptad_plugins import Checkpoint, LRSchedule
from scenario import FEEDS, full_engine, outcome, path_of

torch.set_num_threads(1)


@pytest.mark.parametrize("feed", FEEDS)
def test_a_run_after_it_is_the_run_that_had_none(feed: str, tmp_path: Path):
    """Weights, optimizer, generators, values, plugins and log, whatever the data come from."""
    both: list[Engine] = []
    for name in ("tried", "plain"):
        engine = full_engine(tmp_path, feed=feed, checkpoint=Checkpoint(tmp_path / name, every=100))
        if name == "tried":
            find_learning_rate(engine, low=1e-4, high=1.0, steps=5)
        engine.run()
        both.append(engine)
    tried, plain = both
    assert outcome(tried) == outcome(plain)
    assert path_of(tried.current.log) == path_of(plain.current.log)


def test_everything_stands_where_it_stood():
    """At once: modes, gradients, what is frozen, the optimizer's state and rates, the log."""
    network = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    network[0].weight.grad = torch.ones(8, FEATURES)
    network[0].bias.requires_grad_(False)
    network[1].eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = StepLR(optimizer, 2)
    engine = small_engine(3)
    engine = Engine(small_components(network, optimizer=optimizer), RunConfig(epochs=2), [LRSchedule(schedule)])

    def now() -> Any:
        modes = [module.training for module in network.modules()]
        grads = [(None if one.grad is None else one.grad.tolist(), one.requires_grad) for one in network.parameters()]
        state = [tensor.tolist() for tensor in network.state_dict().values()]
        run, generator = engine.current, torch.get_rng_state().tolist()
        where = [run.state, run.step, run.metrics, len(run.log), run.total_updates]
        return modes, grads, state, str(optimizer.state_dict()), str(schedule.state_dict()), generator, where

    before = now()
    find_learning_rate(engine, steps=7)
    assert now() == before


def plain_losses(rates: list[float], share: float = 1.0, accumulation: int = 1) -> list[float]:
    """Return the losses of a loop without an engine, over the batches in their order."""
    network, data, losses = small_network(), batches(3), []
    groups = [{"params": [network.weight]}, {"params": [network.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    step = 0
    for rate in rates:
        optimizer.zero_grad()
        window = []
        for _ in range(accumulation):
            sample, target = data[step % 3]
            loss = nn.CrossEntropyLoss()(network(sample), target)
            (loss / accumulation).backward()
            window.append(loss.detach())
            step += 1
        losses.append(float(torch.stack(window).mean()))
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, rate * share
        optimizer.step()
    return losses


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_losses_are_those_of_a_plain_loop(share: float, accumulation: int):
    """Rates grow by one factor, and groups keep their ratio."""
    network = small_network()
    groups = [{"params": [network.weight]}, {"params": [network.bias], "lr": 0.1 * share}]
    engine = Engine(
        small_components(network, optimizer=torch.optim.SGD(groups, lr=0.1)), RunConfig(epochs=1, accumulation=2)
    )
    found = find_learning_rate(engine, low=1e-3, high=0.1, steps=5, accumulation=accumulation)
    assert found.rates == pytest.approx([1e-3, 10**-2.5, 1e-2, 10**-1.5, 0.1])
    assert found.losses == pytest.approx(plain_losses([*found.rates], share, accumulation), rel=1e-6)
    assert found.shares == (1.0, share)
    assert not found.diverged


@pytest.mark.parametrize("accumulation", [None, 1])
def test_a_window_of_all_processes_is_that_of_the_test_too(accumulation: int | None):
    """Unless an accumulation is given."""
    engine = Engine(small_components(small_network(), optimizer=sgd), RunConfig(epochs=1, window=3))
    found = find_learning_rate(engine, low=1e-3, high=0.1, steps=4, accumulation=accumulation)
    expected = plain_losses([*found.rates], accumulation=accumulation or 3)
    assert found.losses == pytest.approx(expected, rel=1e-6)


def test_smoothing_is_an_average_that_is_corrected_for_its_beginning():
    found = find_learning_rate(small_engine(3), low=1e-3, high=0.1, steps=5, smoothing=0.5)
    expected, average = [], 0.0
    for number, loss in enumerate(found.losses, 1):
        average = 0.5 * average + 0.5 * loss
        expected.append(average / (1 - 0.5**number))
    assert found.smoothed == pytest.approx(expected)
    alone = find_learning_rate(small_engine(3), low=1e-3, high=0.1, steps=5, smoothing=0)
    assert alone.smoothed == pytest.approx(alone.losses)


def given_losses(values: list[float]) -> Engine:
    """Return an engine whose steps have these losses, whatever its network does."""
    left: list[float] = []

    def compute_loss(network: nn.Module, batch: Any) -> LossOutput:
        if not left:
            left.extend(values)
        return LossOutput(network(batch[0]).sum() * 0 + left.pop(0))

    return Engine(small_components(compute_loss=compute_loss), RunConfig(epochs=1))


def test_the_suggestion_is_where_the_loss_falls_steepest():
    """Over the logarithm of the rate, and not behind the lowest loss."""
    found = find_learning_rate(
        given_losses([3.0, 3.0, 2.9, 2.0, 1.1, 1.0, 9.0]), low=1e-6, high=1.0, steps=7, smoothing=0, diverges=99
    )
    assert found.suggestion == pytest.approx(1e-3)
    assert found.lowest == pytest.approx(1e-1)


def test_a_loss_that_never_falls_gives_no_suggestion():
    found = find_learning_rate(given_losses([1.0, 2.0, 3.0, 3.5]), steps=4)
    assert found.suggestion is None
    assert "suggestion none: the loss does not fall" in str(found)


@pytest.mark.parametrize("value", [1.0, 0.1, 1e6])
def test_the_rounding_of_a_loss_that_stays_is_no_fall(value: float):
    assert find_learning_rate(given_losses([value]), steps=30).suggestion is None


def test_noise_at_the_beginning_is_no_fall():
    """The first averages are of few losses: those of 0.9 span ten."""
    losses = [2.5, 2.0, *[2.4 - 0.001 * number for number in range(18)], *[2.0 - 0.1 * number for number in range(10)]]
    found = find_learning_rate(given_losses(losses), low=1e-6, high=1.0, steps=30)
    assert found.smoothed[1] - found.smoothed[0] < min(
        after - before for before, after in itertools.pairwise(found.smoothed[2:])
    )
    assert found.suggestion is not None
    assert found.suggestion > found.rates[18]


def test_it_ends_where_the_loss_diverges():
    """At four times the lowest smoothed loss."""
    found = find_learning_rate(given_losses([2.0, 1.0, 1.0, 5.0, 1.0, 1.0]), steps=6, smoothing=0)
    assert (found.losses, found.diverged) == ((2.0, 1.0, 1.0, 5.0), True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_ends_at_a_loss_that_is_not_finite(value: float):
    """Which is left out."""
    found = find_learning_rate(given_losses([2.0, 1.0, value, 1.0]), steps=4)
    assert (found.losses, found.diverged, len(found.rates)) == ((2.0, 1.0), True, 2)


def test_no_finite_loss_at_all_is_an_error_and_all_is_put_back():
    engine = given_losses([math.nan])
    before = engine.current.network.weight.detach().clone()
    with pytest.raises(EngineError, match="find_learning_rate found no finite loss"):
        find_learning_rate(engine)
    assert torch.equal(engine.current.network.weight, before)


def test_losses_below_zero_do_not_count_as_diverged():
    """Four times a negative number is lower."""
    found = find_learning_rate(given_losses([-1.0, -3.0, -2.0, -2.5]), steps=4, smoothing=0)
    assert len(found.losses) == 4


def test_a_failure_puts_everything_back():
    """And is raised."""
    network = small_network()
    calls: list[int] = []

    def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        return nn.functional.cross_entropy(network(batch[0]), batch[1]) / (4 - len(calls) if len(calls) < 4 else 1 // 0)

    engine = Engine(small_components(network, compute_loss=compute_loss), RunConfig(epochs=1))
    before = network.weight.detach().clone()
    with pytest.raises(ZeroDivisionError):
        find_learning_rate(engine, low=0.1, high=1.0)
    assert torch.equal(network.weight, before)
    assert engine.current.state == "idle"


class Loud(Plugin):
    """Fails whenever it is called."""

    def on_begin(self, run: Run) -> None:
        raise AssertionError

    def on_enter_before_loop(self, run: Run) -> None:
        raise AssertionError


def test_no_plugin_and_no_function_is_called():
    """They belong to the run."""
    engine = small_engine(3, [Loud()])
    engine.on_exit("after_step")(lambda run: 1 / 0)
    assert len(find_learning_rate(engine, steps=4).rates) == 4


def test_rates_that_a_schedule_has_written_over_are_those_of_the_groups():
    """A warm-up that was built with the optimizer begins at 0."""
    network = small_network()
    groups = [{"params": [network.weight], "lr": 0.2}, {"params": [network.bias], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    LambdaLR(optimizer, lambda step: step / 10)
    engine = Engine(small_components(network, optimizer=optimizer), RunConfig(epochs=1))
    assert find_learning_rate(engine, steps=3).shares == (1.0, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_rates_that_are_tensors_are_written_in_place():
    """And put back."""
    network, rate = small_network(), torch.tensor(0.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    engine = Engine(small_components(network, optimizer=optimizer), RunConfig(epochs=1))
    find_learning_rate(engine, steps=3)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.5


def test_data_of_unknown_length_and_a_dataset_are_walked_as_often_as_it_takes():
    engine = small_engine(Unsized(batches(2)))
    assert len(find_learning_rate(engine, steps=9, high=0.1).rates) == 9
    data = TensorDataset(torch.randn(6, FEATURES), torch.arange(6) % CLASSES)
    engine = Engine(small_components(dataset=data), RunConfig(epochs=1, batch_size=2))
    assert len(find_learning_rate(engine, steps=9, high=0.1).rates) == 9


class TestRefused:
    def test_a_run_that_has_begun(self):
        engine = small_engine(3)
        engine.advance()
        with pytest.raises(EngineError, match="find_learning_rate was called on a run that is in before_loop"):
            find_learning_rate(engine)
        engine.run()
        with pytest.raises(EngineError, match="an engine drives one run"):
            find_learning_rate(engine)

    def test_data_that_can_be_iterated_once(self):
        engine = small_engine(iter(batches(3)))
        with pytest.raises(EngineError, match="can be iterated once, so a range test would use them up"):
            find_learning_rate(engine)

    def test_a_network_of_unknown_shape(self):
        network = nn.LazyLinear(CLASSES)
        parts = small_components(network, optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.1))
        with pytest.raises(EngineError, match="shape is not known yet"):
            find_learning_rate(Engine(parts, RunConfig(epochs=1)))

    def test_an_optimizer_that_needs_a_closure(self):
        network = small_network()
        parts = small_components(network, optimizer=torch.optim.LBFGS(network.parameters()))
        with pytest.raises(EngineError, match="LBFGS needs a closure"):
            find_learning_rate(Engine(parts, RunConfig(epochs=1)))

    def test_a_group_without_a_rate(self):
        network = small_network()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        optimizer.param_groups[0]["lr"] = None
        with pytest.raises(EngineError, match="parameter group 0 of SGD has none that is a number: lr is None"):
            find_learning_rate(Engine(small_components(network, optimizer=optimizer), RunConfig(epochs=1)))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"low": 0.0}, "needs 0 < low < high, got low=0.0"),
            ({"low": 2.0}, "needs 0 < low < high"),
            ({"high": math.inf}, r"\(high=…\) must be a finite number, got inf"),
            ({"low": "1e-3"}, r"\(low=…\) must be a finite number, got '1e-3'"),
            ({"steps": 2}, r"\(steps=…\) must be a whole number from 3 on, got 2"),
            ({"smoothing": 1.0}, r"\(smoothing=…\) must be from 0 on and below 1, got 1.0"),
            ({"diverges": 1.0}, r"\(diverges=…\) must be above 1, got 1.0"),
            ({"accumulation": 0}, "accumulation"),
        ],
    )
    def test_arguments_that_do_not_fit(self, options: dict[str, Any], message: str):
        with pytest.raises(ConfigError, match=message):
            find_learning_rate(small_engine(3), **options)

    @pytest.mark.parametrize("given", [small_components(), Engine])
    def test_what_is_no_engine(self, given: Any):
        with pytest.raises(ConfigError, match=r"find_learning_rate\(engine\) takes an Engine, got "):
            find_learning_rate(given)


class TestResult:
    def test_its_text_says_what_was_found(self):
        text = str(find_learning_rate(small_engine(3), low=1e-3, high=0.1, steps=5))
        assert text.startswith("learning rates 0.001 to 0.1 in 5 updates, ran to the highest rate\nsuggestion ")
        assert len(text.splitlines()[2]) == len("smoothed loss ") + 5

    def test_its_figure_has_the_losses_over_the_rates(self):
        found = find_learning_rate(small_engine(3), low=1e-3, high=0.1, steps=5)
        figure = found.plot()
        data = figure.renderers[0].data_source.data
        assert (list(data["x"]), list(data["y"])) == ([*found.rates], [*found.losses])
        assert type(figure.x_scale).__name__ == "LogScale"
