"""`Profiler`: its traces, read as the files they are, and the snapshot of a device that runs out of memory."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from builders import Planned, batches, equal, small_engine, weights
from heptad import Engine, Plugin, PluginError, Run
from heptad_plugins import Checkpoint, Evaluate, Profiler

Range = tuple[str, float, float]


def read(path: Path) -> dict[str, Any]:
    """Return a trace."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def ranges(path: Path, kind: str) -> list[Range]:
    """Return names, beginnings and ends of a kind of events, in order of time."""
    events = [event for event in read(path)["traceEvents"] if event.get("cat") == kind]
    found = [(event["name"], event["ts"], event["ts"] + event["dur"]) for event in events]
    return sorted(found, key=lambda event: event[1])


def ours(path: Path) -> list[Range]:
    """Return the ranges of the states, which are ours, and not those of torch's optimizers."""
    return [found for found in ranges(path, "user_annotation") if not found[0].startswith("Optimizer.")]


def states(path: Path) -> list[str]:
    """Return the names of our ranges in order."""
    return [name for name, _, _ in ours(path)]


def operators(path: Path) -> dict[str, set[str]]:
    """Return the operators of each state, and what optimizers name: each must lie in a range of one."""
    states = ours(path)
    found: dict[str, set[str]] = {name: set() for name, _, _ in states}
    theirs = [named for named in ranges(path, "user_annotation") if named not in states]
    for name, began, ended in [*ranges(path, "cpu_op"), *theirs]:
        inside = [state for state, first, last in states if first <= began and ended <= last]
        assert len(inside) == 1, f"{name} lies in {inside}"
        found[inside[0]].add(name)
    return found


STEP = ["before_step", "process_batch", "after_step"]
UPDATE = [*STEP, "optimizer_update"]


def test_a_trace_has_the_states_of_its_updates_and_torch_within_them(tmp_path):
    """Forward and backward pass in `process_batch`, the optimizer's operators in `optimizer_update`."""
    path = tmp_path / "folder" / "trace.json"
    small_engine(6, [Profiler(path, range(1, 3))]).run()
    assert states(path) == UPDATE * 2
    found = operators(path)
    assert {"aten::addmm", "aten::cross_entropy_loss", "aten::nll_loss_backward"} <= found["process_batch"]
    assert "aten::mm" in found["process_batch"]  # of the backward pass
    assert {"Optimizer.step#SGD.step", "aten::add_"} <= found["optimizer_update"]
    assert "aten::addmm" not in found["optimizer_update"] | found["before_step"] | found["after_step"]


def test_a_state_has_what_handlers_and_detours_do_in_it(tmp_path):
    """A handler on entry and one on exit stand in their state, an evaluation in its own."""

    class Works(Plugin):
        def on_enter_after_step(self, run: Run) -> None:
            torch.ones(3).cos()

        def on_exit_after_step(self, run: Run) -> None:
            torch.ones(3).sin()

    path = tmp_path / "trace.json"
    plugins = [Works(), Evaluate(batches(2), at="optimizer_update"), Profiler(path, range(1, 3))]
    small_engine(4, plugins).run()
    assert states(path) == [*UPDATE, "evaluate", *UPDATE]
    found = operators(path)
    assert {"aten::cos", "aten::sin"} <= found["after_step"]


@pytest.mark.parametrize(
    ("updates", "accumulation", "expected"),
    [
        (range(1), 1, UPDATE),
        (range(1, 2), 2, [*STEP, *UPDATE]),
        (range(1, 2), 4, [*STEP, *STEP, *STEP, *UPDATE]),
        (range(2, 4), 2, [*STEP, *UPDATE, "after_epoch", "before_epoch", *STEP, *UPDATE]),
        (range(5, 100), 2, [*STEP, *UPDATE, "after_epoch", "after_loop"]),
    ],
)
def test_the_updates_are_those_of_the_counter(updates, accumulation, expected, tmp_path):
    """Counted from 0, over epochs, to the end of the run at most; with all steps of their windows."""
    path = tmp_path / "trace.json"
    small_engine(6, [Profiler(path, updates)], accumulation=accumulation, epochs=2).run()
    assert states(path) == expected


def test_it_is_called_before_all_others_wherever_it_stands_in_the_list(tmp_path):
    """So a range holds what their entry handlers do."""
    engine = small_engine(2, [Checkpoint(tmp_path / "a"), Evaluate(batches(1)), Profiler(tmp_path / "b", range(1))])
    assert engine._manager.plugins[0].name == "Profiler"


def test_without_its_updates_there_is_no_trace(tmp_path):
    """Of a run that ends before."""
    small_engine(3, [Profiler(tmp_path / "trace.json", range(3, 5))]).run()
    assert list(tmp_path.iterdir()) == []


def test_a_skipped_update_is_traced_until_it_is_made(tmp_path):
    """`update` stands still, so the next window is the same update again."""

    class Skip(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            if run.step == 2:
                run.skip_update("asked by the test")

    path = tmp_path / "trace.json"
    small_engine(4, [Skip(), Profiler(path, range(1, 2))]).run()
    assert states(path) == UPDATE * 2


def test_the_trace_is_compressed_where_its_name_says_so(tmp_path):
    """With `.gz`; the options are those of torch's profiler."""
    path = tmp_path / "trace.json.gz"
    small_engine(3, [Profiler(path, range(1), record_shapes=True)]).run()
    assert states(path) == UPDATE
    (shapes,) = {
        json.dumps(event["args"]["Input Dims"])
        for event in read(path)["traceEvents"]
        if event.get("name") == "aten::addmm"
    }
    assert json.loads(shapes)[:3] == [[3], [2, 4], [4, 3]]


# -- runs that pause, fail, resume


@pytest.mark.parametrize("by_advance", [False, True])
def test_a_run_that_pauses_has_a_trace_for_each_part(by_advance, tmp_path):
    """The parts are those of the straight run, and the pause stands in none of them; driven by turns it is one."""
    path = tmp_path / "trace.json"
    engine = small_engine(4, [Profiler(path, range(1, 3))])
    if by_advance:
        while not engine.current.ended:
            engine.advance()
        assert states(path) == UPDATE * 2
        return
    while not engine.current.ended:
        engine.run(until="process_batch")
        torch.ones(3).cos()
    parts = [states(tmp_path / name) for name in ("trace.json", "trace-2.json", "trace-3.json")]
    assert parts == [
        ["before_step", "process_batch"],
        ["process_batch", "after_step", "optimizer_update", "before_step", "process_batch"],
        ["process_batch", "after_step", "optimizer_update"],
    ]
    assert all("aten::cos" not in str(operators(file)) for file in tmp_path.iterdir())


def test_a_run_that_fails_has_the_trace_until_then(tmp_path):
    """And torch's profiler is free again."""
    path = tmp_path / "trace.json"
    engine = small_engine(4, [Profiler(path, range(1, 4))])

    @engine.on_exit("process_batch")
    def fail(run: Run) -> None:
        if run.step == 2:
            raise Planned

    with pytest.raises(Planned):
        engine.run()
    assert states(path) == [*UPDATE, "before_step", "process_batch"]
    small_engine(2, [Profiler(tmp_path / "other.json", range(1))]).run()
    assert states(tmp_path / "other.json") == UPDATE


def test_a_profiler_that_cannot_start_fails_with_its_own_error(tmp_path, monkeypatch):
    """And nothing is said of one that is to be stopped and does not run."""

    def refuse(profiler: object) -> None:
        raise Planned

    monkeypatch.setattr(torch.profiler.profile, "start", refuse)
    with pytest.raises(Planned) as caught:
        small_engine(2, [Profiler(tmp_path / "trace.json", range(1))]).run()
    assert not any("closing" in note for note in caught.value.__notes__)
    assert not (tmp_path / "trace.json").exists()


def killed(folder: Path, at: int, *plugins: Plugin) -> Engine:
    """Return an engine in windows of two steps that stores a checkpoint after each step, and fails in one."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
    store = Checkpoint(folder, at="after_step")
    engine = small_engine(4, [*plugins, store], network=network, accumulation=2, epochs=2, seed=3)

    @engine.on_enter("process_batch")
    def fail(run: Run) -> None:
        if run.step == at:
            raise Planned

    return engine


@pytest.mark.parametrize(("at", "before", "after"), [(3, 0, 2), (4, 1, 2), (5, 1, 1)])
def test_a_resumed_run_traces_the_rest_and_is_the_run_that_was_not_interrupted(at, before, after, tmp_path):
    """In mid-window, from before an update that was made, and between windows; what is there stays as it is."""
    whole = killed(tmp_path / "a", -1).run()
    path = tmp_path / "trace.json"
    with pytest.raises(Planned):
        killed(tmp_path / "b", at, Profiler(path, range(1, 3))).run()
    first = states(path)
    resumed = killed(tmp_path / "b", -1, Profiler(path, range(1, 3))).run(resume="auto")
    assert equal(weights(resumed.network), weights(whole.network))
    second = states(tmp_path / "trace-2.json")
    assert states(path) == first
    assert [first.count("optimizer_update"), second.count("optimizer_update")] == [before, after]


def test_a_file_that_is_there_is_left_alone(tmp_path):
    """Unless `overwrite` says otherwise; an instance does not take its own for another run's."""
    path = tmp_path / "trace.json"
    path.write_text("precious")
    with pytest.raises(PluginError, match=r"trace.json is there already; name another file, .* overwrite=True"):
        small_engine(2, [Profiler(path, range(1))]).run()
    assert path.read_text() == "precious"
    plugin = Profiler(path, range(1), overwrite=True)
    for _ in range(2):
        small_engine(2, [plugin]).run()
        assert states(path) == UPDATE
    assert len(list(tmp_path.iterdir())) == 1


def test_another_profiler_is_an_error_that_says_so(tmp_path):
    """Torch has one at a time; the other one is left running."""
    with (
        torch.profiler.profile() as other,
        pytest.raises(PluginError, match="at update 1 another profiler of torch is running; stop it first"),
    ):
        small_engine(3, [Profiler(tmp_path / "trace.json", range(1, 2))]).run()
    assert other.key_averages()


# -- what is refused when it is built


@pytest.mark.parametrize(
    "updates", [range(0), range(3, 3), range(0, 9, 3), range(-2, 2), range(5, 2, -1), 3, [1, 2], None]
)
def test_updates_that_are_no_range_of_neighbours_are_refused(updates, tmp_path):
    """The message says what would do."""
    said = (
        f"Profiler(updates=…) must be a range of neighbouring updates from 0 on, such as range(10, 13), got {updates!r}"
    )
    with pytest.raises(PluginError, match=re.escape(said)):
        Profiler(tmp_path / "trace.json", updates)


def test_a_directory_in_place_of_a_file_is_refused(tmp_path):
    """It names it."""
    with pytest.raises(PluginError, match=r"is a directory; name a file, such as trace.json in it"):
        Profiler(tmp_path, range(1))


# -- a device that runs out of memory


class FakeMemory:
    """The module of a device's memory, which writes down what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def _record_memory_history(self, **options: Any) -> None:
        self.calls.append(options.get("enabled", "all"))

    def _dump_snapshot(self, path: str) -> None:
        self.calls.append("snapshot")
        Path(path).write_bytes(b"a snapshot")


@pytest.fixture
def memory(monkeypatch) -> FakeMemory:
    """The device of all runs of a test has such a memory."""
    module = type("Module", (), {"memory": FakeMemory()})
    monkeypatch.setattr("heptad_plugins._device.module_of", lambda device: module)
    return module.memory


def failing(error: BaseException, plugin: Plugin) -> pytest.ExceptionInfo[BaseException]:
    """Make a run that fails in its second step."""
    engine = small_engine(4, [plugin])

    @engine.on_exit("process_batch")
    def fail(run: Run) -> None:
        if run.step == 1:
            raise error

    with pytest.raises(type(error)) as caught:
        engine.run()
    return caught


def wrapped(error: Exception) -> Exception:
    """Return an error that another one led to."""
    outer = RuntimeError("given up")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["itself", "as a cause"])
def test_where_the_memory_was_is_stored_when_there_is_none_left(wrap, memory, tmp_path):
    """Beside the trace, before recording ends; a note on the exception names the file."""
    caught = failing(wrap(torch.OutOfMemoryError("none left")), Profiler(tmp_path / "trace.json.gz", range(90, 91)))
    assert memory.calls == ["all", "snapshot", None]
    assert (tmp_path / "trace.oom.pickle").read_bytes() == b"a snapshot"
    assert any("trace.oom.pickle" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(("error", "options"), [(Planned(), {}), (torch.OutOfMemoryError(), {"memory": False})])
def test_no_other_failure_stores_it_nor_one_that_is_not_asked_for(error, options, memory, tmp_path):
    """Recording ends in any case where it began."""
    failing(error, Profiler(tmp_path / "trace.json", range(90, 91), **options))
    assert memory.calls == ([] if options else ["all", None])
    assert list(tmp_path.iterdir()) == []


def test_allocations_are_recorded_while_the_run_is_driven(memory, tmp_path):
    """Not while it is paused."""
    engine = small_engine(2, [Profiler(tmp_path / "trace.json", range(90, 91))])
    engine.run(until="after_step")
    assert memory.calls == ["all", None]
    engine.run()
    assert memory.calls == ["all", None, "all", None]
