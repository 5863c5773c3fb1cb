"""Resuming: what it takes, what it refuses, what it leaves alone, and that it is exact from wherever a run pauses."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
)

from builders import (
    Clock,
    Plan,
    Planned,
    Side,
    Unsized,
    batches,
    dataset_engine,
    plans,
    records,
    sgd,
    small_components,
    small_engine,
    small_network,
)
from heptad import (
    CheckpointError,
    Components,
    DataError,
    Detour,
    Engine,
    EngineError,
    Plugin,
    Run,
    RunConfig,
    TransitionLog,
    on_exit,
)
from heptad.checkpoints.store import Store
from heptad_plugins import Checkpoint, CSVLogger, EarlyStopping, Evaluate, GradientClipping, Journal, Progress
from scenario import full_engine, held_out, network, outcome


def begun(directory: Path, until: Any = lambda run: run.step == 4, **options: Any) -> None:
    """Train to somewhere in the first epoch, with a checkpoint wherever one may be."""
    full_engine(directory, **options).run(until=until)


# -- the way in


@pytest.mark.parametrize("way", ["auto", "the directory", "one checkpoint"])
def test_three_ways_to_say_where_from(way, tmp_path):
    """The newest of the run's own, of a directory, or one that is named; each continues like the uninterrupted run."""
    straight = full_engine(tmp_path / "straight")
    straight.run()
    begun(tmp_path / "a")
    newest = Store(tmp_path / "a").entries()[-1].path
    engine = full_engine(tmp_path / "a")
    run = engine.run(resume={"auto": "auto", "the directory": tmp_path / "a", "one checkpoint": newest}[way])
    assert outcome(engine) == outcome(straight)
    assert run.resumed_from == str(newest)
    assert run.id != straight.current.id
    note = run.log.notes("resume")[0]
    assert note.text.startswith(f"resumed from {newest.name}, before #")
    assert records(run.log) == records(straight.current.log)[run.log[0].seq :]


def test_auto_begins_at_the_start_without_a_checkpoint(tmp_path):
    """And the log says so."""
    engine = full_engine(tmp_path / "a")
    run = engine.run(resume="auto")
    assert [note.text for note in run.log.notes("resume")] == [
        "there is no checkpoint yet: the run begins at its start"
    ]
    assert (run.resumed_from, run.afresh, run.state) == (None, True, "finished")


def test_an_older_checkpoint_supersedes_the_newer_ones(tmp_path):
    """Those that are written then have higher numbers, so the newest is that of the run that continued."""
    straight = full_engine(tmp_path / "straight")
    straight.run()
    keep = Checkpoint(tmp_path / "a", at="after_step", keep_last=100)
    full_engine(tmp_path / "a", checkpoint=keep).run(until=lambda run: run.step == 8)
    entries = Store(tmp_path / "a").entries()
    again = full_engine(tmp_path / "a", checkpoint=Checkpoint(tmp_path / "a", at="after_step", keep_last=100))
    again.run(resume=entries[2].path, until=lambda run: run.step == 5)
    assert Store(tmp_path / "a").entries()[-1].number > entries[-1].number
    last = full_engine(tmp_path / "a", checkpoint=Checkpoint(tmp_path / "a", at="after_step"))
    last.run(resume="auto")
    skip = {"plugins"}  # another place to store has another state
    assert {k: v for k, v in outcome(last).items() if k not in skip} == {
        k: v for k, v in outcome(rerun(tmp_path / "b")).items() if k not in skip
    }


def rerun(directory: Path) -> Engine:
    """Return the engine of the same table, run through."""
    engine = full_engine(directory, checkpoint=Checkpoint(directory, at="after_step"))
    engine.run()
    return engine


@pytest.mark.parametrize(
    ("resume", "error", "says"),
    [
        ("nowhere", CheckpointError, "there is no directory"),
        ("empty", CheckpointError, "no checkpoint"),
        ("none of ours", EngineError, "this engine has none; add Checkpoint"),
    ],
)
def test_what_cannot_be_resumed_from_is_reported(resume, error, says, tmp_path):
    """A directory that is not there, or holds none; `"auto"` without the plugin."""
    (tmp_path / "empty").mkdir()
    if resume == "none of ours":
        engine = Engine(
            Components(
                network=(model := small_network()),
                loader=batches(2),
                criterion=nn.CrossEntropyLoss(),
                optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            ),
            RunConfig(epochs=1),
        )
        where: Any = "auto"
    else:
        engine, where = full_engine(tmp_path / "a"), tmp_path / resume
    with pytest.raises(error, match=says):
        engine.run(resume=where)
    assert engine.current.state == "idle"


def test_a_run_that_has_begun_is_not_resumed(tmp_path):
    """It continues with `run()`."""
    begun(tmp_path / "a")
    engine = full_engine(tmp_path / "b")
    engine.run(until="before_step")
    with pytest.raises(EngineError, match=r"in before_step; call run\(\) to continue it"):
        engine.run(resume=tmp_path / "a")


class Flaky(Plugin):
    """Cannot be opened the first time."""

    observes = True
    opened = 0

    def open(self, run: Run) -> None:
        torch.rand(3)
        self.opened += 1
        if self.opened == 1:
            raise OSError("the server cannot be reached")


@pytest.mark.parametrize("way", ["run()", "run(resume='auto')", "run(resume=its path)", "advance()"])
def test_a_plugin_that_does_not_open_loses_no_random_state(way, tmp_path):
    """The run is where the checkpoint is by then; whatever continues from there begins with its generators."""
    straight = full_engine(tmp_path / "straight")
    straight.run()
    begun(tmp_path / "a")
    newest = Store(tmp_path / "a").entries()[-1].path
    engine = full_engine(tmp_path / "a", [Flaky()])
    with pytest.raises(OSError, match="cannot be reached"):
        engine.run(resume="auto")
    torch.manual_seed(99)  # what the process did in between
    if way == "advance()":
        engine.advance()
    again = {"run(resume='auto')": "auto", "run(resume=its path)": newest}.get(way)
    run = engine.run(resume=again)
    assert {**outcome(engine), "plugins": ""} == {**outcome(straight), "plugins": ""}
    assert run.resumed_from == str(newest)
    assert [note.text for note in run.log.notes("resume")].count(
        f"resumed from {newest.name}, before #16 in checkpoint"
    ) == 1


def test_a_run_that_did_not_open_stays_at_its_checkpoint(tmp_path):
    """The message says so when another checkpoint is named afterwards."""
    begun(tmp_path / "a")
    before, newest = (entry.path for entry in Store(tmp_path / "a").entries())
    engine = full_engine(tmp_path / "a", [Flaky()])
    with pytest.raises(OSError, match="cannot be reached"):
        engine.run(resume="auto")
    with pytest.raises(
        EngineError, match=rf"{before.name}, but this run was resumed from .*{newest.name} before; call"
    ):
        engine.run(resume=before)
    assert engine.run().state == "finished"


def test_a_directory_belongs_to_one_run(tmp_path):
    """One that does not resume is refused with the possible remedies; with `overwrite=True` it takes the directory."""
    begun(tmp_path / "a")
    before = Store(tmp_path / "a").entries()
    with pytest.raises(CheckpointError, match=r"of another run .*resume='auto'.*another directory.*overwrite=True"):
        full_engine(tmp_path / "a").run()
    assert Store(tmp_path / "a").entries() == before
    full_engine(tmp_path / "a", checkpoint=Checkpoint(tmp_path / "a", at="after_epoch", overwrite=True)).run()
    (first, *_) = Store(tmp_path / "a").entries()
    assert Store(tmp_path / "a").summary(first)["epoch"] == 1
    begun(tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    with pytest.raises(CheckpointError, match="of another run"):
        full_engine(tmp_path / "a").run(resume=tmp_path / "c")  # resumed, but the directory is that of another


def test_two_runs_at_once_are_refused(tmp_path):
    """The message to the second says who holds the directory."""
    refused: list[str] = []

    class Second(Plugin):
        @on_exit("after_step", once=True)
        def begin(self, run: Run) -> None:
            with pytest.raises(CheckpointError) as caught:
                full_engine(tmp_path / "a").run(resume="auto")
            refused.append(str(caught.value))

    full_engine(tmp_path / "a", [Second()]).run()
    assert "is in use" in refused[0]
    engine = full_engine(tmp_path / "a")  # the lock went with the run
    engine.run(resume="auto")


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "network-00000.safetensors", "rank-00000.safetensors"])
def test_a_damaged_one_is_named_and_the_one_before_taken(name, tmp_path):
    """The run still equals the uninterrupted one; what is wrong stands in the log."""
    straight = full_engine(tmp_path / "straight")
    straight.run()
    begun(tmp_path / "a")
    before, newest = Store(tmp_path / "a").entries()
    flip(newest.path / name)
    engine = full_engine(tmp_path / "a")
    run = engine.run(resume="auto")
    assert run.resumed_from == str(before.path)
    assert any(newest.path.name in note.text and name in note.text for note in run.log.notes("resume"))
    assert outcome(engine) == outcome(straight)


def test_where_all_are_damaged_nothing_is_begun(tmp_path):
    """The error says what was found, and the run does not begin anew behind the user's back."""
    begun(tmp_path / "a")
    for entry in Store(tmp_path / "a").entries():
        flip(entry.path / "rank-00000.safetensors")
    engine = full_engine(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"checkpoint-\d+.*rank-00000\.safetensors") as caught:
        engine.run(resume="auto")
    assert str(caught.value).count("rank-00000.safetensors") == 2
    assert engine.current.state == "idle"


def test_what_an_attempt_left_that_died_too_early_makes_room(tmp_path):
    """With `resume="auto"` and no checkpoint yet, journal and CSV file begin anew; what they held is not lost."""

    def attempt(**given: Any) -> Run:
        plugins = [Journal(tmp_path / "run.journal"), CSVLogger(tmp_path / "values.csv")]
        return engine_of(tmp_path / "c", components(small_network()), plugins, epochs=1).run(**given)

    first = attempt(until=lambda run: run.step == 3)
    shutil.rmtree(tmp_path / "c")  # as if it had been killed before there was one
    rows = (tmp_path / "values.csv").read_text()
    second = attempt(resume="auto")
    assert records(TransitionLog.load(tmp_path / "run.journal")) == records(second.log)
    assert (tmp_path / "values.csv.before").read_text() == rows
    again = (tmp_path / "values.csv").read_text()
    shutil.rmtree(tmp_path / "c")
    attempt(resume="auto")
    assert (tmp_path / "values.csv.before2").read_text() == again
    assert (tmp_path / "values.csv.before").read_text() == rows
    database = sqlite3.connect(tmp_path / "run.journal")
    count = database.execute("SELECT count(*) FROM superseded_transition").fetchone()
    assert count == (len(first.log) + len(second.log),)
    database.close()
    with pytest.raises(EngineError, match="holds"):
        attempt()  # without resume="auto" they belong to that run


# -- which run


def other_network() -> nn.Module:
    model = network()
    model[2] = nn.Sigmoid()  # type: ignore[operator] - a Sequential
    return model


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "batch_size": ({"batch_size": 7}, "RunConfig.batch_size: 2 in the checkpoint, 7 here"),
    "accumulation": ({"accumulation": 2}, "RunConfig.accumulation: 3 in the checkpoint, 2 here"),
    "seed": ({"seed": 10}, "RunConfig.seed: 9 in the checkpoint, 10 here"),
    "remainder": ({"remainder": "flush"}, "RunConfig.remainder: 'extend' in the checkpoint, 'flush' here"),
    "shuffle": ({"shuffle": False}, "RunConfig.shuffle: True in the checkpoint, False here"),
    "table": ({"at": "after_step"}, "table: the arc .*checkpoint.* is in the checkpoint only"),
}


@pytest.mark.parametrize("field", DIFFERENT)
def test_another_run_is_refused_field_by_field(field, tmp_path):
    """And nothing was changed: the engine can still begin a run of its own."""
    begun(tmp_path / "a")
    options, says = DIFFERENT[field]
    checkpoint = (
        Checkpoint(tmp_path / "b", at=options.pop("at"))
        if "at" in options
        else Checkpoint(tmp_path / "b", at=("after_step", "optimizer_update", "after_epoch"))
    )
    engine = full_engine(tmp_path / "b", checkpoint=checkpoint, **options)
    before = [parameter.clone() for parameter in engine.current.network.parameters()]
    with pytest.raises(CheckpointError, match=says) as caught:
        engine.run(resume=tmp_path / "a")
    assert "load_weights" in str(caught.value)
    assert engine.current.state == "idle"
    assert all(map(torch.equal, before, engine.current.network.parameters()))
    engine.run()


def components(model: nn.Module, optimizer: Any = None, **parts: Any) -> Components:
    return small_components(model, **{"loader": batches(4), "optimizer": optimizer or sgd, **parts})


def engine_of(directory: Path, parts: Components, plugins: Any = (), **config: Any) -> Engine:
    settings = {"epochs": 2, "accumulation": 2, **config}
    return Engine(parts, RunConfig(**settings), [*plugins, Checkpoint(directory, at="after_step")])


class Tail(nn.Module):
    """A criterion that has a parameter, a buffer that is not persistent, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.calls = 0

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.training:
            self.seen += 1
        return nn.functional.cross_entropy(output * self.scale, target) * (1 + self.seen / 100 + self.calls / 1000)

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state


@pytest.mark.parametrize(
    ("name", "other", "says"),
    [
        (
            "shape",
            lambda: nn.Linear(4, 5),
            r"network.weight: float32 \(3, 4\) in the checkpoint, float32 \(5, 4\) here",
        ),
        ("dtype", lambda: nn.Linear(4, 3).double(), r"float32 \(3, 4\) in the checkpoint, float64 \(3, 4\) here"),
        ("names", lambda: nn.Sequential(nn.Linear(4, 3)), "network.0.weight: none in the checkpoint"),
        ("activation", lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU()), "network"),
    ],
)
def test_another_network_is_refused(name, other, says, tmp_path):
    """Names, shapes, dtypes, and the class and options of each submodule: an activation has no tensors."""
    first = nn.Sequential(nn.Linear(4, 3), nn.ReLU()) if name == "activation" else nn.Linear(4, 3)
    engine_of(tmp_path, components(first)).run(until=lambda run: run.step == 3)
    with pytest.raises(CheckpointError, match=says):
        engine_of(tmp_path, components(other())).run(resume="auto")
    if name == "activation":
        with pytest.raises(CheckpointError, match=r"network.1: ReLU\(\) in the checkpoint, GELU\(approximate='none'\)"):
            engine_of(tmp_path, components(other())).run(resume="auto")


def reversed_sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(net.parameters())[::-1], lr=0.1)


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (
            lambda net: torch.optim.Adam(net.parameters(), lr=0.1),
            r"optimizers\[0\]: an SGD in the checkpoint, an Adam here",
        ),
        (lambda net: torch.optim.SGD(net.parameters(), lr=0.2), r"group 0: lr 0.1 in the checkpoint, 0.2 here"),
        (reversed_sgd, "parameter 0 of group 0 is network.weight in the checkpoint, network.bias here"),
        (
            lambda net: torch.optim.SGD([{"params": [net.weight]}, {"params": [net.bias]}], lr=0.1),
            "1 parameter group in",
        ),
        ([lambda net: torch.optim.SGD(net.parameters(), lr=0.1)] * 2, "1 in the checkpoint, 2 here"),
    ],
)
def test_another_optimizer_is_refused(optimizer, says, tmp_path):
    """Its class, the options that it is built with, the order of its parameters, its groups, their number."""
    engine_of(tmp_path, components(small_network())).run(until=lambda run: run.step == 3)
    model = small_network()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(CheckpointError, match=says):
        engine_of(tmp_path, components(model, optimizer)).run(resume="auto")
    assert all(map(torch.equal, before, model.parameters()))


def test_other_data_are_refused(tmp_path):
    """A loader of another length, a dataset of another size."""
    engine_of(tmp_path, components(small_network())).run(until=lambda run: run.step == 3)
    with pytest.raises(CheckpointError, match="data: batches 4 in the checkpoint, 5 here"):
        engine_of(tmp_path, components(small_network(), loader=batches(5))).run(resume="auto")


class Keeps(Plugin):
    """Changes the run and has a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"a": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {"a": 1}


def test_observers_may_come_and_go_and_others_may_not(tmp_path):
    """Each that comes or goes is noted; one that changes the run and has a state is missed."""
    plugins = [CSVLogger(tmp_path / "a.csv"), GradientClipping(max_norm=1.0)]
    engine_of(tmp_path / "c", components(small_network()), plugins).run(until=lambda run: run.step == 3)
    run = engine_of(tmp_path / "c", components(small_network()), [EarlyStopping("a", every=9)]).run(resume="auto")
    notes = [note.text for note in run.log.notes("resume")]
    assert "the plugin EarlyStopping has no state in the checkpoint: it begins here" in notes
    assert "the plugin CSVLogger of the checkpoint is not here: its state is left out" in notes
    engine_of(tmp_path / "d", components(small_network()), [Keeps()]).run(until=lambda run: run.step == 3)
    with pytest.raises(CheckpointError, match=r"plugins: Keeps \(a Keeps\) changes the run and is in the checkpoint"):
        engine_of(tmp_path / "d", components(small_network())).run(resume="auto")


def test_a_plugin_that_refuses_its_state_stops_the_resume(tmp_path):
    """The plugins before it have theirs back, and the network is untouched."""

    class Stubborn(Keeps):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("b")

    class First(Plugin):
        value = 0

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.value = state["value"]

    one = First()
    one.value = 7
    engine_of(tmp_path, components(small_network()), [one, Stubborn()]).run(until=lambda run: run.step == 3)
    model, other = small_network(), First()
    with pytest.raises(CheckpointError, match="the plugin Stubborn cannot load its state: KeyError: 'b'"):
        engine_of(tmp_path, components(model), [other, Stubborn()]).run(resume="auto")
    assert other.value == 0
    assert all(map(torch.equal, model.parameters(), small_network().parameters()))


class Fails(Plugin):
    """An observer that the run can do without, which fails in one place from the fourth step on."""

    observes = True
    on_error = "detach"

    def __init__(self, place: str) -> None:
        self.place = place
        self.steps = 0
        self.calls: list[str] = []

    def fail(self, place: str) -> None:
        if place == self.place and self.steps >= 4:
            raise ValueError(f"{place} fails")

    def open(self, run: Run) -> None:
        self.calls.append("open")

    def close(self, run: Run) -> None:
        self.calls.append("close")

    def on_exit_after_step(self, run: Run) -> None:
        self.steps = run.step
        self.fail("a handler")

    def detours(self) -> list[Detour]:
        return [Detour("peek", "after_step", lambda run: True, self.peek)]

    def peek(self, run: Run) -> None:
        self.fail("a body")

    def state_dict(self) -> dict[str, Any]:
        if self.calls == ["open", "close"]:
            raise RuntimeError("I am closed")
        self.fail("state_dict")
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@pytest.mark.parametrize("place", ["a handler", "a body", "state_dict"])
@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_detached_plugin_stays_detached(place, step, tmp_path):
    """It is part of the run's state: path and notes are those of the uninterrupted run. It is closed."""
    straight = engine_of(tmp_path / "s", components(small_network()), [Fails(place)])
    straight.run()
    assert len(straight.current.log.notes("detach")) == 1
    engine_of(tmp_path / "a", components(small_network()), [Fails(place)]).run(until=lambda run: run.step == step + 1)
    again = Fails(place)
    engine = engine_of(tmp_path / "a", components(small_network()), [again])
    run = engine.run(resume="auto")
    assert records(run.log) == records(straight.current.log)[run.log[0].seq :]
    expected = [(n.seq, n.text) for n in straight.current.log.notes("detach") if n.seq >= run.log[0].seq]
    assert [(n.seq, n.text) for n in run.log.notes("detach")] == expected
    text = "the plugin Fails was detached before the checkpoint was taken: it is called no more"
    gone = step >= 4
    assert (text in [note.text for note in run.log.notes("resume")]) is gone
    assert again.calls == (["close"] if gone else ["open", "close"])


def test_an_observer_that_refuses_its_state_is_detached(tmp_path):
    """One that the run can do without does not keep it from continuing; the log says so."""

    class Refuses(Fails):
        name = "Fails"

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("b")

    engine_of(tmp_path, components(small_network()), [Fails("nowhere")]).run(until=lambda run: run.step == 3)
    plugin = Refuses("nowhere")
    run = engine_of(tmp_path, components(small_network()), [plugin]).run(resume="auto")
    assert run.state == "finished"
    assert plugin.calls == ["close"]
    assert [note.text for note in run.log.notes("detach")] == [
        "Fails.load_state_dict raised KeyError: 'b'; Fails is called no more"
    ]


class Unlucky(Plugin):
    """An observer that cannot begin with one network."""

    observes = True

    def __init__(self, network: nn.Module | None = None, on_error: Any = "raise") -> None:
        self.network, self.on_error = network, on_error

    def on_begin(self, run: Run) -> None:
        if run.network is self.network:
            raise OSError("no room")


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_a_plugin_that_cannot_begin_is_named(stored, tmp_path):
    """Whether the checkpoint holds its state or not."""
    engine_of(tmp_path, components(small_network()), [Unlucky()] * stored).run(until=lambda run: run.step == 3)
    network = small_network()
    engine = engine_of(tmp_path, components(network), [Unlucky(network)])
    with pytest.raises(CheckpointError, match="the plugin Unlucky cannot begin: OSError: no room"):
        engine.run(resume="auto")


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_a_run_continues_without_an_observer_that_cannot_begin(stored, tmp_path):
    """It is detached, and the log names the method that failed."""
    engine_of(tmp_path, components(small_network()), [Unlucky()] * stored).run(until=lambda run: run.step == 3)
    network = small_network()
    run = engine_of(tmp_path, components(network), [Unlucky(network, "detach")]).run(resume="auto")
    assert run.state == "finished"
    assert [note.text for note in run.log.notes("detach")] == [
        "Unlucky.on_begin raised OSError: no room; Unlucky is called no more"
    ]


def test_the_log_says_that_a_plugin_which_changed_the_run_is_not_here(tmp_path):
    """One without a state is not refused, and the run is another one from here on."""
    clipped = [GradientClipping(max_norm=1.0)]
    engine_of(tmp_path, components(small_network()), clipped).run(until=lambda run: run.step == 3)
    run = engine_of(tmp_path, components(small_network())).run(resume="auto")
    text = "the plugin GradientClipping of the checkpoint, which changes the run, is not here: what follows may differ"
    assert text in [note.text for note in run.log.notes("resume")]


def test_a_detached_checkpoint_takes_no_other_detour_along(tmp_path):
    """The run is resumed where its body is done already; it is detached there, and the next detour's body is run."""

    class Unopened(Checkpoint):
        name = "Checkpoint"

        def open(self, run: Run) -> None:
            raise OSError("no room")

    def engine(kind: type[Checkpoint], epochs: list[int]) -> Engine:
        side = Side(Detour("side", "after_epoch", lambda run: True, lambda run: epochs.append(run.epoch)))
        checkpoint = kind(tmp_path, at="optimizer_update", on_error="detach")
        return small_engine(3, [side, checkpoint], epochs=3)

    def fail(run: Run) -> None:
        raise Planned

    before: list[int] = []
    killed = engine(Checkpoint, before)
    killed.on_exit("checkpoint", when=lambda run: run.update == 4)(fail)
    with pytest.raises(Planned):
        killed.run()
    after: list[int] = []
    run = engine(Unopened, after).run(resume="auto")
    assert (run.state, len(run.log.notes("detach"))) == ("finished", 1)
    assert (before, after) == ([1], [2, 3])


def test_an_error_in_a_state_dict_names_the_plugin(tmp_path):
    """In a note on what was raised, unchanged; a state_dict that returns nothing is refused by name."""

    class Odd(Keeps):
        def state_dict(self) -> Any:
            raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing") as caught:
        engine_of(tmp_path / "a", components(small_network()), [Odd()]).run()
    assert "heptad: in Odd.state_dict" in caught.value.__notes__

    class Forgets(Keeps):
        def state_dict(self) -> Any:
            {"a": 1}  # noqa: B018 - the mistake

    with pytest.raises(CheckpointError, match=r"Forgets.state_dict returned None, expected a dict.*without a return"):
        engine_of(tmp_path / "b", components(small_network()), [Forgets()]).run()


def test_what_changes_bits_is_noted(tmp_path):
    """Another number of threads: the run continues, and the log says in what it differs."""
    begun(tmp_path / "a")
    torch.set_num_threads(2)
    try:
        run = full_engine(tmp_path / "a").run(resume="auto")
    finally:
        torch.set_num_threads(1)
    assert any(
        "bits may differ" in note.text and "threads 1 in the checkpoint, 2 here" in note.text
        for note in run.log.notes()
    )


# -- continuing


@pytest.mark.parametrize("at", ["after_epoch", "after_step", "optimizer_update"])
def test_a_finished_run_continues_for_another_epoch(at, tmp_path):
    """It equals one that was asked for that many."""
    longer = full_engine(
        tmp_path / "longer", checkpoint=Checkpoint(tmp_path / "longer", at=at), schedule=False, epochs=3
    )
    longer.run()
    full_engine(tmp_path / "a", checkpoint=Checkpoint(tmp_path / "a", at=at), schedule=False, epochs=2).run()
    again = full_engine(tmp_path / "a", checkpoint=Checkpoint(tmp_path / "a", at=at), schedule=False, epochs=3)
    again.run(resume="auto")
    assert outcome(again) == outcome(longer)


def test_more_updates_may_be_asked_for(tmp_path):
    """A run that ended at max_updates continues; one that was stopped stays stopped."""
    full_engine(tmp_path / "a", schedule=False, max_updates=2).run()
    run = full_engine(tmp_path / "a", schedule=False, max_updates=4).run(resume="auto")
    assert (run.update, run.reason) == (4, "max_updates=4 reached")
    stopped = full_engine(tmp_path / "b", [Stops()], schedule=False)
    stopped.run()
    run = full_engine(tmp_path / "b", [Stops()], schedule=False, epochs=9).run(resume="auto")
    assert (run.epoch, run.reason) == (1, "enough")


class Stops(Plugin):
    @on_exit("after_step", when=lambda run: run.step == 2)
    def stop(self, run: Run) -> None:
        run.stop("enough")


@pytest.mark.parametrize(
    ("updates", "remainder", "sized", "text"),
    [
        (4, "extend", True, "epoch 1 was cut short by max_updates=4, after 2 of its 5 batches, and is counted"),
        (4, "extend", False, "epoch 1 may have been cut short by max_updates=4, after 2 batches, and is counted"),
        (3, "extend", True, ""),
        (3, "flush", True, ""),
        (2, "drop", True, ""),
        (1, "drop", True, "epoch 0 was cut short by max_updates=1, after 2 of its 5 batches"),
    ],
)
@pytest.mark.parametrize("paused", [False, True])
def test_an_epoch_that_was_cut_short_is_reported(updates, remainder, sized, text, paused, tmp_path):
    """With more updates the run continues behind it, and is not the one that was asked for them at once."""

    def make(limit: int) -> Engine:
        loader = batches(5) if sized else Unsized(batches(5))
        engine = Engine(
            components(small_network(), loader=loader),
            RunConfig(max_updates=limit, accumulation=2, remainder=remainder),
            [Checkpoint(tmp_path)],
        )
        if paused:
            engine.on_enter("after_epoch")(lambda run: run.pause("so") if run.update == updates else None)
        return engine

    make(updates).run()
    run = make(updates + 2).run(resume="auto")
    assert run.update == updates + 2
    notes = [note.text for note in run.log.notes("resume") if "short" in note.text]
    assert [note.startswith(text) for note in notes] == ([True] if text else [])


def test_every_keeps_its_phase(tmp_path):
    """Filters and detours count on from where they were, from whichever step the run is resumed."""

    class Counts(Plugin):
        observes = True

        def __init__(self) -> None:
            self.heard: list[tuple[str, int]] = []

        def detours(self) -> list[Detour]:
            return [
                Detour(
                    "look", "after_step", lambda run: True, lambda run: self.heard.append(("look", run.step)), every=3
                ),
                Detour(
                    "glance",
                    "after_step",
                    lambda run: True,
                    lambda run: self.heard.append(("glance", run.step)),
                    every=3,
                    first=1,
                ),
            ]

        @on_exit("before_step", every=4)
        def fourth(self, run: Run) -> None:
            self.heard.append(("fourth", run.step))

        @on_exit("before_step", every=4, first=2, once=True)
        @on_exit("before_step", every=3, first=1)
        @on_exit("before_step", every=3)
        def first(self, run: Run) -> None:
            self.heard.append(("first", run.step))

        @on_exit("before_step", once=True, when=lambda run: run.step >= 2)
        def once(self, run: Run) -> None:
            self.heard.append(("once", run.step))

    straight = Counts()
    engine_of(tmp_path / "s", components(small_network()), [straight]).run()
    for step in range(1, 8):
        folder = tmp_path / str(step)
        first, second = Counts(), Counts()
        engine_of(folder, components(small_network()), [first]).run(
            until=lambda run, step=step: run.step == step and run.state == "before_step"
        )
        engine_of(folder, components(small_network()), [second]).run(resume="auto")
        assert first.heard + second.heard == straight.heard


@settings(max_examples=25)
@given(plan=plans())
def test_from_wherever_a_run_pauses(plan: Plan):
    """Random runs, with detours, stops, failures and pauses, taken down and built anew at each place they pause."""
    straight, actor = plan.build()
    drive_all(straight)
    with tempfile.TemporaryDirectory() as folder:
        engine, other = plan.build(plugins=[Store_(Path(folder))])
        heard: list[Any] = []
        for _ in range(200):
            drive_all(engine, once=True)
            if engine.current.ended or not Store(folder).entries():
                break
            heard += other.heard
            acts = {number - len(heard): act for number, act in plan.acts.items()}
            skips = other.skips
            fresh, other = Plan(plan.batches, plan.unsized, plan.config, plan.detours, acts).build(
                plugins=[Store_(Path(folder))]
            )
            other.skips = skips
            engine = fresh
            try:
                engine.run(until=lambda run: True, resume=folder)
            except Exception:
                break
            if engine.current.ended:
                break
        assert heard + other.heard == actor.heard
        mine, theirs = engine.current, straight.current
        assert all(map(torch.equal, mine.network.parameters(), theirs.network.parameters()))
        assert mine.state == theirs.state
        ours = records(mine.log)
        assert ours == records(theirs.log)[len(theirs.log) - len(ours) :]


class Store_(Plugin):
    """Stores a checkpoint wherever a handler pauses the run."""

    observes = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_pause(self, run: Run) -> None:
        store = Store(self.folder)
        store.save(run.snapshot())
        store.rotate(1)


def drive_all(engine: Engine, *, once: bool = False) -> None:
    try:
        while not engine.current.ended:
            engine.run()
            if once:
                return
    except Exception:
        return


# -- what is stored


def test_all_of_a_modules_state_comes_back(tmp_path):
    """A criterion's parameter, a buffer that is not persistent, extra state, modes, frozen parameters, held ones."""

    def make(directory: Path) -> tuple[Engine, Tail, nn.Parameter]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        model[0].weight.requires_grad_(False)
        tail, extra = Tail(), nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([*model.parameters(), *tail.parameters(), extra], lr=0.05)

        class Freezes(Plugin):
            @on_exit("after_step", when=lambda run: run.step == 2)
            def freeze(self, run: Run) -> None:
                run.network[1].eval()  # type: ignore[operator] - a Sequential
                run.network[2].bias.requires_grad_(False)  # type: ignore[operator]
                extra.grad = torch.full((2,), 0.5)

        parts = components(model, optimizer, criterion=tail)
        return engine_of(directory, parts, [Freezes()]), tail, extra

    straight, tail, extra = make(tmp_path / "s")
    straight.run()
    make(tmp_path / "a")[0].run(until=lambda run: run.step == 5)
    engine, other, held = make(tmp_path / "a")
    engine.run(resume="auto")
    assert (other.calls, other.seen) == (tail.calls, tail.seen)
    assert torch.equal(other.scale, tail.scale)
    assert torch.equal(held, extra)
    assert outcome(engine)["weights"] == outcome(straight)["weights"]
    assert outcome(engine)["optimizer"] == outcome(straight)["optimizer"]
    assert engine.current.network[2].bias.requires_grad is False  # type: ignore[operator]


@pytest.mark.parametrize("nested", [False, True])
def test_the_optimizers_state_keeps_its_precision(nested, tmp_path):
    """torch rounds what it loads to the dtype of the parameters, however deep; here it does not stay so."""

    class Precise(torch.optim.SGD):
        """Keeps its state in float32 beside parameters in bfloat16."""

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    if nested:
                        deep = state.setdefault("deep", OrderedDict(rows=[{"kept": "sums"}]))
                        assert (type(deep), deep["rows"][0].get("kept")) == (OrderedDict, "sums")
                        state = deep["rows"][0]
                    state.setdefault("sum", torch.zeros_like(parameter, dtype=torch.float32))
                    state["sum"] += parameter.grad.float() / 3
                    parameter.data -= (0.1 * state["sum"]).to(parameter.dtype)

    def make(directory: Path) -> Engine:
        data = [(x.bfloat16(), y) for x, y in batches(4)]
        model = small_network(torch.bfloat16)
        return engine_of(directory, components(model, Precise(model.parameters(), lr=0.1), loader=data))

    straight = make(tmp_path / "s")
    straight.run()
    make(tmp_path / "a").run(until=lambda run: run.step == 5)
    engine = make(tmp_path / "a")
    engine.run(resume="auto")
    assert outcome(engine) == outcome(straight)


class Expanded(nn.Module):
    """Its buffer shares memory among its elements, until a forward may put another in its place."""

    def __init__(self, moved: bool = False) -> None:
        super().__init__()
        self.layer, self.moved = small_network(), moved
        self.register_buffer("shift", torch.zeros(3).expand(2, 3))

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        if self.moved:
            self.shift = self.shift + torch.arange(6.0).reshape(2, 3) / 100
        return self.layer(data) + self.shift


class Caches(nn.Module):
    """Its buffers are made by the first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.layer = small_network()
        self.inner.register_buffer("mask", None, persistent=False)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        if self.inner.mask is None:
            self.inner.mask = torch.rand(1, 4)
        return self.layer(data * self.inner.mask)


class Anneals(Plugin):
    """Changes an option of a module; it keeps it in its state, or does not."""

    def __init__(self, keeps: bool = True) -> None:
        self.keeps = keeps
        self.p = 0.4

    def on_enter_before_epoch(self, run: Run) -> None:
        self.p /= 2
        self.put(run)

    def open(self, run: Run) -> None:
        if self.keeps:
            self.put(run)

    def put(self, run: Run) -> None:
        run.network[1].p = self.p  # type: ignore[operator] - a Sequential

    def state_dict(self) -> dict[str, Any]:
        return {"p": self.p}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.p = state["p"]


class Adds(Plugin):
    """Adds a further layer to the optimizer from the second epoch on."""

    def on_enter_before_epoch(self, run: Run) -> None:
        if run.epoch == 1:
            layer: Any = run.network[2]  # type: ignore[operator] - a Sequential
            run.optimizer.add_param_group({"params": list(layer.parameters()), "lr": 0.02})


def three() -> nn.Module:
    """Return a network whose middle has an option and no tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Linear(8, 3))


def ready() -> nn.Module:
    """Return a lazy network that has seen a batch."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))
        model(torch.rand(2, 4))
        return model


def momentum(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


CHANGING: dict[str, tuple[Any, Any, Any]] = {
    "an expanded buffer": (Expanded, momentum, []),
    "one that is replaced": (lambda: Expanded(moved=True), momentum, []),
    "a buffer made by the first forward": (Caches, momentum, []),
    "a lazy module that has seen a batch": (ready, momentum, []),
    "an option that a plugin anneals": (three, momentum, [Anneals]),
    "a parameter group that is added": (three, lambda net: momentum(net[0]), [Adds]),
    "one with names": (
        three,
        lambda net: torch.optim.SGD(list(net[0].named_parameters()), lr=0.1),
        [type("Adds", (Adds,), {"on_enter_before_epoch": lambda self, run: add_named(run)})],
    ),
}


def add_named(run: Run) -> None:
    if run.epoch == 1:
        layer: Any = run.network[2]  # type: ignore[operator] - a Sequential
        run.optimizer.add_param_group({"params": list(layer.named_parameters()), "lr": 0.02})


@pytest.mark.parametrize("step", [3, 6, 11])
@pytest.mark.parametrize("what", CHANGING)
def test_what_a_run_makes_of_its_network_comes_back(what, step, tmp_path):
    """Buffers, options and parameter groups that were not there, or not so, when the run began."""

    def make(directory: Path) -> Engine:
        model, optimizer, plugins = CHANGING[what]
        return engine_of(directory, components(model(), optimizer), [plugin() for plugin in plugins], epochs=3)

    straight = make(tmp_path / "s")
    straight.run()
    make(tmp_path / "a").run(until=lambda run: run.step == step)
    engine = make(tmp_path / "a")
    run = engine.run(resume="auto")
    assert outcome(engine) == outcome(straight)
    assert not [note.text for note in run.log.notes("resume") if "bits may differ" in note.text]
    if what == "an expanded buffer":
        assert run.network.shift.stride() == (0, 1)  # type: ignore[operator] - a tensor


def test_an_option_that_nobody_puts_back_is_reported(tmp_path):
    """It was changed during the run, so the network is the same one; but nobody knows how to change it again."""

    def run_of(**given: Any) -> Run:
        return engine_of(tmp_path, components(three()), [Anneals(keeps=False)]).run(**given)

    run_of(until=lambda run: run.step == 3)
    notes = [note.text for note in run_of(resume="auto").log.notes("resume")]
    assert (
        "network.1 was Dropout(p=0.2, inplace=False) when the checkpoint was taken and is Dropout(p=0.4, inplace=False)"
        in notes[-1]
    )
    with pytest.raises(
        CheckpointError, match=r"network.1: Dropout\(p=.*\(Dropout\(p=0.4, .*when the run began\), ReLU"
    ):
        model = three()
        model[1] = nn.ReLU()  # type: ignore[operator] - a Sequential
        engine_of(tmp_path, components(model), [Anneals()]).run(resume="auto")


def test_a_module_that_was_put_in_place_of_another_is_not_overlooked(tmp_path):
    """Its class is that which it had in the end, whatever the run began with."""

    class Replaces(Plugin):
        def on_enter_before_epoch(self, run: Run) -> None:
            run.network[1] = nn.GELU()  # type: ignore[operator] - a Sequential

    engine_of(tmp_path, components(three()), [Replaces()]).run(until=lambda run: run.step == 3)
    with pytest.raises(
        CheckpointError, match=r"network.1: GELU\(.*\) in the checkpoint \(Dropout\(.*, Dropout\(.* here"
    ):
        engine_of(tmp_path, components(three()), [Replaces()]).run(resume="auto")


def test_a_network_without_memory_is_reported(tmp_path):
    """A lazy module has no shapes to compare before it has seen a batch; once it has, the run continues."""

    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))

    engine_of(tmp_path, components(lazy())).run(until=lambda run: run.step == 3)
    with pytest.raises(CheckpointError, match=r"no memory yet for 0.weight, 0.bias; run one batch through a lazy"):
        engine_of(tmp_path, components(lazy())).run(resume="auto")
    assert engine_of(tmp_path, components(ready())).run(resume="auto").state == "finished"


def test_a_parameter_group_that_could_not_be_found_again_is_refused(tmp_path):
    """When it is to be stored: of parameters that no module holds, there is no name."""

    class AddsOwn(Plugin):
        def on_enter_before_epoch(self, run: Run) -> None:
            run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})

    with pytest.raises(CheckpointError, match="built with 1 parameter group and has 2 now, with 1 parameter that no"):
        engine_of(tmp_path, components(three()), [AddsOwn()]).run()


class Two(nn.Module):
    """Of two layers only the first is in every forward."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.always, self.seldom = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.always(data) if data.sum() > 0 else self.always(data) + self.seldom(data)


class Zeros(torch.optim.AdamW):
    """Leaves zeros, which move weights on: there is weight decay and momentum."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none=False)


class Fades(torch.optim.SGD):
    """Keeps a part of the gradients."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad *= 0.5


class ClipsAll(Plugin):
    def on_enter_optimizer_update(self, run: Run) -> None:
        nn.utils.clip_grad_norm_(run.network.parameters(), 0.1)


@pytest.mark.parametrize("leaves", ["zeros", "a part", "what nobody holds"])
def test_gradients_that_outlive_a_window_come_back(leaves, tmp_path):
    """What the next step does not drop: zeros are not none, and nobody clears what no optimizer holds."""

    def make(directory: Path) -> Engine:
        model = Two()
        if leaves == "what nobody holds":
            optimizer: Any = torch.optim.SGD(model.always.parameters(), lr=0.1)
        else:
            optimizer = {"zeros": Zeros, "a part": Fades}[leaves](model.parameters(), lr=0.1)
        plugins = [ClipsAll()] if leaves == "what nobody holds" else []
        return Engine(
            components(model, optimizer, loader=batches(6)),
            RunConfig(epochs=2),
            [*plugins, Checkpoint(directory, at="optimizer_update")],
        )

    straight = make(tmp_path / "s")
    straight.run()
    for step in range(1, 12):
        directory = tmp_path / str(step)
        make(directory).run(until=lambda run, step=step: run.step == step)
        engine = make(directory)
        engine.run(resume="auto")
        assert outcome(engine) == outcome(straight), step


def test_gradients_that_the_next_step_drops_take_no_room(tmp_path):
    """A checkpoint between two windows holds weights and optimizer; one in a window the gradients too."""
    run = engine_of(tmp_path, components(small_network())).run(until=lambda run: run.step == 3)
    assert sorted(run.snapshot().sections["optimizers"]["gradients"]) == ["network.bias", "network.weight"]
    run = engine_of(tmp_path / "b", components(small_network())).run(until=lambda run: run.state == "after_epoch")
    assert run.network.weight.grad is not None
    assert run.snapshot().sections["optimizers"]["gradients"] == {}


def test_what_cannot_be_stored_is_refused_by_name(tmp_path):
    """The plugin and the key; the checkpoints before it stay."""

    class Odd(Keeps):
        def state_dict(self) -> dict[str, Any]:
            return {"fine": 1, "cache": [object()] if self.late else []}

        late = False

        @on_exit("after_step", when=lambda run: run.step == 2)
        def turn(self, run: Run) -> None:
            self.late = True

    with pytest.raises(CheckpointError, match=r"plugins\['Odd'\]\['state'\]\['cache'\]\[0\] is an object"):
        engine_of(tmp_path, components(small_network()), [Odd()]).run()
    assert len(Store(tmp_path).entries()) == 1


def test_a_loader_is_walked_to_its_place_and_the_log_says_so(tmp_path):
    """One that cannot say where it is; one with a generator of its own continues in its order."""

    def make(directory: Path) -> Engine:
        data = TensorDataset(torch.cat([x for x, _ in batches(4)]), torch.cat([y for _, y in batches(4)]))
        loader = DataLoader(data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(4))
        return engine_of(directory, components(small_network(), loader=loader))

    straight = make(tmp_path / "s")
    straight.run()
    make(tmp_path / "a").run(until=lambda run: run.step == 6)
    engine = make(tmp_path / "a")
    run = engine.run(resume="auto")
    assert outcome(engine) == outcome(straight)
    assert [n.text for n in run.log.notes("resume")][1:] == [
        "the data were walked to their place, 1 batch into the pass"
    ]


SAMPLES = TensorDataset(torch.cat([x for x, _ in batches(4)]), torch.cat([y for _, y in batches(4)]))


class Passes(Sampler[int]):
    """Counts its passes: each has an order of its own."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return len(SAMPLES)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        return iter(torch.randperm(len(SAMPLES), generator=generator).tolist())


class HasState(Passes):
    """The same, with a `state_dict`."""

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


class HasStateOfBatches(HasState):
    """The same, for batches."""

    def __iter__(self) -> Iterator[Any]:
        order = list(super().__iter__())
        return iter([order[place : place + 2] for place in range(0, len(order), 2)])

    def __len__(self) -> int:
        return len(SAMPLES) // 2


class Draws(Dataset[Any]):
    """Adds noise from a generator of its own."""

    def __init__(self) -> None:
        self.own = torch.Generator().manual_seed(2)

    def __len__(self) -> int:
        return len(SAMPLES)

    def __getitem__(self, place: int) -> Any:
        data, target = SAMPLES[place]
        return data + torch.rand(4, generator=self.own), target


class DrawsStream(IterableDataset[Any]):
    """The same as a stream."""

    def __init__(self) -> None:
        self.samples = Draws()
        self.own = self.samples.own

    def __iter__(self) -> Iterator[Any]:
        return (self.samples[place] for place in range(len(SAMPLES)))


def in_parts() -> Dataset[Any]:
    """Return the dataset that draws, within others."""
    return ConcatDataset([Subset(Draws(), range(5)), Subset(Draws(), range(3))])


CARRYING: dict[str, Any] = {
    "set_epoch": lambda: {"loader": DataLoader(SAMPLES, 2, sampler=DistributedSampler(SAMPLES, 1, 0))},
    "a sampler with a state": lambda: {"loader": DataLoader(SAMPLES, 2, sampler=HasState())},
    "a batch sampler with a state": lambda: {"loader": DataLoader(SAMPLES, batch_sampler=HasStateOfBatches())},
    "generators in parts": lambda: {"loader": DataLoader(in_parts(), 2)},
    "a generator of a stream": lambda: {"loader": DataLoader(DrawsStream(), 2)},
    "a generator of a dataset": lambda: {"dataset": DrawsStream()},
}


@pytest.mark.parametrize("step", [3, 5, 6, 9])
@pytest.mark.parametrize("what", CARRYING)
def test_what_data_carry_from_pass_to_pass_comes_back(what, step, tmp_path):
    """The epoch that a sampler was given, the state of one that has a `state_dict`, generators within datasets."""

    def make(directory: Path) -> Engine:
        data = CARRYING[what]()
        config = {"batch_size": 2} if "dataset" in data else {}
        parts = Components(
            network=small_network(),
            criterion=nn.CrossEntropyLoss(),
            optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
            **data,
        )
        engine = engine_of(directory, parts, epochs=3, **config)
        if what == "set_epoch":
            engine.on_enter("before_epoch")(lambda run: data["loader"].sampler.set_epoch(run.epoch))
        return engine

    straight = make(tmp_path / "s")
    straight.run()
    make(tmp_path / "a").run(until=lambda run: run.step == step)
    engine = make(tmp_path / "a")
    engine.run(resume="auto")
    assert outcome(engine) == outcome(straight)


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        (
            lambda: DataLoader(SAMPLES, 2, sampler=Passes()),
            "the sampler (a Passes) has no state_dict and load_state_dict",
        ),
        (lambda: Unsized(batches(4)), "the loader (an Unsized) has no state_dict and load_state_dict"),
        (lambda: DataLoader(DrawsStream(), 2), "the dataset (a DrawsStream) is iterated anew"),
        (
            lambda: DataLoader(SAMPLES, 2, num_workers=1, persistent_workers=True),
            "the workers draw at random from where they were after the last pass (persistent_workers=True)",
        ),
        (lambda: DataLoader(SAMPLES, 2, sampler=list(range(8))), ""),
        (lambda: DataLoader(SAMPLES, 2, shuffle=True), ""),
    ],
)
@pytest.mark.filterwarnings("ignore:Checkpoint. the workers draw at random")
def test_what_cannot_be_verified_is_reported(loader, text, tmp_path):
    """What may carry something from pass to pass unreported; in the first pass there is nothing to carry."""

    def notes(step: int) -> str:
        directory = tmp_path / str(step)
        engine_of(directory, components(small_network(), loader=loader())).run(until=lambda run: run.step == step)
        with engine_of(directory, components(small_network(), loader=loader())) as engine:
            run = engine.run(resume="auto", until=lambda run: True)
            return " ".join(note.text for note in run.log.notes("resume"))

    assert "verified" not in notes(3)
    assert (text in notes(7)) if text else ("verified" not in notes(7))


def stateful(**workers: Any) -> Any:
    """Return torchdata's loader, which warns of something that torch is going to drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(SAMPLES, 2, **workers)


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        (lambda: DataLoader(SAMPLES, 2, sampler=Passes()), "the sampler (a Passes) has no state_dict"),
        (lambda: Unsized(batches(4)), "the loader (an Unsized) has no state_dict"),
        (lambda: stateful(num_workers=1), "the workers of the loader (a StatefulDataLoader) may"),
        (lambda: stateful(num_workers=1, persistent_workers=True), "may draw at random unseen"),
        (stateful, ""),
        (lambda: DataLoader(SAMPLES, 2, shuffle=True), ""),
        (lambda: DataLoader(SAMPLES, 2, num_workers=1), ""),
    ],
)
@pytest.mark.parametrize("epochs", [1, 2])
def test_what_cannot_be_resumed_exactly_is_noted_at_the_start(loader, text, epochs, tmp_path):
    """Once, where a Checkpoint is among the plugins and another pass follows."""
    engine = small_engine(loader(), [Checkpoint(tmp_path)], epochs=epochs)
    engine.run(until="before_epoch")
    engine.run(until="before_step")
    found = [str(note) for note in engine.current.log.notes("note")]
    assert len(found) == (bool(text) and epochs == 2)
    assert all(text in one and "a run may not continue with the same data" in one for one in found)
    engine.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_stateful_loader_does_not_store_is_reported(workers, tmp_path):
    """In the first pass too: its workers begin anew, whatever they had drawn."""

    def make():
        return small_engine(stateful(num_workers=workers), [Checkpoint(tmp_path, "optimizer_update")], epochs=2)

    with make() as engine:
        engine.run(until=lambda run: run.step == 2)
    with make() as engine:
        notes = [note.text for note in engine.run(resume="auto", until=lambda run: True).log.notes("resume")]
    assert "checkpoint" in notes[0]
    assert any("may draw at random unseen: exact continuation" in text for text in notes) == bool(workers)


def test_workers_that_go_on_drawing_are_warned_of_at_the_start(tmp_path):
    """Before anything is trained, and only with a Checkpoint; the engine's own workers are seeded for each batch."""
    loader = DataLoader(SAMPLES, 2, num_workers=1, persistent_workers=True)
    with (
        pytest.warns(
            UserWarning, match=r"Checkpoint: the workers draw .*For a DataLoader say persistent_workers=False"
        ),
        small_engine(loader, [Checkpoint(tmp_path / "a")], epochs=2) as engine,
    ):
        engine.run(until="before_epoch")
    assert [note.seq for note in engine.current.log.notes("note")] == [0]
    with small_engine(loader, epochs=2) as engine:
        engine.run(until="before_epoch")
    own = dataset_engine(SAMPLES, [Checkpoint(tmp_path / "b")], epochs=2, num_workers=1, persistent_workers=True)
    with own as engine:
        engine.run(until="before_epoch")
    assert engine.current.log.notes("note") == []


class Pair(NamedTuple):
    data: torch.Tensor
    target: torch.Tensor


def of_pairs() -> Unsized:
    return Unsized([Pair(*batch) for batch in batches(4)])


def of_objects() -> Unsized:
    return Unsized([SimpleNamespace(data=data, target=target) for data, target in batches(4)])


def pair_loss(net: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(net(batch.data), batch.target)


@pytest.mark.parametrize("loader", [of_pairs, of_objects])
def test_a_batch_read_ahead_that_cannot_be_stored_is_read_once_more(loader, tmp_path):
    """Of data of unknown length one batch has always been read; it need be nothing that a checkpoint can hold."""

    def make(directory: Path) -> Engine:
        return engine_of(
            directory, components(small_network(), loader=loader(), criterion=None, compute_loss=pair_loss)
        )

    straight = make(tmp_path / "s")
    straight.run()
    for step in range(2, 8):
        directory = tmp_path / str(step)
        make(directory).run(until=lambda run, step=step: run.step == step)
        engine = make(directory)
        engine.run(resume="auto")
        assert outcome(engine) == outcome(straight)


def test_a_batch_that_the_loader_would_not_give_again_is_refused(tmp_path):
    """The loader gives its place, which is behind the batch that was read ahead."""

    class Placed(Unsized):
        def state_dict(self) -> dict[str, int]:
            return {"place": 1}

        def load_state_dict(self, state: dict[str, int]) -> None: ...

    parts = components(small_network(), loader=Placed(of_pairs().items), criterion=None, compute_loss=pair_loss)
    with pytest.raises(CheckpointError, match=r"read ahead \(a Pair\) cannot be stored.*make the loader yield tuples"):
        engine_of(tmp_path, parts, remainder="flush").run()


def test_data_that_end_before_the_place_are_reported(tmp_path):
    """Of unknown length, and shorter than they were."""
    parts = components(small_network(), loader=Unsized(batches(4)))
    engine_of(tmp_path, parts).run(until=lambda run: run.step == 4)
    shorter = components(small_network(), loader=Unsized(batches(2)))
    with pytest.raises(DataError, match=r"the data ended after 2 batches, but the checkpoint was taken after [34]"):
        engine_of(tmp_path, shorter).run(resume="auto")


@pytest.mark.parametrize("where", ["idle", "finished", "a moment", "in mid-step"])
def test_no_snapshot_is_taken_where_there_can_be_none(where, tmp_path):
    """Each place says where one can be taken."""
    engine = engine_of(tmp_path, components(small_network()))
    if where == "a moment":
        with pytest.raises(EngineError, match="between two turns or in the body of a detour, not on a moment of"):
            engine.on_exit("before_step")(lambda run: run.snapshot())
            engine.run()
        return
    if where == "finished":
        engine.run()
    elif where == "in mid-step":
        engine.run(until="process_batch")
    with pytest.raises(EngineError, match=r"there is nothing to store|no snapshot is taken in process_batch"):
        engine.current.snapshot()


KEPT = Path(__file__).parent / "checkpoint"


@pytest.mark.parametrize("kept", ["run_of_format_1", "run_of_format_2"])
def test_a_run_that_was_kept_as_files_continues(tmp_path, kept):
    """In mid-window, as versions before wrote it; every later one must be able to. Bits may be those of a machine."""
    shutil.copytree(KEPT / kept, tmp_path / "a")
    engine = full_engine(tmp_path / "a")
    run = engine.run(resume="auto")
    straight = full_engine(tmp_path / "b")
    straight.run()
    assert (run.state, run.epoch, run.step, run.update) == ("finished", 2, 18, 6)
    assert records(run.log) == records(straight.current.log)[run.log[0].seq :]
    for ours, theirs in zip(run.network.parameters(), straight.current.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


# -- the plugin


def test_the_newest_and_the_best_are_kept(tmp_path):
    """`keep_last` and `keep_best`, and the value that a checkpoint was judged by is in its summary."""
    values = iter([3.0, 1.0, 2.0, 5.0, 4.0])

    class Gives(Plugin):
        def on_exit_after_epoch(self, run: Run) -> None:
            run.record("value", next(values))

    checkpoint = Checkpoint(tmp_path, keep_last=2, keep_best=2, monitor="value")
    parts = components(small_network())
    Engine(parts, RunConfig(epochs=5), [Gives(), checkpoint]).run()
    store = Store(tmp_path)
    kept = {store.summary(e)["epoch"]: store.summary(e)["monitor"]["value"] for e in store.entries()}
    assert kept == {2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}


def test_a_monitor_that_nobody_records_is_reported(tmp_path):
    """When the first epoch ends."""
    checkpoint = Checkpoint(tmp_path, monitor="valid/los")
    engine = Engine(components(small_network()), RunConfig(epochs=1), [Evaluate(held_out()), checkpoint])
    with pytest.raises(EngineError, match=r"Checkpoint\(monitor='valid/los'\).*recorded so far: 'valid/loss'"):
        engine.run()


def test_seconds_have_to_pass(tmp_path, monkeypatch):
    """At each place, but only when that long has passed since the last one; the clock is read by a handler."""
    clock = Clock()
    monkeypatch.setattr("heptad_plugins.checkpoint.monotonic", clock)

    class Works(Plugin):
        def on_exit_process_batch(self, run: Run) -> None:
            clock.now += 10.0

    checkpoint = Checkpoint(tmp_path, at="after_step", seconds=25.0, keep_last=99)
    small_engine(10, [Works(), checkpoint]).run()
    store = Store(tmp_path)
    assert [store.summary(entry)["step"] for entry in store.entries()] == [3, 6, 9]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": "before_step"}, "at=…"),
        ({"at": ()}, "one or several"),
        ({"at": ("after_step", "after_step")}, "each once"),
        ({"every": 0}, "every=…"),
        ({"seconds": 0}, "seconds=…"),
        ({"keep_last": 0}, "keep_last=…"),
        ({"keep_best": -1}, "keep_best=…"),
        ({"keep_best": 1}, "needs monitor="),
        ({"monitor": ""}, "monitor=…"),
        ({"mode": "least"}, "mode=…"),
    ],
)
def test_options_are_checked_when_it_is_built(options, says, tmp_path):
    """Each says what was found and what was expected."""
    with pytest.raises(EngineError, match=says):
        Checkpoint(tmp_path, **options)


def test_nothing_is_missing_from_the_log_of_a_resumed_run(tmp_path):
    """Questions about it answer: guards with what they saw, counters, notes."""
    begun(tmp_path / "a", until=lambda run: run.step == 6)
    run = full_engine(tmp_path / "a", [Progress(file=None)]).run(resume="auto")
    assert run.log[0].seq > 0
    assert [t.seq for t in run.log] == list(range(run.log[0].seq, run.log[-1].seq + 1))
    for transition in run.log:
        assert str(run.log.explain(transition.seq))
    assert run.log.notes("resume")


def test_a_state_that_nobody_would_take_back_is_refused(tmp_path: Path):
    """A plugin that had a state and has none now would begin anew, silently."""

    class Stateless(Plugin):
        name = "Keeps"

    small_engine(3, [Keeps(), Checkpoint(tmp_path)], epochs=2).run(until=lambda run: run.step == 5)
    with pytest.raises(CheckpointError, match="plugins: Keeps has a state in the checkpoint, and no load_state_dict"):
        small_engine(3, [Stateless(), Checkpoint(tmp_path)], epochs=2).run(resume="auto")
