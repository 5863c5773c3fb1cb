"""The contract between plugins and the machine: how a method becomes a handler, and when it is called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from builders import small_engine
from heptad import Detour, EngineError, Plugin, PluginError, Run, on_enter, on_exit
from heptad.plugin.marks import Mark
from heptad.plugin.subscription import Subscription
from heptad_plugins import Checkpoint


def calls_of(*plugins: Any, loader: Any = 4, **config: Any) -> list[Any]:
    """Return what the plugins wrote into the list `calls` that they share, after a run of four steps."""
    calls: list[Any] = []
    for plugin in plugins:
        plugin.calls = calls
    small_engine(loader, plugins, **config).run()
    return calls


# -- names and marks


def test_the_name_of_a_method_is_its_subscription():
    """`on_enter_<state>` and `on_exit_<state>` are called on these moments, with the run."""

    class Named(Plugin):
        def on_enter_before_epoch(self, run: Run) -> None:
            self.calls.append(("enter", type(run), run.state))

        def on_exit_after_loop(self, run: Run) -> None:
            self.calls.append(("exit", type(run), run.state))

    assert calls_of(Named()) == [("enter", Run, "before_epoch"), ("exit", Run, "after_loop")]


def test_a_mark_is_a_subscription_whatever_the_name():
    """`@on_enter` and `@on_exit` make handlers of methods of any name."""

    class Marked(Plugin):
        @on_enter("after_epoch")
        def look(self, run: Run) -> None:
            self.calls.append(("enter", run.epoch))

        @on_exit("after_epoch")
        def look_again(self, run: Run) -> None:
            self.calls.append(("exit", run.epoch))

    assert calls_of(Marked()) == [("enter", 0), ("exit", 1)]


def test_a_method_may_carry_several_marks():
    """Each of them is a subscription of its own."""

    class Several(Plugin):
        @on_enter("before_loop")
        @on_exit("after_epoch")
        @on_exit("after_loop")
        def look(self, run: Run) -> None:
            self.calls.append(run.state)

    assert calls_of(Several()) == ["before_loop", "after_epoch", "after_loop"]


def test_a_mark_takes_the_place_of_the_name():
    """A marked method is called where the mark says, not where its name would say."""

    class Both(Plugin):
        @on_exit("after_step", every=2)
        def on_enter_after_step(self, run: Run) -> None:
            self.calls.append(run.step)

    assert calls_of(Both()) == [2, 4]


def test_marks_return_the_function_as_it_was():
    """A marked method can still be called as any other."""

    def look(run: Run) -> str:
        return "seen"

    assert on_enter("after_step")(look) is look
    assert look(None) == "seen"


def test_a_method_whose_name_begins_with_on_must_name_a_moment():
    """A name that begins with `on_` and names no moment is a mistake, because it would never be called."""

    class Typo(Plugin):
        def on_step(self, run: Run) -> None:
            """Never called."""

    with pytest.raises(PluginError, match=re.escape("Typo.on_step would never be called")):
        small_engine(plugins=[Typo()])


# -- filters


@pytest.mark.parametrize(
    ("filters", "steps"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every": 1}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every": 3}, [3, 6]),
        ({"every": 9}, []),
        ({"every": 3, "first": 1}, [1, 4, 7]),
        ({"every": 3, "first": 2}, [2, 5, 8]),
        ({"every": 3, "first": 3}, [3, 6]),
        ({"every": 2, "first": 5}, [5, 7]),
        ({"first": 7}, [7, 8]),
        ({"first": 9}, []),
        ({"every": 3, "first": 2, "once": True}, [2]),
        ({"every": 3, "first": 1, "when": lambda run: run.step > 1}, [4, 7]),
        ({"once": True}, [1]),
        ({"every": 3, "once": True}, [3]),
        ({"when": lambda run: run.step > 5}, [6, 7, 8]),
        ({"when": lambda run: run.step > 2, "once": True}, [3]),
        ({"when": lambda run: run.step % 3 == 0, "every": 2}, [6]),
        ({"when": lambda run: run.step > 4, "every": 3, "once": True}, [6]),
        ({"when": lambda run: False}, []),
    ],
)
@pytest.mark.parametrize("way", ["mark", "function"])
def test_filters_select_events(filters: dict[str, Any], steps: list[int], way: str):
    """`every` counts events, `when` is asked at those it selects, `once` counts only a call."""
    calls: list[int] = []

    class Filtered(Plugin):
        @on_exit("after_step", **filters)
        def look(self, run: Run) -> None:
            calls.append(run.step)

    engine = small_engine(8, [Filtered()] if way == "mark" else [])
    if way == "function":
        engine.on_exit("after_step", **filters)(lambda run: calls.append(run.step))
    engine.run()
    assert calls == steps


def test_when_is_asked_only_at_the_events_that_every_selects():
    """A predicate that costs something is not asked in vain; after `once` it is asked no more."""
    asked: list[int] = []

    def when(run: Run) -> bool:
        asked.append(run.step)
        return run.step >= 4

    class Asked(Plugin):
        @on_exit("after_step", every=2, once=True, when=when)
        def look(self, run: Run) -> None:
            self.calls.append(run.step)

    assert calls_of(Asked(), loader=8) == [4]
    assert asked == [2, 4]


def test_every_counts_the_events_of_the_run_over_epochs_and_pausing():
    """The count continues from epoch to epoch, and where the run was paused."""

    class Third(Plugin):
        @on_exit("after_step", every=3)
        def look(self, run: Run) -> None:
            self.calls.append(run.step)

    straight, paused = Third(), Third()
    assert calls_of(straight, loader=4, epochs=2) == [3, 6]
    paused.calls = []
    engine = small_engine(4, [paused], epochs=2)
    while not engine.current.ended:
        engine.run(until=lambda run: True)
    assert paused.calls == [3, 6]


def test_every_instance_counts_for_itself():
    """Two plugins of one class share no filter, and two engines share none either."""

    class Second(Plugin):
        def __init__(self, name: str) -> None:
            self.name = name

        @on_exit("after_step", every=2, once=True)
        def look(self, run: Run) -> None:
            self.calls.append((self.name, run.step))

    assert calls_of(Second("a"), Second("b")) == [("a", 2), ("b", 2)]
    plugin = Second("c")
    assert calls_of(plugin) == calls_of(plugin) == [("c", 2)]


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(
    ("every", "start"), [(1, None), (2, None), (3, None), (5, None), (3, 1), (3, 5), (1, 4), (2, 7)]
)
@pytest.mark.parametrize("before", range(12))
def test_a_filter_continues_from_where_another_had_counted(before: int, every: int, start: int | None, once: bool):
    """The state of one filter, restored in a new one: together they hear what one alone would."""
    run = small_engine().current
    heard: list[int] = []
    event = 0

    def subscription() -> Subscription:
        return Subscription(
            None, "look", Mark("exit", "after_step", every, once, None, start), lambda run: heard.append(event)
        )

    first, second = subscription(), subscription()
    for event in range(1, 13):
        if event == before + 1:
            assert first.filter.state()[0] == (before if every > 1 or once or start else 0)
            second.filter.restore(*first.filter.state())
        (first if event <= before else second).call(run)
    due = list(range(start or every, 13, every))
    assert [number for number in range(1, 13) if first.filter.selects(number)] == due
    assert heard == (due[:1] if once else due)


def test_an_exception_in_a_filter_names_the_plugin():
    """What `when` raises ends the run as what the handler raises does."""

    def broken(run: Run) -> bool:
        raise ValueError("cannot tell")

    class Broken(Plugin):
        @on_enter("before_step", when=broken)
        def look(self, run: Run) -> None:
            """Never called."""

    with pytest.raises(ValueError, match="cannot tell") as caught:
        small_engine(plugins=[Broken()]).run()
    assert caught.value.__notes__ == [
        "heptad: in Broken.look on entry to before_step (epoch 0, batch 0, step 0, update 0)"
    ]


# -- inheritance


class Base(Plugin):
    """A plugin with a marked and a named handler, to be inherited."""

    @on_exit("after_step", every=2)
    def marked(self, run: Run) -> None:
        self.calls.append(("base marked", run.step))

    def on_enter_after_loop(self, run: Run) -> None:
        self.calls.append(("base named", run.step))


def test_a_subclass_inherits_handlers():
    """Without a word, with marks and filters."""

    class Child(Base):
        pass

    assert calls_of(Child()) == [("base marked", 2), ("base marked", 4), ("base named", 4)]


def test_an_overriding_method_keeps_the_marks():
    """A method that overrides a marked one and has no mark of its own is called where that one was, and only once."""

    class Child(Base):
        def marked(self, run: Run) -> None:
            self.calls.append(("child marked", run.step))

        def on_enter_after_loop(self, run: Run) -> None:
            self.calls.append(("child named", run.step))

    assert calls_of(Child()) == [("child marked", 2), ("child marked", 4), ("child named", 4)]


def test_an_overriding_methods_own_marks_replace_the_inherited():
    """A new mark is instead of the old ones, not beside them."""

    class Child(Base):
        @on_exit("after_epoch")
        def marked(self, run: Run) -> None:
            self.calls.append(("child marked", run.step))

    assert calls_of(Child()) == [("child marked", 4), ("base named", 4)]


def test_a_mark_on_a_subclass_leaves_the_base_alone():
    """Marks belong to functions, and no class shares a list of them with another."""

    class Child(Base):
        @on_exit("before_loop")
        def marked(self, run: Run) -> None:
            """Another one."""

    assert calls_of(Base()) == [("base marked", 2), ("base marked", 4), ("base named", 4)]


def test_handlers_of_two_bases_are_all_called():
    """In the order of the classes, from the base to the derived, each once."""

    class Left(Plugin):
        def on_enter_before_loop(self, run: Run) -> None:
            self.calls.append("left")

    class Right(Plugin):
        @on_enter("before_loop")
        def right(self, run: Run) -> None:
            self.calls.append("right")

    class Both(Left, Right):
        @on_enter("before_loop")
        def own(self, run: Run) -> None:
            self.calls.append("own")

    assert calls_of(Both()) == ["right", "left", "own"]


def test_a_plugins_name_is_that_of_its_class_unless_it_says_otherwise():
    """By class, by class attribute, or by instance."""

    class Quiet(Plugin):
        pass

    class Titled(Plugin):
        name = "title"

    class Child(Titled):
        pass

    assert (Quiet().name, Titled().name, Child().name) == ("Quiet", "title", "Child")


# -- order


class Letter(Plugin):
    """Writes its letter on both moments of a state, and for its life."""

    def __init__(self, letter: str, calls: list[Any] | None = None) -> None:
        self.name = letter
        self.calls: list[Any] = [] if calls is None else calls

    def on_enter_after_loop(self, run: Run) -> None:
        self.calls.append((self.name, "enter"))

    def on_exit_after_loop(self, run: Run) -> None:
        self.calls.append((self.name, "exit"))


@pytest.mark.parametrize("letters", ["abc", "cab"])
def test_handlers_of_one_moment_run_in_the_order_of_the_plugins(letters: str):
    """The list of plugins is the order, on entry and on exit alike."""
    expected = [(letter, moment) for moment in ("enter", "exit") for letter in letters]
    assert calls_of(*map(Letter, letters)) == expected


def test_two_handlers_of_one_plugin_on_a_moment_run_in_the_order_of_the_class():
    """All handlers of a plugin stand together, in the order in which its class defines them."""

    class Twice(Plugin):
        def __init__(self, name: str) -> None:
            self.name = name

        @on_enter("after_loop")
        def zebra(self, run: Run) -> None:
            self.calls.append((self.name, "zebra"))

        def on_enter_after_loop(self, run: Run) -> None:
            self.calls.append((self.name, "named"))

        @on_enter("after_loop")
        def ant(self, run: Run) -> None:
            self.calls.append((self.name, "ant"))

    one = [("one", "zebra"), ("one", "named"), ("one", "ant")]
    assert calls_of(Twice("one"), Twice("two")) == [*one, *(("two", method) for _, method in one)]


# -- functions


def test_functions_subscribe_too_and_come_after_the_plugins():
    """As decorators or calls, in the order in which they were given; the function is returned as it was."""
    calls: list[Any] = []
    engine = small_engine(1, [Letter("plugin", calls)])

    @engine.on_enter("after_loop")
    def first(run: Run) -> None:
        calls.append(("first", run.state))

    def second(run: Run) -> None:
        calls.append(("second", run.state))

    assert engine.on_exit("after_loop")(second) is second
    assert engine.on_enter("after_loop")(second) is second
    engine.run()
    assert calls == [
        ("plugin", "enter"),
        ("first", "after_loop"),
        ("second", "after_loop"),
        ("plugin", "exit"),
        ("second", "after_loop"),
    ]


def test_functions_are_refused_once_the_run_has_started():
    """What comes too late would miss events, so it is an error that names the function."""
    engine = small_engine(1)
    engine.advance()

    def late(run: Run) -> None:
        """Never called."""

    for subscribe in (engine.on_enter, engine.on_exit):
        with pytest.raises(PluginError, match="late comes too late: handlers are taken until the run has started"):
            subscribe("after_step")(late)


@pytest.mark.parametrize("state", ["idle", "finished", "failed"])
def test_the_bookends_have_no_handlers(state: str):
    """Nothing runs on their moments; the message says what to use."""
    with pytest.raises(PluginError, match=re.escape(f"the bookend '{state}'; nothing runs on its moments, use open()")):
        small_engine().on_enter(state)(lambda run: None)


# -- lives


class Living(Plugin):
    """Writes down when it is opened, paused and closed."""

    def __init__(self, name: str, lives: list[tuple[str, str, str]], fails: str = "") -> None:
        self.name = name
        self.lives = lives
        self.fails = fails

    def _live(self, verb: str, run: Run) -> None:
        self.lives.append((verb, self.name, run.state))
        if self.fails == verb:
            raise OSError(f"{self.name} cannot {verb}")

    def open(self, run: Run) -> None:
        self._live("open", run)

    def close(self, run: Run) -> None:
        self._live("close", run)

    def on_pause(self, run: Run) -> None:
        self._live("pause", run)


def living(*fails: str) -> tuple[Any, list[tuple[str, str, str]]]:
    """Return an engine over the plugins a, b and c, of which each may fail at one verb, and what they write."""
    lives: list[tuple[str, str, str]] = []
    wrong = [*fails, "", "", ""]
    return small_engine(2, [Living(name, lives, wrong[i]) for i, name in enumerate("abc")]), lives


def test_plugins_are_opened_in_order_and_closed_in_reverse():
    """Each once for a call of `run()`: before the first turn, and after the last."""
    engine, lives = living()
    engine.run()
    assert lives == [
        *(("open", name, "idle") for name in "abc"),
        *(("close", name, "finished") for name in "cba"),
    ]


def test_every_call_of_run_opens_and_closes():
    """A paused run's plugins are closed, and opened again when it continues; `until` calls no `on_pause`."""
    engine, lives = living()
    engine.run(until="after_step")
    engine.run()
    assert lives == [
        *(("open", name, "idle") for name in "abc"),
        *(("close", name, "after_step") for name in "cba"),
        *(("open", name, "after_step") for name in "abc"),
        *(("close", name, "finished") for name in "cba"),
    ]


class Begins(Plugin):
    """Writes down the calls before its first turn."""

    def __init__(self, calls: list[str], name: str = "Begins") -> None:
        self.calls, self.name = calls, name

    def on_begin(self, run: Run) -> None:
        self.calls.append(f"on_begin in {run.state}")

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls.append("load_state_dict")

    def open(self, run: Run) -> None:
        self.calls.append(f"open in {run.state}")


@pytest.mark.parametrize(("method", "other"), [("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")])
def test_a_plugin_with_one_half_of_a_state_is_refused_when_the_engine_is_built(method: str, other: str):
    """Set in the class, inherited, or on the instance: its state would be stored and never restored, or the reverse."""
    half = type("Half", (Plugin,), {method: lambda self, *state: {}})
    inherits = type("Inherits", (half,), {})
    whole = type("Whole", (inherits,), {other: lambda self, *state: {}})
    on_instance = Plugin()
    setattr(on_instance, method, dict)
    for plugin, name in ((half(), "Half"), (inherits(), "Inherits"), (on_instance, "Plugin")):
        with pytest.raises(PluginError, match=f"^{name} has a {method} and no {other}, so a resumed run could not"):
            small_engine(1, [plugin])
    assert small_engine(1, [whole()]).run().state == "finished"


def test_a_plugin_begins_once_for_each_engine_before_it_is_opened():
    calls: list[str] = []
    plugin = Begins(calls)
    for _ in range(2):
        engine = small_engine(1, [plugin])
        engine.run(until="after_step")
        engine.run()
    assert calls == ["on_begin in idle", "open in idle", "open in after_step"] * 2


def test_a_plugin_that_could_not_be_opened_has_begun():
    """The second call of `run()` opens it again, and does not begin it again."""
    calls: list[str] = []
    engine = small_engine(1, [Begins(calls), Living("b", [], "open")])
    for _ in range(2):
        with pytest.raises(OSError, match="b cannot open"):
            engine.run()
    assert calls == ["on_begin in idle", "open in idle", "open in idle"]


def test_in_a_run_that_resumes_a_plugin_begins_before_it_takes_back_its_state(tmp_path: Path):
    """Whether or not the checkpoint has a state for it."""
    small_engine(2, [Begins([]), Checkpoint(tmp_path, at="after_step")]).run(until=lambda run: run.step == 2)
    known: list[str] = []
    new: list[str] = []
    plugins = [Begins(known), Begins(new, "new"), Checkpoint(tmp_path, at="after_step")]
    plugins[1].observes = True
    small_engine(2, plugins).run(resume="auto")
    assert known == ["on_begin in idle", "load_state_dict", "open in checkpoint"]
    assert new == ["on_begin in idle", "open in checkpoint"]


def test_a_plugin_that_fails_to_begin_stops_the_run_before_its_first_turn():
    class Fails(Plugin):
        def on_begin(self, run: Run) -> None:
            raise OSError("planned")

    engine = small_engine(1, [Fails()])
    with pytest.raises(OSError, match="planned") as caught:
        engine.run()
    assert caught.value.__notes__ == ["heptad: in Fails.on_begin; the run has not gone on"]
    assert engine.current.state == "idle"


def test_on_pause_is_called_in_order_before_plugins_are_closed():
    """At the place where the run stands, between two turns."""
    engine, lives = living()
    engine.on_enter("before_step", once=True)(lambda run: run.pause("a look"))
    engine.run()
    assert lives == [
        *(("open", name, "idle") for name in "abc"),
        *(("pause", name, "before_step") for name in "abc"),
        *(("close", name, "before_step") for name in "cba"),
    ]


def test_advance_opens_once_and_the_turn_that_ends_the_run_closes():
    """Turns made one by one are one life of the plugins."""
    engine, lives = living()
    while not engine.current.ended:
        engine.advance()
    assert lives == [
        *(("open", name, "idle") for name in "abc"),
        *(("close", name, "finished") for name in "cba"),
    ]


def test_leaving_the_engines_block_closes_what_advance_opened():
    """`with engine:` and `engine.close()` end the life that `advance` began, once."""
    engine, lives = living()
    with engine:
        engine.advance()
    engine.close()
    assert lives == [
        *(("open", name, "idle") for name in "abc"),
        *(("close", name, "before_loop") for name in "cba"),
    ]


def test_a_failed_run_closes_all_plugins():
    """In reverse order, with the run in `failed`."""
    engine, lives = living()
    engine.on_exit("before_epoch")(lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.run()
    assert lives[3:] == [("close", name, "failed") for name in "cba"]


def test_a_plugin_that_fails_to_open_stops_the_run_before_its_first_turn():
    """Those after it are not opened, all are closed, the run stands where it stood, and the note names the plugin."""
    engine, lives = living("", "open")
    with pytest.raises(OSError, match="b cannot open") as caught:
        engine.run()
    assert caught.value.__notes__ == ["heptad: in b.open; the run has not gone on"]
    assert lives == [("open", "a", "idle"), ("open", "b", "idle"), *(("close", name, "idle") for name in "cba")]
    assert engine.current.state == "idle"


def test_a_plugin_that_fails_to_close_keeps_no_other_from_closing():
    """All are closed, then what was raised is raised, with a note that names the plugin."""
    engine, lives = living("", "close")
    with pytest.raises(OSError, match="b cannot close") as caught:
        engine.run()
    assert caught.value.__notes__ == ["heptad: in b.close"]
    assert lives[3:] == [("close", name, "finished") for name in "cba"]
    assert engine.current.state == "finished"


def test_several_plugins_that_fail_to_close_are_all_reported():
    """None hides another."""
    engine, _ = living("close", "", "close")
    with pytest.raises(BaseExceptionGroup, match="several plugins failed to close") as caught:
        engine.run()
    assert [str(error) for error in caught.value.exceptions] == ["c cannot close", "a cannot close"]


def test_what_ended_the_run_is_raised_though_closing_fails_too():
    """The first cause is what the caller gets; that closing failed is a note on it."""
    engine, _ = living("close")
    engine.on_exit("before_epoch")(lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        engine.run()
    assert any("a cannot close" in note for note in caught.value.__notes__)


def test_a_plugin_error_is_an_engine_error():
    """One `except` catches all that Heptad raises."""
    assert issubclass(PluginError, EngineError)


@pytest.mark.parametrize("first", [0, -1, 1.0, True, "1"])
def test_a_first_that_is_no_whole_number_is_refused(first: Any):
    with pytest.raises(PluginError, match="first must be a whole number from 1 on, got"):
        small_engine(2).on_exit("after_step", every=2, first=first)(print)


@pytest.mark.parametrize("once", [5, "yes", None])
def test_once_is_yes_or_no(once: Any):
    """A number, as other libraries take it, would be taken for the first event."""
    with pytest.raises(PluginError, match=r"once must be True or False, got .*; for the n-th event alone say every=n"):
        small_engine(2).on_exit("after_step", once=once)(print)


@pytest.mark.parametrize(
    "name", ["exit_after_step", "onexit_after_step", "On_exit_after_step", "onExitAfterStep", "enter_evaluate"]
)
def test_a_name_that_is_almost_a_handlers_is_refused(name: str):
    """It would never be called; the message says what it should be."""
    plugin = type("Almost", (Plugin,), {name: lambda self, run: None})
    right = "on_enter_evaluate" if "evaluate" in name else "on_exit_after_step"
    with pytest.raises(PluginError, match=rf"Almost\.{name} would never be called; name it {right}"):
        small_engine(2, [plugin()])


def test_a_method_that_is_named_for_a_state_is_no_handler():
    """`evaluate` is the body of a detour as often as not."""

    class Own(Plugin):
        def evaluate(self) -> None: ...
        def entered_after_step(self) -> None: ...

    assert small_engine(2, [Own()]).run().state == "finished"


def test_a_handler_that_is_set_on_the_instance_is_refused():
    """It would never be called."""

    class Set(Plugin):
        def __init__(self) -> None:
            self.on_exit_after_step = lambda run: None

    with pytest.raises(PluginError, match=r"Set\.on_exit_after_step is set on the instance and would never be called"):
        small_engine(2, [Set()])


def test_a_handler_that_is_no_function_is_refused():
    """Other attributes whose names begin with `on_` are the plugin's own affair."""
    with pytest.raises(PluginError, match=r"Odd\.on_exit_after_step is an int; it must be a function of the run"):
        small_engine(2, [type("Odd", (Plugin,), {"on_exit_after_step": 3})()])
    assert small_engine(2, [type("Own", (Plugin,), {"on_gpu": True})()]).run().state == "finished"


@pytest.mark.parametrize("method", ["on_begin", "open", "close", "on_pause"])
def test_the_methods_of_a_plugins_life_take_the_run(method: str):
    """Found when the engine is built: `on_pause` is called when it is too late to mend."""
    plugin = type("Short", (Plugin,), {method: lambda self: None})
    with pytest.raises(PluginError, match=rf"Short\.{method}\(\) cannot be called with the run alone"):
        small_engine(2, [plugin()])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "must return a list of Detour objects, got a NoneType"),
        (Detour("look", "after_step", lambda run: True, print), "must return a list of Detour objects, got a Detour"),
        ([print], "must return Detour objects, got a builtin_function_or_method"),
        (
            [Detour("look", "after_step", lambda: True, print)],
            "when of detour 'look'\\(\\) cannot be called with the run",
        ),
        (
            [Detour("look", "after_step", lambda run: True, lambda: None)],
            "the body of detour 'look'\\(\\) cannot be called",
        ),
    ],
)
def test_detours_are_checked_when_the_engine_is_built(given: Any, message: str):
    """The plugin is named."""
    plugin = type("Lost", (Plugin,), {"detours": lambda self: given})
    with pytest.raises(PluginError, match=rf"Lost.*{message}"):
        small_engine(2, [plugin()])


def test_a_body_that_nobody_would_wait_for_is_refused():
    """A coroutine does nothing when it is called."""

    async def look(run: Run) -> None: ...

    plugin = type("Later", (Plugin,), {"detours": lambda self: [Detour("look", "after_step", lambda run: True, look)]})
    with pytest.raises(PluginError, match="Later: the body of detour 'look' is a coroutine"):
        small_engine(2, [plugin()])


def test_a_function_is_shown_the_shape_of_a_function():
    """It has no `self`."""
    with pytest.raises(PluginError, match=r"write it as \(run\)$"):

        @small_engine(2).on_exit("after_step")
        def look() -> None: ...


def test_several_states_take_several_marks():
    """A list of them is no state."""
    with pytest.raises(PluginError, match=r"@on_exit takes the name of one state, got \['a', 'b'\]"):
        on_exit(["a", "b"])  # pyright: ignore[reportArgumentType] - the mistake


@pytest.mark.parametrize("on_error", ["raise", "detach"])
def test_what_a_plugin_raises_when_the_engine_is_built_ends_the_building(on_error):
    """With a note that says whose it is; there is no log yet in which it could be detached."""

    class Picky(Plugin):
        observes = True

        def on_build(self, run: Run) -> None:
            raise ValueError(f"not in {run.state}")

    picky = Picky()
    picky.on_error = on_error
    with pytest.raises(ValueError, match="not in idle") as caught:
        small_engine(plugins=[picky])
    assert caught.value.__notes__ == ["heptad: in Picky.on_build"]
