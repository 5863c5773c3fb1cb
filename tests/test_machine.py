"""The compiled dispatch makes the turns that the stock one makes, and the library's tables hold what is dispatched."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import heptad.engine
import heptad.run.guards
import heptad.step.bodies
from builders import (
    STATES,
    Actor,
    Plan,
    Planned,
    Unsized,
    Witness,
    batches,
    drive,
    plans,
    records,
    remarks,
    small_engine,
    weights,
)
from heptad import Arc, Detour, Engine, RunConfig, State
from heptad.machine import Machine
from heptad.plugin.marks import Mark
from heptad.plugin.subscription import Subscription
from heptad.record.buffer import LogBuffer
from heptad.run.guards import GUARDS
from heptad.run.run import Run
from heptad.table import Table, training_table
from stock import StockEngine, StockMachine


def observed(engine: Engine, actor: Actor) -> dict[str, Any]:
    """Run an engine to its end, on from where it pauses, and return all that it leaves but times."""
    error = drive(engine)
    run = engine.current
    return {
        "records": records(run.log),
        "notes": remarks(run),
        "heard": actor.heard,
        "state": (run.state, run.reason, run.paused, run.counters()),
        "error": None if error is None else (type(error), str(error), error.__notes__),
        "weights": [tensor.tolist() for tensor in weights(run.network)],
    }


def outcome(engine_class: type[Engine], *, loader: Any = 3, acts: Any = None, **config: Any) -> dict[str, Any]:
    """Run an engine with two plugins and an actor, and returns what was observed."""
    first, last = Witness(name="first"), Witness(name="last")
    engine = small_engine(loader, [first, last], engine_class=engine_class, **config)
    found = observed(engine, Actor(engine, acts))
    return found | {"first": first.seen, "last": last.seen, "counters": first.counters}


def both(make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the stock and what the compiled dispatch made of the same arguments, built anew for each."""
    return outcome(StockEngine, **make()), outcome(Engine, **make())


def step_detour(state: str, after: Any, every: int | None) -> Detour:
    """Return a detour that is due at every multiple, or where an odd number of steps is done."""
    return Detour(state, after, lambda run: every is not None or run.step % 2 == 1, lambda run: None, every=every)


# -- the training table


@pytest.mark.parametrize("remainder", ["extend", "flush", "drop", "carry"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_stock_equals_compiled_on_the_training_table(n: int, k: int, remainder: str):
    """Every number of batches, window and rule for the remainder gives the same run under both dispatches."""
    stock, compiled = both(lambda: {"loader": n, "accumulation": k, "remainder": remainder, "epochs": 2})
    assert stock == compiled
    assert compiled["state"][0] == "finished"


@pytest.mark.parametrize(
    "config",
    [
        {"epochs": 0},
        {"max_updates": 0},
        {"max_updates": 2},
        {"max_updates": 5, "accumulation": 2},
        {"epochs": 2, "max_updates": 1, "accumulation": 2, "remainder": "drop"},
    ],
    ids=str,
)
@pytest.mark.parametrize("unsized", [False, True])
def test_stock_equals_compiled_at_limits(config: dict[str, Any], unsized: bool):
    """Run of no epoch, runs cut by `max_updates`, and runs over data of unknown length are the same too."""
    loader = Unsized(batches(3)) if unsized else 3
    stock, compiled = both(lambda: {"loader": loader, **config})
    assert stock == compiled
    assert compiled["state"][0] == "finished"


@pytest.mark.parametrize("act", ["stop", "pause", "fail", "skip", "grow"])
def test_stock_equals_compiled_whatever_a_handler_does(act: str):
    """A stop, a pause, a failure, a skipped update and a new window, at each event of a run in turn."""
    events = len(outcome(Engine, accumulation=2)["heard"])
    assert events == 36
    for event in range(events):
        stock, compiled = both(lambda event=event: {"accumulation": 2, "acts": {event: act}})
        assert stock == compiled


def counted(original: Callable[[Run], Any], fail_at: int) -> Callable[[Run], Any]:
    """Return a function that does what the original does, and raises at one of its calls, counted from 1."""
    calls = 0

    def call(run: Run) -> Any:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise Planned(f"call {calls}")
        return original(run)

    return call


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("guard", ["epochs_remain", "batches_remain", "update_due"])
def test_stock_equals_compiled_when_a_guard_raises(guard: str, call: int, monkeypatch: pytest.MonkeyPatch):
    """The failure, its place, its note and the answers given before it are the same."""
    original = heptad.run.guards.GUARDS[guard]

    def make() -> dict[str, Any]:
        monkeypatch.setitem(heptad.run.guards.GUARDS, guard, counted(original, call))
        return {"accumulation": 2}

    stock, compiled = both(make)
    assert stock == compiled
    assert compiled["error"][:2] == (Planned, f"call {call}")
    assert f"in the guard {guard} asked in" in compiled["error"][2][0]


@pytest.mark.parametrize("state", [state for state in STATES if state != "process_batch"])
def test_stock_equals_compiled_when_a_body_raises(state: str, monkeypatch: pytest.MonkeyPatch):
    """A body that fails at its first call fails in the same place with the same note."""

    def fail(run: Run, strategy: Any = None) -> None:
        raise Planned("call 1")

    if state == "before_loop":  # it needs the strategy, so the engine names it itself
        monkeypatch.setattr(heptad.engine, "before_loop", fail)
    else:
        monkeypatch.setitem(heptad.step.bodies.BODIES, state, fail)

    def make() -> dict[str, Any]:
        return {"accumulation": 2}

    stock, compiled = both(make)
    assert stock == compiled
    assert compiled["error"][2] == [note for note in compiled["error"][2] if f"in the body of {state}" in note]


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("engine_class", [StockEngine, Engine])
def test_what_is_no_exception_is_raised_unchanged_by_both(engine_class: type[Engine], error: type[BaseException]):
    """Neither dispatch swallows or turns into something else what a handler raises, however special."""
    engine = small_engine(engine_class=engine_class)
    raised = error("stop here")

    @engine.on_exit("after_step")
    def leave(run: Run) -> None:
        raise raised

    with pytest.raises(error) as caught:
        engine.run()
    assert caught.value is raised
    assert engine.current.log.path()[-2:] == ["after_step", "failed"]


@settings(max_examples=80)
@given(plan=plans())
def test_stock_equals_compiled_with_detours(plan: Plan):
    """Up to three detours, from any states, with stops, pausing and failures on any moment."""
    stock, compiled = (observed(*plan.build(engine_class)) for engine_class in (StockEngine, Engine))
    assert stock == compiled


# -- random tables


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Draw a sound table: 1 to 7 states between start and end, some shown under one name, up to 4 guards."""
    count = draw(st.integers(1, 7))
    names = [f"s{number}" for number in range(count)]
    guards = [f"g{number}" for number in range(4)]
    states = [State("start", "start")]
    for name in names:
        shown = draw(st.sampled_from([name, "twin"]))
        states.append(State(name, "scope" if shown == name else "detour", shown=shown))
    states += [State("end", "end"), State("failed", "failed")]
    leaving: dict[str, list[Arc]] = {name: [] for name in ["start", *names]}
    for number, name in enumerate([*names, "end"]):  # every state is reached from one before it
        parent = draw(st.sampled_from(["start", *names[:number]]))
        leaving[parent].append(Arc(parent, name, draw(st.sampled_from(guards))))
    for source, arcs in leaving.items():
        for dest in draw(st.lists(st.sampled_from([*names, "end"]), max_size=3)):
            arcs.append(Arc(source, dest, draw(st.sampled_from(guards))))
        leaving[source] = [*draw(st.permutations(arcs)), Arc(source, draw(st.sampled_from(names)))]
    order = draw(st.permutations(list(leaving)))
    return Table(states, [arc for source in order for arc in leaving[source]], guards)


def scripted(machine_class: type[Machine], table: Table, seed: int, portions: list[int], fail_at: int | None) -> Any:
    """Drive a table by a seeded script, some turns at a time, and returns what was called, logged and raised."""
    parts = small_engine().current._runtime
    run = Run(table, RunConfig(epochs=1), parts, LogBuffer(table, 1000))
    calls: list[tuple[str, str, int]] = []

    def called(kind: str, name: str) -> None:
        if len(calls) == fail_at:
            raise Planned(f"{kind} {name}")
        calls.append((kind, name, run._buffer.seq))

    def body(name: str) -> Callable[[Run], None]:
        return lambda run: called("body", name)

    def guard(name: str) -> Callable[[Run], bool]:
        def ask(run: Run) -> bool:
            called("guard", name)
            return random.Random(f"{seed} {name} {run._buffer.seq}").random() < 0.5

        return ask

    def handler(moment: str, state: str, number: int) -> Subscription:
        def call(run: Run) -> None:
            called(f"{moment} {number}", state)
            if random.Random(f"{seed} {moment} {state} {run._buffer.seq}").random() < 0.1:
                run._position.halt = True

        return Subscription(None, f"handler {number} on {moment} of {state}", Mark(moment, state), call)

    shown = sorted({state.shown for state in table.states if state.kind in ("scope", "detour")})
    handlers = [
        handler(moment, state, number)
        for state in shown
        for moment in ("enter", "exit")
        for number in range(random.Random(f"{seed} {moment} {state}").randrange(3))
    ]
    names = [state.name for state in table.states]
    owners = {"s0": "owner of s0", "g0": "owner of g0"}
    machine = machine_class(
        run, {name: body(name) for name in names}, {name: guard(name) for name in table.guards}, handlers, owners
    )
    error = None
    run._buffer.go()
    try:
        for turns in portions:
            run._position.halt = False
            machine.drive(run, turns)
            calls.append(("portion", run.state, run._buffer.seq))
            if run.ended:
                break
    except Planned as raised:
        error = (str(raised), raised.__notes__)
    return calls, records(run.log), remarks(run), run.state, run.reason, error


@settings(max_examples=300)
@given(
    table=tables(),
    seed=st.integers(0, 1 << 30),
    portions=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    fail_at=st.none() | st.integers(0, 80),
)
def test_stock_equals_compiled_on_random_tables(table: Table, seed: int, portions: list[int], fail_at: int | None):
    """Any sound table, with handlers that halt the loop and calls that fail, gives the same calls and records."""
    stock = scripted(StockMachine, table, seed, portions, fail_at)
    compiled = scripted(Machine, table, seed, portions, fail_at)
    assert stock == compiled
    assert len(compiled[1]) >= 1


@pytest.mark.parametrize("machine_class", [StockMachine, Machine])
def test_a_turn_is_body_exit_guards_record_entry(machine_class: type[Machine]):
    """The order within a turn, written out: the record stands before entry handlers are called, not before guards."""
    table = Table(
        [State("start", "start"), State("work"), State("end", "end"), State("failed", "failed")],
        [Arc("start", "work"), Arc("work", "work", "again"), Arc("work", "end", "done"), Arc("work", "end")],
        ["again", "done"],
    )
    run = Run(table, RunConfig(epochs=1), small_engine().current._runtime, LogBuffer(table, 1000))
    calls: list[tuple[str, int]] = []

    def note(name: str, answer: bool = False) -> Callable[[Run], bool]:
        def call(run: Run) -> bool:
            calls.append((name, len(run.log)))
            return answer

        return call

    machine = machine_class(
        run,
        {"start": note("start"), "work": note("work")},
        {"again": note("again"), "done": note("done", True)},
        [
            Subscription(None, "in", Mark("enter", "work"), note("enter")),
            Subscription(None, "out", Mark("exit", "work"), note("exit")),
        ],
    )
    machine.drive(run, 2)
    assert calls == [("start", 0), ("enter", 1), ("work", 1), ("exit", 1), ("again", 1), ("done", 1)]
    assert run.log.path() == ["start", "work", "end"]
    assert dict(run.log[-1].guards) == {"again": False, "done": True}


# -- the library's tables


def machine_of(table: Table) -> tuple[Run, Machine, dict[str, Callable[[Run], bool]]]:
    """Return a run over a table and its compiled machine, with a guard of its own for each of the table's."""
    run = Run(table, RunConfig(epochs=1), small_engine().current._runtime, LogBuffer(table, 1000))
    guards = {name: GUARDS.get(name, lambda run: False) for name in table.guards}
    return run, Machine(run, {}, guards), guards


@pytest.mark.parametrize("detours", [(), (step_detour("evaluate", ["after_step", "optimizer_update"], 2),)])
def test_get_transitions_holds_the_arcs_and_guards_of_the_table(detours: tuple[Detour, ...]):
    """The library's own question about its transitions is answered with the table, in the table's order."""
    table = training_table(detours)
    _, machine, guards = machine_of(table)
    expected = {
        source: [(arc.dest, [guards[arc.guard]] if arc.guard else []) for arc in arcs]
        for source, arcs in table.leaving.items()
    }
    held = {
        source: [
            (t.dest, [condition.func for condition in t.conditions]) for t in machine.get_transitions(source=source)
        ]
        for source in table.index
    }
    assert expected == held
    assert len(table.arcs) == len(machine.get_transitions())


def test_the_librarys_states_hold_the_handlers():
    """Handlers stand in the callbacks of the library's states, in the order in which they were subscribed."""
    _, machine, _ = machine_of(training_table())
    one, other = (Subscription(None, name, Mark("enter", "after_step"), lambda run: None) for name in ("one", "other"))
    machine.subscribe(one)
    machine.subscribe(other)
    assert [one.call, other.call] == machine.get_state("after_step").on_enter
    assert machine.get_state("after_step").on_exit == []


def test_nothing_is_injected_into_the_model():
    """The library puts methods for states and triggers into its model; here it puts none, and none into the run."""
    run, machine, _ = machine_of(training_table())
    assert list(vars(machine.model)) == ["_run"]
    assert [name for name in dir(machine.model) if not name.startswith("_")] == ["state"]
    assert [name for name in dir(run) if name.startswith(("is_", "may_", "to_", "trigger", "advance"))] == []


def test_the_model_says_the_state_of_the_run():
    """The library reads and writes the state through the model, and the run has no other."""
    run, machine, _ = machine_of(training_table())
    assert machine.model.state == "idle"
    machine.drive(run, 1)
    assert machine.model.state == run.state == "before_loop"
    machine.model.state = "after_epoch"
    assert run.state == "after_epoch"


@pytest.mark.parametrize("machine_class", [StockMachine, Machine])
def test_a_trigger_makes_exactly_one_turn(machine_class: type[Machine]):
    """The library's trigger is one turn, compiled or not."""
    table = training_table()
    run = Run(table, RunConfig(epochs=1), small_engine().current._runtime, LogBuffer(table, 1000))
    machine = machine_class(run, {}, GUARDS)
    path = ["idle"]
    for dest in ("before_loop", "before_epoch", "after_epoch"):
        assert machine.events["advance"].trigger(machine.model, run) is True
        path.append(dest)
        assert path == run.log.path()


def test_drive_makes_the_turns_it_is_asked_for():
    """`drive(run, n)` makes n turns where nothing ends or halts the run, and none for 0."""
    run, machine, _ = machine_of(training_table())
    machine.drive(run, 0)
    assert len(run.log) == 0
    machine.drive(run, 2)
    assert len(run.log) == 2
    machine.drive(run, 3)
    assert len(run.log) == 5


def test_the_machine_has_one_trigger_and_no_automatic_ones():
    """Nobody can move a run but by making a turn."""
    _, machine, _ = machine_of(training_table())
    assert list(machine.events) == ["advance"]


def test_both_dispatches_update_the_weights():
    """The comparisons above compare runs that trained."""
    assert not torch.equal(weights(small_engine().current.network)[0], torch.tensor(outcome(Engine)["weights"][0]))
