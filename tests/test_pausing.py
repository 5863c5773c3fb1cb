"""Pausing, by `until=`, `advance()`, `pause()` or Ctrl-C: a paused run is the same as one that never was."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import nn

from builders import STATES, Unsized, Witness, batches, records, small_components, small_engine, small_network, weights
from heptad import Detour, Engine, EngineError, Plugin, RunConfig, Transition

EVERY_STATE = (*STATES, "side")
MID_STEP = {"process_batch", "after_step", "optimizer_update"}
"""The states in which a run never pauses."""
MOMENTS = [(moment, state) for state in EVERY_STATE for moment in ("enter", "exit")]


class Observer(Witness):
    """A witness that brings a detour and sees its moments as well."""

    def __init__(self):
        super().__init__(name="Observer")
        self.visits = []

    def detours(self):
        return [Detour("side", ("after_step", "after_epoch"), when=lambda run: True, body=self.visit, every=2)]

    def visit(self, run):
        self.visits.append((run.epoch, run.step))

    def on_enter_side(self, run):
        self.seen.append(("enter", "side"))

    def on_exit_side(self, run):
        self.seen.append(("exit", "side"))


class AtMoment(Plugin):
    """Calls a function at every event of the moments that it is given, or at the n-th of them (from 0) alone."""

    def __init__(self, act, moments=MOMENTS, only=None):
        self.act = act
        self.moments = moments
        self.only = only
        self.events = 0

    def called(self, moment, state, run):
        if (moment, state) in self.moments:
            if self.only in (None, self.events):
                self.act(run)
            self.events += 1


def _handler(moment, state):
    return lambda self, run: self.called(moment, state, run)


for _moment, _state in MOMENTS:
    setattr(AtMoment, f"on_{_moment}_{_state}", _handler(_moment, _state))


def observed_engine(k=1, *plugins):
    """Return an engine over two epochs of four batches, with dropout and a detour, and its observer.

    With k = 3 the epochs are extended.
    """
    network = nn.Sequential(nn.Dropout(0.5), small_network())
    observer = Observer()
    return small_engine(4, [observer, *plugins], network=network, epochs=2, accumulation=k), observer


def outcome(engine, observer):
    """Return all that must not depend on pausing: state, weights, records without times, handler calls."""
    run = engine.current
    return {
        "state": run.state,
        "weights": [tensor.tolist() for tensor in weights(run.network)],
        "records": records(run.log),
        "calls": observer.seen,
        "counters": observer.counters,
        "visits": observer.visits,
    }


def straight(k=1):
    """Return the outcome of the run that nobody pauses."""
    engine, observer = observed_engine(k)
    engine.run()
    return outcome(engine, observer)


def finish(engine, drive):
    """Drive until the run has ended; return where it was paused, and why."""
    pauses = []
    while not engine.current.ended:
        drive()
        run = engine.current
        if not run.ended:
            assert run.paused is not None
            pauses.append((run.state, run.paused))
        assert len(pauses) <= 1000
    assert engine.current.paused is None
    return pauses


def pause_notes(run):
    """Return what the log says about pausing: where it was, and why."""
    return [(run.log[note.seq].dest, note.text) for note in run.log.notes("pause")]


# -- until=, advance(), pause(): the same as the straight run


@pytest.mark.parametrize("k", [1, 3])
class TestPausedAfterEveryTurn:
    def test_by_a_predicate(self, k):
        """`run(until=…)` with a predicate that always holds pauses after every turn, in any state."""
        engine, observer = observed_engine(k)
        pauses = finish(engine, lambda: engine.run(until=lambda run: True))
        expected = straight(k)
        assert outcome(engine, observer) == expected
        assert pauses == [(row[2], "until a predicate held") for row in expected["records"][:-1]]
        assert pause_notes(engine.current) == pauses
        assert observer.paused == 0

    def test_by_advance(self, k):
        """`advance()` makes one turn and returns it; plugins are opened once and closed by the last turn."""
        engine, observer = observed_engine(k)
        made = []
        pauses = finish(engine, lambda: made.append(engine.advance()))
        expected = straight(k)
        assert outcome(engine, observer) == expected
        assert pauses == [(row[2], "advance") for row in expected["records"][:-1]]
        assert pause_notes(engine.current) == pauses
        assert all(isinstance(transition, Transition) for transition in made)
        assert [(t.seq, t.source, t.dest) for t in made] == [row[:3] for row in expected["records"]]
        assert (observer.opened, observer.closed, observer.paused) == (1, 1, 0)

    def test_by_each_state_in_turn(self, k):
        """`run(until=state)` pauses on reaching that state, after at least one turn."""
        engine, observer = observed_engine(k)
        asked = cycle([state for state in EVERY_STATE[1:] if state != "after_loop"])
        wanted = []

        def drive():
            wanted.append(next(asked))
            engine.run(until=wanted[-1])

        pauses = finish(engine, drive)
        assert outcome(engine, observer) == straight(k)
        assert pauses == [(state, f"until {state}") for state in wanted[: len(pauses)]]
        assert {state for state, _ in pauses} >= MID_STEP

    @pytest.mark.parametrize("state", EVERY_STATE)
    def test_by_one_state_every_time(self, k, state):
        """Asked for the state that it is in, a run continues to the next visit to it."""
        engine, observer = observed_engine(k)
        pauses = finish(engine, lambda: engine.run(until=state))
        expected = straight(k)
        assert outcome(engine, observer) == expected
        assert pauses == [(state, f"until {state}") for row in expected["records"] if row[2] == state]

    def test_by_a_pause_at_every_moment(self, k):
        """Handlers that ask for a pause at every moment pause the run wherever it may be paused."""
        engine, observer = observed_engine(k, AtMoment(lambda run: run.pause("again")))
        pauses = finish(engine, engine.run)
        expected = straight(k)
        assert outcome(engine, observer) == expected
        dests = [row[2] for row in expected["records"][:-1]]
        assert pauses == [(state, "again") for state in dests if state not in MID_STEP]
        assert pause_notes(engine.current) == pauses
        assert observer.paused == len(pauses)

    @pytest.mark.parametrize(("moment", "state"), MOMENTS)
    def test_by_a_pause_at_one_moment(self, k, moment, state):
        """The run pauses at the end of the turn of the request, or of the first later turn that leads out of a step."""
        requested: list[int] = []

        def ask(run):
            requested.append(run.seq)
            run.pause("now")

        engine, observer = observed_engine(k, AtMoment(ask, moments=[(moment, state)]))
        finish(engine, engine.run)
        expected = straight(k)
        assert outcome(engine, observer) == expected

        run = engine.current
        dests = [row[2] for row in expected["records"]]
        first = [next(seq for seq in range(asked, len(dests)) if dests[seq] not in MID_STEP) for asked in requested]
        assert first
        ends_first = [seq for seq in dict.fromkeys(first) if dests[seq] != "finished"]
        assert [note.seq for note in run.log.notes("pause")] == ends_first
        assert all(pause - asked <= 3 for pause, asked in zip(first, requested, strict=True))
        assert {pause.requested for pause in run.log.notes("pause")} <= set(requested)
        assert observer.paused == len(ends_first)


@pytest.mark.parametrize("state", sorted(MID_STEP))
def test_a_run_never_pauses_in_mid_step(state):
    """Asked for in mid-step it pauses in the state that follows the update."""
    engine, observer = observed_engine(1, AtMoment(lambda run: run.pause("now"), moments=[("enter", state)], only=0))
    run = engine.run()
    assert (run.state, run.paused) == ("before_step", "now")
    assert (run.step, run.update) == (1, 1)
    assert observer.paused == 1


def test_a_run_never_pauses_in_a_detour_in_mid_step():
    """A detour that leaves from `process_batch` stands where a graph is alive: the run continues."""

    class Peek(Plugin):
        def detours(self):
            return [Detour("peek", "process_batch", lambda run: True, lambda run: None)]

        def on_enter_peek(self, run):
            run.pause("now")

    engine = small_engine(3, [Peek()])
    pauses = finish(engine, engine.run)
    assert pauses == [("before_step", "now"), ("before_step", "now"), ("after_epoch", "now")]


def test_a_pause_in_the_last_turn_has_no_effect():
    """A run that ends in that turn is finished, and is not paused."""
    engine, observer = observed_engine(1, AtMoment(lambda run: run.pause("late"), moments=[("exit", "after_loop")]))
    run = engine.run()
    assert (run.state, run.paused, observer.paused) == ("finished", None, 0)


def test_the_reason_is_gone_while_the_run_continues():
    """`Run.paused` is the reason while the run is paused, and None while it is being driven."""
    seen = []
    engine, _ = observed_engine(1, AtMoment(lambda run: seen.append(run.paused)))
    assert engine.current.paused is None
    assert engine.run(until="after_step").paused == "until after_step"
    engine.run()
    assert set(seen) == {None}


def test_a_pause_is_a_note_of_the_turn_before_it():
    """Pausing appends no record: the note is bound to the transition that led to where the run stands."""
    engine, _ = observed_engine()
    run = engine.run(until="process_batch")
    before = len(run.log)
    (note,) = run.log.notes("pause")
    assert (note.seq, note.kind, note.text) == (run.log[-1].seq, "pause", "until process_batch")
    assert (run.log[-1].dest, run.state) == ("process_batch", "process_batch")
    engine.advance()
    assert len(run.log) == before + 1


def test_plugins_are_opened_and_closed_with_each_call():
    """Each `run()` opens the plugins before its first turn and closes them when it returns."""
    engine, observer = observed_engine()
    engine.run(until="process_batch")
    assert (observer.opened, observer.closed) == (1, 1)
    engine.run()
    assert (observer.opened, observer.closed) == (2, 2)


def test_advance_and_run_take_turns():
    """A run that `advance()` has begun is taken over by `run()`, which closes what was opened."""
    engine, observer = observed_engine()
    for _ in range(5):
        engine.advance()
    assert (observer.opened, observer.closed) == (1, 0)
    engine.run(until="after_epoch")
    assert (observer.opened, observer.closed) == (1, 1)
    finish(engine, engine.advance)
    assert outcome(engine, observer) == straight()
    assert (observer.opened, observer.closed) == (2, 2)


def test_until_finished_is_no_pause():
    """A run that has reached its end is finished, whatever it was to be driven to."""
    engine, _ = observed_engine()
    run = engine.run(until="finished")
    assert (run.state, run.paused, run.log.notes("pause")) == ("finished", None, [])


def test_an_unknown_state_is_refused():
    """`run(until=…)` names the nearest state, and nothing has run."""
    engine, _ = observed_engine()
    with pytest.raises(EngineError, match=r"no such state; did you mean 'after_step'\?"):
        engine.run(until="after_stop")
    with pytest.raises(EngineError, match="until must be a state or a predicate of the run, got 7"):
        engine.run(until=7)
    assert engine.current.state == "idle"


def test_a_predicate_that_fails_leaves_the_run_alone():
    """What it raises comes out; it is no part of the run, which continues afterwards."""
    engine, observer = observed_engine()
    with pytest.raises(ZeroDivisionError):
        engine.run(until=lambda run: 1 // 0)
    assert engine.current.state == "before_loop"
    assert (observer.opened, observer.closed) == (1, 1)
    engine.run()
    assert outcome(engine, observer) == straight()


def test_a_plugin_that_fails_on_pause_leaves_the_run_paused():
    """What `on_pause` raises comes out; the run is paused all the same and continues afterwards."""

    class Full(Plugin):
        def on_pause(self, run):
            raise OSError("the disk is full")

    engine, observer = observed_engine(1, Full(), AtMoment(lambda run: run.pause("save"), only=20))
    with pytest.raises(OSError, match="the disk is full"):
        engine.run()
    assert engine.current.paused == "save"
    assert (observer.opened, observer.closed) == (1, 1)
    engine.run()
    assert outcome(engine, observer) == straight()


# -- time


def timed(clock, plugins, drive):
    """Return the durations of a run in which each moment takes 5 ns and each pause a second."""

    def moment(run):
        clock.now += 5

    engine = small_engine(3, [Observer(), *plugins, AtMoment(moment)])
    while not engine.current.ended:
        drive(engine)
        clock.now += 10**9
    return [(t.source, t.duration_ns) for t in engine.current.log], engine.current


def test_paused_time_belongs_to_no_state(clock):
    """A state in which the run was paused lasted as long as one in which it was not."""
    expected, _ = timed(clock, [], lambda engine: engine.run())
    assert set(expected[1:]) == {(state, 10) for state in EVERY_STATE}
    assert timed(clock, [], lambda engine: engine.advance())[0] == expected
    assert timed(clock, [], lambda engine: engine.run(until=lambda run: run.step % 2 == 1))[0] == expected
    durations, run = timed(clock, [], lambda engine: engine.run(until="process_batch"))
    assert durations == expected
    assert run.log.durations()["process_batch"].max_ns == 10


def test_what_is_saved_on_pause_takes_paused_time(clock):
    """The run is paused while `on_pause` is called: what that takes belongs to no state either."""

    class Save(Plugin):
        def on_enter_before_step(self, run):
            run.pause("save")

        def on_pause(self, run):
            clock.now += 10**6

    durations, run = timed(clock, [Save()], lambda engine: engine.run())
    assert len(run.log.notes("pause")) == 3
    assert set(durations[1:]) == {(state, 10) for state in EVERY_STATE}


# -- Ctrl-C


def press(run):
    """Presses Ctrl-C: a real signal, to this process."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def pressed():
    """A handler of one's own for Ctrl-C, in place of Python's: the presses that reached it."""
    presses = []

    def own(number, frame):
        presses.append(number)

    before = signal.signal(signal.SIGINT, own)
    yield presses
    assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_pauses_and_raises(pressed):
    """`run()` raises KeyboardInterrupt once the run is paused, `on_pause` called; `run()` again continues."""
    engine, observer = observed_engine(3, AtMoment(press, moments=[("enter", "process_batch")], only=4))
    with pytest.raises(KeyboardInterrupt, match=r"paused in before_step; Engine\.run\(\) continues from there"):
        engine.run()
    assert (engine.current.state, engine.current.paused) == ("before_step", "Ctrl-C")
    assert (observer.paused, observer.opened, observer.closed) == (1, 1, 1)
    engine.run()
    assert outcome(engine, observer) == straight(3)
    assert pressed == []


def test_ctrl_c_comes_before_until(pressed):
    """A state that the run was to be driven to does not keep KeyboardInterrupt from being raised."""
    engine, observer = observed_engine(1, AtMoment(press, moments=[("enter", "after_step")], only=0))
    with pytest.raises(KeyboardInterrupt):
        engine.run(until="after_step")
    assert engine.current.paused == "Ctrl-C"
    engine.run()
    assert outcome(engine, observer) == straight()


class Slow(Plugin):
    """Takes its time in one method, in which Ctrl-C is pressed."""

    def __init__(self, method: str):
        self.done: list[str] = []
        setattr(self, method, lambda run: self.work(method, run))

    def work(self, method, run):
        if not self.done:
            press(run)
        self.done.append(method)


def test_ctrl_c_while_plugins_are_opened_tears_none_apart(pressed):
    """The run pauses after its first turn, and continues as if nothing had been."""
    slow = Slow("open")
    engine, observer = observed_engine(1, slow)
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert (engine.current.paused, slow.done) == ("Ctrl-C", ["open"])
    engine.run()
    assert outcome(engine, observer) == straight()


def test_ctrl_c_while_plugins_are_closed_does_not_pause_the_next_run(pressed):
    """KeyboardInterrupt is raised when all of them are closed."""
    slow = Slow("close")
    engine, observer = observed_engine(1, slow)
    with pytest.raises(KeyboardInterrupt):
        engine.run(until="after_step")
    assert slow.done == ["close"]
    engine.run()
    assert outcome(engine, observer) == straight()


def test_of_several_requests_to_pause_the_first_is_the_reason():
    """As with stops."""
    engine, _ = observed_engine()

    @engine.on_exit("after_step", once=True)
    def twice(run):
        run.pause("first")
        run.pause("second")

    run = engine.run()
    assert run.paused == "first"
    assert [note.text for note in run.log.notes("pause")] == ["first"]


def test_ctrl_c_between_two_turns(pressed):
    """Pressed while the predicate of `until=` is asked, it is not left for the next `run()`."""
    engine, observer = observed_engine()

    def reached(run):
        if run.step == 2:
            press(run)
        return run.step == 2

    with pytest.raises(KeyboardInterrupt):
        engine.run(until=reached)
    engine.run()
    assert outcome(engine, observer) == straight()


def test_ctrl_c_is_not_lost_to_another_pause(pressed):
    """Where a handler asks to pause in the same turn, KeyboardInterrupt is raised all the same."""

    def both(run):
        press(run)
        run.pause("another reason")

    engine, observer = observed_engine(1, AtMoment(both, only=20))
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert observer.paused == 1
    engine.run()
    assert outcome(engine, observer) == straight()


def test_ctrl_c_in_the_last_turn_is_not_swallowed(pressed):
    """No turn follows in which to pause: the run is finished, and KeyboardInterrupt is raised."""
    engine, observer = observed_engine(1, AtMoment(press, moments=[("exit", "after_loop")]))
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert outcome(engine, observer) == straight()
    assert observer.closed == 1


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        ("before_step", "(epoch 0, batch 1, step 1, update 1)"),
        ("process_batch", "(epoch 0, batch 1, step 1, update 1)"),
        ("optimizer_update", "(epoch 0, batch 2, step 2, update 2)"),
    ],
)
def test_a_second_ctrl_c_raises_at_once(pressed, state, counts):
    """Pressed again before the run is paused, it raises where it is, and the run has failed."""

    def twice(run):
        press(run)
        press(run)
        raise AssertionError("the second one raised nothing")

    engine, observer = observed_engine(1, AtMoment(twice, moments=[("exit", state)], only=1))
    with pytest.raises(KeyboardInterrupt) as info:
        engine.run()
    run = engine.current
    assert (run.state, run.paused) == ("failed", None)
    assert (run.log[-1].source, run.log[-1].dest) == (state, "failed")
    assert info.value.__notes__ == [f"heptad: in AtMoment.on_exit_{state} on exit of {state} {counts}"]
    assert (observer.paused, observer.closed) == (0, 1)
    assert pressed == []
    with pytest.raises(EngineError, match="build a new Engine"):
        engine.run()


def test_a_second_ctrl_c_on_the_way(pressed):
    """Where the first was pressed in mid-step, the second is heard in a later turn."""
    engine, _ = observed_engine(1, AtMoment(press, moments=[("enter", "process_batch"), ("exit", "after_step")]))
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert engine.current.log.path()[-3:] == ["process_batch", "after_step", "failed"]
    assert pressed == []


def test_a_second_ctrl_c_while_plugins_save(pressed):
    """Pressed while `on_pause` is still at work, it raises there at once, and is not left for the next `run()`."""
    done = []

    class Slow(Plugin):
        def on_pause(self, run):
            press(run)
            done.append(run)

    engine, _ = observed_engine(1, Slow(), AtMoment(press, only=20))
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert done == []


def test_a_second_ctrl_c_in_the_middle_of_a_record(pressed, monkeypatch):
    """Pressed between two halves of a record, it leaves a log that can be read and ends in `failed`."""
    calls = []

    def clock():
        calls.append(None)
        if len(calls) == 10:
            press(None)
            press(None)
        return time.monotonic_ns()

    monkeypatch.setattr("heptad.machine.monotonic_ns", clock)
    engine, _ = observed_engine()
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    run = engine.current
    path = run.log.path()
    assert run.state == "failed"
    assert path[-1] == "failed"
    assert path == [run.log[0].source, *(transition.dest for transition in run.log)]
    assert all(one.dest == other.source for one, other in zip(run.log, run.log[1:], strict=False))


def test_an_ignored_ctrl_c_stays_ignored():
    """Where Ctrl-C is ignored, as under nohup, it neither pauses nor raises."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        engine, observer = observed_engine(1, AtMoment(press, only=20))
        engine.run()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome(engine, observer) == straight()


def test_the_handler_is_put_back_after_a_failure(pressed):
    """What was there before `run()` is there after it, also when the run fails."""

    def fail(run):
        raise ValueError("oh")

    engine, _ = observed_engine(1, AtMoment(fail, only=20))
    with pytest.raises(ValueError, match="oh"):
        engine.run()
    press(None)
    assert pressed == [signal.SIGINT]


def child(*arguments):
    """Start this file as a program of its own, which ends by itself or is ended after a while."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(Path(__file__)), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(100, process.kill)
    timer.start()
    return process, timer


def ended(process, timer):
    """Wait for the program's end; return its exit status, what it printed, and what it complained of."""
    out, complaints = process.communicate()
    timer.cancel()
    return process.returncode, out, complaints


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_at_thirty_moments():
    """A SIGINT at any moment pauses the run; continued, it has the weights, records and calls of the straight run."""
    assert ended(*child("moments")) == (0, "30 moments\n", "")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_from_another_process():
    """The same for signals that come from outside, at moments that nobody has chosen."""
    process, timer = child("gates")
    delays = random.Random(0)
    for _ in range(GATES):
        assert process.stdout.readline() == "going\n", process.stderr.read()
        time.sleep(delays.uniform(0, 0.02))  # the moment itself is what is tried out
        process.send_signal(signal.SIGINT)
    assert ended(process, timer) == (0, f"{GATES} gates\n", "")


def moments():
    """The program of the first of these: pauses a run at 30 seeded moments, one run each."""
    choose = random.Random(0)
    last = ("exit", "after_loop")  # no turn follows in which to pause
    for number in range(30):
        k = (1, 3)[number % 2]
        expected = straight(k)
        moments = [moment for moment in MOMENTS if moment != last]
        moment = choose.randrange(len(expected["calls"]) - 1)
        engine, observer = observed_engine(k, AtMoment(press, moments=moments, only=moment))
        try:
            engine.run()
        except KeyboardInterrupt:
            assert engine.current.paused == "Ctrl-C"
        else:
            raise AssertionError(f"moment {moment}: no KeyboardInterrupt")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert [note.text for note in engine.current.log.notes("pause")] == ["Ctrl-C"]
        assert observer.paused == 1
        engine.run()
        assert outcome(engine, observer) == expected
    print("30 moments")


GATES = 5


class Gate(Plugin):
    """Says that an epoch has begun, and holds the next one back until Ctrl-C has been pressed in it."""

    def on_exit_before_epoch(self, run):
        if run.epoch < GATES:
            print("going", flush=True)

    def on_enter_before_epoch(self, run):
        while len(run.log.notes("pause")) + run.pause_requested < run.epoch:
            time.sleep(0.001)


def gates():
    """The program of the second: continues after every Ctrl-C, of which there comes one an epoch."""

    def engine_of(*plugins):
        network = nn.Sequential(nn.Dropout(0.5), small_network())
        return small_engine(200, plugins, network=network, epochs=GATES + 1, accumulation=3)

    engine, witness = None, Witness()
    engine = engine_of(witness, Gate())
    presses = 0
    while not engine.current.ended:
        try:
            engine.run()
        except KeyboardInterrupt:
            presses += 1
            assert engine.current.paused == "Ctrl-C"
    other = Witness()
    expected = engine_of(other)
    expected.run()
    assert records(engine.current.log) == records(expected.current.log)
    assert witness.seen == other.seen
    assert [t.tolist() for t in weights(engine.current.network)] == [
        t.tolist() for t in weights(expected.current.network)
    ]
    assert witness.paused == presses == GATES
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(f"{presses} gates")


# -- threads and several engines


def in_thread(function):
    """Call a function in a thread, wait for it, and return its result or what it raised."""
    results = []

    def call():
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return results[0]


def test_a_run_in_another_thread():
    """Away from the main thread the run is the same, and Ctrl-C is left as it is."""
    handlers = []
    engine, observer = observed_engine(1, AtMoment(lambda run: handlers.append(signal.getsignal(signal.SIGINT))))
    before = signal.getsignal(signal.SIGINT)
    assert in_thread(engine.run) is engine.current
    assert outcome(engine, observer) == straight()
    assert set(handlers) == {before}


def test_a_paused_run_continues_in_another_thread():
    """A run belongs to no thread."""
    engine, observer = observed_engine(3)
    finish(engine, lambda: in_thread(lambda: engine.run(until="process_batch")))
    assert outcome(engine, observer) == straight(3)


def test_a_pause_from_another_thread():
    """A thread beside the run, such as a timer's, may pause it."""
    engine, observer = observed_engine(1, AtMoment(lambda run: in_thread(lambda: run.pause("timer")), only=20))
    run = engine.run()
    assert run.paused == "timer"
    engine.run()
    assert outcome(engine, observer) == straight()


@pytest.mark.parametrize("verb", ["run", "advance"])
def test_a_second_thread_may_not_drive(verb):
    """`run()` and `advance()` are refused while another thread is driving, and the run continues."""
    errors = []
    engine, observer = observed_engine(
        1, AtMoment(lambda run: errors.append(in_thread(getattr(engine, verb))), only=20)
    )
    engine.run()
    (error,) = errors
    assert isinstance(error, EngineError)
    assert str(error).startswith(f"{verb}() was called from another thread while the run is being driven")
    assert outcome(engine, observer) == straight()


@pytest.mark.parametrize("verb", ["run", "advance"])
@pytest.mark.parametrize("drive", ["run", "advance"])
def test_a_handler_may_not_drive(drive, verb):
    """`run()` and `advance()` are refused in a handler; one that does not catch the error has failed like any other."""
    engine, observer = observed_engine(
        1, AtMoment(lambda run: getattr(engine, verb)(), moments=[("exit", "after_step")])
    )
    with pytest.raises(EngineError, match=rf"^{verb}\(\) was called from a handler while the run is being driven"):
        while True:
            getattr(engine, drive)()
    assert engine.current.state == "failed"
    assert observer.closed == 1


def test_two_engines_in_turn():
    """Nothing of one run is left for the next."""
    expected = straight()
    for _ in range(2):
        engine, observer = observed_engine()
        engine.run()
        assert outcome(engine, observer) == expected


def test_two_engines_that_alternate():
    """Two runs that are driven turn by turn do not meet. (Without dropout: they share the global generators.)"""
    alone = small_engine(4, epochs=2)
    alone.run()
    pair = [small_engine(4, epochs=2) for _ in range(2)]
    while not pair[1].current.ended:
        for engine in pair:
            engine.advance()
    for engine in pair:
        assert records(engine.current.log) == records(alone.current.log)
        assert [t.tolist() for t in weights(engine.current.network)] == [
            t.tolist() for t in weights(alone.current.network)
        ]


# -- the end


@pytest.mark.parametrize("verb", ["run", "advance"])
def test_a_finished_run_does_not_continue(verb):
    """An engine drives one run: the error says what to do for another."""
    engine, _ = observed_engine()
    engine.run()
    message = rf"^{verb}\(\) was called on a run that is finished \(epochs=2 complete\).*build a new Engine"
    with pytest.raises(EngineError, match=message):
        getattr(engine, verb)()


def test_closing_what_advance_left_open():
    """`close()` closes the plugins once; a further call has nothing to do, and the run may still continue."""
    engine, observer = observed_engine()
    engine.advance()
    engine.close()
    engine.close()
    assert (observer.opened, observer.closed) == (1, 1)
    engine.run()
    assert outcome(engine, observer) == straight()


def test_an_engine_that_was_never_run_is_closed():
    """There is nothing to close then."""
    engine, observer = observed_engine()
    engine.close()
    assert (engine.current.state, observer.opened, observer.closed) == ("idle", 0, 0)


def test_with_closes_the_engine():
    """Leaving the block closes what `advance()` left open, also when the block raises."""
    engine, observer = observed_engine()
    with engine as entered:
        assert entered is engine
        engine.advance()
    assert (observer.opened, observer.closed) == (1, 1)
    with pytest.raises(ZeroDivisionError), engine:
        engine.advance()
        raise ZeroDivisionError
    assert (observer.opened, observer.closed) == (2, 2)


class Rows(torch.utils.data.Dataset):
    """A dataset of eight samples."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((4,), float(index)), index % 3


@pytest.mark.parametrize(
    "given",
    [
        {"dataset": Rows()},
        {"loader": batches(4)},
        {"loader": Unsized(batches(4))},
        {"loader": torch.utils.data.DataLoader(Rows(), batch_size=2)},
    ],
    ids=["dataset", "list", "unsized", "DataLoader"],
)
@pytest.mark.parametrize("state", EVERY_STATE[1:-1])
def test_a_run_that_was_closed_in_any_state_continues(given, state):
    """`close()` in mid-epoch loses no batch: the run that continues is the one that was never closed."""

    def engine_of():
        size = {"batch_size": 2} if "dataset" in given else {}
        return Engine(small_components(**given), RunConfig(epochs=2, **size))

    expected = engine_of().run()
    with engine_of() as engine:
        engine.run(until=state)
    assert engine.run().state == "finished"
    assert records(engine.current.log) == records(expected.log)
    assert [t.tolist() for t in weights(engine.current.network)] == [t.tolist() for t in weights(expected.network)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"moments": moments, "gates": gates}[sys.argv[1]]()


def test_all_plugins_hear_of_pausing_though_one_fails():
    """Another may have a checkpoint to store; the first exception comes out, several as a group."""
    heard = []

    class Failing(Plugin):
        def __init__(self, name):
            self.name = name

        def on_pause(self, run):
            heard.append(self.name)
            raise OSError(self.name)

    def paused(*names):
        heard.clear()
        engine = small_engine(2, [Failing(name) for name in names])
        engine.on_exit("before_step", once=True)(lambda run: run.pause("look"))
        with pytest.raises((OSError, ExceptionGroup)) as caught:
            engine.run()
        assert (heard, engine.current.paused) == (list(names), "look")
        return caught.value

    assert str(paused("a")) == "a"
    assert [str(error) for error in paused("a", "b").exceptions] == ["a", "b"]
