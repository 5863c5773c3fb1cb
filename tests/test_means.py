"""The mean loss of a window and of an epoch, and metrics of the training, against plain arithmetic."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from builders import Unsized, batches, equal, small_components, small_engine, small_network, weights
from heptad import Components, Engine, EngineError, LossOutput, Plugin, PluginError, Run, RunConfig
from heptad.plugin import monitored
from heptad.record.values import RecordedValues
from heptad_plugins import (
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Journal,
    LRSchedule,
    NonFiniteGuard,
    Progress,
    TensorBoardLogger,
    TrainingMetrics,
)

DOUBLE = torch.float64


def uneven(count: int) -> list[Any]:
    """Return batches of one, two, three … samples."""
    return [batches(1, size, DOUBLE)[0] for size in range(1, count + 1)]


def engine_of(data: Any, plugins: Any = (), **config: Any) -> tuple[Engine, list[tuple[float, int]]]:
    """Return an engine, and a list that each step adds its loss and its number of samples to."""
    seen: list[tuple[float, int]] = []
    parts = {"criterion": config.pop("criterion")} if "criterion" in config else {}
    engine = Engine(
        small_components(small_network(DOUBLE), loader=data, **parts),
        RunConfig(**{"epochs": 1, **config}),
        list(plugins),
    )

    @engine.on_exit("process_batch")
    def see(run: Run) -> None:
        seen.append((run.loss.item(), len(run.batch[1])))

    return engine, seen


def mean_of_steps(steps: list[tuple[float, int]]) -> float:
    return sum(loss * size for loss, size in steps) / sum(size for _, size in steps)


@pytest.mark.parametrize("data", [uneven(7), Unsized(uneven(7))], ids=["sized", "stream"])
@pytest.mark.parametrize("remainder", ["extend", "flush", "drop"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_mean_loss_is_that_of_the_window_just_closed(k, remainder, data):
    """Weighed by samples; on entry to and on exit of each update, and until the next window is complete."""
    engine, seen = engine_of(data, accumulation=k, remainder=remainder, epochs=2)
    entered: list[float] = []
    left: list[float] = []
    engine.on_enter("optimizer_update")(lambda run: entered.append(run.mean_loss.item()))

    @engine.on_exit("optimizer_update")
    def compare(run: Run) -> None:
        held = run._position.window.steps or (len(seen) - 1) % 7 % k + 1 if remainder == "flush" else k
        left.append(run.mean_loss.item())
        assert left[-1] == pytest.approx(mean_of_steps(seen[-held:]), rel=1e-12)
        assert run.mean_loss.dtype == DOUBLE
        assert not run.mean_loss.requires_grad

    between: list[bool] = []
    engine.on_enter("before_step")(lambda run: between.append(not left or run.mean_loss.item() == left[-1]))
    run = engine.run()
    assert len(left) == run.update > 0
    assert entered == left
    assert all(between)


def test_there_is_no_mean_before_a_window_is_complete():
    engine, _ = engine_of(uneven(4), accumulation=3)
    found: list[Any] = [engine.current.mean_loss]
    engine.on_exit("after_step")(lambda run: found.append(run.mean_loss is None))
    engine.run()
    assert found == [None, True, True, False, False, False, False]


@pytest.mark.parametrize(("weighted", "expected"), [(True, (2 * 2 + 6 * 6) / 8), (False, 4.0)])
def test_the_mean_is_weighed_as_the_window_is(weighted, expected):
    """By the weights that are given; without, all steps weigh the same. In the dtype of the losses."""
    losses = iter([2.0, 6.0])

    def compute_loss(network: nn.Module, batch: Any) -> LossOutput:
        loss = next(losses)
        return LossOutput(network(batch[0]).sum() * 0 + loss, weight=loss if weighted else None)

    parts = small_components(compute_loss=compute_loss, loader=batches(2))
    run = Engine(parts, RunConfig(epochs=1, accumulation=2)).run()
    assert run.mean_loss.dtype == torch.float32
    assert run.mean_loss.item() == pytest.approx(expected)


def loggers(folder: Any) -> dict[str, Any]:
    return {
        "Progress": lambda: Progress(file=io.StringIO()),
        "CSVLogger": lambda: CSVLogger(folder / "a.csv"),
        "TensorBoardLogger": lambda: TensorBoardLogger(folder / "events"),
        "Journal": lambda: Journal(folder / "a.journal"),
        "TrainingMetrics": TrainingMetrics,
    }


NAMES = [*loggers(None), "all"]


def made(name: str, folder: Any) -> list[Plugin]:
    return [make() for key, make in loggers(folder).items() if name in (key, "all")]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_means_are_recorded_once_by_whoever_logs(name, k, tmp_path):
    """`train/loss` an update and `train/epoch_loss` an epoch, the mean over its steps, by however many loggers."""
    engine, seen = engine_of(uneven(6), made(name, tmp_path), accumulation=k, epochs=2)
    run = engine.run()
    windows = [seen[first : first + k] for first in range(0, 12, k)]
    assert run.history("train/loss") == pytest.approx([mean_of_steps(window) for window in windows], rel=1e-12)
    assert run.history("train/epoch_loss") == pytest.approx(
        [mean_of_steps(seen[:6]), mean_of_steps(seen[6:])], rel=1e-12
    )
    assert run.history("loss") == []
    places = [(value.step, value.update, value.epoch) for value in run.records() if value.name == "train/epoch_loss"]
    assert places == [(6, 6 // k, 1), (12, 12 // k, 2)]


@pytest.mark.parametrize("remainder", ["extend", "flush", "drop"])
@pytest.mark.parametrize("sized", [True, False])
def test_the_mean_of_an_epoch_is_over_all_its_steps(remainder, sized):
    """Of an extended one too, and of steps that no update was made of."""
    data = uneven(5)
    engine, seen = engine_of(data if sized else Unsized(data), [TrainingMetrics()], accumulation=3, remainder=remainder)
    run = engine.run()
    assert run.history("train/epoch_loss") == pytest.approx([mean_of_steps(seen)], rel=1e-12)
    assert run.epoch_loss.item() == run.history("train/epoch_loss")[-1]


def test_steps_that_add_nothing_are_in_no_mean():
    """A batch of ignored targets, whose loss is NaN."""
    data = uneven(4)
    data[1][1].fill_(-100)
    engine, seen = engine_of(
        data,
        [TrainingMetrics({"one": lambda output, batch: torch.ones(()) * math.nan ** (batch[1][0] < 0)})],
        accumulation=2,
    )
    run = engine.run()
    kept = [step for step in seen if not math.isnan(step[0])]
    assert len(kept) == 3
    assert run.history("train/loss") == pytest.approx([kept[0][0], mean_of_steps(kept[1:])], rel=1e-12)
    assert run.history("train/epoch_loss") == pytest.approx([mean_of_steps(kept)], rel=1e-12)
    assert run.history("train/one") == [1.0]


def test_a_skipped_update_is_in_no_mean():
    """The guard leaves it out, and the mean of the epoch stays a number."""
    data = uneven(4)
    data[2][0].fill_(math.nan)
    engine, seen = engine_of(data, [NonFiniteGuard("skip"), TrainingMetrics()])
    run = engine.run()
    kept = [step for step in seen if not math.isnan(step[0])]
    assert run.history("train/loss") == [loss for loss, _ in kept]
    assert run.history("train/epoch_loss") == pytest.approx([mean_of_steps(kept)], rel=1e-12)


def test_values_of_the_users_own_stand_alone(tmp_path):
    """Where somebody records these names, the loggers leave them."""
    engine, _ = engine_of(uneven(3), made("all", tmp_path))
    engine.on_exit("process_batch", every=2)(lambda run: run.record("train/loss", 7.0))
    engine.on_enter("after_epoch")(lambda run: run.record("train/epoch_loss", 8.0))
    run = engine.run()
    assert [value == 7.0 for value in run.history("train/loss")] == [False, True, False]
    assert run.history("train/epoch_loss") == [8.0]


def test_nothing_is_summed_where_no_plugin_asks(tmp_path):
    """No handler, and no mean of an epoch; a journal without values asks for none."""
    engines = [engine_of(uneven(2))[0], engine_of(uneven(2), [Journal(tmp_path / "a", values=False)])[0]]
    for engine in engines:
        run = engine.run()
        assert (run.epoch_loss, run.records()) == (None, [])


def test_the_mean_of_a_window_of_one_step_stays_when_windows_grow():
    """Until the next one is complete."""

    class Grow(Plugin):
        def __init__(self) -> None:
            self.seen: list[tuple[float, float]] = []

        def on_exit_optimizer_update(self, run: Run) -> None:
            run.set_accumulation(3)

        def on_exit_after_step(self, run: Run) -> None:
            assert run.mean_loss is not None
            assert run.loss is not None
            self.seen.append((run.mean_loss.item(), run.loss.item()))

    grow = Grow()
    engine, _ = engine_of(uneven(4), [grow], criterion=lambda output, target: output.square().mean())
    engine.run()
    (first, loss), *others = grow.seen
    assert first == loss
    assert [mean for mean, _ in others[:2]] == [first, first]
    window = [(loss, size) for (_, loss), size in zip(others, (2, 3, 4), strict=True)]
    assert others[2][0] == pytest.approx(mean_of_steps(window))


def test_the_mean_of_bfloat16_losses_has_more_digits_than_they():
    """As `train/epoch_loss` has."""
    losses: list[float] = []

    def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor:
        loss = network(batch[0]).square().mean().bfloat16()
        losses.append(loss.item())
        return loss

    parts = small_components(compute_loss=compute_loss, loader=batches(3))
    run = Engine(parts, RunConfig(epochs=1, accumulation=3), [TrainingMetrics()]).run()
    assert run.history("train/loss") == pytest.approx([sum(losses) / 3], rel=1e-6)


def test_progress_shows_means():
    """In the line of an epoch its mean loss."""
    out = io.StringIO()
    engine, seen = engine_of(uneven(4), [Progress(file=out)], accumulation=2)
    engine.run()
    assert out.getvalue().startswith(f"epoch 1/1  loss {mean_of_steps(seen):.4f}  ")
    assert out.getvalue().count("loss") == 1


def test_the_weight_of_a_step_can_be_read():
    """Samples, elements, what `LossOutput` says, 1 for a bare scalar, 0 for a step that adds nothing."""
    found: list[Any] = []

    def read(**given: Any) -> list[Any]:
        engine = Engine(small_components(loader=batches(1, 4), **given), RunConfig(epochs=1))
        found.clear()
        engine.on_exit("process_batch")(lambda run: found.append(run.weight))
        engine.on_exit("after_step")(lambda run: found.append(run.weight))
        engine.run()
        return found

    assert read() == [4, None]
    assert read(criterion=lambda output, target: output.mean()) == [4, None]
    assert read(compute_loss=lambda network, batch: network(batch[0]).mean()) == [1, None]
    assert read(compute_loss=lambda network, batch: LossOutput(network(batch[0]).mean(), weight=9)) == [9, None]
    assert read(compute_loss=lambda network, batch: None) == [0, None]


def accuracy(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return output.argmax(1) == batch[1]


@pytest.mark.parametrize("k", [1, 3])
def test_training_metrics_are_means_over_the_samples_of_an_epoch(k):
    """Of what the network gave at that step, one value a sample or the mean of a batch; no graph is kept."""
    given: list[tuple[float, float, int]] = []
    metrics = {"accuracy": accuracy, "largest": lambda output, batch: output.max(), "plain": lambda output, batch: 2}
    engine, _ = engine_of(uneven(6), [TrainingMetrics(metrics)], accumulation=k, epochs=2)

    @engine.on_exit("process_batch")
    def see(run: Run) -> None:
        right, size = accuracy(run.output, run.batch), len(run.batch[1])
        given.append((right.double().mean().item(), run.output.max().item(), size))

    run = engine.run()
    for place, name in enumerate(("accuracy", "largest")):
        epochs = [[(step[place], step[2]) for step in given[first : first + 6]] for first in (0, 6)]
        assert run.history(f"train/{name}") == pytest.approx(list(map(mean_of_steps, epochs)), rel=1e-12)
    assert run.history("train/plain") == [2.0, 2.0]


class Still(Plugin):
    """Lets no update be made but a first one of nothing."""

    def on_enter_optimizer_update(self, run: Run) -> None:
        for parameter in run.network.parameters():
            parameter.grad = None


def test_weights_of_classes_are_those_of_the_loss_alone():
    """An accuracy is the share of right answers, in training and in evaluation; ignored targets count in neither."""
    given = [(data, target) for data, target in uneven(4)]
    given[1][1][0] = -100
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 20.0, 0.1], dtype=DOUBLE))
    metrics = {"right": lambda output, batch: (output.argmax(1) == batch[1]).sum() / (batch[1] != -100).sum()}
    engine, _ = engine_of(given, [TrainingMetrics(metrics), Still()], criterion=criterion)
    run = engine.run()
    with torch.no_grad():
        right = sum((run.network(data).argmax(1) == target).sum().item() for data, target in given)
    expected = right / sum((target != -100).sum().item() for _, target in given)
    assert run.history("train/right") == pytest.approx([expected], rel=1e-12)
    assert engine.evaluate(given, metrics)["right"] == pytest.approx(expected, rel=1e-12)


def test_training_metrics_leave_out_skipped_updates_as_the_mean_loss_does():
    """The loss as a metric is `train/epoch_loss`."""
    metrics = {"again": lambda output, batch: nn.functional.cross_entropy(output, batch[1])}

    class Skips(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            if run.windows in (0, 2):
                run.skip_update("to see")

    for remainder, count in (("extend", 6), ("drop", 5), ("flush", 5), ("carry", 5)):
        config = {"accumulation": 2, "remainder": remainder, "epochs": 2}
        engine, _ = engine_of(uneven(count), [TrainingMetrics(metrics), Skips()], **config)
        run = engine.run()
        assert run.history("train/again") == pytest.approx(run.history("train/epoch_loss"), rel=1e-6)


@pytest.mark.parametrize("value", [False, None, "x"], ids=repr)
def test_what_a_training_metric_must_give_is_said_with_its_name(value):
    """As `Evaluate` does."""
    engine, _ = engine_of(uneven(2), [TrainingMetrics({"odd": lambda output, batch: value})])
    with pytest.raises(EngineError, match=r"metrics\['odd'\] must return a tensor or a number"):
        engine.run()


@pytest.mark.parametrize(
    ("metrics", "match"),
    [
        ({"epoch_loss": accuracy}, "'epoch_loss' is always recorded"),
        ({"loss": accuracy}, "'loss' is always measured"),
        ({"a": 0.5}, "metrics maps names to functions"),
        ([accuracy], "metrics maps names to metrics, got a list"),
    ],
)
def test_what_is_no_training_metric_is_refused(metrics, match):
    with pytest.raises(PluginError, match=match):
        TrainingMetrics(metrics)


def test_metric_objects_and_steps_without_an_output_are_refused():
    class Gathers:
        def update(self, output: Any, target: Any) -> None: ...
        def compute(self) -> float: ...
        def reset(self) -> None: ...

    with pytest.raises(PluginError, match="'f1' gathers batches; give it to Evaluate"):
        TrainingMetrics({"f1": Gathers()})  # type: ignore[dict-item]
    parts = small_components(compute_loss=lambda network, batch: network(batch[0]).mean())
    with pytest.raises(PluginError, match="let compute_loss return LossOutput"):
        Engine(parts, RunConfig(epochs=1), [TrainingMetrics({"accuracy": accuracy})]).run()


def test_a_monitored_loss_of_the_old_name_says_what_to_name():
    run = small_engine(1).run()
    with pytest.raises(Exception, match=r"'train/loss', once an update, and as 'train/epoch_loss', once an epoch"):
        monitored(run, "loss", "EarlyStopping")


@pytest.mark.parametrize("k", [1, 3])
def test_means_are_resumed_exactly(k, tmp_path):
    """From a checkpoint in the middle of a window and of an epoch: the same values, to the bit."""

    def build(folder: str) -> Engine:
        network = small_network()
        parts = Components(
            network=network,
            loader=[batch for size in (3, 1, 2, 4, 2, 1) for batch in batches(1, size)],
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        )
        (tmp_path / folder).mkdir()
        plugins = [
            TrainingMetrics({"accuracy": accuracy}),
            Journal(tmp_path / folder / "a.journal"),
            Checkpoint(tmp_path / folder / "at", at=("after_step", "optimizer_update", "after_epoch"), keep_last=99),
        ]
        return Engine(parts, RunConfig(epochs=2, accumulation=k), plugins)

    straight = build("straight").run()
    values = [(value.name, value.value, value.update, value.epoch) for value in straight.records()]
    assert {"train/loss", "train/epoch_loss", "train/accuracy", "lr"} == {name for name, *_ in values}
    for checkpoint in sorted((tmp_path / "straight" / "at").glob("checkpoint-*"))[::3]:
        folder = f"from {checkpoint.name}"
        engine = build(folder)
        (tmp_path / folder / "a.journal").write_bytes((tmp_path / "straight" / "a.journal").read_bytes())
        run = engine.run(resume=checkpoint)
        assert [(value.name, value.value, value.update, value.epoch) for value in run.records()] == values
        assert equal(weights(run.network), weights(straight.network))
        assert (run.mean_loss, run.epoch_loss) == (straight.mean_loss, straight.epoch_loss)


WATCHERS: dict[str, Callable[[str], Plugin]] = {
    "EarlyStopping": lambda name: EarlyStopping(name, patience=99),
    "plateau of epochs": lambda name: plateau(name, "epoch"),
    "plateau of values": lambda name: plateau(name, "evaluation"),
    "plateau of updates": lambda name: plateau(name, "update"),
}


def plateau(name: str, interval: Any) -> LRSchedule:
    return LRSchedule(partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=1e9), interval, name)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger", "Journal", "Progress", "TrainingMetrics", "none"])
@pytest.mark.parametrize(
    ("name", "watcher"),  # at the first update there is no mean of the epoch
    [(name, watcher) for name in ("train/loss", "train/epoch_loss") for watcher in WATCHERS][:-1],
)
def test_the_means_can_be_watched_beside_any_logger(name, watcher, logger, order, tmp_path):
    """Each is there before it is looked at, once; and as soon as it can be."""
    loggers = {
        "CSVLogger": lambda: CSVLogger(tmp_path / "values.csv"),
        "TensorBoardLogger": lambda: TensorBoardLogger(tmp_path / "board"),
        "Journal": lambda: Journal(tmp_path / "journal"),
        "Progress": lambda: Progress(file=io.StringIO()),
        "TrainingMetrics": TrainingMetrics,
        "none": Plugin,
    }
    engine, seen = engine_of(uneven(4), [WATCHERS[watcher](name), loggers[logger]()][::order], epochs=2)
    run = engine.run()
    epochs = [mean_of_steps(seen[:4]), mean_of_steps(seen[4:])]
    expected = epochs if name == "train/epoch_loss" else [loss for loss, _ in seen]
    assert run.history(name) == pytest.approx(expected)
    if watcher != "EarlyStopping":  # each value halves the rate
        judged = 2 if watcher == "plateau of epochs" else len(expected)
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**judged)


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_rates_of_each_update_are_written_at_the_updates_that_are_asked_for(logger, tmp_path, monkeypatch):
    """And read then, not at each update: on an accelerator that would be a device sync."""
    asked: list[int] = []
    fetch = RecordedValues._fetch

    def count(self: Any) -> Any:
        asked.append(1)
        return fetch(self)

    monkeypatch.setattr(RecordedValues, "_fetch", count)
    reads = []
    for schedules in ([], [LRSchedule(lambda optimizer: ExponentialLR(optimizer, 0.9))]):
        engine, _ = engine_of(uneven(20), [logger(tmp_path / str(len(reads)), every=5), *schedules])
        engine.run()
        reads.append(len(asked))
        asked.clear()
    assert reads[0] == reads[1] < 10
    if logger is CSVLogger:
        rows = list(csv.DictReader((tmp_path / "1").read_text().splitlines()))
        assert [int(row["update"]) for row in rows if row["lr"]] == [5, 10, 15, 20]


def test_a_rate_of_each_epoch_is_written_whatever_its_update(tmp_path):
    """It is recorded where the epoch ends."""
    schedule = LRSchedule(lambda optimizer: ExponentialLR(optimizer, 0.9), "epoch")
    engine, _ = engine_of(uneven(7), [CSVLogger(tmp_path / "values.csv", every=10), schedule], epochs=3)
    engine.run()
    rows = list(csv.DictReader((tmp_path / "values.csv").read_text().splitlines()))
    assert [row["update"] for row in rows if row["lr"]] == ["7", "14", "21"]
