"""`run(resume=…, allow_changes=("optimizer",))`: the options of now, the moments and counts of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim import lr_scheduler as schedulers

from builders import batches, equal, small_components, small_network, weights
from heptad import CheckpointError, Engine, EngineError, Plugin, Run, RunConfig
from heptad.plugin import OptionChange
from heptad.step import optimizers
from heptad_plugins import Checkpoint, LRSchedule

Make = Callable[[nn.Module], Optimizer]


def engine_of(directory: Path, optimizer: Any, plugins: Any = (), **config: Any) -> Engine:
    """Return an engine over four batches an epoch, with a checkpoint after each update."""
    parts = small_components(loader=batches(4), optimizer=optimizer)
    checkpoint = Checkpoint(directory, at="optimizer_update")
    return Engine(parts, RunConfig(**{"epochs": 2, **config}), [*plugins, checkpoint])


def adam(**options: Any) -> Make:
    return lambda network: Adam(network.parameters(), **options)


def plain(make: Make, updates: int, change: dict[str, Any], at: int, schedule: Any = None) -> list[torch.Tensor]:
    """Return the weights of a plain loop that changes options of its optimizer before one update."""
    network = small_network()
    optimizer = make(network)
    scheduler = schedule and schedule(optimizer)
    for number, (data, target) in enumerate(batches(4) * 2):
        if number == updates:
            break
        if number == at:
            optimizer.param_groups[0].update(change)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data), target).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return weights(network)


def resumed(directory: Path, then: Any, now: Any, plugins: Callable[[], Any] = tuple, **config: Any) -> Run:
    """Return a run of three updates under one optimizer, resumed under another to its end."""
    engine_of(directory, then, plugins(), **config).run(
        until=lambda run: run.update == 3 and run.state == "before_step"
    )
    return engine_of(directory, now, plugins(), **config).run(resume="auto", allow_changes=("optimizer",))


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.3}, {"betas": (0.5, 0.9)}, {"weight_decay": 0.1, "eps": 1e-3}],
    ids="-".join,
)
def test_the_options_of_now_hold_and_the_moments_are_kept(change, tmp_path):
    """As where a plain loop writes into the parameter group."""
    then = {"lr": 0.1, "weight_decay": 0.0}
    run = resumed(tmp_path / "a", adam(**then), adam(**{**then, **change}))
    assert equal(weights(run.network), plain(adam(**then), 8, change, 3))


def test_an_event_says_what_changed(tmp_path):
    run = resumed(tmp_path / "a", adam(lr=0.1), adam(lr=0.3, betas=(0.5, 0.999)))
    changes = [event for event in run.log.notes("resume") if isinstance(event, OptionChange)]
    assert [(one.optimizer, one.group, one.option, one.before, one.after) for one in changes] == [
        ("optimizers[0]", 0, "lr", "0.1", "0.3"),
        ("optimizers[0]", 0, "betas", "(0.9, 0.999)", "(0.5, 0.999)"),
    ]
    assert changes[0].text == "optimizers[0], group 0: lr 0.1 in the checkpoint, 0.3 here"


def test_without_it_another_option_is_refused_and_the_error_names_it(tmp_path):
    """A tuple too, which was overlooked."""
    engine_of(tmp_path / "a", adam()).run(until=lambda run: run.step == 3)
    with pytest.raises(CheckpointError, match=r"betas \(0.9, 0.999\) in the checkpoint, \(0.5, 0.9\) here") as caught:
        engine_of(tmp_path / "a", adam(betas=(0.5, 0.9))).run(resume="auto")
    assert 'allow_changes=("optimizer",)' in str(caught.value)


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_what_is_equal_is_the_run_that_was_never_paused(rate, tmp_path):
    """Also an option that the run itself has changed, which is that of the checkpoint then."""

    class Halves(Plugin):
        def on_exit_optimizer_update(self, run: Run) -> None:
            run.optimizer.param_groups[0]["lr"] = run.optimizer.param_groups[0]["lr"] * 0.5

    def make(network: nn.Module) -> Optimizer:
        return Adam(network.parameters(), lr=rate.clone() if isinstance(rate, torch.Tensor) else rate)

    straight = engine_of(tmp_path / "b", make, [Halves()]).run()
    run = resumed(tmp_path / "a", make, make, lambda: [Halves()])
    assert equal(weights(run.network), weights(straight.network))
    assert not any(isinstance(event, OptionChange) for event in run.log.notes())


def test_a_rate_that_is_a_tensor_may_change(tmp_path):
    def make(rate: float) -> Make:
        return lambda network: Adam(network.parameters(), lr=torch.tensor(rate))

    run = resumed(tmp_path / "a", make(0.1), make(0.3))
    assert equal(weights(run.network), plain(make(0.1), 8, {"lr": torch.tensor(0.3)}, 3))


def test_the_run_that_continues_is_the_one_with_the_new_options(tmp_path):
    """Its own checkpoints are resumed with them as a matter of course, and refuse the old ones."""
    engine_of(tmp_path / "a", adam(lr=0.1)).run(until=lambda run: run.step == 3)
    engine = engine_of(tmp_path / "a", adam(lr=0.3))
    engine.run(until=lambda run: run.step == 6, resume="auto", allow_changes=("optimizer",))
    with pytest.raises(CheckpointError, match=r"lr 0.3 in the checkpoint, 0.1 here"):
        engine_of(tmp_path / "a", adam(lr=0.1)).run(resume="auto")
    run = engine_of(tmp_path / "a", adam(lr=0.3)).run(resume="auto")
    assert equal(weights(run.network), plain(adam(lr=0.1), 8, {"lr": 0.3}, 2))


def test_each_group_has_its_own(tmp_path):
    """A group whose options are the same keeps what the run made of them."""

    def make(rate: float) -> Make:
        return lambda net: SGD([{"params": [net.weight], "lr": rate}, {"params": [net.bias]}], lr=0.1, momentum=0.9)

    class Writes(Plugin):
        def on_exit_before_epoch(self, run: Run) -> None:
            run.optimizer.param_groups[1]["lr"] = 0.07

    run = resumed(tmp_path / "a", make(0.1), make(0.2), lambda: [Writes()])
    assert [group["lr"] for group in run.parameter_groups()] == [0.2, 0.07]


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "a factor of the first rate": lambda optimizer: schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "a factor of the rate before": lambda optimizer: schedulers.StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 8, eta_min=0.01),
    "several in a row": lambda optimizer: schedulers.SequentialLR(
        optimizer,
        [schedulers.LinearLR(optimizer, 0.1, total_iters=2), schedulers.ExponentialLR(optimizer, 0.9)],
        milestones=[2],
    ),
    "a chain": lambda optimizer: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(optimizer, 0.5, 4), schedulers.ExponentialLR(optimizer, 0.9)]
    ),
}


@pytest.mark.parametrize("built", [False, True], ids=["function", "scheduler"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_continues_from_the_rate_of_now(schedule, built, tmp_path):
    """As if it had begun with that; where it is in its course stays."""
    build = SCHEDULES[schedule]

    def engine(rate: float) -> Engine:
        optimizer: Any = adam(lr=rate)
        if not built:
            return engine_of(tmp_path / "a", optimizer, [LRSchedule(build)])
        network = small_network()
        optimizer = optimizer(network)
        parts = small_components(network, loader=batches(4), optimizer=optimizer)
        plugins = [LRSchedule(build(optimizer)), Checkpoint(tmp_path / "a", at="optimizer_update")]
        return Engine(parts, RunConfig(epochs=2), plugins)

    engine(0.1).run(until=lambda run: run.update == 3 and run.state == "before_step")
    run = engine(0.3).run(resume="auto", allow_changes=("optimizer",))
    optimizer = adam(lr=0.3)(small_network())
    scheduler, expected = build(optimizer), []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert run.history("lr")[3:] == expected[3:]


def test_a_rate_that_follows_a_metric_begins_at_the_rate_of_now(tmp_path):
    """ReduceLROnPlateau has no first rate; the losses that it counted stay."""

    class Records(Plugin):
        runs_before = ("LRSchedule",)

        def on_exit_optimizer_update(self, run: Run) -> None:
            run.record("constant", 1.0)

    def plugins() -> list[Plugin]:
        build = LRSchedule(lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, patience=4), monitor="constant")
        return [Records(), build]

    run = resumed(tmp_path / "a", adam(lr=0.1), adam(lr=0.3), plugins)
    assert run.history("lr") == [0.1] * 3 + [0.3] * 3 + [0.03] * 2


def test_another_weight_decay_leaves_the_schedule_alone(tmp_path):
    build = SCHEDULES["a factor of the rate before"]
    run = resumed(tmp_path / "a", adam(lr=0.1), adam(lr=0.1, weight_decay=0.1), lambda: [LRSchedule(build)])
    assert run.history("lr") == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125])
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (lambda net: AdamW(net.parameters(), lr=0.1), r"optimizers\[0\]: a Adam in the checkpoint, a AdamW here"),
        (lambda net: Adam([{"params": [net.weight]}, {"params": [net.bias]}], lr=0.1), "1 parameter groups"),
        ([adam(lr=0.1), lambda net: SGD([net.weight], lr=0.1)], "1 in the checkpoint, 2 here"),
    ],
    ids=["class", "groups", "number"],
)
def test_classes_groups_and_parameters_may_not_change(now, says, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        resumed(tmp_path / "a", adam(lr=0.1), now)


@pytest.mark.parametrize("names", ["optimizer", ("optimiser",), ("network",), [1]])
def test_what_may_change_is_checked(names, tmp_path):
    engine_of(tmp_path / "a", adam()).run(until=lambda run: run.step == 3)
    with pytest.raises(EngineError, match=r"takes a tuple of names out of \('optimizer',\)"):
        engine_of(tmp_path / "a", adam()).run(resume="auto", allow_changes=names)


def test_it_goes_with_resume(tmp_path):
    with pytest.raises(EngineError, match="goes with resume"):
        engine_of(tmp_path / "a", adam()).run(allow_changes=("optimizer",))


@pytest.mark.parametrize("allowed", [(), ("optimizer",)])
def test_a_checkpoint_of_an_older_version_says_nothing_of_tuples(allowed, tmp_path, monkeypatch):
    """They are not compared; where they may change, with what the group held."""
    with monkeypatch.context() as older:
        whole = optimizers._plain_option
        older.setattr(optimizers, "_plain_option", lambda value: ... if isinstance(value, tuple) else whole(value))
        engine_of(tmp_path / "a", adam(lr=0.1)).run(until=lambda run: run.step == 3)
    run = engine_of(tmp_path / "a", adam(lr=0.1, betas=(0.5, 0.9))).run(resume="auto", allow_changes=allowed)
    changes = [event.option for event in run.log.notes() if isinstance(event, OptionChange)]
    assert changes == (["betas"] if allowed else [])
    assert run.optimizer.param_groups[0]["betas"] == ((0.5, 0.9) if allowed else (0.9, 0.999))


# -- a state that does not fit


@pytest.mark.parametrize(
    ("then", "now", "key"),
    [
        (adam(lr=0.1), adam(lr=0.1, amsgrad=True), "max_exp_avg_sq"),
        (
            lambda net: RMSprop(net.parameters(), lr=0.1),
            lambda net: RMSprop(net.parameters(), lr=0.1, momentum=0.9),
            "momentum_buffer",
        ),
    ],
    ids=["amsgrad", "momentum"],
)
def test_an_option_whose_moments_are_not_there_is_refused(then, now, key, tmp_path):
    """Else the first update would end with a KeyError."""
    engine_of(tmp_path / "a", then).run(until=lambda run: run.step == 3)
    engine = engine_of(tmp_path / "a", now)
    before = weights(engine.current.network)
    with pytest.raises(CheckpointError, match=rf"KeyError: '{key}'; found .*, expected .*{key}.*nothing was changed"):
        engine.run(resume="auto", allow_changes=("optimizer",))
    assert equal(weights(engine.current.network), before)
    assert engine.current.state == "idle"


def test_an_option_that_needs_no_moments_before_its_first_step_is_taken(tmp_path):
    """SGD makes its buffer when it is first needed."""

    def make(momentum: float) -> Make:
        return lambda network: SGD(network.parameters(), lr=0.1, momentum=momentum)

    run = resumed(tmp_path / "a", make(0.0), make(0.9))
    assert equal(weights(run.network), plain(make(0.0), 8, {"momentum": 0.9}, 3))


class Slow(SGD):
    """Has a state of a form of its own, and another one in another version."""

    version = 1

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        self.param_groups[0]["lr"] = 0.1 / self.steps
        super().step()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": super().state_dict(), f"steps of version {self.version}": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["inner"])
        self.steps = state[f"steps of version {self.version}"]


def slow(network: nn.Module) -> Optimizer:
    return Slow(network.parameters(), lr=0.1, momentum=0.9)


def test_an_optimizer_may_have_a_state_of_its_own_form(tmp_path):
    """It was stored, and resuming ended with `KeyError: 'state'`."""
    straight = engine_of(tmp_path / "b", slow).run()
    engine_of(tmp_path / "a", slow).run(until=lambda run: run.step == 3)
    run = engine_of(tmp_path / "a", slow).run(resume="auto")
    assert equal(weights(run.network), weights(straight.network))


def test_a_state_of_another_version_is_refused_before_anything_changes(tmp_path, monkeypatch):
    """Neither network nor optimizer; the engine can still begin a run of its own."""
    engine_of(tmp_path / "a", slow).run(until=lambda run: run.step == 3)
    monkeypatch.setattr(Slow, "version", 2)
    network = small_network()
    optimizer = slow(network)
    parts = small_components(network, loader=batches(4), optimizer=optimizer)
    engine = Engine(parts, RunConfig(epochs=2), [Checkpoint(tmp_path / "a", at="optimizer_update", overwrite=True)])
    before, state = weights(network), repr(optimizer.state_dict())
    with pytest.raises(
        CheckpointError,
        match=r"optimizers\[0\] \(a Slow\) cannot load .* KeyError: 'steps of version 2'; "
        r"found a dict of 'inner', 'steps of version 1', expected a dict of 'inner', 'steps of version 2'; nothing was",
    ):
        engine.run(resume="auto")
    assert equal(weights(network), before)
    assert repr(optimizer.state_dict()) == state
    assert engine.run().state == "finished"


class Forgetful(SGD):
    """Returns no state."""

    def state_dict(self) -> Any:  # type: ignore[override]
        return None


def test_a_state_that_is_none_is_refused_when_it_is_to_be_stored(tmp_path):
    with pytest.raises(CheckpointError, match=r"state_dict of the optimizer \(a Forgetful\) returned a NoneType"):
        engine_of(tmp_path / "a", lambda net: Forgetful(net.parameters(), lr=0.1)).run()
