"""`Plugin.ranks` and `Plugin.requests`: what is called on which rank, what is refused when built, what may be asked."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from as_rank import as_rank
from builders import equal, records, small_engine, small_network, weights
from heptad import Detour, EngineError, Plugin, PluginError, Run, on_exit
from heptad.checkpoints.capture import _capture_plugins
from heptad.checkpoints.restore import _restore_plugins
from heptad.plugin.on_ranks import FIRST_ONLY, MOST_REQUESTS


class Writer(Plugin):
    """Writes down each call of a method of its life and of its handlers."""

    observes = True
    ranks = "first"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_build(self, run: Run) -> None:
        self.calls.append("on_build")

    def on_begin(self, run: Run) -> None:
        self.calls.append("on_begin")

    def open(self, run: Run) -> None:
        self.calls.append("open")

    def close(self, run: Run) -> None:
        self.calls.append("close")

    def on_pause(self, run: Run) -> None:
        self.calls.append("on_pause")

    def state_dict(self) -> dict[str, Any]:
        self.calls.append("state_dict")
        return {"calls": len(self.calls)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls.append("load_state_dict")

    @on_exit("after_step", every=2)
    def write(self, run: Run) -> None:
        self.calls.append("write")
        run.record("written", run.step)


class TestWhatIsCalled:
    def test_a_first_only_plugin_is_called_on_the_first_rank(self):
        plugin = Writer()
        small_engine(4, plugins=[plugin], engine_class=as_rank(0)).run()
        assert plugin.calls == ["on_build", "on_begin", "open", "write", "write", "close"]

    def test_nothing_of_it_is_called_on_another_rank(self):
        plugin = Writer()
        engine = small_engine(4, plugins=[plugin], engine_class=as_rank(1))
        engine.on_exit("after_step", once=True)(lambda run: run.pause("to see"))
        engine.run()
        engine.run()
        assert plugin.calls == []

    def test_its_handlers_stay_in_the_roster_of_every_rank(self):
        first, second = (small_engine(4, plugins=[Writer()], engine_class=as_rank(rank)) for rank in (0, 1))
        facts = [engine.current._buffer.facts["handlers"] for engine in (first, second)]
        assert facts[0] == facts[1] == [["after_step", "exit", "Writer.write", "every 2", "Writer"]]
        assert repr(first).endswith("with Writer>")
        assert repr(second).endswith("with Writer>")
        (row,) = [row for row in second.subscriptions() if row.who == "Writer.write"]
        assert row.idle == FIRST_ONLY

    def test_another_rank_neither_stores_nor_restores_its_state(self):
        plugins = Writer(), Writer()
        first, second = (small_engine(4, plugins=[p], engine_class=as_rank(rank)) for rank, p in enumerate(plugins))
        stored = _capture_plugins(first.current, first._manager)
        assert list(stored) == ["Writer"]
        assert not _capture_plugins(second.current, second._manager)
        findings: list[Any] = []
        with ExitStack() as undo:
            _restore_plugins(second.current, second._manager, stored, (), findings, undo)
        assert findings == []
        assert plugins[1].calls == []

    def test_the_plan_of_another_rank_has_no_call_of_it(self):
        calls = [
            [
                call
                for turn in small_engine(4, plugins=[Writer()], engine_class=as_rank(rank)).plan()
                for call in turn.exit_calls
            ]
            for rank in (0, 1)
        ]
        assert len(calls[0]) == 2
        assert not calls[1]

    def test_path_and_weights_are_the_same_on_both(self):
        networks = [small_network(), small_network()]
        runs = [
            small_engine(5, network=network, plugins=[Writer()], engine_class=as_rank(rank), epochs=2).run()
            for rank, network in enumerate(networks)
        ]
        assert records(runs[0].log) == records(runs[1].log)
        assert equal(*map(weights, networks))

    def test_what_it_records_the_first_rank_has_alone(self):
        runs = [small_engine(4, plugins=[Writer()], engine_class=as_rank(rank)).run() for rank in (0, 1)]
        assert [run.history("written") for run in runs] == [[2, 4], []]

    def test_a_plugin_of_all_ranks_is_called_on_each(self):
        class Everywhere(Writer):
            ranks = "all"

        plugin = Everywhere()
        small_engine(4, plugins=[plugin], engine_class=as_rank(1)).run()
        assert plugin.calls.count("write") == 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "does not observe": ({"observes": False}, "has not observes = True"),
    "has a detour": (
        {"detours": lambda self: [Detour("look", "after_step", lambda run: True, lambda run: None)]},
        "adds the state 'look'",
    ),
    "requests": ({"requests": ("save",)}, "declares requests"),
    "keeps the window": ({"keeps_window": True}, "has keeps_window = True"),
    "changes gradients": ({"changes_gradients": True}, "has changes_gradients = True"),
    "looks at losses": ({"on_loss": lambda self, run: None}, "defines on_loss"),
}


class TestWhatIsRefusedWhenBuilt:
    @pytest.mark.parametrize("what", REFUSED)
    @pytest.mark.parametrize("world", [1, 2])
    def test_a_first_only_plugin_that_could_steer(self, what: str, world: int):
        members, words = REFUSED[what]
        plugin = type("Steering", (Writer,), members)()
        with pytest.raises(PluginError, match=f"Steering says ranks = 'first' and {words}.*say ranks = 'all'"):
            small_engine(2, plugins=[plugin], engine_class=as_rank(0, world))

    def test_another_word(self):
        plugin = Writer()
        plugin.ranks = "one"  # type: ignore[assignment]
        with pytest.raises(PluginError, match=r"Writer\.ranks must be 'all' or 'first', got 'one'"):
            small_engine(2, plugins=[plugin])

    @pytest.mark.parametrize("given", ["save", ("to save",), (1,), ("",), {"save"}])
    def test_requests_that_are_no_identifiers(self, given: Any):
        plugin = Plugin()
        plugin.requests = given
        with pytest.raises(
            PluginError, match=r"Plugin\.requests must be a tuple of identifiers such as \('save',\), got"
        ):
            small_engine(2, plugins=[plugin])

    def test_one_request_twice(self):
        plugin = Plugin()
        plugin.requests = ("save", "save")
        with pytest.raises(PluginError, match="names one of them twice"):
            small_engine(2, plugins=[plugin])

    def test_more_requests_than_there_are_bits(self):
        plugins = [Plugin(), Plugin()]
        plugins[1].name = "other"
        plugins[0].requests = tuple(f"r{number}" for number in range(MOST_REQUESTS))
        small_engine(2, plugins=plugins)
        plugins[1].requests = ("more",)
        with pytest.raises(PluginError, match=r"declare 49 requests \(Plugin\.r0, …\), expected at most 48"):
            small_engine(2, plugins=plugins)


class Steers(Plugin):
    """A first-only plugin that does something to the run."""

    observes = True
    ranks = "first"

    def __init__(self, act: Any) -> None:
        self.act = act

    def on_enter_optimizer_update(self, run: Run) -> None:
        self.act(run)


class TestSteering:
    @pytest.mark.parametrize(
        "act",
        [
            lambda run: run.skip_update("not this one"),
            lambda run: run.set_accumulation(3),
        ],
        ids=["skip_update", "set_accumulation"],
    )
    @pytest.mark.parametrize("on_error", ["raise", "detach"])
    def test_a_first_only_plugin_that_steers_is_an_error_with_several_ranks(self, act: Any, on_error: Any):
        plugin = Steers(act)
        plugin.on_error = on_error
        with pytest.raises(PluginError, match="has skipped an update or changed"):
            small_engine(4, plugins=[plugin], engine_class=as_rank(0)).run()

    def test_a_pause_may_be_that_of_a_signal_in_its_handler(self):
        engine = small_engine(4, plugins=[Steers(lambda run: run.pause("a signal"))], engine_class=as_rank(0))
        assert engine.run().paused == "a signal"

    def test_its_own_failure_still_detaches_it(self):
        def fail(run: Run) -> None:
            raise ValueError("no disk")

        plugin = Steers(fail)
        plugin.on_error = "detach"
        assert small_engine(4, plugins=[plugin], engine_class=as_rank(0)).run().update == 4


class Asks(Plugin):
    """Asks for a request in its second step."""

    requests = ("save", "leave")

    def on_exit_after_step(self, run: Run) -> None:
        if run.step == 2:
            run.ask(f"{self.name}.save")


class TestRequests:
    def test_they_are_numbered_in_the_order_of_the_roster(self):
        class Before(Plugin):
            requests = ("first",)
            runs_before = (Asks,)

        engine = small_engine(2, plugins=[Asks(), Before()])
        assert engine._manager.requests() == ("Before.first", "Asks.save", "Asks.leave")

    def test_alone_a_request_is_agreed_at_once(self):
        engine = small_engine(4, plugins=[Asks()])
        agreed: list[bool] = []
        engine.on_exit("after_step")(lambda run: agreed.append(run.agreed("Asks.save")))
        engine.run()
        assert agreed == [False, True, True, True]

    def test_two_plugins_of_a_class_have_requests_of_their_own(self):
        other = Asks()
        other.name = "other"
        assert small_engine(2, plugins=[Asks(), other])._manager.requests()[::2] == ("Asks.save", "other.save")

    def test_one_that_nobody_declares_names_the_nearest(self):
        engine = small_engine(2, plugins=[Asks()])
        with pytest.raises(
            EngineError, match=r"'Asks\.safe' is no .*did you mean 'Asks\.save'\? \(declared: Asks\.save, "
        ):
            engine.current.ask("Asks.safe")

    def test_without_any_it_says_how_to_declare_one(self):
        with pytest.raises(
            EngineError, match=r"'save' is no request .*\(declared: none\)\. A plugin with requests = \('s"
        ):
            small_engine(2).current.ask("save")
