"""`EarlyStopping`: it looks once an epoch, and its count is state."""

import math

import pytest

from builders import Side, batches, small_engine
from heptad import Detour, EngineError, PluginError
from heptad.testing import check_plugin
from heptad_plugins.early_stopping import EarlyStopping
from heptad_plugins.evaluate import Evaluate
from rebirth import Reborn

NAN = math.nan


def epochs_run(values, make, step=None):
    """Return how many epochs a run makes whose value of `error` in each epoch is given, and why it ended."""
    plugin = make() if step is None else Reborn(make, step)
    engine = small_engine(1, [plugin], epochs=len(values))
    engine.on_exit("after_step")(lambda run: run.record("error", values[run.epoch]))
    run = engine.run()
    return run.epoch, run.reason


@pytest.mark.parametrize(
    ("options", "values", "epochs"),
    [
        ({}, [3, 2, 1, 1, 1, 1, 1, 1], 6),
        ({}, [3, 3, 3, 2, 2, 2, 1, 1], 8),
        ({"patience": 1}, [3, 2, 2, 1], 3),
        ({"patience": 2, "mode": "max"}, [1, 2, 1, 1, 3], 4),
        ({"patience": 2, "mode": "max"}, [3, 2, 1, 4], 3),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.5, 0], 3),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.4, 2.4, 0], 5),
        ({"patience": 2}, [3, NAN, 2, NAN, NAN, 1], 5),
        ({"patience": 2}, [NAN, NAN, 1], 2),
        ({"patience": 2}, [NAN, 5, 4, 3], 4),
        ({"patience": 2, "every": 2}, [9, 3, 0, 3, 0, 3, 0, 0], 6),
    ],
)
def test_stops_after_so_many_looks_without_improvement(options, values, epochs):
    """The count begins anew at each improvement; NaN is not an improvement."""
    assert epochs_run(values, lambda: EarlyStopping("error", **options))[0] == epochs


def test_the_reason_says_values():
    """It stands in `run.reason`."""
    assert epochs_run([1.5, 2.25, 3.75], lambda: EarlyStopping("error", patience=2)) == (
        3,
        "EarlyStopping: error is 3.75, the best is 1.5, no improvement 2 times in a row (mode='min')",
    )


def test_the_reason_says_which_way_is_better():
    """An accuracy that is watched as if it were an error stops a run that improves; who reads the reason sees why."""
    assert epochs_run([0.5, 0.75, 1.0], lambda: EarlyStopping("error", patience=1))[1] == (
        "EarlyStopping: error is 0.75, the best is 0.5, no improvement 1 time (mode='min')"
    )
    assert epochs_run([0.5, 0.25, 1.0], lambda: EarlyStopping("error", "max", patience=1))[1] == (
        "EarlyStopping: error is 0.25, the best is 0.5, no improvement 1 time (mode='max')"
    )


def test_a_run_that_never_had_a_number_says_so():
    """Nothing is formatted as the best value."""
    reason = epochs_run([NAN, NAN, NAN], lambda: EarlyStopping("error", patience=2))[1]
    expected = "EarlyStopping: error is nan, there never was a number, no improvement 2 times in a row (mode='min')"
    assert reason == expected


def test_sees_the_value_of_the_epoch_that_is_just_complete():
    """An evaluation at the end of the epoch stands before it, whatever the order of the list."""
    values = iter([3.0, 4.0, 4.0, 4.0])
    record = Detour("evaluate", "optimizer_update", lambda run: True, lambda run: run.record("error", next(values)))
    run = small_engine(1, [EarlyStopping("error", patience=2), Side(record)], epochs=4).run()
    assert run.epoch == 3


# -- each new value


def updates_run(values, make, step=None, every=1):
    """Return how many updates a run makes that evaluates at every n-th update with these results, and why it ended."""
    plugin = make() if step is None else Reborn(make, step)
    left = iter(values)
    side = Detour("evaluate", "optimizer_update", lambda run: True, lambda run: run.record("error", next(left)), every)
    run = small_engine(4, [Side(side), plugin], epochs=len(values) * every).run()
    return run.update, run.reason


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "values", "judged"),
    [
        ({"patience": 2}, [3, 2, 2, 2, 1], 4),
        ({"patience": 1, "mode": "max"}, [1, 2, 3, 3, 4], 4),
        ({"patience": 3}, [3, NAN, NAN, 2, 2, 2, 2], 7),
    ],
)
def test_patience_counts_evaluations_however_often_they_are(options, values, judged, every):
    """In the middle of an epoch, or once in several epochs."""
    more = [*values, *[0] * 40]
    assert updates_run(more, lambda: EarlyStopping("error", **options), every=every)[0] == judged * every


def test_a_value_is_judged_once():
    """Where every second epoch is evaluated, the epochs between count for nothing, and the first is no error."""
    valid = Evaluate(batches(2), every=2)
    run = small_engine(1, [EarlyStopping("valid/loss", patience=2, min_delta=1e9), valid], epochs=20).run()
    assert (run.epoch, len(run.history("valid/loss"))) == (6, 3)


def test_all_values_since_the_last_look_are_judged():
    """In their order: two in one step are two."""
    engine = small_engine(1, [EarlyStopping("error", patience=3)], epochs=9)
    engine.on_exit("process_batch")(lambda run: [run.record("error", 1.0), run.record("error", 2.0)])
    assert engine.run().epoch == 2


def test_the_run_is_stopped_once():
    """The evaluation at the end of the epoch that is stopped is judged too, and asks for nothing more."""
    at = ("optimizer_update", "after_epoch")
    plugins = [EarlyStopping("valid/loss", patience=1, min_delta=1e9), Evaluate(batches(2), at=at, every=1)]
    run = small_engine(6, plugins, epochs=3, accumulation=2).run()
    assert (run.update, len(run.log.notes("stop"))) == (2, 1)


@pytest.mark.parametrize("step", range(9))
def test_built_anew_between_evaluations_it_stops_where_the_unbroken_run_does(step):
    """Which values were judged is state."""
    values = [5, 4, 4.5, 4.5, 3, 3, 3, 3, 0, 0, 0, 0]
    assert updates_run(values, lambda: EarlyStopping("error"), step, every=2)[0] == 16


def test_a_checkpoint_that_does_not_say_what_was_judged_is_taken_to_have_judged_all():
    """Those of earlier versions."""
    run = small_engine(1).current
    run.record("error", 9.0)
    plugin = EarlyStopping("error", patience=2)
    plugin.load_state_dict({"best": 1.0, "count": 1})
    plugin.open(run)
    plugin.on_exit_evaluate(run)
    places = {"seen": 1, "losses": {"update": 1, "epoch": 1}}
    assert plugin.state_dict() == {"best": 1.0, "count": 1, "stopped": False, **places}


def test_works_on_what_evaluate_records_at_the_end_of_every_other_epoch():
    """`every` says how rarely there is a value."""
    valid = Evaluate(batches(2), every=2)
    plugins = [EarlyStopping("valid/loss", every=2, patience=1, min_delta=1e9), valid]
    assert small_engine(1, plugins, epochs=9).run().epoch == 4


def test_a_monitor_that_was_never_recorded_is_an_error_that_names_what_was():
    """The message has the missing name and the recorded ones."""
    engine = small_engine(2, [EarlyStopping("valid/los")])
    engine.on_exit("after_step")(lambda run: run.record("valid/loss", 1.0))
    with pytest.raises(EngineError, match=r"EarlyStopping\(monitor='valid/los'\).*recorded so far: 'valid/loss'"):
        engine.run()


def test_passes_over_an_epoch_without_a_step():
    """Where the data cannot fill a window, there is nothing to look at, and nothing that is missing."""
    engine = small_engine(1, [EarlyStopping("error", patience=1)], epochs=3, accumulation=2, remainder="drop")
    run = engine.run()
    assert (run.epoch, run.step, run.reason) == (3, 0, "epochs=3 complete")


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("mode", ["min", "max"])
def test_built_anew_from_its_state_it_stops_where_the_unbroken_run_does(step, mode):
    """Best value and count are state."""
    sign = 1 if mode == "min" else -1
    values = [sign * value for value in [5, 4, 4.5, NAN, 3, 3, 3.5, 4, 1]]
    assert epochs_run(values, lambda: EarlyStopping("error", mode), step)[0] == 8


@pytest.mark.parametrize(
    "options",
    [
        {"monitor": ""},
        {"monitor": 3},
        {"monitor": "loss", "mode": "lower"},
        {"monitor": "loss", "patience": 0},
        {"monitor": "loss", "patience": 1.0},
        {"monitor": "loss", "min_delta": -0.1},
        {"monitor": "loss", "every": 0},
    ],
)
def test_bad_options_are_refused_when_it_is_built(options):
    """The message names the option."""
    with pytest.raises(PluginError, match=rf"EarlyStopping\({list(options)[-1]}=…\)"):
        EarlyStopping(**options)


def test_passes_the_conformance_kit():
    """Paused, rebuilt and restored anywhere, on every path."""
    check_plugin(lambda: EarlyStopping("valid/loss", patience=1))
