"""The conformance kit: sound plugins pass, each kind of fault is caught and described in words."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from heptad import Detour, Plugin, PluginError, Run, on_exit
from heptad.testing import check_plugin
from heptad_plugins import Progress


class Sound(Plugin):
    """Counts, stops by its count, has a detour and a filter, and keeps all that in its state."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())

    def detours(self):
        return [Detour("look", "optimizer_update", lambda run: self.count % 2 == 0, self.look, every=1)]

    def look(self, run):
        run.record("count", self.count)

    @on_exit("after_step")
    def add(self, run):
        self.count += 1
        self.mean = self.mean + run.loss
        if self.count == 7:
            run.stop("seven steps")

    def state_dict(self):
        return {"count": self.count, "mean": self.mean, "nested": [1, {"a": None}]}

    def load_state_dict(self, state):
        self.count, self.mean = state["count"], state["mean"]


class Forgetful(Sound):
    """Does not keep its count."""

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


class Unplain(Sound):
    """Keeps what no checkpoint can hold."""

    def state_dict(self):
        return {**super().state_dict(), "call": print}


class OddKeys(Sound):
    """Keeps a dict by keys that no checkpoint can hold."""

    def state_dict(self):
        return {**super().state_dict(), "by places": {frozenset((1, 2)): 3}}


class LeavesOpen(Plugin):
    """Cannot be opened twice."""

    def __init__(self) -> None:
        self.is_open = False

    def open(self, run):
        if self.is_open:
            raise RuntimeError("open already")
        self.is_open = True


class ClosesBadly(Plugin):
    """Cannot be closed unless it was opened."""

    file = None

    def open(self, run):
        self.file = io.StringIO()

    def close(self, run):
        self.file.close()
        self.file = None


class Impatient(Plugin):
    """Closes only where the run ended well."""

    def close(self, run):
        if run.state == "failed":
            raise RuntimeError("this run has failed")


class Restless(Plugin):
    """Does something else where the run was paused."""

    paused = False

    def on_pause(self, run):
        self.paused = True

    def on_exit_after_step(self, run):
        run.record("paused", float(self.paused))


class Breaks(Plugin):
    """Fails in a run."""

    def on_enter_optimizer_update(self, run):
        raise ZeroDivisionError("planned")


@pytest.mark.parametrize(
    "make", [Sound, Plugin, lambda: Progress(file=io.StringIO())], ids=["sound", "empty", "Progress"]
)
def test_a_sound_plugin_passes(make):
    """The report says so in words."""
    report = check_plugin(make)
    assert str(report) == f"{report.plugin}: no fault found in {report.runs} runs"
    assert report.runs > 80


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Forgetful, "exchanged after every turn for a new instance with its state_dict, its path parts"),
        (Unplain, "CheckpointError: state_dict()['call'] is a builtin_function_or_method, which a checkpoint cannot"),
        (OddKeys, "CheckpointError: state_dict()['by places'] has the key frozenset({1, 2}), a frozenset"),
        (LeavesOpen, "opened and closed twice, open() raised RuntimeError: open already at test_conformance.py:"),
        (ClosesBadly, "opened and closed twice, close() raised AttributeError"),
        (Impatient, "when its neighbour failed on enter of before_loop, it raised RuntimeError: this run has failed"),
        (Restless, "paused wherever it may pause, its recorded values differ"),
        (Breaks, "run straight through, it raised ZeroDivisionError: planned at test_conformance.py:"),
    ],
)
def test_a_fault_is_described_in_words(make, words):
    """What was done, what came of it, and where."""
    with pytest.raises(PluginError) as caught:
        check_plugin(make)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{make.__name__}: ")


def test_values_that_measure_time_are_left_out_of_the_comparison():
    """`volatile` names them; without it they are a fault."""

    class Clock(Plugin):
        ticks = iter(range(10**9))

        def on_exit_after_step(self, run):
            run.record("time", next(self.ticks))

    check_plugin(Clock, volatile={"time"})
    with pytest.raises(PluginError, match="its recorded values differ"):
        check_plugin(Clock)


def test_an_instance_cannot_be_built_anew():
    """The kit asks for what builds one."""
    with pytest.raises(PluginError, match=r"got an instance, pass what builds it: Plugin, or lambda: Plugin\(…\)"):
        check_plugin(Plugin())  # pyright: ignore[reportArgumentType] - the mistake


def test_an_exchanged_plugin_begins_before_it_loads_its_state():
    """As where a run is resumed: what `on_begin` makes is there."""

    class Begun(Plugin):
        def on_begin(self, run: Run) -> None:
            self.steps: list[int] = []

        @on_exit("after_step")
        def add(self, run: Run) -> None:
            self.steps.append(run.step)

        def state_dict(self) -> dict[str, Any]:
            return {"steps": list(self.steps) if hasattr(self, "steps") else []}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.steps[:] = state["steps"]

    assert not check_plugin(Begun).faults


@pytest.mark.parametrize(("given", "what"), [(dict, "it returned a dict"), (None, "got a NoneType")])
def test_what_builds_no_plugin_is_refused(given: Any, what: str):
    with pytest.raises(PluginError, match=f"takes a function that builds a plugin; {what}"):
        check_plugin(given)


class Meddles(Plugin):
    """Says that it observes, and does not."""

    observes = True

    def on_exit_optimizer_update(self, run: Run) -> None:
        with torch.no_grad():
            run.network[0].weight.add_(0.01)


class Draws(Plugin):
    """Says that it observes, and draws from a global generator."""

    observes = True

    def on_exit_after_loop(self, run: Run) -> None:
        torch.rand(1)


class Counts(Plugin):
    """Adds a state whose guard counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def due(self, run: Run) -> bool:
        self.asked += 1
        return self.asked % 3 == 0

    def detours(self) -> list[Detour]:
        return [Detour("third", "after_step", self.due, lambda run: None)]

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


class Resets(Plugin):
    """Counts from 0 again when it is asked for its state."""

    def __init__(self) -> None:
        self.steps = 0

    def on_exit_after_step(self, run: Run) -> None:
        self.steps += 1
        run.record("steps", self.steps)

    def state_dict(self) -> dict[str, Any]:
        steps, self.steps = self.steps, 0
        return {"steps": steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@pytest.mark.parametrize(
    ("plugin", "fault"),
    [
        (Meddles, "it says observes = True, and the weights differ from those of the run without it"),
        (Draws, "it says observes = True, and draws from the global random generators"),
        (Counts, "asked for its state_dict after every turn, and its guards twice, its state_dict at the end differs"),
        (Resets, "asked for its state_dict after every turn, and its guards twice, its recorded values differ"),
    ],
)
def test_what_changes_something_and_should_not_is_found(plugin: type[Plugin], fault: str):
    """An observer, a guard, and being asked for the state leave the run as it is."""
    with pytest.raises(PluginError, match=fault):
        check_plugin(plugin)


def test_a_plugin_that_skips_all_updates_comes_to_an_end():
    """It is sound, if of little use."""

    class Skips(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            run.skip_update("all of them")

    assert not check_plugin(Skips).faults


class Watches(Plugin):
    """Is called on the first rank only, and takes no part in the run."""

    observes = True
    ranks = "first"

    def on_exit_after_step(self, run: Run) -> None:
        run.record("watched", run.step)


class Stops(Watches):
    """Says the same, and stops the run."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        if run.update == 2:
            run.stop("two are enough")


class Pauses(Watches):
    """Says the same, and pauses the run."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        if run.update == 2:
            run.pause("to think")


class Clips(Watches):
    """Says the same, and changes gradients."""

    changes_gradients = True


class Asks(Plugin):
    """Asks for what it declares, and for something else."""

    requests = ("save",)

    def __init__(self, asked: str = "save") -> None:
        self.asked = asked

    def on_exit_after_step(self, run: Run) -> None:
        run.ask(f"{self.name}.{self.asked}")


@pytest.mark.parametrize("plugin", [Watches, Asks])
def test_a_plugin_that_keeps_the_rules_of_ranks_passes(plugin: type[Plugin]):
    assert not check_plugin(plugin).faults


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (Stops, "it says ranks = 'first', and the path parts from that of the run without it: it steers, on one rank"),
        (Pauses, "it says ranks = 'first', and the path parts from that of the run without it"),
        (Clips, "Clips says ranks = 'first' and has changes_gradients = True"),
        (lambda: Asks("safe"), r"EngineError: 'Asks\.safe' is no request .* did you mean 'Asks\.save'\?"),
    ],
    ids=["stops", "pauses", "clips", "asks"],
)
def test_one_that_breaks_a_rule_of_ranks_is_found(make: Any, fault: str):
    with pytest.raises(PluginError, match=fault):
        check_plugin(make)
