"""The plugins of an engine: their order, detaching one that failed, and the table of who is called."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from builders import STATES, Side, Witness, equal, small_engine, weights
from heptad import Detour, Plugin, PluginError, Run, on_exit
from heptad.errors import Unfinished
from heptad.plugin.order import ordered


def plugin(name: str, *, after: tuple = (), before: tuple = ()) -> Plugin:
    """Return a plugin of that name and those wishes."""
    made = Plugin()
    made.name, made.runs_after, made.runs_before = name, after, before
    return made


def names(plugins) -> str:
    """Return the names, in order."""
    return "".join(one.name for one in plugins)


class First(Plugin):
    """A class to be named by others."""


class Second(First):
    """Derives from it."""


@pytest.mark.parametrize("given", ["".join(order) for order in itertools.permutations("abcde")])
def test_list_order_is_bent_no_further_than_asked(given):
    """b after d, e before a: all else keeps the order of the list."""
    wishes = {"b": plugin("b", after=("d",)), "e": plugin("e", before=("a",))}
    found = names(ordered([wishes.get(name, plugin(name)) for name in given]))
    assert found.index("d") < found.index("b")
    assert found.index("e") < found.index("a")
    if given.index("d") < given.index("b") and given.index("e") < given.index("a"):
        assert found == given


@pytest.mark.parametrize("reference", [First, "First", Second, "Second", "mine"])
def test_a_plugin_is_named_by_its_class_a_base_or_its_name(reference):
    """A class and its name mean every instance of it and of what derives from it."""
    second = Second()
    second.name = "mine"
    assert names(ordered([plugin("x", after=(reference,)), second])) == "minex"
    assert names(ordered([second, plugin("x", before=(reference,))])) == "xmine"


def test_a_wish_about_a_plugin_that_is_not_there_changes_nothing():
    """Shipped plugins name others that a run may do without."""
    assert names(ordered([plugin("a", after=("EMA",)), plugin("b", before=("EMA",))])) == "ab"


@pytest.mark.parametrize(
    ("plugins", "cycle"),
    [
        ([plugin("a", after=("b",)), plugin("b", after=("a",))], "a before b before a"),
        (
            [plugin("x"), plugin("a", after=("c",)), plugin("b", after=("a",)), plugin("c", after=("b",))],
            "a before b before c before a",
        ),
    ],
)
def test_a_cycle_is_an_error_that_names_it(plugins, cycle):
    """The message walks the cycle."""
    with pytest.raises(PluginError) as caught:
        small_engine(plugins=plugins)
    said = str(caught.value)
    turned = [
        " before ".join([*(part := cycle.split(" before ")[:-1])[n:], *part[:n], part[n]])
        for n in range(3)
        if n < len(cycle.split(" before ")) - 1
    ]
    assert any(text in said for text in turned)


def test_of_two_that_come_before_all_the_list_decides():
    first, second = plugin("b", before=(Plugin,)), plugin("a", before=(Plugin,))
    assert names(ordered([plugin("x"), first, second])) == "bax"
    assert names(ordered([plugin("x"), second, first])) == "abx"


@pytest.mark.parametrize("field", ["runs_after", "runs_before"])
@pytest.mark.parametrize("value", ["EMA", (1,)])
def test_wishes_of_the_wrong_type_are_an_error(field, value):
    """A bare string would be read as its letters."""
    made = plugin("a")
    setattr(made, field, value)
    with pytest.raises(PluginError, match="a: runs_after and runs_before are tuples"):
        small_engine(plugins=[made])


def test_handlers_of_a_moment_are_called_in_that_order():
    """The order holds for calls and opening; closing is its reverse."""
    seen: list[str] = []

    class Tell(Plugin):
        def __init__(self, name, after=()):
            self.name, self.runs_after = name, after

        def open(self, run):
            seen.append(f"open {self.name}")

        def on_enter_after_loop(self, run):
            seen.append(self.name)

        def close(self, run):
            seen.append(f"close {self.name}")

    small_engine(1, [Tell("a", after=("c",)), Tell("b"), Tell("c")]).run()
    assert seen == ["open b", "open c", "open a", "b", "c", "a", "close a", "close c", "close b"]


class Fragile(Plugin):
    """Raises at one place; may be detached."""

    def __init__(self, place: str, error: type[BaseException] = ValueError, on_error: str = "detach") -> None:
        self.place, self.error, self.on_error = place, error, on_error
        self.calls: list[str] = []

    def at(self, place: str) -> None:
        self.calls.append(place)
        if place == self.place:
            raise self.error("broken")

    def open(self, run):
        self.at("open")

    def close(self, run):
        self.at("close")

    def on_pause(self, run):
        self.at("on_pause")

    def detours(self):
        def when(run):
            self.at("guard")
            return True

        return [Detour("side", "after_step", when, lambda run: self.at("body"))]

    def on_exit_process_batch(self, run):
        self.at("handler")


@pytest.mark.parametrize("place", ["open", "on_pause", "guard", "body", "handler", "close"])
def test_a_plugin_that_may_fail_is_detached_and_the_run_continues(place):
    """It is called no more but for `close`; its detour's guard is False from then on; the log says so."""
    fragile = Fragile(place)
    engine = small_engine(3, [fragile])
    engine.on_enter("before_step", once=True)(lambda run: run.pause("to pause once"))
    engine.run()
    run = engine.run()
    assert run.state == "finished"
    note, *again = run.log.notes("detach")
    assert len(again) == (place == "close")  # which is called after each of the two runs, and fails each time
    method = {"guard": "side_due", "body": "side", "handler": "on_exit_process_batch"}.get(place, place)
    assert note.text == f"Fragile.{method} raised ValueError: broken; Fragile is called no more"
    after = fragile.calls[fragile.calls.index(place) + 1 :]
    assert set(after) <= {"close"}
    assert [row.idle for row in engine.subscriptions() if row.who.startswith("Fragile")] == ["detached"]
    assert equal(weights(run.network), weights(small_engine(3).run().network))


@pytest.mark.parametrize("place", ["handler", "guard", "body", "on_pause"])
def test_unfinished_is_a_failure_where_nothing_was_to_be_finished(place):
    """It ends a body early when a pause was asked for; raised anywhere else, it detaches as any other exception."""
    fragile = Fragile(place, Unfinished)
    engine = small_engine(3, [fragile])
    if place == "on_pause":
        engine.on_enter("before_step", once=True)(lambda run: run.pause("to pause once"))
        engine.run()
    assert engine.run().state == "finished"
    (note,) = engine.current.log.notes("detach")
    assert "raised Unfinished: broken; Fragile is called no more" in note.text


@pytest.mark.parametrize("on_error", ["raise", "detach"])
def test_unfinished_pauses_in_a_body_of_either_kind_of_plugin(on_error):
    """The body is run again when the run continues, and nobody is detached."""

    def body(run):
        calls.append(run.step)
        if len(calls) == 2:
            run.pause("for a moment")
            raise Unfinished

    calls: list[int] = []
    side = Side(Detour("side", "after_step", lambda run: True, body))
    side.on_error = on_error
    engine = small_engine(3, [side])
    assert engine.run().state == "side"
    assert engine.run().state == "finished"
    assert calls == [1, 2, 2, 3]
    assert engine.current.log.notes("detach") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_failure_of_the_plugin_is_not_caught(error):
    """KeyboardInterrupt and SystemExit end the run whatever `on_error` says."""
    engine = small_engine(3, [Fragile("handler", error)])
    with pytest.raises(error):
        engine.run()
    assert engine.current.state == "failed"


def test_another_on_error_is_refused():
    """The message says which there are."""
    with pytest.raises(PluginError, match=r"Fragile\.on_error must be 'raise' or 'detach', got 'ignore'"):
        small_engine(3, [Fragile("nowhere", on_error="ignore")])


def test_a_detached_plugin_leaves_its_neighbours_alone():
    """Those before and behind it are called as ever."""
    before, behind = Witness(name="before"), Witness(name="behind")
    small_engine(3, [before, Fragile("handler"), behind]).run()
    alone = Witness()
    small_engine(3, [alone]).run()
    assert before.seen == behind.seen
    assert [moment for moment in before.seen if moment[1] in STATES] == alone.seen


class Filtered(Plugin):
    """Subscribes with filters."""

    @on_exit("after_step", every=2)
    def second(self, run):
        pass

    @on_exit("after_step", once=True, when=lambda run: run.step > 1)
    def single(self, run):
        pass

    def on_enter_evaluate(self, run):
        pass

    def on_enter_before_loop(self, run):
        pass


def test_subscriptions_is_a_table_of_who_is_called_when():
    """In the order of states, moments and calls, with the filters; idle ones are marked."""
    engine = small_engine(3, [Filtered(), Witness(("after_step",))])

    @engine.on_exit("after_step")
    def mine(run):
        pass

    rows = [
        (row.state, row.moment, row.order, row.who.rpartition(".")[2], row.filter, row.idle)
        for row in engine.subscriptions()
        if row.state in ("before_loop", "after_step", "evaluate")
    ]
    assert rows == [
        ("before_loop", "enter", 1, "on_enter_before_loop", "", ""),
        ("before_loop", "enter", 2, "on_enter_before_loop", "", ""),
        ("before_loop", "exit", 1, "on_exit_before_loop", "", ""),
        ("after_step", "enter", 1, "on_enter_after_step", "", ""),
        ("after_step", "exit", 1, "second", "every 2", ""),
        ("after_step", "exit", 2, "single", "once, when its predicate holds", ""),
        ("after_step", "exit", 3, "on_exit_after_step", "", ""),
        ("after_step", "exit", 4, "mine", "", ""),
        ("evaluate", "enter", 0, "on_enter_evaluate", "", "no plugin brings evaluate"),
    ]
    lines = str(engine.subscriptions()).splitlines()
    assert lines[0].split() == ["state", "moment", "#", "who"]
    assert any("Filtered.second" in line and "every 2" in line for line in lines)
    assert any("idle: no plugin brings evaluate" in line for line in lines)


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"every": 10, "first": 1}, "every 10 from 1 on"),
        ({"every": 10, "first": 10}, "every 10"),
        ({"first": 5}, "from 5 on"),
        ({"first": 1}, ""),
        (
            {"every": 2, "first": 1, "once": True, "when": lambda run: True},
            "every 2 from 1 on, once, when its predicate holds",
        ),
    ],
)
def test_a_filter_is_shown_in_words(filters: dict[str, Any], words: str):
    engine = small_engine(3)
    engine.on_exit("after_step", **filters)(lambda run: None)
    assert engine.subscriptions()[0].filter == words


def test_plugins_that_compare_equal_are_two():
    """A dataclass compares by its fields, a tensor among them cannot be compared at all."""

    @dataclass
    class Equal(Plugin):
        scale: Any

        def on_exit_after_step(self, run: Run) -> None: ...

    for scale in (1.0, torch.ones(2)):
        one, other = Equal(scale), Equal(scale)
        one.name, other.name = "one", "other"
        one.runs_after = ("other",)
        assert [row.who.partition(".")[0] for row in small_engine(2, [one, other]).subscriptions()] == ["other", "one"]


class Closed(Exception):
    """Takes no note."""

    def add_note(self, note: str) -> None:
        raise TypeError("no notes here")


class Unprintable(Exception):
    """Cannot be turned into text."""

    def __str__(self) -> str:
        raise ValueError("in __str__")


@pytest.mark.parametrize("raised", [Closed(5), Unprintable()])
def test_an_exception_that_cannot_be_described_comes_out_as_it_is(raised: Exception):
    """From a handler, into `failed`; from `close()`, after which the others are closed all the same."""
    closed = []

    class First(Plugin):
        def close(self, run: Run) -> None:
            closed.append(run.state)

    class Raises(Plugin):
        fails_in = "handler"

        def on_exit_after_step(self, run: Run) -> None:
            if self.fails_in == "handler":
                raise raised

        def close(self, run: Run) -> None:
            if self.fails_in == "close":
                raise raised

    for place, state in (("handler", "failed"), ("close", "finished")):
        closed.clear()
        plugin = Raises()
        plugin.fails_in = place
        engine = small_engine(2, [First(), plugin])
        with pytest.raises(type(raised)) as caught:
            engine.run()
        assert caught.value is raised
        assert (engine.current.state, closed) == (state, [state])


def test_an_observer_whose_exception_cannot_be_described_is_detached():
    """The log names the class."""

    class Observer(Plugin):
        on_error = "detach"

        def on_exit_after_step(self, run: Run) -> None:
            raise Unprintable

    run = small_engine(2, [Observer()]).run()
    assert [note.text for note in run.log.notes("detach")] == [
        "Observer.on_exit_after_step raised Unprintable; Observer is called no more"
    ]


@pytest.mark.parametrize("given", [None, "Other", 3, [3]])
def test_an_order_names_plugins_in_a_collection(given: Any):
    """A word alone would be taken apart, letter by letter."""
    plugin = type("Odd", (Plugin,), {"runs_after": given})
    with pytest.raises(PluginError, match="Odd: runs_after and runs_before are tuples of plugin classes or names"):
        small_engine(2, [plugin()])
    for kind in (tuple, list, set, frozenset):
        assert small_engine(2, [type("Even", (Plugin,), {"runs_after": kind(["Other"])})()]).run().state == "finished"
