"""Detours: side states that plugins add, woven into the table, and so in path, diagram and log alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from builders import Side, Unsized, Witness, batches, records, small_engine
from heptad import Detour, Engine, Plugin, PluginError, Run, TableError, on_enter, on_exit


def always(run: Run) -> bool:
    """A guard that always holds."""
    return True


def nothing(run: Run) -> None:
    """A body that does nothing."""


def at_steps(*steps: int) -> Callable[[Run], bool]:
    """Return a guard that holds after these steps."""
    return lambda run: run.step in steps


def detour(state: str, after: Any, when: Any = always, body: Any = nothing, **counting: Any) -> Detour:
    """Return a detour that by default is always due and does nothing."""
    return Detour(state, after, when, body, **counting)


def ran(*detours: Detour, loader: Any = 3, **config: Any) -> Engine:
    """Return an engine with a plugin of its own for each detour, after its run."""
    engine = small_engine(loader, [Side(d, name=f"side {number}") for number, d in enumerate(detours)], **config)
    engine.run()
    return engine


def visits(engine: Engine, state: str) -> list[tuple[int, int]]:
    """Return (step, update) of each stay in a detour's state."""
    return [(t.step, t.update) for t in engine.current.log.where(source=state)]


def assert_agree(engine: Engine) -> None:
    """Path, diagram and log say the same: every transition is an arc of the table and is drawn with its guard."""
    log, table = engine.current.log, engine.current.table
    drawn = set(engine.diagram().splitlines())
    assert log.path() == [log[0].source, *(t.dest for t in log)]
    for t in log:
        if t.dest == "failed":
            continue
        held = [name for name, answer in t.guards.items() if answer]
        assert f"    {t.source} --> {t.dest}{f': {held[0]}' if held else ''}" in drawn
        arcs = [arc for node in table.named(t.source) for arc in table.leaving[node.name]]
        assert any(table.shown[arc.dest] == t.dest and table.asked(arc) == t.guards for arc in arcs)
    assert log.counts() == {state: log.path()[1:].count(state) for state in set(log.path()[1:])}


# -- paths


def test_a_detour_leaves_by_the_arcs_that_its_source_still_had_to_try():
    """From `after_step` it goes where `after_step` would have gone: to the next step or to the epoch's end."""
    engine = ran(detour("sample", "optimizer_update"), loader=2)
    assert engine.current.log.path() == [
        "idle", "before_loop", "before_epoch",
        "before_step", "process_batch", "after_step", "optimizer_update", "sample",
        "before_step", "process_batch", "after_step", "optimizer_update", "sample",
        "after_epoch", "after_loop", "finished",
    ]  # fmt: skip
    assert_agree(engine)


def test_two_detours_from_one_state_in_plugin_order():
    """Both are visited, the first plugin's first, where both are due; each alone where only one is."""
    engine = ran(
        detour("evaluate", "after_step", at_steps(1, 2)), detour("checkpoint", "after_step", at_steps(2, 3)), loader=3
    )
    assert engine.current.log.path() == [
        "idle", "before_loop", "before_epoch",
        "before_step", "process_batch", "after_step", "evaluate", "optimizer_update",
        "before_step", "process_batch", "after_step", "evaluate", "checkpoint", "optimizer_update",
        "before_step", "process_batch", "after_step", "checkpoint", "optimizer_update",
        "after_epoch", "after_loop", "finished",
    ]  # fmt: skip
    assert_agree(engine)


def test_two_detours_from_one_state_ask_the_guards_that_are_left():
    """From the first detour the second one's guard is still asked, from the second one only the source's own."""
    engine = ran(
        detour("evaluate", "after_step", at_steps(1)), detour("checkpoint", "after_step", at_steps(1)), loader=1
    )
    asked = [
        (t.source, dict(t.guards)) for t in engine.current.log if t.source in {"after_step", "evaluate", "checkpoint"}
    ]
    assert asked == [
        ("after_step", {"evaluate_due": True}),
        ("evaluate", {"checkpoint_due": True}),
        ("checkpoint", {"update_due": True}),
    ]


def test_one_detour_from_two_states():
    """It is one state to those who read, and leaves each time by the arcs of where it came from."""
    engine = ran(
        detour("evaluate", ["after_step", "optimizer_update"], lambda run: run.step == 1), loader=2, accumulation=1
    )
    assert engine.current.log.path() == [
        "idle", "before_loop", "before_epoch",
        "before_step", "process_batch", "after_step", "evaluate", "optimizer_update", "evaluate",
        "before_step", "process_batch", "after_step", "optimizer_update",
        "after_epoch", "after_loop", "finished",
    ]  # fmt: skip
    assert engine.current.log.counts()["evaluate"] == 2
    assert engine.diagram().count("--> evaluate: evaluate_due") == 2
    assert_agree(engine)


@pytest.mark.parametrize(
    ("source", "before", "behind"),
    [
        ("before_loop", "before_loop", "before_epoch"),
        ("before_epoch", "before_epoch", "before_step"),
        ("before_step", "before_step", "process_batch"),
        ("process_batch", "process_batch", "after_step"),
        ("after_step", "after_step", "optimizer_update"),
        ("optimizer_update", "optimizer_update", "after_epoch"),
        ("after_epoch", "after_epoch", "after_loop"),
        ("after_loop", "after_loop", "finished"),
    ],
)
def test_a_detour_may_leave_from_any_state_with_a_body(source: str, before: str, behind: str):
    """Whatever its source, it stands between the source and where that would have gone."""
    engine = ran(detour("look", source), loader=1)
    path = engine.current.log.path()
    place = path.index("look")
    assert path[place - 1 : place + 2] == [before, "look", behind]
    assert path.count("look") == 1
    assert [state for state in path if state != "look"] == ran(loader=1).current.log.path()
    assert_agree(engine)


def test_a_detour_from_after_step_under_accumulation():
    """In mid-window it leads on to the next step, and where the window is full, to the update."""
    engine = ran(detour("look", "after_step"), loader=3, accumulation=2, remainder="flush")
    assert engine.current.log.path() == [
        "idle", "before_loop", "before_epoch",
        "before_step", "process_batch", "after_step", "look",
        "before_step", "process_batch", "after_step", "look", "optimizer_update",
        "before_step", "process_batch", "after_step", "look", "optimizer_update",
        "after_epoch", "after_loop", "finished",
    ]  # fmt: skip
    assert [dict(t.guards) for t in engine.current.log.where(source="look")] == [
        {"update_due": False, "batches_remain": True},
        {"update_due": True},
        {"update_due": True},
    ]
    assert_agree(engine)


def test_a_detour_whose_guard_turns_false_is_visited_no_more():
    """The guard is asked each time anew."""
    left = [2]

    def visit(run: Run) -> None:
        left[0] -= 1

    engine = ran(detour("sample", "optimizer_update", lambda run: left[0] > 0, visit), loader=4)
    assert visits(engine, "sample") == [(1, 1), (2, 2)]
    assert [t.guards["sample_due"] for t in engine.current.log.where(source="optimizer_update")] == [
        True,
        True,
        False,
        False,
    ]
    assert_agree(engine)


def test_a_guard_that_turns_false_on_the_way_drops_the_second_detour():
    """What the first detour does can make the second not due: its guard is asked when the first one is left."""
    due = [True]
    first = detour("first", "after_epoch", always, lambda run: due.clear() or due.append(False))
    engine = ran(first, detour("second", "after_epoch", lambda run: due[0]), loader=1)
    assert engine.current.log.path()[-4:] == ["after_epoch", "first", "after_loop", "finished"]
    assert dict(engine.current.log.where(source="first")[0].guards) == {"second_due": False, "epochs_remain": False}
    assert_agree(engine)


@pytest.mark.parametrize("part", ["body", "guard"])
def test_a_detour_that_fails_names_its_plugin_and_its_state(part: str):
    """The exception is raised unchanged, the run ends in `failed`, and the note says whose detour it was."""
    error = ValueError("the disk is full")

    def fail(run: Run) -> bool:
        if run.step == 2:
            raise error
        return True

    side = Side(
        detour("evaluate", "after_step"),
        detour("checkpoint", "after_step", fail if part == "guard" else always, fail if part == "body" else nothing),
        name="Keeper",
    )
    engine = small_engine(3, [side])
    with pytest.raises(ValueError, match="the disk is full") as caught:
        engine.run()
    assert caught.value is error
    place = {"body": "in the body of checkpoint", "guard": "in the guard checkpoint_due asked in evaluate"}[part]
    assert error.__notes__ == [f"heptad: in Side 'Keeper' {place} (epoch 0, batch 2, step 2, update 1)"]
    log = engine.current.log
    assert log.path() == [
        "idle", "before_loop", "before_epoch",
        "before_step", "process_batch", "after_step", "evaluate", "checkpoint", "optimizer_update",
        "before_step", "process_batch", "after_step", "evaluate", *(["checkpoint"] if part == "body" else []), "failed",
    ]  # fmt: skip
    assert engine.current.state == "failed"
    assert [note.kind for note in log.notes()] == ["failure"]
    assert_agree(engine)


# -- every and count


def test_every_is_due_when_its_count_has_crossed_a_multiple():
    """With `every=2` over steps: after steps 2, 4, 6, never twice for one value; with `first=1` after 1, 3, 5, 7."""
    assert visits(ran(detour("sample", "after_step", every=2), loader=7), "sample") == [(2, 1), (4, 3), (6, 5)]
    engine = ran(detour("sample", "after_step", every=2, first=1), loader=7)
    assert [step for step, _ in visits(engine, "sample")] == [1, 3, 5, 7]
    assert [step for step, _ in visits(ran(detour("sample", "after_step", every=2, first=5), loader=8), "sample")] == [
        5,
        7,
    ]


@pytest.mark.parametrize("first", [0, True, 1.5])
def test_a_first_that_is_no_whole_number_is_refused(first):
    with pytest.raises(TableError, match="first must be a whole number from 1 on, beside every"):
        Detour("sample", "after_step", lambda run: True, lambda run: None, every=2, first=first)


def test_a_first_without_every_is_refused():
    """`when` alone decides there."""
    with pytest.raises(TableError, match="beside every"):
        Detour("sample", "after_step", lambda run: True, lambda run: None, first=2)


def test_every_counts_whatever_the_source_and_never_twice_for_one_value():
    """Both sources see the same count: the visit after the step is not repeated after the update of that step."""
    engine = ran(detour("sample", ["after_step", "optimizer_update"], every=2), loader=5)
    assert visits(engine, "sample") == [(2, 1), (4, 3)]
    assert [t.source for t in engine.current.log.where(dest="sample")] == ["after_step", "after_step"]


def test_every_is_made_up_for_when_a_multiple_is_crossed_between_two_visits():
    """With k = 3 updates stand after steps 3, 6, 9, 12: multiples of 4 are crossed at 6, 9 and 12."""
    engine = ran(detour("sample", "optimizer_update", every=4, count="step"), loader=12, accumulation=3)
    assert visits(engine, "sample") == [(6, 2), (9, 3), (12, 4)]


def test_what_counts_is_when_it_last_ran_not_when_it_was_last_due():
    """A multiple at which `when` said no is made up for as soon as it says yes."""
    engine = ran(detour("sample", "after_step", at_steps(3, 5, 6), every=2), loader=6)
    assert visits(engine, "sample") == [(3, 2), (5, 4), (6, 5)]


@pytest.mark.parametrize(
    ("after", "counted"), [("after_step", "step"), ("optimizer_update", "update"), ("after_epoch", "epoch")]
)
def test_every_counts_by_default_what_its_first_source_counts(after: str, counted: str):
    """Steps, updates or epochs, by the first state in `after`."""
    assert detour("sample", after).count == counted
    assert detour("sample", [after, "before_loop"]).count == counted


def test_count_says_what_every_counts():
    """`count="epoch"` on a detour from steps is due at the first step after a second epoch."""
    engine = ran(detour("sample", "after_step", every=2, count="epoch"), loader=2, epochs=5)
    assert visits(engine, "sample") == [(5, 4), (9, 8)]


def test_every_with_updates_under_accumulation():
    """Updates are counted, not steps."""
    engine = ran(detour("sample", "optimizer_update", every=2), loader=12, accumulation=2)
    assert visits(engine, "sample") == [(4, 2), (8, 4), (12, 6)]


def test_a_skipped_update_counts_for_no_detour():
    """After a skipped update the count stands where it stood, and the detour is not due again."""

    class Skips(Plugin):
        """Skips the second update."""

        def on_enter_optimizer_update(self, run: Run) -> None:
            if run.step == 2:
                run.skip_update("too large")

    engine = small_engine(4, [Skips(), Side(detour("sample", "optimizer_update", every=1))])
    engine.run()
    assert visits(engine, "sample") == [(1, 1), (3, 2), (4, 3)]


def test_a_detours_last_visit_stands_for_all_its_nodes():
    """Guard and body of a node of one source know of the visit from another."""
    engine = ran(detour("sample", ["after_epoch", "after_step"], every=1, count="epoch"), loader=1, epochs=2)
    assert engine.current.log.path().count("sample") == 2
    assert [t.source for t in engine.current.log.where(dest="sample")] == ["after_epoch", "after_epoch"]


# -- bad detours


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": "two words"}, "Detour.state must be a Python identifier such as 'evaluate', got 'two words'"),
        ({"state": "a@b"}, "Detour.state must be a Python identifier such as 'evaluate', got 'a@b'"),
        ({"state": 3}, "Detour.state must be a Python identifier such as 'evaluate', got 3"),
        ({"after": []}, "detour 'look': after must name one or several states, each once, got ()"),
        ({"after": ["after_step"] * 2}, "detour 'look': after must name one or several states, each once"),
        ({"when": True}, "detour 'look': when must be a function of the run"),
        ({"body": None}, "detour 'look': body must be a function of the run"),
        ({"every": 0}, "detour 'look': every must be a whole number from 1 on, got 0"),
        ({"every": -1}, "detour 'look': every must be a whole number from 1 on, got -1"),
        ({"every": 1.5}, "detour 'look': every must be a whole number from 1 on, got 1.5"),
        ({"every": True}, "detour 'look': every must be a whole number from 1 on, got True"),
        ({"count": "sample"}, "detour 'look': count must be 'step', 'update' or 'epoch', got 'sample'"),
    ],
)
def test_a_detour_that_makes_no_sense_is_refused_when_it_is_made(arguments: dict[str, Any], message: str):
    """Each is a `TableError` that says what was found and what is expected."""
    sound = {"state": "look", "after": "after_step", "when": always, "body": nothing}
    with pytest.raises(TableError, match=re.escape(message)):
        Detour(**(sound | arguments))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (detour("look", "after_stp"), "detour 'look' cannot leave from 'after_stp'; did you mean 'after_step'?"),
        (detour("look", ["after_step", "nowhere"]), "detour 'look' cannot leave from 'nowhere'"),
        (detour("look", "idle"), "detour 'look' cannot leave from 'idle'"),
        (detour("look", "finished"), "detour 'look' cannot leave from 'finished'"),
        (detour("look", "failed"), "detour 'look' cannot leave from 'failed'"),
        (detour("after_step", "after_epoch"), "detour 'after_step' has the name of one of the engine's own states"),
        (detour("finished", "after_epoch"), "detour 'finished' has the name of one of the engine's own states"),
    ],
)
def test_a_detour_that_does_not_fit_the_table_is_refused_when_the_engine_is_built(bad: Detour, message: str):
    """Each is a `TableError` that names the detour and the state."""
    with pytest.raises(TableError, match=re.escape(message)):
        small_engine(plugins=[Side(bad)])


def test_a_detour_from_another_detour_is_refused():
    """Detours leave from the engine's own states; several of one source are visited one after another anyway."""
    with pytest.raises(TableError, match="detour 'second' cannot leave from 'first'"):
        small_engine(plugins=[Side(detour("first", "after_step"), detour("second", "first"))])


def test_what_is_no_detour_is_refused():
    """`detours()` returns `Detour` objects."""
    with pytest.raises(PluginError, match=re.escape("Side.detours() must return Detour objects, got a str")):
        small_engine(plugins=[Side("evaluate")])


def test_two_detours_of_one_state_are_distinguished_by_their_guards():
    """Two plugins may add the same state: users see one, the log says whose guard led there."""
    engine = ran(detour("look", "after_step", at_steps(1)), detour("look", "after_epoch"), loader=2)
    arrived = [
        (t.source, [name for name, answer in t.guards.items() if answer]) for t in engine.current.log.where(dest="look")
    ]
    assert arrived == [("after_step", ["look_due"]), ("after_epoch", ["look_due_2"])]
    assert engine.current.log.counts()["look"] == 2
    assert_agree(engine)


def test_a_detour_whose_guard_would_have_the_name_of_one_of_the_engines_is_refused():
    """The guard of a detour `update` would be `update_due`, which is the engine's: one would stand for both."""
    with pytest.raises(TableError, match=r"detour 'update'.*'update_due'"):
        small_engine(plugins=[Side(detour("update", "after_epoch"))])


# -- handlers


def test_handlers_hear_the_moments_of_a_detours_state():
    """On entry before its body, on exit after it, whichever source it came from."""
    heard: list[str] = []

    class Listener(Plugin):
        """Hears the detour."""

        def on_enter_evaluate(self, run: Run) -> None:
            heard.append(f"enter in {run.state} at {run.step}")

        @on_exit("evaluate")
        def leave(self, run: Run) -> None:
            heard.append(f"exit in {run.state} at {run.step}")

        @on_enter("evaluate", every=2)
        def second(self, run: Run) -> None:
            heard.append(f"every second at {run.step}")

    body = lambda run: heard.append(f"body in {run.state}")  # noqa: E731
    side = Side(detour("evaluate", ["after_step", "after_epoch"], lambda run: run.step == 2, body))
    small_engine(2, [Listener(), side]).run()
    assert heard == [
        "enter in evaluate at 2",
        "body in evaluate",
        "exit in evaluate at 2",
        "enter in evaluate at 2",
        "every second at 2",
        "body in evaluate",
        "exit in evaluate at 2",
    ]


def test_a_stop_asked_for_in_a_detour_counts_at_once():
    """On exit of a detour from `after_epoch` it ends the run without a further epoch."""

    class Early(Plugin):
        """Stops when the evaluation is left."""

        def on_exit_evaluate(self, run: Run) -> None:
            run.stop("good enough")

    engine = small_engine(1, [Early(), Side(detour("evaluate", "after_epoch"))], epochs=3)
    run = engine.run()
    assert run.log.path()[-4:] == ["after_epoch", "evaluate", "after_loop", "finished"]
    assert (run.epoch, run.reason) == (1, "good enough")


def test_a_detour_does_not_change_what_other_handlers_hear():
    """The moments of the engine's own states come in the same order with and without detours."""
    alone, beside = Witness(), Witness()
    small_engine(3, [alone], accumulation=2).run()
    small_engine(3, [beside, Side(detour("look", ["after_step", "before_step"]))], accumulation=2).run()
    assert alone.seen == beside.seen
    assert alone.counters == beside.counters


def test_a_run_pauses_in_a_detour_and_continues_from_there():
    """A detour is a state like all else: a run can stand in it."""
    engine = small_engine(Unsized(batches(2)), [Side(detour("evaluate", "after_epoch"))])
    run = engine.run(until="evaluate")
    assert (run.state, run.paused) == ("evaluate", "until evaluate")
    engine.run()
    straight = ran(detour("evaluate", "after_epoch"), loader=Unsized(batches(2)))
    assert records(run.log) == records(straight.current.log)
