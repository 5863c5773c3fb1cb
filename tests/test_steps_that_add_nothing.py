"""Steps that count as steps and add nothing: no loss, weight 0, left out by a plugin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from builders import Unsized, batches, equal, small_components, small_network, weights
from heptad import Engine, EngineError, LossOutput, Plugin, Run, RunConfig
from heptad.plugin import SkipBatch
from heptad_plugins import Checkpoint

Loss = Callable[[nn.Module, Any], Any]
DOUBLE = torch.float64


def mean_loss(network: nn.Module, batch: Any) -> torch.Tensor:
    """Return the loss of a batch."""
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def without(empty: set[int], how: str) -> Loss:
    """Return a `compute_loss` by which the steps of these numbers add nothing."""
    calls = iter(range(100))

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        loss = mean_loss(network, batch)
        if next(calls) not in empty:
            return loss if how in ("nothing", "left out") else LossOutput(loss, weight=len(batch[1]))
        if how == "nothing":
            return None
        if how == "left out":
            return loss * math.nan
        return LossOutput(loss * math.nan, weight={"0": 0, "0.0": 0.0, "tensor": torch.tensor(0.0)}[how])

    return compute_loss


HOW = ["nothing", "0", "0.0", "tensor", "left out"]
each_way = pytest.mark.parametrize("how", HOW)


class LeaveOut(Plugin):
    """Leaves out each step whose loss is NaN."""

    def on_loss(self, run: Run) -> None:
        assert run.loss is not None
        if run.loss.isnan():
            run.skip_batch("the loss is NaN")


def engine_of(data: Any, loss: Loss, plugins: Any = None, **config: Any) -> Engine:
    network = small_network(DOUBLE)
    parts = small_components(
        network,
        loader=data,
        compute_loss=loss,
        optimizer=torch.optim.AdamW(network.parameters(), lr=0.1),
    )
    return Engine(
        parts, RunConfig(**{"epochs": 1, "device": "cpu", **config}), [LeaveOut()] if plugins is None else plugins
    )


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@each_way
@pytest.mark.parametrize("empty", [{0}, {1}, {2}, {0, 1}, {1, 2}, {0, 2}], ids=str)
def test_the_update_is_that_of_the_other_steps(how, empty):
    """First, middle and last of the window: by plain torch, the mean over the samples of the others."""
    data = batches(3, dtype=DOUBLE)
    run = engine_of(data, without(empty, how), accumulation=3).run()
    network = small_network(DOUBLE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    kept = [batch for number, batch in enumerate(data) if number not in empty]
    loss = mean_loss(network, tuple(map(torch.cat, zip(*kept, strict=True))))
    loss.backward()
    optimizer.step()
    assert (run.step, run.update, run.windows, run.samples) == (3, 1, 1, 6)
    assert_same(run.network, network)
    torch.testing.assert_close(run.mean_loss, loss.detach())


@each_way
@pytest.mark.parametrize("k", [1, 2])
def test_a_window_of_nothing_is_a_skipped_update(how, k):
    """Weights, moments and `update` stand still; the log says so; the next window is as if there had been none."""
    data = batches(3 * k, dtype=DOUBLE)
    skipped: list[bool] = []
    engine = engine_of(data, without(set(range(k, 2 * k)), how), accumulation=k)
    engine.on_enter("optimizer_update")(lambda run: skipped.append(run.update_skipped))
    engine.on_exit("optimizer_update")(lambda run: skipped.append(run.update_skipped))
    run = engine.run()
    assert skipped == [False, False, True, True, False, False]
    assert (run.step, run.update, run.windows) == (3 * k, 2, 3)
    assert [(note.kind, note.reason) for note in run.log.notes("skip")] == [
        ("skip", "no step of this window counts: each weighs 0 or has no loss")
    ]
    expected = engine_of([*data[:k], *data[2 * k :]], without(set(), how), accumulation=k).run()
    assert equal(weights(run.network), weights(expected.network))


@each_way
@pytest.mark.parametrize("data", [batches(4, dtype=DOUBLE), Unsized(batches(4, dtype=DOUBLE))], ids=["sized", "stream"])
def test_a_flushed_window_of_nothing_is_skipped(how, data):
    """The last window of an epoch holds one step, which adds nothing."""
    run = engine_of(data, without({3}, how), accumulation=3, remainder="flush").run()
    assert (run.step, run.update, run.windows) == (4, 1, 2)
    assert_same(run.network, engine_of(batches(4, dtype=DOUBLE)[:3], without(set(), how), accumulation=3).run().network)


@pytest.mark.parametrize("value", [torch.zeros(()), None, 0.0, torch.ones(2, requires_grad=True)], ids=str)
def test_of_a_step_of_weight_0_no_loss_is_needed(value):
    """It need not depend on the network; in the first step as later."""
    steps = iter([False, True, False, False])

    def compute_loss(network: nn.Module, batch: Any) -> LossOutput:
        return LossOutput(mean_loss(network, batch), weight=2) if next(steps) else LossOutput(value, weight=0)

    run = engine_of(batches(4, dtype=DOUBLE), compute_loss, accumulation=2).run()
    assert (run.update, run.windows) == (1, 2)
    assert_same(run.network, engine_of(batches(4, dtype=DOUBLE)[1:2], mean_loss).run().network)


def test_nothing_all_along_ends_in_order():
    """A run without an update: finished, weights as they were, every window skipped."""
    run = engine_of(batches(4, dtype=DOUBLE), without(set(range(4)), "nothing"), accumulation=2).run()
    assert (run.state, run.step, run.update, run.windows, run.loss) == ("finished", 4, 0, 2, None)
    assert equal(weights(run.network), weights(small_network(DOUBLE)))


def test_no_update_while_a_replay_memory_fills():
    """Updates begin with the third step; the plain loop continues to it."""
    memory: list[Any] = []

    def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor | None:
        memory.append(batch)
        if len(memory) < 3:
            return None
        return mean_loss(network, memory[len(memory) // 2])

    run = engine_of(batches(5, dtype=DOUBLE), compute_loss).run()
    network = small_network(DOUBLE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for number in (3, 4, 5):
        optimizer.zero_grad()
        mean_loss(network, memory[number // 2]).backward()
        optimizer.step()
    assert (run.update, run.windows) == (3, 5)
    assert equal(weights(run.network), weights(network))


@pytest.mark.parametrize("how", ["nothing", "0", "tensor"])
def test_an_evaluation_leaves_them_out(how):
    """Loss and metrics are those of the other batches."""
    data = batches(3, dtype=DOUBLE)
    engine = engine_of(data, without({1}, how))
    expected = engine_of(data, without(set(), "0")).evaluate([data[0], data[2]])
    assert engine.evaluate(data) == expected
    of_nothing = engine_of(data, without({0, 1, 2}, how)).evaluate(data)
    assert of_nothing == {} if how == "nothing" else math.isnan(of_nothing["loss"])


@pytest.mark.parametrize("weight", [-1, -0.5, torch.tensor(-2.0), math.nan, torch.tensor(math.nan), True, "8"], ids=str)
def test_an_impossible_weight_is_an_error_in_an_evaluation_too(weight):
    """As in training."""
    engine = engine_of(batches(1), lambda network, batch: LossOutput(network(batch[0]).mean(), weight=weight))
    with pytest.raises(EngineError, match=r"LossOutput\.weight must be a number from 0 on"):
        engine.evaluate(batches(1, dtype=DOUBLE))


def test_a_forgotten_return_is_an_error():
    """A function that has no `return` at all has not chosen to give nothing."""

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        def inner() -> int:
            return 1

        mean_loss(network, batch) * inner()

    for drive in (lambda engine: engine.run(), lambda engine: engine.evaluate(batches(1, dtype=DOUBLE))):
        with pytest.raises(EngineError, match=r"got NoneType; does it end without a return\?"):
            drive(engine_of(batches(2, dtype=DOUBLE), compute_loss))


def test_a_loss_output_without_a_loss_is_an_error():
    """Nothing is said by returning `None` in its place."""
    for good in (0, 1):
        given = iter([True] * good + [False] * 3)
        engine = engine_of(
            batches(2, dtype=DOUBLE),
            lambda network, batch, given=given: LossOutput(mean_loss(network, batch) if next(given) else None),
        )
        with pytest.raises(EngineError, match=r"returned LossOutput\(None, …\).*return None"):
            engine.run()


def test_a_criterion_that_returns_nothing_is_an_error():
    """Only a `compute_loss` can leave a step out."""
    parts = small_components(criterion=lambda output, target: None, loader=batches(2))
    with pytest.raises(EngineError, match="criterion must return a scalar tensor, got NoneType"):
        Engine(parts, RunConfig(epochs=1)).run()


# -- skip_batch


def test_skip_batch_is_said_in_the_log():
    """One event a step, with the first reason; the loss of the step can still be read."""

    class Twice(LeaveOut):
        def on_loss(self, run: Run) -> None:
            super().on_loss(run)
            if run.loss is not None and run.loss.isnan():
                run.skip_batch("a second reason")

    engine = engine_of(batches(4, dtype=DOUBLE), without({1, 2}, "left out"), [Twice()], accumulation=2)
    losses: list[Any] = []
    engine.on_exit("process_batch")(lambda run: losses.append(run.loss.item()))
    run = engine.run()
    assert [event.reason for event in run.log.notes() if isinstance(event, SkipBatch)] == ["the loss is NaN"] * 2
    assert [math.isnan(loss) for loss in losses] == [False, True, True, False]
    assert (run.update, run.windows) == (2, 2)


@pytest.mark.parametrize("state", ["before_step", "process_batch", "after_step", "optimizer_update"])
@pytest.mark.parametrize("moment", ["enter", "exit"])
def test_skip_batch_is_legal_in_on_loss_only(state, moment):
    """Elsewhere the backward pass is to come much later, or was made."""
    engine = engine_of(batches(2, dtype=DOUBLE), mean_loss)
    getattr(engine, f"on_{moment}")(state)(lambda run: run.skip_batch("too late"))
    with pytest.raises(EngineError, match=r"skip_batch is legal in Plugin\.on_loss only"):
        engine.run()


def test_on_loss_is_called_between_the_loss_and_its_backward_pass():
    """In the order of the plugins, once a step that gave a loss; never in an evaluation."""
    heard: list[tuple[str, int, bool, bool]] = []

    class Hear(Plugin):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_loss(self, run: Run) -> None:
            grad = next(run.network.parameters()).grad
            heard.append((self.name, run.step, run.output is None, grad is None))

    data = batches(3, dtype=DOUBLE)
    engine = engine_of(data, without({1}, "nothing"), [Hear("b"), Hear("a")])
    engine.run()
    engine.evaluate(data)
    assert heard == [(name, step, True, True) for step in (0, 2) for name in "ba"]


def test_a_failing_on_loss_names_its_plugin():
    """And one that observes can be detached: the run continues without it."""

    class Broken(Plugin):
        observes = True

        def __init__(self, on_error: Any) -> None:
            self.on_error = on_error

        def on_loss(self, run: Run) -> None:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as caught:
        engine_of(batches(2, dtype=DOUBLE), mean_loss, [Broken("raise")]).run()
    assert "heptad: in Broken.on_loss" in caught.value.__notes__
    run = engine_of(batches(2, dtype=DOUBLE), mean_loss, [Broken("detach")]).run()
    assert [note.handler for note in run.log.notes("detach")] == ["Broken.on_loss"]
    assert run.update == 2


@each_way
@pytest.mark.parametrize("k", [1, 3])
def test_a_run_that_is_resumed_from_any_step_is_the_same(how, k, tmp_path):
    """What a window knows of its steps is part of a checkpoint."""
    data = batches(6, dtype=DOUBLE)
    empty = {0, 1, 4} if k == 1 else {0, 3, 4, 5}

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        number = next(n for n, (rows, _) in enumerate(data) if torch.equal(rows, batch[0]))
        return without({0} if number in empty else set(), how)(network, batch)

    def build(folder: str) -> Engine:
        checkpoint = Checkpoint(tmp_path / folder, at=("after_step", "optimizer_update"), keep_last=100)
        return engine_of(data, compute_loss, [LeaveOut(), checkpoint], accumulation=k)

    straight = build("straight").run()
    for checkpoint in sorted((tmp_path / "straight").glob("checkpoint-*")):
        run = build(f"from {checkpoint.name}").run(resume=checkpoint)
        assert (run.update, run.windows, run.step) == (straight.update, straight.windows, straight.step)
        assert equal(weights(run.network), weights(straight.network))
        assert str(run.mean_loss) == str(straight.mean_loss)


@pytest.mark.parametrize("config", [{"epochs": 3}, {"epochs": None, "max_updates": 1}], ids=["epochs", "updates"])
def test_the_log_says_if_no_window_makes_an_update(config):
    """Where the run ends; and after a thousand windows, for it may never end."""
    steps = iter(range(1500))

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        return None if next(steps) < 1200 else mean_loss(network, batch)

    engine = engine_of(batches(4, dtype=DOUBLE), compute_loss, **config)
    run = engine.run()
    (note,) = run.log.notes("untrained")
    assert note.windows == (12 if config["epochs"] else 1000)
    assert str(note).startswith(f"#{note.seq} untrained: {note.windows:,} windows closed, and no update made: each step")
