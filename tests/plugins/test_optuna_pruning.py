"""`OptunaPruning`: what is reported to a real trial and when, and how a pruned run ends."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import MedianPruner, NopPruner, ThresholdPruner
from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

from as_rank import as_rank
from builders import Planned, batches, equal, records, small_engine, weights
from heptad import Engine, EngineError, Plugin, PluginError, Run, TransitionLog
from heptad.testing import check_plugin
from heptad_plugins import Checkpoint, Evaluate, Journal, OptunaPruning
from programs import environment

NAN = math.nan
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def study_of(pruner: Any, storage: str | None = None, **options: Any) -> optuna.Study:
    """Return a study, in memory or in a database, whose connections end with their use: nobody closes a study."""
    kept = storage and RDBStorage(storage, engine_kwargs={"poolclass": NullPool})
    return optuna.create_study(pruner=pruner, storage=kept, study_name="s", load_if_exists=True, **options)


def values_by_epoch(values: list[float], plugin: Plugin, *others: Plugin, **config: Any) -> Engine:
    """Return an engine that records these values of `error` at the end of its epochs of two batches."""
    engine = small_engine(2, [plugin, *others], **{"epochs": len(values), **config})
    engine.on_exit("after_step")(lambda run: run.record("error", values[run.epoch]) if run.batch_index == 2 else None)
    return engine


def reported(study: optuna.Study) -> list[dict[int, float]]:
    return [trial.intermediate_values for trial in study.trials]


# -- what is reported


def test_by_epoch_each_epoch_is_a_step_from_zero(storage: str):
    study = study_of(NopPruner(), storage)
    trial = study.ask()
    values_by_epoch([3.0, 2.0, 1.0], OptunaPruning(trial, "error")).run()
    assert reported(study) == [{0: 3.0, 1: 2.0, 2: 1.0}]


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_by_epoch_trials_of_another_accumulation_meet_at_equal_steps(accumulation: int):
    study = study_of(NopPruner())
    plugins = [OptunaPruning(study.ask(), "valid/loss"), Evaluate(batches(2))]
    run = small_engine(4, plugins, epochs=3, accumulation=accumulation).run()
    assert reported(study) == [dict(enumerate(run.history("valid/loss")))]


def test_by_update_each_evaluation_is_a_step():
    study = study_of(NopPruner())
    plugins = [
        OptunaPruning(study.ask(), "valid/loss", by="update"),
        Evaluate(batches(2), at=("before_loop", "optimizer_update"), every=2),
    ]
    run = small_engine(6, plugins, epochs=1).run()
    assert reported(study) == [dict(zip([0, 2, 4, 6], run.history("valid/loss"), strict=True))]


def test_by_epoch_an_evaluation_before_training_and_those_within_an_epoch_are_not_reported():
    study = study_of(NopPruner())
    plugins = [
        OptunaPruning(study.ask(), "valid/loss"),
        Evaluate(batches(2), at=("before_loop", "optimizer_update"), every=2),
    ]
    run = small_engine(4, plugins, epochs=2).run()
    assert reported(study) == [dict(enumerate(run.history("valid/loss")[2::2]))]


@pytest.mark.parametrize("monitor", ["train/loss", "train/epoch_loss"])
def test_the_means_of_the_training_can_be_reported(monitor: str):
    study = study_of(NopPruner())
    run = small_engine(2, [OptunaPruning(study.ask(), monitor)], epochs=2).run()
    ends = run.history(monitor) if monitor == "train/epoch_loss" else run.history(monitor)[1::2]
    assert reported(study) == [dict(enumerate(ends))]


def test_a_monitor_that_was_never_recorded_is_an_error_that_names_what_was():
    engine = values_by_epoch([1.0], OptunaPruning(study_of(NopPruner()).ask(), "eror"))
    with pytest.raises(EngineError, match=r"OptunaPruning\(monitor='eror'\).*recorded so far: 'error'"):
        engine.run()


# -- how a pruned run ends


def test_a_pruned_run_ends_in_order_and_raises_then(tmp_path: Path):
    study = study_of(ThresholdPruner(upper=5.0))
    trial = study.ask()
    closed: list[str] = []

    class Closes(Plugin):
        def close(self, run: Run) -> None:
            closed.append(run.state)

    plugins = [Closes(), Checkpoint(tmp_path / "c"), Journal(tmp_path / "j")]
    engine = values_by_epoch([1.0, 9.0, 1.0], OptunaPruning(trial, "error"), *plugins)
    with pytest.raises(optuna.TrialPruned) as raised:
        engine.run()
    run, reason = engine.current, "OptunaPruning: trial 0 is pruned: error is 9 at epoch 1"
    assert (run.state, run.epoch, run.reason, str(raised.value)) == ("finished", 2, reason, reason)
    assert [note.text for note in run.log.notes("stop")] == [reason]
    assert run.log.path()[-3:] == ["checkpoint", "after_loop", "finished"]
    assert closed == ["finished"]
    assert TransitionLog.load(tmp_path / "j").path() == run.log.path()


def test_the_path_up_to_the_end_is_that_of_a_run_that_is_stopped():
    def stopping(run: Run) -> None:
        if run.epoch == 2:
            run.stop("OptunaPruning: trial 0 is pruned: error is 9 at epoch 1")

    pruned = values_by_epoch([1.0, 9.0, 1.0], OptunaPruning(study_of(ThresholdPruner(upper=5.0)).ask(), "error"))
    stopped = values_by_epoch([1.0, 9.0, 1.0], Plugin())
    stopped.on_exit("after_epoch")(stopping)
    with pytest.raises(optuna.TrialPruned):
        pruned.run()
    stopped.run()
    assert records(pruned.current.log) == records(stopped.current.log)
    assert equal(weights(pruned.current.network), weights(stopped.current.network))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_pruned_after_an_evaluation_in_mid_epoch_the_window_is_completed(accumulation: int):
    study = study_of(ThresholdPruner(upper=0.0))
    plugins = [OptunaPruning(study.ask(), "valid/loss", by="update"), Evaluate(batches(2), at="after_step")]
    engine = small_engine(6, plugins, epochs=2, accumulation=accumulation)
    with pytest.raises(optuna.TrialPruned):
        engine.run()
    run = engine.current
    assert (run.state, run.step, run.update, len(run.log.notes("stop"))) == ("finished", accumulation, 1, 1)


def test_in_the_last_epoch_too_a_trial_is_pruned():
    """As in the loop of Optuna's documentation, which asks after each epoch."""
    engine = values_by_epoch([1.0, 9.0], OptunaPruning(study_of(ThresholdPruner(upper=5.0)).ask(), "error"))
    with pytest.raises(optuna.TrialPruned):
        engine.run()


def test_a_run_that_is_driven_by_advance_raises_in_its_last_turn():
    engine = values_by_epoch([9.0, 1.0], OptunaPruning(study_of(ThresholdPruner(upper=5.0)).ask(), "error"))
    with pytest.raises(optuna.TrialPruned):
        while True:
            engine.advance()
    assert engine.current.state == "finished"
    engine.close()


def test_an_error_behind_the_decision_is_the_error_of_the_run():
    def fail(run: Run) -> None:
        raise Planned

    engine = values_by_epoch([9.0, 1.0], OptunaPruning(study_of(ThresholdPruner(upper=5.0)).ask(), "error"))
    engine.on_enter("after_loop")(fail)
    with pytest.raises(Planned):
        engine.run()
    assert engine.current.state == "failed"


def test_an_error_of_another_plugin_that_closes_is_not_hidden_by_it():
    class Fails(Plugin):
        def close(self, run: Run) -> None:
            raise Planned

    engine = values_by_epoch([9.0], OptunaPruning(study_of(ThresholdPruner(upper=5.0)).ask(), "error"), Fails())
    with pytest.raises(BaseExceptionGroup) as raised:
        engine.run()
    assert [type(error) for error in raised.value.exceptions] == [Planned, optuna.TrialPruned]


@pytest.mark.parametrize("values", [[NAN, 1.0, 1.0], [1.0, NAN, 1.0]])
def test_nan_is_reported_as_it_is(values: list[float], storage: str):
    study = study_of(ThresholdPruner(upper=5.0), storage)
    with pytest.raises(optuna.TrialPruned):
        values_by_epoch(values, OptunaPruning(study.ask(), "error")).run()
    assert [list(map(str, found.values())) for found in reported(study)] == [
        [str(value) for value in values[: values.index(NAN) + 1]]
    ]


def test_a_study_prunes_what_is_worse_than_the_median(storage: str):
    """`study.optimize` takes what comes out of `run()`."""
    study = study_of(MedianPruner(n_startup_trials=2), storage)

    def objective(trial: optuna.Trial) -> float:
        error = trial.suggest_categorical("error", [1.0, 2.0, 3.0, 9.0])
        run = values_by_epoch([error] * 3, OptunaPruning(trial, "error")).run()
        return run.metrics["error"]

    for error in (1.0, 2.0, 9.0, 1.0):
        study.enqueue_trial({"error": error})
    study.optimize(objective, n_trials=4)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert [len(found) for found in reported(study)] == [3, 3, 1, 3]


# -- continued


@pytest.mark.parametrize("pause", ["before_epoch", "checkpoint", "after_step"])
def test_a_paused_run_reports_each_step_once(pause: str, tmp_path: Path):
    study = study_of(NopPruner())
    engine = values_by_epoch([3.0, 2.0, 1.0], OptunaPruning(study.ask(), "error"), Checkpoint(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while not engine.current.ended:
            engine.run(until=pause)
    assert reported(study) == [{0: 3.0, 1: 2.0, 2: 1.0}]


PROGRAM = """
import os, sys
import optuna
from builders import batches, small_engine
from heptad_plugins import Checkpoint, Evaluate, OptunaPruning

optuna.logging.set_verbosity(optuna.logging.WARNING)
storage, folder, dies = sys.argv[1], sys.argv[2], int(sys.argv[3])
study = optuna.load_study(study_name="s", storage=storage)
trial = optuna.trial.Trial(study, study.trials[0]._trial_id) if study.trials else study.ask()
plugins = [Evaluate(batches(2)), OptunaPruning(trial, "valid/loss"), Checkpoint(folder, every=2)]
engine = small_engine(4, plugins, epochs=6)
engine.on_exit("after_step")(lambda run: os._exit(7) if run.epoch == dies else None)
engine.run(resume="auto")
"""


def program(storage: str, folder: Path, dies: int) -> int:
    command = [sys.executable, "-W", "error::UserWarning:optuna", "-c", PROGRAM, storage, str(folder), str(dies)]
    return subprocess.run(command, check=False, env=environment()).returncode


def test_a_trial_that_is_resumed_in_another_process_is_exact_and_reports_no_step_twice(storage: str, tmp_path: Path):
    """Killed in epoch 3, its newest checkpoint is that of epoch 2: epoch 2 is run again, and was reported."""
    study = study_of(NopPruner(), storage)
    assert [program(storage, tmp_path / "c", dies) for dies in (3, -1)] == [7, 0]
    other = study_of(NopPruner())
    small_engine(4, [Evaluate(batches(2)), OptunaPruning(other.ask(), "valid/loss")], epochs=6).run()
    assert reported(study) == reported(other)
    assert list(reported(study)[0]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("inherits", [True, False])
def test_a_retry_of_a_trial_that_failed_reports_what_it_has_not_inherited(inherits: bool, tmp_path: Path):
    """As Optuna queues one when the process of a trial has died."""
    newer = getattr(optuna.storages, "RetryHeartbeatStaleTrialCallback", None)  # the name since Optuna 4.9
    retry = newer or optuna.storages.RetryFailedTrialCallback
    study = study_of(NopPruner())

    def engine(trial: optuna.Trial) -> Engine:
        return values_by_epoch([3.0, 2.0, 1.0], OptunaPruning(trial, "error"), Checkpoint(tmp_path))

    first = study.ask()
    engine(first).run(until=lambda run: run.epoch == 2)
    study.tell(first, state=optuna.trial.TrialState.FAIL)
    retry(inherit_intermediate_values=inherits)(study, study.trials[0])
    engine(study.ask()).run(resume="auto")
    failed, retried = reported(study)
    assert failed == {0: 3.0, 1: 2.0}  # epoch 1 is run again: the newest checkpoint is that of epoch 0
    assert retried == {**(failed if inherits else {}), 1: 2.0, 2: 1.0}


class CountsQuestions(NopPruner):
    """Counts how often it is asked, and at which step."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        self.asked.append(trial.last_step)
        return False


def test_before_the_last_step_that_was_reported_nothing_is_asked():
    """Its answer would be about a value that the resumed run has not come to."""
    pruner = CountsQuestions()
    trial = study_of(pruner).ask()
    for step, value in enumerate([3.0, 2.0]):
        trial.report(value, step)
    values_by_epoch([3.0, 2.0, 1.0], OptunaPruning(trial, "error")).run()
    assert pruner.asked == [1, 2]


def test_a_checkpoint_behind_the_decision_raises_it_again(tmp_path: Path):
    def engine(trial: Any) -> Engine:
        return values_by_epoch([9.0, 1.0], Checkpoint(tmp_path), OptunaPruning(trial, "error"))

    study = study_of(ThresholdPruner(upper=5.0))
    first = engine(study.ask())
    with pytest.raises(optuna.TrialPruned):
        first.run()
    again = engine(study.ask())
    with pytest.raises(optuna.TrialPruned, match="trial 0 is pruned"):
        again.run(resume="auto")
    assert (again.current.epoch, reported(study)[1]) == (1, {})


def test_a_run_that_is_resumed_without_the_plugin_trains_on(tmp_path: Path):
    study = study_of(NopPruner())
    values_by_epoch([3.0, 2.0], OptunaPruning(study.ask(), "error"), Checkpoint(tmp_path)).run(until="after_epoch")
    engine = values_by_epoch([3.0, 2.0, 1.0], Checkpoint(tmp_path, overwrite=True))
    engine.run(until=lambda run: run.epoch == 2)
    assert engine.current.epoch == 2


# -- ranks


def test_another_rank_needs_no_trial_and_raises_when_all_have_agreed():
    def agree(run: Run) -> None:
        if run.update == 3:
            run.ask("OptunaPruning.prune")
            run.stop("rank 0 said so")

    engine = small_engine(8, [OptunaPruning(None, "train/loss")], engine_class=as_rank(1, agree=agree))
    with pytest.raises(optuna.TrialPruned, match="rank 0 said so"):
        engine.run()
    assert engine.current.update == 3


def test_another_rank_tells_the_storage_nothing():
    study = study_of(NopPruner())
    small_engine(2, [OptunaPruning(study.ask(), "train/loss")], engine_class=as_rank(1)).run()
    assert reported(study) == [{}]


def test_the_first_rank_needs_a_trial():
    with pytest.raises(PluginError, match=r"OptunaPruning\(trial=…\) is None on the first rank"):
        small_engine(plugins=[OptunaPruning(None, "error")])


# -- mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trial": 3}, r"OptunaPruning\(trial=…\) must be an optuna trial.*got 3"),
        ({"monitor": ""}, r"OptunaPruning\(monitor=…\)"),
        ({"by": "step"}, r"OptunaPruning\(by=…\) must be 'epoch' or 'update', got 'step'"),
    ],
)
def test_bad_options_are_refused_when_it_is_built(options: dict[str, Any], said: str):
    given = {"trial": optuna.trial.FixedTrial({}), "monitor": "error", **options}
    with pytest.raises(PluginError, match=said):
        OptunaPruning(**given)


def test_a_study_of_two_objectives_is_refused_when_it_is_built():
    trial = optuna.create_study(directions=["minimize", "maximize"]).ask()
    with pytest.raises(PluginError, match="study of 2 objectives"):
        OptunaPruning(trial, "error")


def test_it_cannot_be_detached():
    plugin = OptunaPruning(optuna.trial.FixedTrial({}), "error")
    plugin.on_error = "detach"
    with pytest.raises(PluginError, match=r"swallow optuna\.TrialPruned"):
        small_engine(plugins=[plugin])


@pytest.mark.parametrize("make", [optuna.trial.FixedTrial, None], ids=["fixed", "of a study"])
def test_passes_the_conformance_kit(make: Any):
    study = study_of(NopPruner())
    check_plugin(lambda: OptunaPruning(make({}) if make else study.ask(), "valid/loss"))


def test_a_further_run_of_one_trial_says_that_it_reports_nothing():
    """As one of cross-validation would be."""
    trial = study_of(NopPruner()).ask()
    first, second = (values_by_epoch([value] * 2, OptunaPruning(trial, "error")).run() for value in (2.0, 1.0))
    assert not first.log.notes("note")
    (note,) = second.log.notes("note")
    assert "the trial has values of 2 steps, the last 1, from before this run began" in note.text
