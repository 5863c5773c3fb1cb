"""What the machine relies on, or works around, in `transitions` 0.9.3: one test for each fact, on plain machines."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from importlib.metadata import version

import pytest
import transitions


class Model:
    """A bare model."""


def machine(model: object, **arguments) -> transitions.Machine:
    """Return a machine over the states a and b, in a, with one trigger that leads from a to b."""
    built = transitions.Machine(model, **{"states": ["a", "b"], "initial": "a", "auto_transitions": False} | arguments)
    built.add_transition("go", "a", "b")
    return built


def raises_keyboard_interrupt() -> None:
    """A callback into which Ctrl-C falls."""
    raise KeyboardInterrupt


def test_the_facts_are_those_of_this_version():
    """The facts below were found in 0.9.3; another version is to be looked at before it is taken."""
    assert version("transitions") == "0.9.3"


def test_the_initial_state_gets_no_entry_callback():
    """Being put into the initial state is no entry."""
    called: list[str] = []
    states = [
        transitions.State("a", on_enter=[lambda: called.append("a")]),
        transitions.State("b", on_enter=[lambda: called.append("b")]),
    ]
    model = Model()
    machine(model, states=states)
    assert called == []
    model.go()
    assert called == ["b"]


def test_advancing_from_a_callback_recurses_99_deep():
    """A trigger called from a callback runs on top of the turn that it is called from: 1,000 frames hold 99 turns."""
    turns: list[int] = []
    model = Model()

    def again() -> None:
        turns.append(len(turns))
        model.go()

    def go_until_it_breaks() -> None:
        with pytest.raises(RecursionError):
            model.go()

    states = [transitions.State("a", on_enter=[again])]
    built = transitions.Machine(model, states=states, initial="a", auto_transitions=False)
    built.add_transition("go", "a", "a")
    thread = threading.Thread(target=go_until_it_breaks)  # a stack of its own, so that its depth is known
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # torch's compiler raises it for the process
    try:
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(before)
    assert 90 <= len(turns) <= 110


def test_a_trigger_without_a_passing_guard_returns_false_silently(caplog: pytest.LogCaptureFixture):
    """Where no guard holds nothing happens and no observer is called."""
    model = Model()
    built = transitions.Machine(model, states=["a", "b"], initial="a", auto_transitions=False)
    built.add_transition("go", "a", "b", conditions=[lambda: False])
    with caplog.at_level(logging.WARNING):
        assert model.go() is False
    assert model.state == "a"
    assert caplog.records == []


def test_an_exception_in_an_entry_callback_leaves_the_new_state_set():
    """The state changes before entry callbacks are called, and is not put back when one raises."""

    def broken() -> None:
        raise ValueError("broken")

    model = Model()
    machine(model, states=["a", transitions.State("b", on_enter=[broken])])
    with pytest.raises(ValueError, match="broken"):
        model.go()
    assert model.state == "b"


def test_an_exception_in_an_exit_callback_leaves_the_old_state_set():
    """Exit callbacks are called after the choice of the arc and before the change of state."""

    def broken() -> None:
        raise ValueError("broken")

    model = Model()
    machine(model, states=[transitions.State("a", on_exit=[broken]), "b"])
    with pytest.raises(ValueError, match="broken"):
        model.go()
    assert model.state == "a"


def test_the_guard_is_asked_before_the_exit_callbacks():
    """The stock order is guard, exit, entry; a turn wants exit, guard, entry."""
    called: list[str] = []

    def guard() -> bool:
        called.append("guard")
        return True

    states = [
        transitions.State("a", on_exit=[lambda: called.append("exit")]),
        transitions.State("b", on_enter=[lambda: called.append("enter")]),
    ]
    model = Model()
    built = transitions.Machine(model, states=states, initial="a", auto_transitions=False)
    built.add_transition("go", "a", "b", conditions=[guard])
    model.go()
    assert called == ["guard", "exit", "enter"]


def test_names_are_injected_into_the_model():
    """The model gets the state, a method for each trigger, a predicate for each state, and more."""
    model = Model()
    machine(model)
    assert sorted(vars(model)) == ["go", "is_a", "is_b", "may_go", "may_trigger", "state", "trigger"]


def test_on_exception_swallows_keyboard_interrupt():
    """With `on_exception` set, Ctrl-C in a callback ends there."""
    seen: list[type] = []
    model = Model()
    machine(
        model,
        states=["a", transitions.State("b", on_enter=[lambda event: raises_keyboard_interrupt()])],
        on_exception=[lambda event: seen.append(type(event.error))],
        send_event=True,
    )
    assert model.go() is False
    assert seen == [KeyboardInterrupt]


def test_finalize_event_swallows_keyboard_interrupt(caplog: pytest.LogCaptureFixture):
    """Ctrl-C in a `finalize_event` callback becomes a line in the library's own log."""
    model = Model()
    machine(model, finalize_event=[raises_keyboard_interrupt])
    with caplog.at_level(logging.ERROR, logger="transitions"):
        assert model.go() is True
    assert model.state == "b"
    assert ["KeyboardInterrupt" in record.getMessage() for record in caplog.records] == [True]


def info_records(callbacks: int, caplog: pytest.LogCaptureFixture) -> int:
    """Return how many INFO records one turn with this many entry callbacks emits."""
    model = Model()
    machine(model, states=["a", transitions.State("b", on_enter=[lambda: None] * callbacks)])
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="transitions"):
        model.go()
    return sum(record.levelno == logging.INFO for record in caplog.records)


def test_a_record_per_callback_is_emitted_at_info(caplog: pytest.LogCaptureFixture):
    """What an INFO handler costs (five times, measured) is these records; none is made where nobody listens at INFO."""
    assert info_records(10, caplog) - info_records(0, caplog) == 10
    caplog.clear()
    model = Model()
    machine(model, states=["a", transitions.State("b", on_enter=[lambda: None])])
    with caplog.at_level(logging.WARNING, logger="transitions"):
        model.go()
    assert caplog.records == []


def test_event_cls_is_what_the_machine_builds_its_triggers_from():
    """A subclass of the machine chooses its dispatch with one class attribute, as the library's own machines do."""

    class Mine(transitions.Event):
        """A dispatch of one's own."""

        def trigger(self, model: object, *args: object, **kwargs: object) -> bool:
            return "mine"

    class Chooser(transitions.Machine):
        """A machine with that dispatch."""

        event_cls = Mine

    model = Model()
    built = Chooser(model, states=["a", "b"], initial="a", auto_transitions=False)
    built.add_transition("go", "a", "b")
    assert type(built.events["go"]) is Mine
    assert model.go() == "mine"


@pytest.mark.parametrize("module", ["nesting", "locking", "asyncio"])
def test_the_librarys_own_machines_use_event_cls(module: str):
    """Hierarchical, locked and async machines are built by it, so it is no private detail."""
    found = importlib.import_module(f"transitions.extensions.{module}")
    machines = [
        value
        for value in vars(found).values()
        if isinstance(value, type) and issubclass(value, transitions.Machine) and "event_cls" in vars(value)
    ]
    assert machines != []
