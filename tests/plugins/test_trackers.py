"""What holds for all three trackers: values, resuming, endings; each in its own store on this machine, read back."""

from __future__ import annotations

import math
import sys
import threading

import pytest

from builders import Planned, batches, small_engine
from heptad import Engine, Plugin, PluginError, Run
from heptad_plugins import Checkpoint, Evaluate
from trackers import LOGGERS, TOOLS, engine_of_ten, logger, points, recorded, uploaded

pytestmark = pytest.mark.parametrize("tool", TOOLS)


class Odd(Plugin):
    """Records values that are no finite numbers, and names that trackers need for themselves."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        for name, value in {"nan": float("nan"), "endless": float("-inf"), "step": 1.0, "update": 2.0}.items():
            run.record(name, value)


class Counts(Plugin):
    """Records one value more at each update."""

    observes = True

    def on_exit_optimizer_update(self, run: Run) -> None:
        run.record("count", run.update)


def test_every_recorded_value_is_there_at_its_update(tool, tmp_path):
    """Those that others record, the means of the loss, and the learning rate."""
    run = small_engine(3, [logger(tool, tmp_path), Evaluate(batches(2))], epochs=2).run()
    (found,) = points(tool, tmp_path)
    assert set(found) == {"train/loss", "train/epoch_loss", "lr", "valid/loss"}
    assert found == recorded(run)
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["valid/loss"]] == [3, 6]


def test_every_nth_update_has_its_loss_and_rate(tool, tmp_path):
    """The other values are all there."""
    small_engine(6, [logger(tool, tmp_path, every=4, first=1), Evaluate(batches(1))]).run()
    (found,) = points(tool, tmp_path)
    assert {name: [step for step, _ in values] for name, values in found.items()} == {
        "train/loss": [1, 5],
        "lr": [1, 5],
        "train/epoch_loss": [6],
        "valid/loss": [6],
    }


def test_a_directory_without_checkpoints_and_a_parameter_of_the_run_are_named(tool, tmp_path):
    """The first may be misspelt; the second stands in place of what the run has."""
    plugin = logger(tool, tmp_path, checkpoints=tmp_path / "chekpoints", hparams={"config/accumulation": 7})
    run = small_engine(2, [plugin, Checkpoint(tmp_path / "checkpoints")]).run()
    notes = [note.text for note in run.log.notes("note")]
    assert any("hparams sets config/accumulation to 7; the run has 1" in text for text in notes)
    assert any("no checkpoint was found in " in text and "chekpoints, so none was uploaded" in text for text in notes)


def test_two_runs_of_one_object_are_two_runs_in_the_tracker(tool, tmp_path):
    """The second knows nothing of the first."""
    plugin = logger(tool, tmp_path)
    first, second = small_engine(2, [plugin]).run(), small_engine(3, [plugin]).run()
    found = points(tool, tmp_path)
    assert len(found) == 2
    assert all(recorded(run) in found for run in (first, second))


def test_a_paused_run_continues_its_run_in_the_tracker(tool, tmp_path):
    """Each value is there once, the evaluation after the pause too, at the update of the last loss before it."""
    engine = small_engine(3, [logger(tool, tmp_path), Evaluate(batches(1))], epochs=2)
    while not engine.current.ended:
        engine.run(until=lambda run: run.state == "evaluate" or run.update == 5)
    (found,) = points(tool, tmp_path)
    assert found == recorded(engine.current)


def test_what_was_sent_behind_the_checkpoint_is_not_sent_again(tool, tmp_path):
    """Two updates were made after it, in an attempt that was left; the evaluation at its own update came later."""
    stopped = engine_of_ten(tool, tmp_path)
    stopped.run(until=lambda run: run.update == 6)
    stopped.close()
    (before,) = points(tool, tmp_path)
    assert [step for step, _ in before["train/loss"]] == [1, 2, 3, 4, 5, 6]
    run = engine_of_ten(tool, tmp_path).run(resume="auto")
    assert run.resumed_from is not None
    (found,) = points(tool, tmp_path)
    assert found == recorded(run)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)], ids=["one less", "one more"])
def test_a_run_that_is_resumed_with_other_plugins_has_each_value_once(tool, tmp_path, before, after):
    """What was sent behind the checkpoint is known by name and update: by number it would be something else."""

    def engine(more: bool) -> Engine:
        made = [Counts()] if more else []
        stores = Checkpoint(tmp_path / "checkpoints", at="optimizer_update", every=4)
        return small_engine(10, [*made, logger(tool, tmp_path), Evaluate(batches(1)), stores])

    first = engine(before)
    first.run(until=lambda run: run.update == 7)
    sent = recorded(first.current)
    first.close()
    run = engine(after).run(resume="auto")
    assert run.resumed_from is not None
    counts = {"count": sent["count"]} if before else {}  # nothing that was sent is taken back
    assert points(tool, tmp_path) == [recorded(run) | counts]


@pytest.mark.parametrize("most", [1, 7, 30])
def test_a_resumed_run_that_has_more_values_than_may_wait_loses_none(tool, tmp_path, monkeypatch, most):
    """The tracker has lost all; each is sent when there is room."""
    stopped = engine_of_ten(tool, tmp_path / "lost")
    stopped.run(until=lambda run: run.update == 8)
    stopped.close()
    monkeypatch.setattr("heptad_plugins._tracker.MOST", most)
    run = engine_of_ten(tool, tmp_path, every=3).run(resume=tmp_path / "lost" / "checkpoints")
    (found,) = points(tool, tmp_path)
    expected = recorded(run)
    for name in ("train/loss", "lr"):
        expected[name] = [point for point in expected[name] if point[0] % 3 == 0]
    assert found == expected
    assert not any("could not be sent" in note.text for note in run.log.notes("note"))


def test_a_resumed_run_whose_tracker_lost_everything_writes_all(tool, tmp_path):
    """The run was deleted: the values before the checkpoint come from the checkpoint, and the log says so."""
    engine_of_ten(tool, tmp_path / "a").run(until=lambda run: run.update == 6)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoints").rename(tmp_path / "b" / "checkpoints")
    run = engine_of_ten(tool, tmp_path / "b").run(resume="auto")
    (found,) = points(tool, tmp_path / "b")
    assert found == recorded(run)
    assert [note.text for note in run.log.notes("note") if note.text.startswith(LOGGERS[tool].__name__)]


def test_a_run_that_finds_no_checkpoint_begins_one_of_its_own(tool, tmp_path):
    """What an attempt left that was killed before its first checkpoint stays as it is."""
    stopped = engine_of_ten(tool, tmp_path, checkpoint=False)
    stopped.run(until=lambda run: run.update == 2)
    run = engine_of_ten(tool, tmp_path).run(resume="auto")
    assert run.afresh
    found = points(tool, tmp_path)
    assert sorted(len(values["train/loss"]) for values in found) == [2, 10]
    assert recorded(run) in found


def test_values_that_are_no_numbers_and_names_that_are_taken(tool, tmp_path):
    """NaN and infinity are kept, as far as the tracker has them; no value is lost to its name."""
    small_engine(1, [Odd(), logger(tool, tmp_path)]).run()
    (found,) = points(tool, tmp_path)
    taken = {"mlflow": set(), "wandb": {"update"}, "trackio": {"step"}}[tool]
    names = {f"{name} (recorded)" if name in taken else name for name in ("step", "update", "nan", "endless")}
    assert names <= set(found)
    ((_, nan),), ((_, endless),) = found["nan"], found["endless"]
    assert math.isnan(nan)
    assert endless < -1e300


def test_the_threads_end_with_the_run(tool, tmp_path):
    """Also where it fails."""
    engine = small_engine(2, [logger(tool, tmp_path)])
    before = set(threading.enumerate())  # a test before this one may have left one in a call that nobody answers

    @engine.on_exit("optimizer_update")
    def fail(run: Run) -> None:
        raise Planned

    with pytest.raises(Planned):
        engine.run()
    assert not [thread for thread in {*threading.enumerate()} - before if thread.name.startswith("heptad")]
    (found,) = points(tool, tmp_path)
    assert "train/loss" in found


def test_options_that_do_not_fit_are_refused_when_it_is_built(tool, tmp_path):
    """With the name of the option."""
    name = LOGGERS[tool].__name__
    with pytest.raises(PluginError, match=rf"{name}\(wait=…\) must be a number from 0 on, got -1"):
        logger(tool, tmp_path, wait=-1)
    with pytest.raises(PluginError, match=rf"{name}\(hparams=…\): layers must be a number, .* got \[1\]"):
        logger(tool, tmp_path, hparams={"layers": [1]})
    with pytest.raises(PluginError, match=rf"{name}\(hparams=…\) must map names to values, .* got \['layers'\]"):
        logger(tool, tmp_path, hparams=["layers"])
    with pytest.raises(PluginError, match=rf"{name}\(run_name=…\) must be the name of the run, got ''"):
        logger(tool, tmp_path, run_name="")


def test_without_the_tool_the_error_names_the_extra(tool, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, tool, None)
    with pytest.raises(ImportError, match=rf"needs {tool}: pip install 'heptad\[{tool}\]'"):
        logger(tool, tmp_path)


def test_checkpoints_are_not_uploaded_unless_asked_and_rotation_breaks_nothing(tool, tmp_path):
    """One that was removed before its turn came is named in the log, and the run is finished."""
    checkpoint = Checkpoint(tmp_path / "checkpoints", at="optimizer_update", keep_last=1)
    run = small_engine(4, [checkpoint, logger(tool, tmp_path, checkpoints=tmp_path / "checkpoints")]).run()
    assert run.state == "finished"
    there = uploaded(tool, tmp_path)
    gone = [note.text for note in run.log.notes("note") if "was removed before it could be uploaded" in note.text]
    assert there
    assert len(there) + len(gone) == 4
    small_engine(2, [Checkpoint(tmp_path / "others"), logger(tool, tmp_path / "second")]).run()
    assert not uploaded(tool, tmp_path / "second")
