"""`TensorBoardLogger` in a run that is killed and resumed: each point once, as tensorboard's own reader sees them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from builders import Planned, batches, small_engine
from heptad import Engine, Plugin, Run, on_exit
from heptad_plugins import Checkpoint, Evaluate, TensorBoardLogger, _event_files

EPOCHS, STEPS = 2, 4


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each event file a second of its own, without waiting for it."""
    clock = itertools.count(1_000_000_000)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(clock)))
    monkeypatch.setattr(_event_files, "_wait_until_after", lambda files: None)


class Draws(Plugin):
    """Gives the logger's writer histograms after each step, epoch and evaluation, and records a value an epoch."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self.logger = logger

    @on_exit("after_step")
    def draw_step(self, run: Run) -> None:
        self.logger.writer.add_histogram("weights", torch.ones(2), run.update)

    @on_exit("after_epoch")
    def draw_epoch(self, run: Run) -> None:
        run.record("epochs", float(run.epoch))
        self.logger.writer.add_histogram("by epoch", torch.ones(2), run.epoch)

    on_exit_evaluate = draw_step


class Fails(Plugin):
    """Raises in the n-th call of its handlers, as a kill would end the run there."""

    def __init__(self, call: int | None) -> None:
        self.call, self.calls = call, 0

    def count(self, run: Run) -> None:
        self.calls += 1
        if self.calls == self.call:
            raise Planned

    on_enter_before_step = on_exit_after_step = on_enter_optimizer_update = on_exit_optimizer_update = count
    on_enter_after_epoch = on_exit_after_epoch = on_enter_before_epoch = on_exit_evaluate = count


def drive(folder: Path, call: int | None, places: Any) -> Run:
    """Drive a run, resumed if there is something to resume, up to a call of a handler."""
    logger = TensorBoardLogger(folder / "events")
    plugins = [logger, Draws(logger), Evaluate(batches(1)), Fails(call), Checkpoint(folder / "runs", at=places)]
    return small_engine(STEPS, plugins, epochs=EPOCHS, accumulation=2).run(resume="auto")


def points(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return (step, value) of all points by tag, without the shares of time: each session has them for its states."""
    reader = EventAccumulator(str(folder / "events"), size_guidance={"scalars": 0, "histograms": 0})
    reader.Reload()
    tags = reader.Tags()
    found = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags["scalars"]}
    found |= {tag: [(event.step, None) for event in reader.Histograms(tag)] for tag in tags["histograms"]}
    shares = [found.pop(tag) for tag in tags["scalars"] if tag.startswith("time/")]
    assert all(len({step for step, _ in share}) == len(share) for share in shares)
    return {tag: sorted(values) for tag, values in found.items()}


@pytest.mark.parametrize("places", ["after_epoch", "after_step", ("optimizer_update", "after_epoch")])
@pytest.mark.parametrize("calls", [(9,), (11, 7), (13, 13), (14, 9, 2, 3), (3, 2, 1), (16, 1, 1, 1)])
def test_a_run_that_is_killed_and_resumed_has_each_point_once(calls, places, tmp_path):
    """Those of the update that it resumes from too, and those of its writer; however often it is killed."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    drive(straight, None, places)
    for call in calls:
        with pytest.raises(Planned):
            drive(killed, call, places)
    drive(killed, None, places)
    assert points(killed) == points(straight)


def test_a_point_that_was_lost_with_the_killed_run_is_written(tmp_path, monkeypatch):
    """What was in no file is not left out."""
    drive(tmp_path / "straight", None, "after_epoch")
    closing = TensorBoardLogger.close
    monkeypatch.setattr(TensorBoardLogger, "close", lambda self, run: None)
    with pytest.raises(Planned):
        drive(tmp_path / "killed", 13, "after_epoch")
    monkeypatch.setattr(TensorBoardLogger, "close", closing)
    for file in (tmp_path / "killed" / "events").iterdir():
        file.write_bytes(file.read_bytes()[:-7])  # torn
    drive(tmp_path / "killed", None, "after_epoch")
    assert points(tmp_path / "killed") == points(tmp_path / "straight")


def test_points_of_others_at_that_update_stay(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "events")) as other:
        for update in range(5):
            other.add_scalar("other", update / 2, update)

    def engine(*more: Plugin) -> Engine:
        checkpoint = Checkpoint(tmp_path / "runs", at="optimizer_update")
        return small_engine(6, [TensorBoardLogger(tmp_path / "events"), *more, checkpoint])

    with pytest.raises(Planned):
        engine(Fails(11)).run()
    resumed = engine()
    resumed.run(resume="auto", until="before_step")
    update = resumed.current.update
    resumed.run()
    assert update == 2
    assert points(tmp_path)["other"] == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_files_are_later_by_name(monkeypatch, tmp_path):
    """A resumed run waits for the next second: by name TensorBoard knows which file hides the points of which."""
    slept: list[float] = []
    now = [100.25]
    fake = SimpleNamespace(
        time=lambda: now[0], monotonic=lambda: now[0], sleep=lambda s: (slept.append(s), now.__setitem__(0, now[0] + s))
    )
    monkeypatch.undo()
    monkeypatch.setattr(_event_files, "time", fake)
    wait: Callable[[list[Path]], None] = _event_files._wait_until_after
    wait([tmp_path / "events.out.tfevents.0000000100.host.7.0", tmp_path / "events.out.tfevents.0000000099.host.9.1"])
    assert 101 <= now[0] < 101.1
    wait([tmp_path / "events.out.tfevents.0000000900.host.7.0"])  # a clock that was ahead is not waited for
    assert now[0] < 103
