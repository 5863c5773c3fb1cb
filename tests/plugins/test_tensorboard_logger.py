"""`TensorBoardLogger`: what it writes is read back by tensorboard's own reader."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, StepLR
from torch.utils.tensorboard import SummaryWriter

from builders import STATES, Clock, batches, small_engine, small_network
from heptad import Components, Engine, EngineError, Plugin, PluginError, Run, RunConfig
from heptad_plugins.checkpoint import Checkpoint
from heptad_plugins.evaluate import Evaluate
from heptad_plugins.lr_schedule import LRSchedule
from heptad_plugins.tensorboard_logger import TensorBoardLogger
from heptad_plugins.wandb_logger import WandbLogger
from rebirth import Reborn


def read(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of all scalars by name, as tensorboard sees them."""
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def near(points: list[tuple[int, float]]) -> list[Any]:
    """Return points to compare with what was read: tensorboard keeps values in single precision."""
    return [(step, pytest.approx(value, rel=1e-6, nan_ok=True)) for step, value in points]


class Records(Plugin):
    """Records two values an epoch and one an update, at several moments."""

    def on_enter_process_batch(self, run: Run) -> None:
        run.record("step/thirds", run.step / 3)

    def on_exit_after_epoch(self, run: Run) -> None:
        run.record("infinite", float("inf"))
        run.record("none", float("nan"))


# -- scalars


def test_all_recorded_values_at_their_updates(tmp_path):
    """Under their names, each once, in the order of recording."""
    run = small_engine(4, [TensorBoardLogger(tmp_path), Records(), Evaluate(batches(2))], epochs=2).run()
    scalars = read(tmp_path)
    for name in run.metrics:
        assert scalars[name] == near([(value.update, value.value) for value in run.records() if value.name == name])
    assert {name for name in scalars if not name.startswith("time/")} == {*run.metrics, "train/lr"}
    assert [step for step, _ in scalars["valid/loss"]] == [4, 8]


@pytest.mark.parametrize(("every", "updates"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4]), (7, [])])
def test_loss_and_learning_rate_at_every_nth_update(every, updates, tmp_path):
    """The loss is the mean over the update's window."""
    engine = small_engine(6, [TensorBoardLogger(tmp_path, every=every)], accumulation=2, epochs=2)
    losses = {}
    engine.on_exit("optimizer_update")(lambda run: losses.__setitem__(run.update, run.mean_loss.item()))
    engine.run()
    scalars = read(tmp_path)
    assert scalars.get("train/loss", []) == near([(update, losses[update]) for update in updates])
    assert scalars.get("train/lr", []) == near([(update, 0.1) for update in updates])


@pytest.mark.parametrize("first", [False, True])
def test_the_learning_rate_is_that_of_the_update(first, tmp_path):
    """The one that it was made with, not the next one, and once; wherever the schedule stands in the list."""
    schedule = LRSchedule(lambda optimizer: StepLR(optimizer, step_size=2, gamma=0.5))
    logger = TensorBoardLogger(tmp_path)
    engine = small_engine(6, [logger, schedule] if first else [schedule, logger])
    used = []
    engine.on_enter("optimizer_update")(lambda run: used.append((run.update + 1, run.optimizer.param_groups[0]["lr"])))
    engine.run()
    assert [rate for _, rate in used] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    assert read(tmp_path)["train/lr"] == near(used)


@pytest.mark.parametrize("moment", ["enter", "exit"])
def test_a_recorded_loss_stands_alone(moment, tmp_path):
    """Where somebody records one in a step, the update of that step has no other."""
    engine = small_engine(3, [Sent(moment), TensorBoardLogger(tmp_path)])
    engine.run()
    assert [(step, value == 42.0) for step, value in read(tmp_path)["train/loss"]] == [
        (1, False),
        (2 - (moment == "enter"), True),
        (3, False),
    ]


class Sent(Plugin):
    """Records a loss of its own around the second update."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_enter_optimizer_update(self, run: Run) -> None:
        if self.moment == "enter" and run.update == 1:
            run.record("train/loss", 42.0)

    def on_exit_optimizer_update(self, run: Run) -> None:
        if self.moment == "exit" and run.update == 2:
            run.record("train/loss", 42.0)


def test_each_group_has_its_learning_rate(tmp_path):
    """Numbered over all optimizers, in the order in which they step; a rate may be a tensor."""
    network = nn.Sequential(small_network(), nn.Linear(3, 3))
    groups = [{"params": [network[0].weight]}, {"params": [network[0].bias], "lr": torch.tensor(0.25)}]
    optimizers = [torch.optim.SGD(groups, lr=0.5), torch.optim.SGD(network[1].parameters(), lr=0.125)]
    engine = Engine(
        Components(network=network, loader=batches(2), criterion=nn.CrossEntropyLoss(), optimizer=optimizers),
        RunConfig(epochs=1),
        plugins=[TensorBoardLogger(tmp_path)],
    )
    engine.run()
    scalars = read(tmp_path)
    rates = {name: scalars[name] for name in scalars if name.startswith("train/lr")}
    assert rates == {
        "train/lr/0": [(1, 0.5), (2, 0.5)],
        "train/lr/1": [(1, 0.25), (2, 0.25)],
        "train/lr/2": [(1, 0.125), (2, 0.125)],
    }


def test_a_skipped_update_has_neither(tmp_path):
    """Nothing was updated, and the count has not changed."""
    engine = small_engine(4, [TensorBoardLogger(tmp_path)])
    engine.on_enter("optimizer_update", every=2)(lambda run: run.skip_update("no"))
    engine.run()
    scalars = read(tmp_path)
    assert [step for step, _ in scalars["train/loss"]] == [step for step, _ in scalars["train/lr"]] == [1, 2]


# -- shares of time


def shares(directory: Path) -> list[tuple[int, dict[str, float]]]:
    """Return for each epoch the update at its end, and the shares by state."""
    points: dict[int, dict[str, float]] = {}
    for name, values in read(directory).items():
        if name.startswith("time/"):
            for step, value in values:
                points.setdefault(step, {})[name.removeprefix("time/")] = value
    return sorted(points.items())


def timed(clock: Clock, logger: Plugin, epochs: int = 3) -> Engine:
    """Return an engine whose forward pass takes 3 ms, its data 1 ms, its evaluation 8 ms, all else no time."""
    engine = small_engine(4, [Evaluate(batches(2)), logger], epochs=epochs)
    for state, milliseconds in (("process_batch", 3), ("before_step", 1), ("evaluate", 8)):

        def work(run: Run, milliseconds: int = milliseconds) -> None:
            clock.now += milliseconds * 10**6

        engine.on_exit(state)(work)
    return engine


EXPECTED = {"process_batch": 0.5, "before_step": 1 / 6, "evaluate": 1 / 3}
"""The shares of these: 12, 4 and 8 of 24 ms."""


def worked(point: dict[str, float]) -> dict[str, float]:
    """Return the shares that are not 0."""
    return {state: share for state, share in point.items() if share}


def test_each_epoch_has_its_shares_of_time(clock, tmp_path):
    """Of that epoch alone, in every state that was left by then; together they are 1."""
    timed(clock, TensorBoardLogger(tmp_path)).run()
    found = shares(tmp_path)
    assert [(step, worked(point)) for step, point in found] == [
        (step, pytest.approx(EXPECTED, rel=1e-6)) for step in (4, 8, 12)
    ]
    assert set(found[-1][1]) == {"idle", *STATES, "evaluate"} - {"after_loop"}
    assert all(sum(point.values()) == pytest.approx(1) for _, point in found)


def test_an_epoch_counts_alone(clock, tmp_path):
    """A slow epoch leaves the shares of the next one as they are."""
    engine = timed(clock, TensorBoardLogger(tmp_path), epochs=2)

    @engine.on_exit("optimizer_update", once=True)
    def sleep(run: Run) -> None:
        clock.now += 24 * 10**6

    engine.run()
    (_, slow), (_, other) = shares(tmp_path)
    assert worked(slow) == pytest.approx({"optimizer_update": 0.5, **{s: p / 2 for s, p in EXPECTED.items()}}, rel=1e-6)
    assert worked(other) == pytest.approx(EXPECTED, rel=1e-6)


def test_paused_time_is_left_out(clock, tmp_path):
    """However often the run is paused."""
    engine = timed(clock, TensorBoardLogger(tmp_path), epochs=2)
    while not engine.current.ended:
        engine.run(until="process_batch")
        clock.now += 10**12
    assert [worked(point) for _, point in shares(tmp_path)] == [pytest.approx(EXPECTED, rel=1e-6)] * 2


def test_a_log_that_forgets_still_gives_shares(tmp_path):
    """Over the transitions that it keeps: none is negative, and together they are 1."""
    small_engine(300, [TensorBoardLogger(tmp_path, every=300)], epochs=5, log_capacity=500).run()
    found = shares(tmp_path)
    assert [step for step, _ in found] == [300, 600, 900, 1200, 1500]
    for _, point in found:
        assert all(share >= 0 for share in point.values())
        assert sum(point.values()) == pytest.approx(1, rel=1e-5)


# -- the directory


def test_what_is_there_after_an_epoch_is_on_disk(tmp_path):
    """It can be read while the run continues."""
    engine = small_engine(3, [TensorBoardLogger(tmp_path), Evaluate(batches(1))], epochs=2)
    seen = []

    @engine.on_exit("after_epoch")
    def look(run: Run) -> None:
        scalars = read(tmp_path)
        seen.append([len(scalars[name]) for name in ("train/loss", "train/lr", "valid/loss", "time/evaluate")])

    engine.run()
    assert seen == [[3, 3, 1, 1], [6, 6, 2, 2]]


def test_what_is_left_is_written_when_the_run_fails(tmp_path):
    """The values of the turn that failed are the interesting ones."""
    engine = small_engine(3, [TensorBoardLogger(tmp_path), Records()])

    @engine.on_enter("process_batch", every=3)
    def fail(run: Run) -> None:
        raise ValueError("oh")

    with pytest.raises(ValueError, match="oh"):
        engine.run()
    assert read(tmp_path)["step/thirds"] == near([(0, 0.0), (1, 1 / 3), (2, 2 / 3)])


@pytest.mark.parametrize("until", ["before_step", "optimizer_update", "after_epoch", "evaluate"])
def test_a_run_that_was_paused_has_the_same_scalars(until, tmp_path):
    """Each once, though every call opens a file of its own."""

    def scalars(directory: Path, **options: Any) -> dict[str, list[tuple[int, float]]]:
        engine = small_engine(3, [TensorBoardLogger(directory), Records(), Evaluate(batches(1))], epochs=2)
        while not engine.current.ended:
            engine.run(**options)
        return {name: values for name, values in read(directory).items() if not name.startswith(("time/", "none"))}

    assert scalars(tmp_path / "paused", until=until) == scalars(tmp_path / "straight")


class Resumed(Reborn):
    """A logger that is built anew before a step, as after a kill: the one before it writes no more."""

    def __init__(self, directory: Path, step: int) -> None:
        loggers: list[TensorBoardLogger] = []

        def make() -> TensorBoardLogger:
            loggers.append(TensorBoardLogger(directory))
            return loggers[-1]

        def renew(run: Run) -> None:
            assert loggers[-2]._writer is not None
            loggers[-2]._writer.close()
            loggers[-1].open(run)

        super().__init__(make, step, renew)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_resumed_run_writes_nothing_twice(step, tmp_path):
    """Built anew from its state it continues where it was."""
    run = small_engine(3, [Records(), Resumed(tmp_path, step)], epochs=2).run()
    scalars = read(tmp_path)
    assert [update for update, _ in scalars["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in scalars["step/thirds"]] == pytest.approx(run.history("step/thirds"), rel=1e-6)


def test_a_resumed_run_hides_what_was_written_for_later_updates(tmp_path):
    """By a run that went further before it was killed; what it wrote until then stays."""
    with SummaryWriter(str(tmp_path)) as before:
        for update in range(10):
            before.add_scalar("before", update / 2, update)
            before.add_scalar("train/loss", -1.0, 10 + update)
    small_engine(6, [Resumed(tmp_path, 4)]).run()
    scalars = read(tmp_path)
    assert scalars["before"] == [(update, update / 2) for update in range(5)]
    assert [update for update, _ in scalars["train/loss"]] == [1, 2, 3, 4, 5, 6]


def test_a_relative_directory_is_where_the_plugin_was_built(tmp_path, monkeypatch):
    """A program that changes its directory later still has one."""
    monkeypatch.chdir(tmp_path)
    engine = small_engine(2, [TensorBoardLogger("runs/a")])
    assert not (tmp_path / "runs").exists()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    engine.run()
    assert len(read(tmp_path / "runs" / "a")["train/loss"]) == 2


# -- options and failures


def test_without_tensorboard_the_error_names_the_extra(monkeypatch, tmp_path):
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'heptad\[tensorboard\]'"):
        TensorBoardLogger(tmp_path)


def test_a_directory_that_cannot_be_made_may_cost_the_logger_alone(tmp_path):
    """With `on_error="detach"` the run continues, and the log says so."""
    (tmp_path / "file").touch()
    run = small_engine(2, [TensorBoardLogger(tmp_path / "file" / "events", on_error="detach")]).run()
    assert run.state == "finished"
    assert [note.text.split(" raised ")[0] for note in run.log.notes("detach")] == ["TensorBoardLogger.open"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    """In an error of the plugin's, when the run is opened."""
    (tmp_path / "file").touch()
    with pytest.raises(PluginError, match=r"file/events cannot be written to: Not a directory; name another directory"):
        small_engine(2, [TensorBoardLogger(tmp_path / "file" / "events")]).run()


def test_a_second_run_of_the_same_object_is_written_whole(tmp_path):
    """How many values of the first were taken says nothing of the second."""
    logger = TensorBoardLogger(tmp_path)
    small_engine(5, [logger, Records()]).run()
    engine = small_engine(3, [logger])
    engine.on_exit("after_step")(lambda run: run.record("second", run.step))
    engine.run()
    assert [value for _, value in read(tmp_path)["second"]] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("every", [0, 1.0, True, "1"])
def test_every_is_checked_where_the_plugin_is_built(every, tmp_path):
    """And the message says what was found."""
    with pytest.raises(PluginError, match=r"TensorBoardLogger\(every=…\) must be a whole number from 1 on, got"):
        TensorBoardLogger(tmp_path, every=every)


# -- what is no scalar


def hyperparameters(directory: Path) -> list[dict[str, Any]]:
    """Return those of all sessions, as tensorboard's own page of them sees them."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = []
    for file in sorted(directory.glob("events*"), key=lambda file: file.stat().st_mtime_ns):
        reader = EventAccumulator(str(file)).Reload()
        data = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        info = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info
        found.append({name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()})
    return found


def test_config_and_optimizer_are_hyperparameters_and_a_text(tmp_path):
    """With the rate that the optimizer was built with, though a schedule writes another one before the first update."""
    schedule = LRSchedule(lambda optimizer: LinearLR(optimizer, 0.5))
    logger = TensorBoardLogger(tmp_path, hparams={"width": 4, "kind": "linear"})
    small_engine(3, [schedule, logger], accumulation=2).run()
    (found,) = hyperparameters(tmp_path)
    expected = {"epochs": 1, "accumulation": 2, "seed": 0, "network": "Linear", "width": 4, "kind": "linear"}
    assert expected.items() <= found.items()
    assert (found["optimizer"], found["optimizer/lr"], found["optimizer/momentum"]) == ("SGD", 0.1, 0.9)
    assert not any("params" in name or "initial" in name for name in found)
    reader = EventAccumulator(str(tmp_path)).Reload()
    (text,) = reader.Tensors("config/text_summary")
    assert "| accumulation | 2 |" in text.tensor_proto.string_val[0].decode()


def test_a_resumed_run_writes_its_own_hyperparameters(tmp_path):
    """It may be longer than the one before."""
    for epochs, resume in ((1, None), (2, "auto")):
        plugins = [TensorBoardLogger(tmp_path / "events"), Checkpoint(tmp_path / "checkpoints")]
        small_engine(3, plugins, epochs=epochs).run(resume=resume)
    assert [found["epochs"] for found in hyperparameters(tmp_path / "events")] == [1, 2]


def test_each_of_several_groups_has_its_options(tmp_path):
    network = small_network()
    groups = [{"params": [network.weight]}, {"params": [network.bias], "lr": 0.25}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    optimizer.param_groups[0]["lr"] = None
    components = Components(network=network, loader=batches(1), criterion=nn.CrossEntropyLoss(), optimizer=optimizer)
    engine = Engine(components, RunConfig(epochs=1), [TensorBoardLogger(tmp_path)])
    engine.on_enter("optimizer_update")(lambda run: run.skip_update("this optimizer cannot step"))
    engine.run()
    (found,) = hyperparameters(tmp_path)
    assert found["optimizer/1/lr"] == 0.25
    assert "optimizer/0/lr" not in found


def test_its_writer_takes_what_is_no_number(tmp_path):
    """An image, in a handler; outside of a run there is none."""
    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(EngineError, match="is there while a run is driven"):
        _ = logger.writer
    engine = small_engine(2, [logger])
    engine.on_exit("optimizer_update")(
        lambda run: logger.writer.add_image("weights", run.network.weight[None].clamp(0, 1), run.update)
    )
    engine.run()
    reader = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in reader.Images("weights")] == [1, 2]
    with pytest.raises(EngineError, match="is there while a run is driven"):
        _ = logger.writer


@pytest.mark.parametrize("value", [None, [1], torch.tensor(1.0)])
def test_a_hyperparameter_that_is_no_plain_value_is_refused(value, tmp_path):
    with pytest.raises(PluginError, match=r"TensorBoardLogger\(hparams=…\): width must be a number"):
        TensorBoardLogger(tmp_path, hparams={"width": value})


def test_first_is_the_first_update_that_is_written(tmp_path):
    small_engine(6, [TensorBoardLogger(tmp_path, every=3, first=1)]).run()
    assert [step for step, _ in read(tmp_path)["train/lr"]] == [1, 4]


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("interval", ["update", "epoch", None])
def test_each_update_has_its_rate_once_whoever_records_it_and_when(tmp_path, behind, interval):
    """A logger behind it records the rate that it has written itself, and a schedule by epoch at the end of one."""
    others = [WandbLogger("rates", mode="disabled")] if interval is None else []
    if interval is not None:
        others = [LRSchedule(lambda optimizer: ExponentialLR(optimizer, 0.9), interval=interval)]
    own = [TensorBoardLogger(tmp_path)]
    small_engine(3, [*own, *others] if behind else [*others, *own], epochs=2).run()
    assert [step for step, _ in read(tmp_path)["train/lr"]] == [1, 2, 3, 4, 5, 6]
