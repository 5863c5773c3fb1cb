"""What belongs to the engine and is reachable from a handler: an error says so, no wrong run comes of it."""

from __future__ import annotations

import pytest

from builders import Unsized, batches, equal, small_engine, weights
from heptad import EngineError
from heptad_plugins import Checkpoint


def act_once(engine, act, state="after_step", step=5):
    """Let a handler do something once."""

    @engine.on_exit(state)
    def _(run):
        if run.step == step:
            act(run)

    return engine


def set_counter(name, value):
    return lambda run: setattr(run._position, name, value)


COUNTERS = ["update", "step", "epoch"]


@pytest.mark.parametrize("name", COUNTERS)
def test_a_counter_that_a_handler_sets_ends_the_run_with_an_error(name):
    engine = act_once(small_engine(12, epochs=2), set_counter(name, 1 if name == "epoch" else 0))
    if name == "epoch":
        act_once(engine, set_counter("epoch", 0), step=18)
    with pytest.raises(EngineError, match=rf"the run and its log differ in .*{name}.*: a handler has written to"):
        engine.run()


def clear_arcs(run):
    run._buffer.arcs.clear()


def clear_both(run):
    run._buffer.arcs.clear()
    run._buffer.times.clear()


def drop_a_turn(run):
    run._buffer.arcs.pop()
    run._buffer.times.pop()


@pytest.mark.parametrize("act", [clear_arcs, clear_both, drop_a_turn])
def test_a_log_that_a_handler_cuts_ends_the_run_with_an_error(act):
    with pytest.raises(EngineError, match=r"differ in .*(turn|step).*: a handler has written to"):
        act_once(small_engine(12), act).run()


def test_it_is_found_before_a_checkpoint_and_in_an_older_chunk_of_the_log(tmp_path):
    """The run does not go on to its end with it, and no checkpoint holds it."""
    engine = act_once(small_engine(12, [Checkpoint(tmp_path / "c")], epochs=9), set_counter("update", 0))
    with pytest.raises(EngineError, match="differ in update"):
        engine.run()
    assert not list((tmp_path / "c").glob("checkpoint-*"))
    with pytest.raises(EngineError, match="differ in update"):
        act_once(small_engine(2_000), set_counter("update", 0)).run()


OWN = ["buffer", "capture", "position", "runtime"]
READ = ["config", "table", "log", "paused", "id", "resumed_from", "afresh", "state", "update", "step", "epoch", "loss"]


@pytest.mark.parametrize("name", [*OWN, *READ])
def test_what_is_read_of_a_run_cannot_be_set(name):
    def replace(run):
        with pytest.raises(AttributeError, match=f"run.{name} cannot be set: a handler acts through"):
            setattr(run, name, None)

    assert act_once(small_engine(6), replace).run().state == "finished"


@pytest.mark.parametrize("name", OWN)
def test_what_is_the_engines_is_not_found_by_a_handler(name):
    """So that `run.position.update = 0` is an error where it stands."""

    def read(run):
        assert not hasattr(run, name)
        with pytest.raises(AttributeError, match=f"run.{name} is the engine's own: .* acts through its verbs"):
            getattr(run, name)

    assert act_once(small_engine(6), read).run().state == "finished"


@pytest.mark.parametrize("state", ["before_epoch", "optimizer_update", "after_epoch"])
def test_a_batch_that_is_set_between_steps_is_refused(state):
    """It would be dropped, and stored in a checkpoint as the batch of a step."""
    engine = small_engine(3)
    engine.on_exit(state)(lambda run: setattr(run, "batch", batches(1)[0]))
    with pytest.raises(EngineError, match=f"the run is in {state}, where it has none"):
        engine.run()


@pytest.mark.parametrize("moment", ["exit before_step", "enter process_batch"])
def test_a_batch_is_replaced_before_its_step(moment):
    engine, (when, state) = small_engine(3), moment.split()
    (engine.on_enter if when == "enter" else engine.on_exit)(state)(lambda run: setattr(run, "batch", batches(1)[0]))
    other = small_engine(batches(1) * 3).run()
    assert equal(weights(engine.run().network), weights(other.network))


def test_an_attribute_that_is_misspelt_is_named():
    run = small_engine(1).current
    with pytest.raises(AttributeError, match="a run has no attribute 'updates'"):
        run.updates  # noqa: B018 - it is read


@pytest.mark.parametrize(
    "act",
    [
        lambda run: run.table.index.clear(),
        lambda run: run.table.leaving.clear(),
        lambda run: run.table.arcs.append(None),
        lambda run: run.log.append(None),
        lambda run: setattr(run.config, "epochs", 9),
        lambda run: run.optimizers.clear(),
        lambda run: run.side_optimizers.clear(),
    ],
    ids=["index", "leaving", "arcs", "log", "config", "optimizers", "side"],
)
def test_what_a_run_shows_refuses_to_be_changed(act):
    def refused(run):
        with pytest.raises((AttributeError, TypeError, ValueError, EngineError)):
            act(run)

    assert act_once(small_engine(6), refused).run().update == 6


def test_what_a_run_hands_out_is_a_copy():
    def clear(run):
        for given in (run.metrics, run.history("train/loss"), run.records(), run.names_recorded(), run.log.notes()):
            given.clear()

    engine = act_once(small_engine(6), clear)
    engine.on_exit("after_step")(lambda run: run.record("a", run.step))
    engine.on_exit("after_step")(lambda run: run.note("b"))
    run = engine.run()
    assert run.history("a") == [1, 2, 3, 4, 5, 6]
    assert len(run.log.notes("note")) == 6


@pytest.mark.parametrize("remainder", ["extend", "flush", "drop", "carry"])
@pytest.mark.parametrize("sized", [True, False])
def test_a_run_that_nobody_has_touched_agrees_with_its_log(remainder, sized, tmp_path):
    """Windows of three over passes of seven, updates skipped, another accumulation, checkpoints in between."""
    data = batches(7) if sized else Unsized(batches(7))
    engine = small_engine(
        data, [Checkpoint(tmp_path, "optimizer_update")], accumulation=3, epochs=4, remainder=remainder
    )
    engine.on_enter("optimizer_update", every=2)(lambda run: run.skip_update("no"))
    engine.on_exit("after_step", every=11)(lambda run: run.set_accumulation(2))
    assert engine.run().state == "finished"
