"""The log: all that happened, exactly, in few bytes, read back at any time."""

from __future__ import annotations

import gc
import json
import re
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import heptad.history.decode
import heptad.history.explain
import heptad.history.export.jsonl
import heptad.history.query
import heptad.history.select
import heptad.history.summary
import heptad.machine
import heptad.record.buffer
from builders import (
    Actor,
    Clock,
    Plan,
    Planned,
    Side,
    Unsized,
    batches,
    drive,
    plans,
    records,
    small_engine,
)
from heptad import Components, Detour, Engine, EngineError, Plugin, Run, RunConfig, Transition, TransitionLog
from heptad.machine import Machine

UNIX = 1_700_000_000 * 10**9
"""Where the Unix clock of these tests stands while their monotonic clock stands at 0."""


class TickingClock(Clock):
    """A clock that moves on when a test asks it to, and the time that it spent in each stay."""

    def __init__(self) -> None:
        super().__init__(0)
        self.ticks = 0
        self.spent: Counter[int] = Counter()
        self.entered: dict[int, int] = {}

    def tick(self, run: Run) -> None:
        """Advance by an amount that differs each time, spent in the state that the run is in."""
        self.ticks += 1
        amount = 1 + self.ticks * 7919 % 1013
        self.now += amount
        self.spent[run._buffer.seq] += amount

    def skip(self) -> None:
        """Advance while the run is not being driven."""
        self.now += 10**9


@contextmanager
def clock_and_chunks(chunk: int = heptad.record.buffer.CHUNK) -> Iterator[TickingClock]:
    """Put a clock of the tests' own in place of the machine's, and pack that many transitions at once."""
    clock = TickingClock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heptad.machine, "monotonic_ns", clock)
        patch.setattr(heptad.record.buffer, "monotonic_ns", clock)
        patch.setattr(heptad.record.buffer, "time_ns", lambda: clock.now + UNIX)
        patch.setattr(heptad.record.buffer, "CHUNK", chunk)
        yield clock


def watched(clock: TickingClock, asked: list[tuple[int, str, bool, dict[str, Any]]]) -> type[Engine]:
    """Return an engine that writes down each guard that is asked: (transition, guard, answer, what it looked at)."""

    class Watching(Machine):
        """A machine whose guards are watched."""

        def __init__(self, run: Run, bodies: Any, guards: Any, *rest: Any) -> None:
            super().__init__(run, bodies, {name: watching(name, guard) for name, guard in guards.items()}, *rest)

    def watching(name: str, guard: Callable[[Run], bool]) -> Callable[[Run], bool]:
        def ask(run: Run) -> bool:
            clock.tick(run)
            answer = guard(run)
            asked.append((run._buffer.seq, name, answer, looked_at(name, run)))
            return answer

        return ask

    class WatchedEngine(Engine):
        """An engine with that machine."""

        machine_class = Watching

    return WatchedEngine


def looked_at(guard: str, run: Run) -> dict[str, Any]:
    """Return what a guard looks at, read from the live run."""
    window, config = run._position.window, run.config
    batches_now = {"batches": run.batch_index, "in a pass": run._runtime.feed.batches or "unknown"}
    limits: dict[str, Any] = {"stop asked for": any(note.kind == "stop" for note in run.log.notes())}
    if config.max_updates is not None:
        limits |= {"updates": run.update, "max_updates": config.max_updates}
    return {
        "update_due": {
            "steps in the window": window.steps,
            "accumulation": window.size,
            "remainder": config.remainder,
            **batches_now,
            **({"epochs": run.epoch, "of": config.epochs} if config.remainder == "carry" else {}),
        },
        "batches_remain": {"steps in the window": window.steps, **batches_now, **limits},
        "epochs_remain": {"epochs": run.epoch, "of": config.epochs, **limits},
    }.get(guard, {})


class Ticks(Plugin):
    """Advances the clock on every moment of the engine's own states, and notes when each was entered."""

    def __init__(self, clock: TickingClock) -> None:
        self.clock = clock


def _ticking() -> None:
    def enter(self: Ticks, run: Run) -> None:
        self.clock.entered[run._buffer.seq - 1] = self.clock.now + UNIX
        self.clock.tick(run)

    def leave(self: Ticks, run: Run) -> None:
        self.clock.tick(run)

    for state in ("before_loop", "before_epoch", "before_step", "process_batch", "after_step", "optimizer_update"):
        setattr(Ticks, f"on_enter_{state}", enter)
        setattr(Ticks, f"on_exit_{state}", leave)
    Ticks.on_exit_after_epoch = leave
    Ticks.on_enter_after_loop = enter


_ticking()


def driven(engine: Engine, clock: TickingClock) -> BaseException | None:
    """Run an engine to its end, with time going by before it starts and wherever it is paused."""
    error = None
    while error is None and not engine.current.ended:
        clock.skip()
        try:
            engine.run()
        except Exception as raised:
            error = raised
    return error


def heard_according_to(log: TransitionLog, error: BaseException | None) -> list[tuple[Any, ...]]:
    """Return the events that handlers must have heard if the log is right: exits and entries with counters."""
    events: list[tuple[Any, ...]] = []
    for t in log:
        counters = (t.epoch, t.batch_index, t.step, t.update)
        if t.source != "idle" and (t.dest != "failed" or str(error).startswith("on exit")):
            events.append(("exit", t.source, *counters))
        if t.dest not in {"finished", "failed"}:
            events.append(("enter", t.dest, *counters))
    return events


def held(log: TransitionLog) -> list[tuple[int, str, bool]]:
    """Return (transition, guard, answer) for all guards in a log."""
    return [(t.seq, name, answer) for t in log for name, answer in t.guards.items()]


# -- complete


@settings(max_examples=80)
@given(plan=plans(), chunk=st.sampled_from([3, 16, 1024]))
def test_what_the_log_says_is_what_was_observed_live(plan: Plan, chunk: int):
    """Guards, counters, durations and times read from the log equal those seen by watchers, to the nanosecond."""
    with clock_and_chunks(chunk) as clock:
        asked: list[tuple[int, str, bool, dict[str, Any]]] = []
        engine, actor = plan.build(watched(clock, asked), [Ticks(clock)])
        error = driven(engine, clock)
        log = engine.current.log
        clock.skip()
        assert [t.seq for t in log] == list(range(len(log)))
        assert heard_according_to(log, error) == actor.heard
        assert held(log) == [(seq, name, answer) for seq, name, answer, _ in asked]
        assert [t.duration_ns for t in log] == [clock.spent[seq] for seq in range(len(log))]
        times = {t.seq: t.time_ns for t in log}
        assert {seq: times[seq] for seq in clock.entered} == clock.entered
        assert log[-1].dest == engine.current.state


@settings(max_examples=40)
@given(plan=plans(), chunk=st.sampled_from([3, 16, 1024]))
def test_explain_says_which_arcs_were_tried_and_what_the_guards_saw(plan: Plan, chunk: int):
    """For every transition: the guards asked, their answers, and for the engine's own the values they looked at."""
    with clock_and_chunks(chunk) as clock:
        asked: list[tuple[int, str, bool, dict[str, Any]]] = []
        engine, _ = plan.build(watched(clock, asked))
        driven(engine, clock)
        log = engine.current.log
        explained = [
            (t.seq, tried.guard, tried.answer, tried.values)
            for t in log
            for tried in log.explain(t.seq).tried
            if tried.guard is not None
        ]
        assert explained == asked
        for t in log:
            explanation = log.explain(t.seq)
            assert explanation.transition == t
            if t.dest != "failed":
                assert explanation.tried[-1].dest == t.dest
            assert [note for note in log.notes() if note.seq == t.seq] == list(explanation.notes)


def assert_readable(log: TransitionLog, folder: Path) -> None:
    """All that can be asked of a log agrees with the transitions that it iterates over."""
    rows = list(log)
    assert len(log) == len(rows)
    assert [log[place] for place in range(len(rows))] == rows
    assert [log[place] for place in range(-len(rows), 0)] == rows
    assert log[1:7:2] == rows[1:7:2]
    assert log[::-1] == rows[::-1]
    assert log.tail(4) == rows[-4:]
    assert log.tail(10_000) == rows
    assert log.tail(0) == []
    assert log.path() == [rows[0].source, *(t.dest for t in rows)]
    assert log.counts() == Counter(t.dest for t in rows)
    for name in {t.source for t in rows}:
        stays = [t.duration_ns for t in rows if t.source == name]
        summary = log.durations()[name]
        assert (summary.count, summary.total_ns, summary.max_ns) == (len(stays), sum(stays), max(stays))
        assert summary.mean_ns == pytest.approx(np.mean(stays))
        assert summary.median_ns == pytest.approx(np.median(stays))
        assert summary.p99_ns == pytest.approx(np.percentile(stays, 99))
        assert log.where(source=name) == [t for t in rows if t.source == name]
    assert set(log.durations()) == {t.source for t in rows}
    assert log.where() == rows
    assert log.where(dest="after_step", epoch=0) == [t for t in rows if t.dest == "after_step" and t.epoch == 0]
    assert log.where(step=range(2, 5)) == [t for t in rows if t.step in range(2, 5)]
    assert log.where(update=1, batch_index=range(3)) == [t for t in rows if t.update == 1 and t.batch_index < 3]
    header, *lines = map(json.loads, log.to_jsonl(folder / "log.jsonl").read_text().splitlines())
    assert header["format"] == "heptad log"
    kept = {t.seq: [n for n in log.notes() if n.seq == t.seq] for t in rows}
    notes = {seq: [{"kind": n.kind, "text": n.text, "time_ns": n.time_ns} for n in held] for seq, held in kept.items()}
    assert [line.pop("notes") for line in lines] == list(notes.values())
    assert [Transition(**line) for line in lines] == rows
    for line in (repr(log), *map(str, rows), *map(str, log.notes()), *map(str, log.durations().values())):
        assert "\n" not in line
    assert len(repr(log)) <= 120


@settings(max_examples=40)
@given(plan=plans(), chunk=st.sampled_from([3, 16, 1024]))
def test_every_question_is_answered_from_the_log_of_any_run(
    plan: Plan, chunk: int, tmp_path_factory: pytest.TempPathFactory
):
    """Finished, stopped, paused and failed runs can be asked all that a log can be asked."""
    with clock_and_chunks(chunk):
        engine, _ = plan.build()
        drive(engine)
        assert_readable(engine.current.log, tmp_path_factory.getbasetemp())


def test_the_log_of_a_failed_run_is_read_like_any_other(tmp_path: Path):
    """A failure is the last record; path, counts and durations go up to it, and `explain` has its note."""
    engine = small_engine()
    Actor(engine, {7: "fail"})
    assert type(drive(engine)) is Planned
    log = engine.current.log
    assert_readable(log, tmp_path)
    assert log.path() == ["idle", "before_loop", "before_epoch", "before_step", "process_batch", "failed"]
    assert log.counts()["failed"] == 1
    assert log.durations()["process_batch"].count == 1
    assert log.explain(4).tried == ()
    assert [(note.seq, note.kind) for note in log.explain(4).notes] == [(4, "failure")]
    assert log.notes("failure")[0].text == (
        "Planned: on exit of process_batch in hear_exit_process_batch on exit of process_batch "
        "(epoch 0, batch 0, step 0, update 0)"
    )


# -- small


class NullLoss(torch.Tensor):
    """A scalar whose backward pass does nothing."""

    def backward(self, *arguments: Any, **keywords: Any) -> None:
        """Do nothing."""


class NullOptimizer(torch.optim.SGD):
    """An optimizer that does nothing."""

    def step(self, closure: Any = None) -> None:
        """Do nothing."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing."""


def null_engine(steps: int, plugins: Any = (), **config: Any) -> Engine:
    """Return an engine whose steps take no time: a run of four transitions a step, and five more."""
    network = nn.Linear(1, 1)
    loss = torch.Tensor._make_subclass(NullLoss, torch.zeros(()), True)
    components = Components(
        network=network,
        loader=[0] * steps,
        compute_loss=lambda network, batch: loss,
        optimizer=NullOptimizer(network.parameters(), lr=0.1),
    )
    return Engine(components, RunConfig(**({"epochs": 1} | config)), plugins=plugins)


def allocated(steps: int, plugins: Any = (), **config: Any) -> tuple[int, int]:
    """Return how many transitions a run makes, and the bytes that are allocated in it and kept."""
    engine = null_engine(steps, plugins, **config)
    gc.collect()
    tracemalloc.start()
    try:
        engine.run()
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return engine.current._buffer.seq, kept


def test_the_log_holds_at_most_24_bytes_a_transition():
    """All that a run of 40,000 transitions allocates and keeps, whatever it is for, is 24 bytes each at most."""
    allocated(500)  # what is allocated once and for all
    made, kept = allocated(10_000)
    assert made == 5 + 4 * 10_000
    assert kept / made <= 24


def test_a_capped_log_does_not_grow():
    """With a small capacity a run three times as long takes no more memory, notes and skipped updates included."""

    class Busy(Plugin):
        """Notes something and skips the update in every step."""

        def on_enter_optimizer_update(self, run: Run) -> None:
            run.note("again")
            run.skip_update("for the test")

    (_, once), (made, kept) = (allocated(steps, [Busy()], log_capacity=1_000) for steps in (1_500, 5_000))
    assert made == 5 + 4 * 5_000
    assert kept <= once + 20_000


@settings(max_examples=40)
@given(plan=plans(), chunk=st.sampled_from([3, 16, 1024]), capacity=st.integers(1, 60))
def test_past_its_capacity_the_oldest_go_and_the_rest_reads_right(
    plan: Plan, chunk: int, capacity: int, tmp_path_factory: pytest.TempPathFactory
):
    """What a capped log still holds equals the end of that of an uncapped twin, times and explanations included."""
    logs: list[TransitionLog] = []
    for cap in (1_000_000, capacity):
        with clock_and_chunks(chunk) as clock:
            plan.config["log_capacity"] = cap
            engine, _ = plan.build(watched(clock, []), [Ticks(clock)])
            driven(engine, clock)
            logs.append(engine.current.log)
    twin, capped = logs
    rows = twin.tail(capacity)
    assert list(capped) == rows
    assert [t.seq for t in capped] == list(range(len(twin)))[-capacity:]
    assert [capped.explain(t.seq) for t in rows] == [twin.explain(t.seq) for t in rows]
    assert capped.notes() == [note for note in twin.notes() if note.seq >= rows[0].seq]
    assert_readable(capped, tmp_path_factory.getbasetemp())
    if len(twin) > capacity:
        with pytest.raises(EngineError, match=rf"does not hold transition #0; it holds #{rows[0].seq} to #"):
            capped.explain(0)


def test_a_long_capped_log_equals_the_tail_of_its_twin():
    """The same with the real size of a chunk, over 20,000 transitions."""
    twin, capped = null_engine(5_000).run().log, null_engine(5_000, log_capacity=3_000).run().log
    assert len(capped) == 3_000
    assert records(capped) == records(twin.tail(3_000))
    assert capped.path() == twin.path()[-3_001:]


def test_a_skipped_update_is_not_counted_by_the_log():
    """The counters read from it stand still where the update was left out, in later chunks too."""
    with clock_and_chunks(16):
        engine = small_engine(6)
        engine.on_enter("optimizer_update", every=2)(lambda run: run.skip_update("every second"))
        log = engine.run().log
    assert [t.update for t in log.where(source="optimizer_update")] == [1, 1, 2, 2, 3, 3]
    assert [t.step for t in log.where(source="optimizer_update")] == [1, 2, 3, 4, 5, 6]


def test_the_notes_that_a_capped_log_keeps_are_those_of_its_transitions():
    """After every turn, wherever a chunk begins: no note of a transition that is kept is gone, and no other is left."""
    with clock_and_chunks(16):
        engine = null_engine(40, log_capacity=32)
        for state in engine.current.table.scopes():
            engine.on_exit(state)(lambda run: run.note(run.state))
        log = engine.current.log
        while not engine.current.ended:
            engine.run(until=one_turn)
            expected = [(t.seq, t.source) for t in log if t.source != "idle"]
            assert expected == [(note.seq, note.text) for note in log.notes("note")]


# -- asked


def staged() -> TransitionLog:
    """Return the log of a run of two epochs of three batches, two to an update."""
    return small_engine(3, accumulation=2, remainder="flush", epochs=2).run().log


def test_where_by_state_and_counters():
    """Each condition alone, and all together; a counter is a number or a range."""
    log = staged()
    assert [t.seq for t in log.where(source="optimizer_update")] == [9, 13, 22, 26]
    assert [t.seq for t in log.where(dest="after_epoch")] == [13, 26]
    assert [t.seq for t in log.where(source="after_step", dest="before_step")] == [5, 18]
    assert [t.seq for t in log.where(dest="after_step", step=range(1, 4))] == [7, 11, 17]
    assert [t.seq for t in log.where(dest="optimizer_update", epoch=1)] == [21, 25]
    assert [t.seq for t in log.where(source="optimizer_update", update=range(2, 5, 2))] == [13, 26]
    assert [t.seq for t in log.where(batch_index=3, update=2)] == [13, 14]
    assert log.where(step=99) == []
    assert log.where(epoch=range(0)) == []


@pytest.mark.parametrize("end", ["source", "dest"])
def test_where_refuses_an_unknown_state(end: str):
    """A state that the table lacks is a mistake, not an empty answer; the nearest name is suggested."""
    with pytest.raises(EngineError, match="there is no state 'after_stp'; did you mean 'after_step'"):
        staged().where(**{end: "after_stp"})


@pytest.mark.parametrize("value", [(1, 3), [1, 3], slice(1, 3), "1:3", 1.0])
def test_where_takes_numbers_and_ranges(value: Any):
    """Of Python's and of numpy's; for anything else it says so, and what it was given."""
    log = staged()
    for counter in ("epoch", "batch_index", "step", "update"):
        with pytest.raises(
            EngineError, match=rf"where\({counter}=…\) takes a number, or a range .*{re.escape(repr(value))}"
        ):
            log.where(**{counter: value})
    assert log.where(step=np.int64(1), update=np.int32(0)) == log.where(step=1, update=0) != []


def test_a_log_is_indexed_as_a_list_is():
    """From either end, by slices, and beyond its ends an IndexError."""
    log = staged()
    assert len(log) == 29
    assert (log[0].source, log[0].dest) == ("idle", "before_loop")
    assert (log[-1].source, log[-1].dest) == ("after_loop", "finished")
    assert [t.seq for t in log[2:5]] == [2, 3, 4]
    assert [t.seq for t in log[-2:]] == [27, 28]
    assert log[40:] == []
    for index in (29, -30):
        with pytest.raises(IndexError, match=rf"there is no log\[{index}\]: it holds #0 to #28; log\[0\]"):
            log[index]


def test_tail_returns_the_last_oldest_first():
    """Ten by default, all where there are fewer, none for 0."""
    log = staged()
    assert [t.seq for t in log.tail()] == list(range(19, 29))
    assert [t.seq for t in log.tail(2)] == [27, 28]
    assert log.tail(0) == log.tail(-3) == []
    assert len(log.tail(99)) == 29


def test_the_log_of_a_run_that_has_not_begun_is_empty(tmp_path: Path):
    """Every question has an answer before the first turn."""
    log = small_engine().current.log
    assert len(log) == 0
    assert list(log) == log.tail(3) == log.path() == log.where() == log.notes() == []
    assert log.counts() == {}
    assert log.durations() == {}
    written = log.to_jsonl(tmp_path / "deep" / "log.jsonl")
    assert ["format" in json.loads(line) for line in written.read_text().splitlines()] == [True]
    assert repr(log) == "<TransitionLog: 0 transitions from #0>"
    with pytest.raises(EngineError, match="the log does not hold transition #0; it holds none yet"):
        log.explain(0)


def test_reprs_say_where_things_stand():
    """What is printed is one line that names the last transition."""
    log = staged()
    assert repr(log) == "<TransitionLog: 29 transitions from #0, last after_loop -> finished>"
    line = str(log[8])
    assert line.startswith("#8 after_step -> optimizer_update  epoch 0 batch 2 step 2 update 0  ")
    assert line.endswith(" µs  update_due=yes")


def tried(log: TransitionLog, seq: int) -> list[tuple[str, str | None, bool | None, dict[str, Any]]]:
    """Return what `explain` says was tried for a transition."""
    return [(t.dest, t.guard, t.answer, dict(t.values)) for t in log.explain(seq).tried]


def test_explain_in_mid_window():
    """After the first of two steps: the window is not full, so a step follows; what both guards saw, in literals."""
    assert tried(staged(), 5) == [
        (
            "optimizer_update",
            "update_due",
            False,
            {"steps in the window": 1, "accumulation": 2, "remainder": "flush", "batches": 1, "in a pass": 3},
        ),
        (
            "before_step",
            "batches_remain",
            True,
            {"steps in the window": 1, "batches": 1, "in a pass": 3, "stop asked for": False},
        ),
    ]


def test_explain_a_flushed_window():
    """After the last batch one step stands in the window, and is due because nothing follows it."""
    assert tried(staged(), 12) == [
        (
            "optimizer_update",
            "update_due",
            True,
            {"steps in the window": 1, "accumulation": 2, "remainder": "flush", "batches": 3, "in a pass": 3},
        )
    ]


def test_explain_the_end_of_an_epoch_and_of_the_run():
    """An unguarded arc comes last and says so."""
    log = staged()
    assert tried(log, 14) == [("before_epoch", "epochs_remain", True, {"epochs": 1, "of": 2, "stop asked for": False})]
    assert tried(log, 27) == [
        ("before_epoch", "epochs_remain", False, {"epochs": 2, "of": 2, "stop asked for": False}),
        ("after_loop", None, None, {}),
    ]
    assert str(log.explain(27)).splitlines()[1:] == [
        "    to before_epoch if epochs_remain: no (epochs 2, of 2, stop asked for False)",
        "    to after_loop: always",
    ]


def test_explain_after_a_stop():
    """A stop on exit of a state is seen by the guards asked in that turn, and its note stands there."""
    engine = small_engine(3, epochs=2)

    @engine.on_exit("optimizer_update", every=2)
    def enough(run: Run) -> None:
        run.stop("enough")

    log = engine.run().log
    (before,), (after,) = (log.where(source="optimizer_update", update=update) for update in (1, 2))
    assert tried(log, before.seq)[0][3] == {
        "steps in the window": 0,
        "batches": 1,
        "in a pass": 3,
        "stop asked for": False,
    }
    assert tried(log, after.seq) == [
        (
            "before_step",
            "batches_remain",
            False,
            {"steps in the window": 0, "batches": 2, "in a pass": 3, "stop asked for": True},
        ),
        ("after_epoch", None, None, {}),
    ]
    assert [(note.kind, note.text) for note in log.explain(after.seq).notes] == [("stop", "enough")]


def test_explain_a_limit_of_updates():
    """Where `max_updates` is given, the guards that look at it say how far it was."""
    log = small_engine(3, max_updates=2).run().log
    (last,) = log.where(source="optimizer_update", update=2)
    assert tried(log, last.seq)[0] == (
        "before_step",
        "batches_remain",
        False,
        {
            "steps in the window": 0,
            "batches": 2,
            "in a pass": 3,
            "stop asked for": False,
            "updates": 2,
            "max_updates": 2,
        },
    )


def test_explain_data_of_unknown_length():
    """How many batches a pass has is unknown, and said to be."""
    log = small_engine(Unsized(batches(2))).run().log
    (seen,) = log.where(source="optimizer_update", batch_index=2)
    assert tried(log, seen.seq)[0][3] == {
        "steps in the window": 0,
        "batches": 2,
        "in a pass": "unknown",
        "stop asked for": False,
    }


def test_explain_a_window_whose_size_was_changed():
    """The size that counts is that of the window that was open, not the one asked for."""
    engine = small_engine(5, remainder="flush")

    @engine.on_exit("after_step", once=True)
    def grow(run: Run) -> None:
        run.set_accumulation(4)

    log = engine.run().log
    sizes = [tried(log, t.seq)[0][3]["accumulation"] for t in log.where(source="after_step")]
    assert sizes == [1, 4, 4, 4, 4]


def test_explain_a_detours_guard():
    """Of a plugin's guard the answer is known, and nothing else."""
    side = Side(Detour("sample", "after_step", lambda run: True, lambda run: None, every=2))
    log = small_engine(2, [side]).run().log
    first, second = log.where(source="after_step")
    assert tried(log, first.seq)[0] == ("sample", "sample_due", False, {})
    assert tried(log, second.seq) == [("sample", "sample_due", True, {})]


def test_explain_a_guard_that_raised():
    """The guards before it said no, it said nothing, and those after it were not asked."""

    def broken(run: Run) -> bool:
        raise ValueError("no answer")

    quiet = Detour("quiet", "after_step", lambda run: False, lambda run: None)
    engine = small_engine(1, [Side(quiet), Side(Detour("loud", "after_step", broken, print), name="Loud")])
    assert type(drive(engine)) is ValueError
    log = engine.current.log
    assert tried(log, len(log) - 1) == [("quiet", "quiet_due", False, {}), ("loud", "loud_due", None, {})]
    assert dict(log[-1].guards) == {"quiet_due": False}
    assert str(log.explain(len(log) - 1)).splitlines()[1:] == [
        "    to quiet if quiet_due: no",
        "    to loud if loud_due: it raised",
        "    failure: ValueError: no answer in Side 'Loud' in the guard loud_due asked in after_step "
        "(epoch 0, batch 1, step 1, update 0)",
    ]


@pytest.mark.parametrize("seq", [-1, 29, 1000])
def test_explain_refuses_a_transition_that_is_not_there(seq: int):
    """The message says which transitions the log holds."""
    with pytest.raises(EngineError, match=rf"the log does not hold transition #{seq}; it holds #0 to #28"):
        staged().explain(seq)


def test_explain_takes_the_number_of_a_transition():
    """Of Python's or of numpy's; for the transition itself it says so."""
    log = staged()
    assert str(log.explain(np.int64(9))) == str(log.explain(9))
    for wrong in (log[9], 9.0, "9"):
        with pytest.raises(EngineError, match=rf"takes the number of a transition, .*, got {type(wrong).__name__}"):
            log.explain(wrong)


def test_a_kind_of_event_that_there_is_not_is_an_error():
    """The nearest one is named."""
    log = small_engine(2).run().log
    with pytest.raises(EngineError, match=r"no event of the kind 'stopp'; did you mean 'stop'\?"):
        log.notes("stopp")


def test_a_log_is_loaded_from_a_path():
    with pytest.raises(EngineError, match=r"takes the path of a journal, got a NoneType"):
        TransitionLog.load(None)


def test_notes_are_bound_to_transitions_and_found_by_kind():
    """Every rare event is a note of its kind; on entry it belongs to the transition that led there."""
    engine = small_engine(3, accumulation=2, epochs=2)

    @engine.on_enter("optimizer_update", once=True)
    def leave_out(run: Run) -> None:
        run.skip_update("too large")

    @engine.on_exit("after_epoch", once=True)
    def remark(run: Run) -> None:
        run.note("half way")
        run.set_accumulation(3)
        run.pause("a look")

    run = engine.run()
    assert run.paused == "a look"
    engine.run()
    log = run.log
    ends = [t.seq for t in log.where(source="after_epoch")]
    assert [(note.seq, note.kind, note.text) for note in log.notes()] == [
        (log.where(dest="optimizer_update")[0].seq, "skip", "too large"),
        (13, "extend", "epoch 0 is extended by 1 step to fill its last window"),
        (ends[0], "note", "half way"),
        (ends[0], "accumulation", "2 -> 3 from the next window on"),
        (ends[0], "pause", "a look"),
    ]
    assert [note.text for note in log.notes("note")] == ["half way"]
    assert log.notes("stop") == []


def test_a_note_made_on_entry_belongs_to_the_transition_that_led_there():
    """A note of the entry to a state and one of its exit are two transitions."""
    engine = small_engine(1)
    for mark in (engine.on_enter, engine.on_exit):
        mark("process_batch")(lambda run: run.note(run.state))
    log = engine.run().log
    assert [(log[note.seq].source, log[note.seq].dest) for note in log.notes("note")] == [
        ("before_step", "process_batch"),
        ("process_batch", "after_step"),
    ]


# -- pausing


@pytest.mark.parametrize("verb", ["advance", "until", "pause"])
def test_a_run_paused_after_every_turn_has_the_log_of_a_straight_run(verb: str):
    """The same transitions with the same durations: the time spent paused belongs to no state."""

    def run_to_the_end(pauses: bool) -> TransitionLog:
        with clock_and_chunks() as clock:
            engine = small_engine(3, [Ticks(clock)], accumulation=2, epochs=2)
            while not engine.current.ended:
                clock.skip()
                if verb == "advance" and pauses:
                    engine.advance()
                elif verb == "pause" and pauses:
                    engine.current.pause("again")
                    engine.run()
                else:
                    engine.run(until=(lambda run: True) if pauses else None)
            return engine.current.log

    straight, paused = run_to_the_end(False), run_to_the_end(True)
    assert records(straight) == records(paused)
    assert [t.duration_ns for t in straight] == [t.duration_ns for t in paused]
    assert straight.durations() == paused.durations()
    assert len(straight.notes("pause")) == 0
    assert len(paused.notes("pause")) >= 10


# -- while the run continues


def test_a_handler_reads_the_log_up_to_the_turn_it_is_in():
    """On entry the transition that led there is the last record; on exit the one under way is not yet there."""
    seen: list[tuple[str, str, str, int]] = []

    class Reader(Plugin):
        """Reads the log on both moments of the update."""

        def on_enter_optimizer_update(self, run: Run) -> None:
            seen.append(("enter", run.log[-1].source, run.log.path()[-1], run.log.counts()["optimizer_update"]))

        def on_exit_optimizer_update(self, run: Run) -> None:
            seen.append(("exit", run.log[-1].source, run.log.path()[-1], run.log.tail(1)[0].update))

    small_engine(2, [Reader()]).run()
    assert seen == [
        ("enter", "after_step", "optimizer_update", 1),
        ("exit", "after_step", "optimizer_update", 0),
        ("enter", "after_step", "optimizer_update", 2),
        ("exit", "after_step", "optimizer_update", 1),
    ]


def test_reading_in_handlers_changes_nothing(tmp_path: Path):
    """A run whose log is read on every moment has the log of one that nobody read."""
    engine = small_engine(3, accumulation=2)
    for state in engine.current.table.scopes():
        for moment in (engine.on_enter, engine.on_exit):
            moment(state)(lambda run: assert_readable(run.log, tmp_path))
    assert records(engine.run().log) == records(small_engine(3, accumulation=2).run().log)


def one_turn(run: Run) -> bool:
    """Pause a run after a turn."""
    return True


READERS = {
    module.__file__
    for module in (
        heptad.history.query,
        heptad.history.decode,
        heptad.history.select,
        heptad.history.summary,
        heptad.history.explain,
        heptad.history.export.jsonl,
    )
}


@contextmanager
def turns_between_lines(engine: Engine) -> Iterator[None]:
    """Make a turn of the run before every line of the code that reads its log, as another thread might."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in READERS:
            return None
        if event == "line" and not engine.current.ended:
            engine.run(until=one_turn)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def asked_meanwhile(ask: Callable[[TransitionLog], Any], turns: int, capacity: int) -> Any:
    """Return what a log answers after that many turns, with further turns made while it is being read."""
    with clock_and_chunks(16):
        engine = null_engine(5_000, log_capacity=capacity)
        engine.run(until=lambda run: run._buffer.seq == turns)
        with turns_between_lines(engine):
            answer = ask(engine.current.log)
        assert turns < engine.current._buffer.seq
        assert not engine.current.ended
    return answer


def oldest_explained(log: TransitionLog) -> list[Transition]:
    """Return the oldest transition, by `explain`; none where that refused because it was gone by then."""
    try:
        return [log.explain(log[0].seq).transition]
    except EngineError:
        return []


@pytest.mark.parametrize("capacity", [1_000_000, 96])
@pytest.mark.parametrize(
    ("ask", "lengths"),
    [
        pytest.param(lambda log: log.tail(5), {5}, id="tail"),
        pytest.param(lambda log: [log[-1]], {1}, id="last"),
        pytest.param(lambda log: [log[0]], {1}, id="first"),
        pytest.param(lambda log: log[:2], {2}, id="first two"),
        pytest.param(lambda log: log[30:34], {4}, id="slice"),
        pytest.param(lambda log: log[-3:], {3}, id="slice from the end"),
        pytest.param(list, range(96, 1000), id="iteration"),
        pytest.param(lambda log: log.where(), range(96, 1000), id="where"),
        pytest.param(lambda log: [log.explain(log[-1].seq).transition], {1}, id="newest explained"),
        pytest.param(oldest_explained, {0, 1}, id="oldest explained"),
    ],
)
def test_rows_are_read_right_whatever_the_run_does_meanwhile(ask: Any, lengths: Any, capacity: int):
    """With a turn made before every line of the reader: as many rows as asked for, in order, each as it was."""
    twin = records(null_engine(1_000).run().log)
    for turns in (113, 120, 127):  # at several places of a chunk of 16
        rows = records(asked_meanwhile(ask, turns, capacity))
        assert len(rows) in lengths
        first = rows[0][0] if rows else 0
        assert rows == twin[first : first + len(rows)]


@pytest.mark.parametrize("capacity", [1_000_000, 96])
def test_sums_are_read_right_whatever_the_run_does_meanwhile(capacity: int):
    """The same for what is not a list of transitions."""
    twin = null_engine(1_000).run().log.path()
    for turns in (113, 120, 127):
        path = asked_meanwhile(lambda log: log.path(), turns, capacity)
        assert any(path == twin[place : place + len(path)] for place in range(len(twin)))
        counts = asked_meanwhile(lambda log: log.counts(), turns, capacity)
        assert 96 <= counts.total() <= capacity
        durations = asked_meanwhile(lambda log: log.durations(), turns, capacity)
        assert 96 <= sum(duration.count for duration in durations.values()) <= capacity
        assert asked_meanwhile(repr, turns, capacity).startswith("<TransitionLog: ")


@pytest.mark.parametrize("capacity", [1_000_000, 96])
def test_what_is_written_while_the_run_continues_is_without_gaps(capacity: int, tmp_path: Path):
    """`to_jsonl` writes consecutive transitions, whatever is added and dropped while it writes."""
    written = asked_meanwhile(lambda log: log.to_jsonl(tmp_path / "log.jsonl"), 112, capacity)
    seqs = [json.loads(line)["seq"] for line in written.read_text().splitlines()[1:]]
    assert len(seqs) >= 96
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


def test_what_a_signal_handler_notes_while_a_chunk_is_packed_is_bound_to_the_right_transition():
    """Ctrl-C may fall between any two lines of the packing; the number of the transition under way is right there."""
    engine = null_engine(600)

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not heptad.record.buffer.LogBuffer.settle.__code__:
            return None
        if event == "line":
            engine.current.note("a signal")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        log = engine.run().log
    finally:
        sys.settrace(before)
    assert sorted({note.seq for note in log.notes("note")}) == [1024, 2048, 5 + 4 * 600]


@pytest.mark.parametrize("capacity", [1_000_000, 1_500])
def test_another_thread_reads_a_sound_log_while_the_run_continues(capacity: int):
    """Whenever it looks, it sees a snapshot: whole transitions, in order, none twice, none missing."""
    engine = null_engine(10_000, log_capacity=capacity)
    errors: list[BaseException] = []
    begun, over = threading.Event(), threading.Event()
    reads = 0

    def look() -> None:
        nonlocal reads
        begun.wait()
        try:
            while not over.is_set() or not reads:
                for rows in (engine.current.log.tail(5), list(engine.current.log)):
                    assert [t.seq for t in rows] == [rows[0].seq + place for place in range(len(rows))]
                    assert [t.source for t in rows[1:]] == [t.dest for t in rows[:-1]]
                reads += 1
        except BaseException as error:
            errors.append(error)

    engine.on_enter("before_loop")(lambda run: begun.set())
    reader = threading.Thread(target=look)
    reader.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        engine.run()
    finally:
        over.set()
        begun.set()
        reader.join()
        sys.setswitchinterval(before)
    assert errors == []
    assert reads >= 1
