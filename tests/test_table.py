"""The table: checked when it is built, drawn from the same data, and equal to the one that was designed."""

from __future__ import annotations

import re

import pytest

from builders import small_engine
from heptad import Arc, Detour, EngineError, State, TableError
from heptad.history.drawing import markdown, mermaid
from heptad.history.table_form import table_from_plain, table_to_plain
from heptad.table import GUARDS, Table, evaluation_table, training_table

START, WORK, REST = State("start", "start"), State("work"), State("rest")
END, FAILED = State("end", "end"), State("failed", "failed")
SOUND = (Arc("start", "work"), Arc("work", "rest", "tired"), Arc("work", "end"), Arc("rest", "work"))


def table(states=(START, WORK, REST, END, FAILED), arcs=SOUND, guards=("tired", "bored")) -> Table:
    """Return a small table, by default a sound one."""
    return Table(states, arcs, guards)


def test_a_sound_table_is_built():
    """The table that the others below are made of is accepted."""
    assert table().start is START
    assert [arc.dest for arc in table().leaving["work"]] == ["rest", "end"]


@pytest.mark.parametrize(
    ("states", "arcs", "message"),
    [
        pytest.param(
            (START, WORK, REST, State("attic"), END, FAILED),
            (*SOUND, Arc("attic", "work")),
            "state 'attic' cannot be reached from 'start'",
            id="an unreachable state",
        ),
        pytest.param(
            (START, WORK, REST, State("attic"), State("cellar"), END, FAILED),
            (*SOUND, Arc("attic", "cellar"), Arc("cellar", "attic")),
            "state 'attic' cannot be reached from 'start'",
            id="two states that only reach each other",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (Arc("start", "work"), Arc("work", "rest"), Arc("rest", "work")),
            "state 'end' cannot be reached from 'start'",
            id="an end that is not reached",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (*SOUND[:2], Arc("work", "end", "bored"), SOUND[3]),
            "the arcs of state 'work' must end in an unguarded one",
            id="arcs that do not end in an unguarded one",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            SOUND[:3],
            "the arcs of state 'rest' must end in an unguarded one",
            id="a state without arcs",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (*SOUND, Arc("rest", "end", "bored")),
            "the arc rest -> end can never be taken: it stands after the unguarded arc to 'work'",
            id="an arc after an unguarded one",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (*SOUND, Arc("rest", "end")),
            "the arc rest -> end can never be taken: it stands after the unguarded arc to 'work'",
            id="two unguarded arcs",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (SOUND[0], Arc("work", "rest", "tird"), *SOUND[2:]),
            "the arc work -> rest asks the unknown guard 'tird'; did you mean 'tired'?",
            id="an unknown guard",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (*SOUND[:3], Arc("rest", "wrok")),
            "the arc rest -> wrok names the unknown state 'wrok'; did you mean 'work'?",
            id="an unknown destination",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (*SOUND, Arc("sofa", "work")),
            "the arc sofa -> work names the unknown state 'sofa'; known are start, work, rest, end, failed",
            id="an unknown source",
        ),
        pytest.param(
            (START, State("begin", "start"), WORK, REST, END, FAILED),
            (*SOUND, Arc("begin", "work")),
            "a table has exactly one initial state, got ['start', 'begin']",
            id="two starts",
        ),
        pytest.param(
            (WORK, REST, END, FAILED), SOUND[1:], "a table has exactly one initial state, got none", id="no start"
        ),
        pytest.param(
            (START, WORK, REST, State("work", "detour"), END, FAILED),
            SOUND,
            "two states have the name 'work'",
            id="two states of one name",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (*SOUND, Arc("end", "work")),
            "state 'end' ends the run, but an arc leads on to 'work'",
            id="an arc that leaves an end",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (*SOUND[:3], Arc("rest", "failed")),
            "the arc rest -> failed: no arc leads to 'failed'",
            id="an arc to failed",
        ),
        pytest.param(
            (START, WORK, REST, END, FAILED),
            (*SOUND[:3], Arc("rest", "start")),
            "the arc rest -> start: no arc leads to 'start'",
            id="an arc to the start",
        ),
    ],
)
def test_a_table_that_is_not_sound_is_refused_by_name(states, arcs, message):
    """What is wrong is found when the table is built, and the message names it."""
    with pytest.raises(TableError, match=re.escape(message)):
        table(states, arcs)


def test_a_table_error_is_an_engine_error():
    """One `except` catches all that Heptad raises."""
    assert issubclass(TableError, EngineError)


TRAINING = [
    ("idle", "", "before_loop"),
    ("before_loop", "epochs_remain", "before_epoch"),
    ("before_loop", "", "after_loop"),
    ("before_epoch", "batches_remain", "before_step"),
    ("before_epoch", "", "after_epoch"),
    ("before_step", "", "process_batch"),
    ("process_batch", "", "after_step"),
    ("after_step", "update_due", "optimizer_update"),
    ("after_step", "batches_remain", "before_step"),
    ("after_step", "", "after_epoch"),
    ("optimizer_update", "batches_remain", "before_step"),
    ("optimizer_update", "", "after_epoch"),
    ("after_epoch", "epochs_remain", "before_epoch"),
    ("after_epoch", "", "after_loop"),
    ("after_loop", "", "finished"),
]


def rows(built: Table) -> list[tuple[str, str, str]]:
    """Return the arcs of a table as (from, if, to)."""
    return [(arc.source, arc.guard or "", arc.dest) for arc in built.arcs]


def test_the_training_table_is_the_one_that_was_designed():
    """All fifteen arcs of the training table, in the order in which they are tried."""
    assert rows(training_table()) == TRAINING


def test_the_training_table_has_seven_scopes_an_update_and_three_bookends():
    """All states of the training table, and what kind each of them is."""
    assert [(state.name, state.kind) for state in training_table().states] == [
        ("idle", "start"),
        ("before_loop", "scope"),
        ("before_epoch", "scope"),
        ("before_step", "scope"),
        ("process_batch", "scope"),
        ("after_step", "scope"),
        ("optimizer_update", "scope"),
        ("after_epoch", "scope"),
        ("after_loop", "scope"),
        ("finished", "end"),
        ("failed", "failed"),
    ]


def test_the_evaluation_table_is_the_scopes_without_an_update():
    """All arcs of the evaluation table: one epoch, no update."""
    assert rows(evaluation_table()) == [
        ("idle", "", "before_loop"),
        ("before_loop", "", "before_epoch"),
        ("before_epoch", "batches_remain", "before_step"),
        ("before_epoch", "", "after_epoch"),
        ("before_step", "", "process_batch"),
        ("process_batch", "", "after_step"),
        ("after_step", "batches_remain", "before_step"),
        ("after_step", "", "after_epoch"),
        ("after_epoch", "", "after_loop"),
        ("after_loop", "", "finished"),
    ]


EVALUATE = Detour("evaluate", ["after_step", "optimizer_update"], lambda run: True, lambda run: None)
SAVE = Detour("checkpoint", "after_step", lambda run: True, lambda run: None)


def test_the_mermaid_diagram_of_the_training_table():
    """The diagram, written out: the start and the end are marked, guards stand on the arcs."""
    assert mermaid(training_table()).splitlines() == [
        "stateDiagram-v2",
        "    [*] --> idle",
        *(f"    {source} --> {dest}{f': {guard}' if guard else ''}" for source, guard, dest in TRAINING),
        "    finished --> [*]",
    ]


@pytest.mark.parametrize("detours", [[], [EVALUATE], [EVALUATE, SAVE]], ids=len)
def test_diagram_and_markdown_agree_with_the_table(detours: list[Detour]):
    """Read back, both pictures hold the arcs of the table and nothing else, detours under the name that users see."""
    built = training_table(detours)
    arcs = [(built.shown[arc.source], arc.guard or "", built.shown[arc.dest]) for arc in built.arcs]
    lines = [re.fullmatch(r"    (\w+) --> (\w+)(?:: (\w+))?", line) for line in mermaid(built).splitlines()]
    drawn = [(found[1], found[3] or "", found[2]) for found in lines if found]
    assert drawn == list(dict.fromkeys(arcs))
    head, rule, *cells = markdown(built).splitlines()
    assert (head, rule) == ("| from | if | to |", "|---|---|---|")
    assert [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in cells] == arcs


def test_a_table_lists_the_guards_that_an_arc_was_tried_behind():
    """An arc that was taken says which guards were asked, in order, and what each of them said."""
    built = training_table()
    update, step, epoch = built.leaving["after_step"]
    assert built.asked(update) == {"update_due": True}
    assert built.asked(step) == {"update_due": False, "batches_remain": True}
    assert built.asked(epoch) == {"update_due": False, "batches_remain": False}
    assert built.asked(built.leaving["before_step"][0]) == {}


def test_an_engine_draws_the_table_that_it_runs():
    """`Engine.diagram()` is the table's diagram."""
    assert small_engine().diagram() == mermaid(training_table())


def test_the_engines_guards_are_three():
    """The guards that the engine itself brings, by name."""
    assert set(GUARDS) == {guard for _, guard, _ in TRAINING if guard}


def test_states_and_arcs_are_frozen():
    """The table is plain data: nobody changes a row behind the machine's back."""
    for thing, field in ((WORK, "name"), (SOUND[0], "dest"), (SAVE, "when")):
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(thing, field, None)


def test_a_detour_of_a_table_stored_without_it_gets_the_state_that_it_leaves():
    """Journals of version 1 hold four columns of a state."""
    places = ("peek", ("after_step", "after_epoch")), ("look", "after_step")
    table = training_table([Detour(*place, lambda run: True, lambda run: None) for place in places])
    plain = table_to_plain(table)
    old = plain | {"states": [row[:4] for row in plain["states"]]}
    assert table_to_plain(table_from_plain(old)) == plain
    assert {state.name: state.after for state in table.states if state.after} == {
        "peek@after_step": "after_step",
        "look@after_step": "after_step",
        "peek@after_epoch": "after_epoch",
    }
