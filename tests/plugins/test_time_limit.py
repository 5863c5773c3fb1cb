"""`TimeLimit`: ends or pauses a run whose time is up, by a clock that moves only where the tests move it."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from builders import Clock, Side, batches, equal, records, small_engine, weights
from heptad import Detour, Engine, Plugin, PluginError, Run
from heptad_plugins import Checkpoint, GracefulStop
from heptad_plugins.evaluate import Evaluate
from heptad_plugins.time_limit import TimeLimit
from rebirth import Reborn, through_checkpoint

GUARDS = {"update_due", "batches_remain", "epochs_remain", "due", "ask"}
"""The functions that guards are: the table's, and those of detours."""


class ReadClock(Clock):
    """A clock that writes down which functions were at work when it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[set[str]] = []

    def __call__(self) -> float:
        names: set[str] = set()
        frame = sys._getframe(1)
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        self.readers.append(names)
        return self.now


class Work(Plugin):
    """Advances the clock in each step and in each update."""

    def __init__(self, clock: ReadClock, step: float = 1.0, update: float = 0.0) -> None:
        self.clock, self.step, self.update = clock, step, update

    def on_exit_process_batch(self, run: Run) -> None:
        self.clock.now += self.step

    def on_enter_optimizer_update(self, run: Run) -> None:
        self.clock.now += self.update


def limited(clock: ReadClock, *options: Any) -> TimeLimit:
    """Return the plugin with that clock."""
    plugin = TimeLimit(*options)
    plugin._watch.clock = clock
    return plugin


def build(clock: ReadClock, limit: Plugin, *plugins: Plugin, work: Work | None = None, **config: Any) -> Engine:
    """Return an engine over 10 batches, with steps of a second."""
    return small_engine(10, [work or Work(clock), limit, *plugins], **config)


def notes(run: Run, kind: str) -> list[str]:
    return [note.text for note in run.log.notes(kind)]


# -- stop


def test_stop_ends_the_run_in_order():
    """In the step in which the time is up: the epoch and the loop are closed, and the reason says how long it was."""
    clock = ReadClock()
    run = build(clock, limited(clock, 3.5), epochs=5).run()
    reason = "TimeLimit: the run was driven for 4 s of 3.5 s"
    assert (run.state, run.step, run.update, run.epoch, run.reason) == ("finished", 4, 4, 1, reason)
    assert notes(run, "stop") == [reason]
    assert run.log.path()[-4:] == ["optimizer_update", "after_epoch", "after_loop", "finished"]


def test_the_time_is_up_when_it_is_reached():
    """Three seconds of three are all of it."""
    clock = ReadClock()
    assert build(clock, limited(clock, 3)).run().step == 3


@pytest.mark.parametrize(("seconds", "updates"), [(0.5, 1), (3.5, 1), (4.5, 2), (7.5, 2), (8.5, 3)])
def test_stop_in_mid_window_completes_the_window(seconds, updates):
    """No gradient is dropped, and no update is made with a part of a window: weights are those of whole updates."""
    clock = ReadClock()
    run = build(clock, limited(clock, seconds), accumulation=4, epochs=2).run()
    assert (run.update, run.step) == (updates, 4 * updates)
    assert len(notes(run, "stop")) == 1
    straight = small_engine(10, accumulation=4, max_updates=updates).run()
    assert equal(weights(run.network), weights(straight.network))


def test_a_run_that_is_done_in_time_is_left_alone():
    """It ends for its own reason."""
    clock = ReadClock()
    run = build(clock, limited(clock, 20.5), epochs=2).run()
    assert (run.step, run.reason, notes(run, "stop")) == (20, "epochs=2 complete", [])


def test_the_time_of_an_update_counts_at_once():
    """The clock is looked at after it as well, so that no further step is begun."""
    clock = ReadClock()
    run = build(clock, limited(clock, 3.5), work=Work(clock, step=1.0, update=1.0)).run()
    assert (run.step, run.reason) == (2, "TimeLimit: the run was driven for 4 s of 3.5 s")


def test_the_time_of_an_evaluation_counts_at_once():
    """And no further step is begun after it."""
    clock = ReadClock()

    def slow(output: Any, batch: Any) -> Any:
        clock.now += 50.0
        return output.mean()

    evaluate = Evaluate(batches(2), {"slow": slow}, at="optimizer_update", every=3, trial=False)
    run = build(clock, limited(clock, 100.0), evaluate).run()
    assert (run.step, run.reason) == (3, "TimeLimit: the run was driven for 103 s of 100 s")


# -- pause


def pauses(engine: Engine, clock: ReadClock, pause: float = 10_000.0) -> list[tuple[str, int, str | None]]:
    """Run to the end, with a pause wherever it pauses; return where that was, at which step, and why."""
    found: list[tuple[str, int, str | None]] = []
    while not engine.current.ended:
        run = engine.run()
        if not run.ended:
            found.append((run.state, run.step, run.paused))
        clock.now += pause
    return found


def test_it_pauses_and_gives_the_full_time_again():
    """Paused after every fourth step of ten; the weights and the path are those of the straight run."""
    clock = ReadClock()
    engine = build(clock, limited(clock, 3.5, "pause"), epochs=2)
    reason = "TimeLimit: the run was driven for 4 s of 3.5 s"
    assert pauses(engine, clock) == [("before_step", step, reason) for step in (4, 8, 12, 16)] + [
        ("after_epoch", 20, reason)
    ]
    straight = small_engine(10, epochs=2).run()
    assert equal(weights(engine.current.network), weights(straight.network))
    assert records(engine.current.log) == records(straight.log)


def test_it_pauses_in_mid_window_between_two_steps():
    """An open window is kept: continuing gives the bits of the straight run."""
    clock = ReadClock()
    engine = build(clock, limited(clock, 3, "pause"), accumulation=5)
    assert [(state, step) for state, step, _ in pauses(engine, clock)] == [("before_step", step) for step in (3, 6, 9)]
    assert equal(weights(engine.current.network), weights(small_engine(10, accumulation=5).run().network))


def test_the_way_to_where_it_pauses_is_not_taken_from_the_next_time():
    """Once it has asked for the pause the clock stays at 0, though the update is still to come; it asks only once."""
    clock = ReadClock()
    engine = build(clock, limited(clock, 2, "pause"), work=Work(clock, step=1.0, update=5.0), accumulation=2)
    found = pauses(engine, clock)
    assert [step for _, step, _ in found] == [2, 4, 6, 8, 10]
    assert notes(engine.current, "pause") == ["TimeLimit: the run was driven for 2 s of 2 s"] * 5


def test_a_limit_shorter_than_a_step_still_continues():
    """Every call makes a step."""
    clock = ReadClock()
    engine = build(clock, limited(clock, 0.1, "pause"))
    assert [step for _, step, _ in pauses(engine, clock)] == list(range(1, 11))


def test_pause_under_advance():
    """The turn after which the run is paused is as in `run()`, and the time is full again."""
    clock = ReadClock()
    engine = build(clock, limited(clock, 3.5, "pause"))
    found = []
    while not engine.current.ended:
        engine.advance()
        if engine.current.paused not in (None, "advance"):
            found.append((engine.current.state, engine.current.step))
            clock.now += 10_000.0
    assert found == [("before_step", 4), ("before_step", 8)]


# -- paused time


@pytest.mark.parametrize("until", ["before_step", "process_batch", "after_step", lambda run: True])
def test_paused_time_does_not_count(until):
    """A run that is paused again and again is stopped in the same step."""
    clock = ReadClock()
    engine = build(clock, limited(clock, 6.5))
    while not engine.current.ended:
        engine.run(until=until)
        clock.now += 10_000.0
    assert (engine.current.step, engine.current.reason) == (7, "TimeLimit: the run was driven for 7 s of 6.5 s")


@pytest.mark.parametrize("first", [False, True])
def test_saving_a_checkpoint_on_pause_does_not_count(first):
    """Wherever the plugin stands in the list."""
    clock = ReadClock()

    class Checkpoint(Plugin):
        def on_exit_after_step(self, run: Run) -> None:
            run.pause("save")

        def on_pause(self, run: Run) -> None:
            clock.now += 500.0

    limit = limited(clock, 6.5)
    engine = small_engine(10, [Work(clock), *([limit, Checkpoint()] if first else [Checkpoint(), limit])])
    assert [step for _, step, _ in pauses(engine, clock)] == list(range(1, 8))
    assert engine.current.step == 7


# -- state


@pytest.mark.parametrize("step", range(1, 9))
@pytest.mark.parametrize(("action", "expected"), [("stop", [7]), ("pause", [7, 10])])
def test_what_was_used_is_state(action, expected, step):
    """Built anew in any step, through JSON, it acts in the same step; after a pause with the full time again."""
    clock = ReadClock()
    plugin = Reborn(lambda: limited(clock, 6.5, action), step, lambda run: plugin.inner.open(run))  # noqa: PLW0108 - the new inner one
    engine = small_engine(10, [Work(clock), plugin])
    ends = []
    while not engine.current.ended:
        ends.append(engine.run().step)
    assert ends == expected


def test_a_checkpoint_on_pause_holds_the_full_time():
    """What `state_dict` says while the plugin has paused the run is that nothing was used."""
    clock = ReadClock()
    limit = limited(clock, 3.5, "pause")
    saved = []

    class Save(Plugin):
        def on_pause(self, run: Run) -> None:
            clock.now += 7.0
            saved.append(through_checkpoint(limit.state_dict()))

    small_engine(10, [Work(clock, update=1.0), Save(), limit]).run()
    assert saved == [{"seconds": 0.0, "stopped": False}]


def test_a_stop_is_state():
    """A plugin that has stopped the run does not stop it a second time after a restart."""
    clock = ReadClock()
    before = limited(clock, 1)
    run = build(clock, before, accumulation=4).run()
    assert before.state_dict() == {"seconds": 4.0, "stopped": True}
    assert notes(run, "stop") == ["TimeLimit: the run was driven for 1 s of 1 s"]
    reborn = Reborn(lambda: limited(clock, 1), 2)
    other = build(clock, reborn, accumulation=4).run()
    assert (other.step, notes(other, "stop")) == (4, notes(run, "stop"))
    assert reborn.inner is not before
    assert reborn.inner.state_dict() == {"seconds": 2.0, "stopped": True}


def test_a_second_engine_has_the_full_time():
    """What the first run used, and that it was stopped, is forgotten."""
    clock = ReadClock()
    limit = limited(clock, 3)
    for _ in range(2):
        run = build(clock, limit).run()
        assert (run.step, notes(run, "stop")) == (3, ["TimeLimit: the run was driven for 3 s of 3 s"])


@pytest.mark.parametrize("plugin", [lambda: TimeLimit(1e6), GracefulStop])
def test_a_run_that_is_resumed_may_do_without(plugin, tmp_path):
    """Or have one that it had not: both decide how far a run is driven, and no step of it."""
    for before, after in (([plugin()], []), ([], [plugin()])):
        folder = tmp_path / str(len(before))
        small_engine(4, [*before, Checkpoint(folder)], epochs=2).run(until=lambda run: run.step == 5)
        straight = small_engine(4, epochs=2).run()
        run = small_engine(4, [*after, Checkpoint(folder)], epochs=2).run(resume="auto")
        assert (run.state, run.resumed_from is None) == ("finished", False)
        assert equal(weights(run.network), weights(straight.network))


# -- the clock


def test_the_clock_is_never_read_in_a_guard():
    """It is read in handlers and where plugins are opened and closed, in a run with guards of every kind."""
    clock = ReadClock()
    side = Side(Detour("side", ("after_step", "after_epoch"), lambda run: True, lambda run: None, every=2))
    engine = build(clock, limited(clock, 12.5), side, Evaluate(batches(1)), accumulation=3, epochs=3)
    engine.run(until="before_step")
    engine.run()
    assert engine.current.reason == "TimeLimit: the run was driven for 13 s of 12.5 s"
    assert len(clock.readers) > 15
    assert not [names & GUARDS for names in clock.readers if names & GUARDS]


def test_asking_and_planning_reads_no_clock():
    """Guards asked by hand, and the plan of all that is to come."""
    clock = ReadClock()
    engine = build(clock, limited(clock, 3.5), epochs=2)
    run = engine.run(until="after_step")
    read = len(clock.readers)
    clock.now += 10_000.0
    assert (run.update_due, run.batches_remain, run.epochs_remain) == (False, True, True)
    assert len(list(engine.plan())) > 40
    assert len(clock.readers) == read


# -- options


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, True, "60", None])
def test_seconds_must_be_a_number_above_zero(seconds):
    """And the message says what was found."""
    with pytest.raises(PluginError, match=r"TimeLimit\(seconds=…\) must be a number above 0, got"):
        TimeLimit(seconds)


@pytest.mark.parametrize("action", ["halt", "", None, 1, ["stop"]])
def test_the_action_must_be_one_of_two_words(action):
    """And the message names them."""
    with pytest.raises(PluginError, match=r"TimeLimit\(action=…\) must be 'stop' or 'pause', got"):
        TimeLimit(60, action)
