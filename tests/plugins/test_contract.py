"""The contract between plugins and the engine: what a run offers beside its counters and verbs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import heptad.plugin
from builders import batches, small_engine
from heptad import Components, ConfigError, Detour, EngineError, Plugin, Run
from heptad.step import evaluator


def test_a_run_shows_its_components_and_its_device():
    engine = small_engine(2, device="cpu")
    run = engine.current
    assert isinstance(run.components, Components)
    assert run.components.network is run.network
    assert run.device == torch.device("cpu")


def test_an_epoch_is_open_from_before_epoch_to_after_epoch():
    """Its body opens it, and the body of `after_epoch` closes it."""
    seen: list[tuple[str, bool]] = []
    engine = small_engine(1)
    for state in ("before_epoch", "after_epoch"):
        engine.on_enter(state)(lambda run: seen.append((f"enter {run.state}", run.epoch_open)))
        engine.on_exit(state)(lambda run: seen.append((f"exit {run.state}", run.epoch_open)))
    engine.run()
    assert seen == [
        ("enter before_epoch", False), ("exit before_epoch", True),
        ("enter after_epoch", True), ("exit after_epoch", False),
    ]  # fmt: skip


def test_the_names_of_recorded_values_are_shown_from_a_count_on():
    run = small_engine(1).current
    run.record("a", 1.0)
    count = run.record_count
    run.record("b", 2.0)
    assert (count, run.record_count) == (1, 2)
    assert run.names_recorded() == {"a", "b"}
    assert run.names_recorded(count) == {"b"}


class Follows:
    """Records what a log hands over."""

    limit = 1 << 62

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def packed(self, chunk: Any) -> None:
        self.taken.append(chunk)

    def noted(self, note: Any) -> None:
        self.taken.append(note)

    def settled(self) -> None: ...


def test_a_follower_is_handed_the_log_until_it_unfollows():
    run, follower = small_engine(1).current, Follows()
    run.follow(follower)
    run.note("heard")
    run.unfollow(follower)
    run.note("not heard")
    assert len(follower.taken) == 1


# -- evaluations


class Evaluates(Plugin):
    """Evaluates in a detour, or in a handler, and keeps what comes of it."""

    def __init__(self, data: Any, **metrics: Any) -> None:
        self.data, self.metrics = data, metrics
        self.found: list[dict[str, float]] = []

    def look(self, run: Run) -> None:
        self.found.append(run.evaluate(self.data, self.metrics))


class InDetour(Evaluates):
    def detours(self) -> list[Detour]:
        return [Detour("look", "after_epoch", lambda run: True, self.look)]


class InHandler(Evaluates):
    def on_exit_after_epoch(self, run: Run) -> None:
        self.look(run)


@pytest.mark.parametrize("kind", [InDetour, InHandler])
def test_a_run_evaluates_as_its_engine_does(kind: type[Evaluates]):
    plugin = kind(batches(2), one=lambda output, batch: 1.0)
    engine = small_engine(2, [plugin])
    engine.run()
    assert plugin.found == [engine.evaluate(batches(2), {"one": lambda output, batch: 1.0})]
    assert plugin.found[0]["one"] == 1.0


def pausing(kind: type[Evaluates]) -> Evaluates:
    """Return a plugin whose second batch asks for a pause, once."""
    plugin = kind(batches(3))
    plugin.batches = 0

    def count(output: torch.Tensor, batch: Any) -> float:
        plugin.batches += 1
        if plugin.batches == 2:
            plugin.run.pause("enough")
        return 0.0

    plugin.metrics = {"count": count}
    return plugin


@pytest.mark.parametrize(
    ("kind", "seen", "state"),
    [(InDetour, [2, 5], "look"), (InHandler, [3, 3], "after_loop")],
    ids=["detour", "handler"],
)
def test_a_pause_ends_an_evaluation_in_a_detour_and_no_other(kind: type[Evaluates], seen: list[int], state: str):
    """The detour's body is run again from its start; a handler is not called twice, so its evaluation is finished."""
    plugin = pausing(kind)
    engine = small_engine(2, [plugin])
    plugin.run = engine.current
    found = []
    for _ in range(2):
        run = engine.run()
        found.append(plugin.batches)
        if not run.ended:
            assert run.state == state
    assert found == seen
    assert engine.current.state == "finished"


def test_a_pause_asked_for_before_an_evaluation_does_not_end_it():
    """Else a run that is paused again and again would never leave the detour."""
    plugin = InDetour(batches(3))
    engine = small_engine(2, [plugin])
    engine.run(until="look").pause("asked for while it is paused")
    engine.run()
    assert len(plugin.found) == 1


def test_the_feed_of_a_data_object_is_kept_until_plugins_are_closed(monkeypatch: pytest.MonkeyPatch):
    built: list[str] = []
    build = evaluator.build_reading_feed

    def counting(data: Any, components: Any, config: Any, name: str) -> Any:
        built.append(name)
        return build(data, components, config, name)

    monkeypatch.setattr(evaluator, "build_reading_feed", counting)
    engine = small_engine(2, [InHandler(batches(1))], epochs=3)
    engine.run(until=lambda run: run.epoch == 2)
    assert built == ["run.evaluate(data)"]
    engine.run()
    assert built == ["run.evaluate(data)"] * 2


def test_data_are_prepared_under_a_name_that_errors_use():
    run = small_engine(2).current
    with pytest.raises(ConfigError, match="holds samples, and this engine has no batch_size"):
        run.prepare_evaluation(torch.zeros(3, 4), "the data")


def test_a_run_without_an_engine_evaluates_nothing():
    run = small_engine(1).current
    run._runtime.evaluator = None
    with pytest.raises(EngineError, match="only the run of an engine can evaluate"):
        run.evaluate(batches(1))


def test_the_contract_has_no_other_name():
    with pytest.raises(AttributeError, match=r"module 'heptad\.plugin' has no attribute 'PluginManager'"):
        _ = heptad.plugin.PluginManager


# -- recorded values


def test_the_newest_value_of_a_name_has_its_place():
    run = small_engine(2, epochs=2).run()
    run.record("a", 1.0)
    run.record("a", torch.tensor(2.0))
    newest = run.newest("a")
    assert newest is not None
    assert (newest.value, newest.step, newest.update, newest.epoch) == (2.0, 4, 4, 2)
    assert run.newest("b") is None


def test_a_value_is_expected_until_the_first_of_its_evaluation_is_recorded():
    run = small_engine(1).current
    assert not run.expects("valid/loss")
    run.prepare_evaluation(batches(1), records="valid/")
    assert (run.expects("valid/loss"), run.expects("validation")) == (True, False)
    run.record("valid/error", 1.0)
    assert not run.expects("valid/loss")
