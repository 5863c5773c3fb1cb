"""Questions to a log: each has one answer, whether it is asked of a live run or of its journal."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Plan, Side, drive, plans, records, small_engine
from heptad import Components, Detour, Engine, EngineError, Plugin, Run, RunConfig, TransitionLog, on_enter, on_exit
from heptad.errors import LogError
from heptad.history.explain import OWN, Called
from heptad.history.export import jsonl, timeline
from heptad.history.source import Source
from heptad.history.table_form import table_to_plain
from heptad.record.checkpoint_events import StillDetached
from heptad.record.chunk import View
from heptad_plugins import Checkpoint, Journal, LRSchedule


def journalled(plan: Plan, folder: Path, **config: Any) -> tuple[TransitionLog, TransitionLog]:
    """Return the live log of a run and that of its journal."""
    plan.config.update(config)
    engine, _ = plan.build(plugins=[Journal(folder / "run.db")])
    drive(engine)
    return engine.current.log, TransitionLog.load(folder / "run.db")


def assert_same(one: TransitionLog, other: TransitionLog) -> None:
    """Two logs give the same answer to every question."""
    rows = list(one)
    assert list(other) == rows
    assert (len(other), repr(other)) == (len(one), repr(one))
    assert other.path() == one.path()
    assert other.counts() == one.counts()
    assert other.durations() == one.durations()
    assert other.call_durations() == one.call_durations()
    assert other.notes() == one.notes()
    assert [comparable(value) for value in other.values()] == [comparable(value) for value in one.values()]
    assert other.calls() == one.calls()
    assert other.calls(3, 9) == [call for call in one.calls() if 3 <= call.seq < 9]
    for row in rows:
        assert str(other.explain(row.seq)) == str(one.explain(row.seq))
        assert other.explain(row.seq).calls == one.explain(row.seq).calls
    for asked in (
        {"source": "after_step"},
        {"update": range(1, 9, 2)},
        {"step": 2, "limit": 3},
        {"epoch": 0, "limit": -2},
    ):
        assert other.where(**asked) == one.where(**asked)
    assert table_to_plain(other.source.table) == table_to_plain(one.source.table)
    assert json.dumps(dict(other.source.facts)) == json.dumps(dict(one.source.facts))
    assert not one.diff(other)
    assert not other.diff(one)


def comparable(value: Any) -> tuple[Any, ...]:
    """Return the fields of a recorded value with the value as text, so that NaN equals NaN."""
    return (value.name, str(value.value), value.seq, value.epoch, value.step, value.update)


@settings(max_examples=30)
@given(plan=plans(), traced=st.booleans())
def test_a_journal_answers_and_is_exported_as_the_live_log_is(
    plan: Plan, traced: bool, tmp_path_factory: pytest.TempPathFactory
):
    """All questions, for runs that finish, stop, pause and fail, with handlers traced or not."""
    folder = tmp_path_factory.mktemp("log")
    live, journal = journalled(plan, folder, trace_handlers=traced)
    assert_same(live, journal)
    for export in ("to_jsonl", "to_trace"):
        written = [getattr(log, export)(folder / name).read_bytes() for name, log in (("a", live), ("b", journal))]
        assert written[0] == written[1]


def test_lines_of_json_hold_what_a_turn_under_way_has_noted_and_numbers_that_json_lacks(tmp_path: Path):
    """What is bound to no line yet stands in the header; NaN and infinities are words."""
    headers: list[Any] = []

    def write(run: Run) -> None:
        for value in (math.nan, math.inf, -math.inf, 0.1):
            run.record("odd", value)
        run.note("under way")
        lines = run.log.to_jsonl(tmp_path / "log.jsonl").read_text().splitlines()
        assert all("NaN" not in line.replace('"NaN"', "") for line in lines)
        headers.append(json.loads(lines[0]))

    engine = small_engine(1)
    engine.on_exit("process_batch")(write)
    engine.run()
    assert [value["value"] for value in headers[0]["values"]] == ["NaN", "Infinity", "-Infinity", 0.1]
    assert [note["text"] for note in headers[0]["notes"]] == ["under way"]


def test_a_file_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path: Path):
    """`to_jsonl` and `to_trace` replace a file when they are through, not before."""

    class Torn:
        """A source that fails when it is read."""

        def __init__(self, source: Source) -> None:
            self._source = source

        def __getattr__(self, name: str) -> Any:
            return getattr(self._source, name)

        def values_between(self, first: int, end: int) -> list[Any]:
            raise OSError("the disk is gone")

    log = TransitionLog(Torn(small_engine(2).run().log.source))
    for write in (log.to_jsonl, log.to_trace):
        (tmp_path / "log").write_text("before")
        with pytest.raises(OSError, match="the disk is gone"):
            write(tmp_path / "log")
        assert (tmp_path / "log").read_text() == "before"
        assert [path.name for path in tmp_path.iterdir()] == ["log"]
    for write in (jsonl.write, timeline.write):
        stream = io.BytesIO()
        with pytest.raises(OSError, match="the disk is gone"):
            write({0: log.source}, stream)
        assert stream.getvalue() == b""


@contextmanager
def read_from(pipe: Path) -> Iterator[list[bytes]]:
    """Make a named pipe and read from it until the end of a block; the list holds then what came."""
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    yield read
    reader.join(10)


def test_what_is_no_plain_file_is_written_to_and_stays(tmp_path: Path):
    """A pipe is not replaced by a file, and gets what a file would hold."""
    log = small_engine(2).run().log
    for number, write in enumerate((log.to_jsonl, log.to_trace)):
        pipe = tmp_path / f"pipe {number}"
        with read_from(pipe) as read:
            assert write(pipe) == pipe
        assert pipe.is_fifo()
        assert read == [write(tmp_path / "file").read_bytes()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe 0", "pipe 1"]


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path):
    """One that points to nothing yet too."""
    log = small_engine(2).run().log
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("folder") / "log")
    for _ in range(2):
        log.to_jsonl(link)
        assert link.is_symlink()
        assert not (tmp_path / "folder" / "log").is_symlink()
        assert len((tmp_path / "folder" / "log").read_text().splitlines()) == 1 + len(log)
        (tmp_path / "folder" / "log").write_text("another")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["log"]


# -- where, durations


class Counting:
    """A source that counts which chunks are read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.read: Counter[int] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def view(self) -> View:
        view = self._source.view()
        return View([_Counted(chunk, self.read) for chunk in view.chunks], view.first, view.end)


class _Counted:
    def __init__(self, chunk: Any, read: Counter[int]) -> None:
        self._chunk, self._read = chunk, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunk, name)

    def __len__(self) -> int:
        return len(self._chunk)

    def arcs(self) -> Any:
        self._read[self.seq] += 1
        return self._chunk.arcs()


@pytest.fixture(scope="module")
def long_log() -> TransitionLog:
    """The log of 12,000 transitions, in 12 chunks."""
    return small_engine([[torch.randn(1, 4), torch.zeros(1, dtype=torch.int64)]] * 3_000).run().log


@pytest.mark.parametrize(
    ("asked", "chunks"),
    [
        ({"update": 1500}, 1),
        ({"step": range(700, 800)}, 2),
        ({"update": 1500, "step": 1501}, 1),
        ({"update": 99_999}, 1),
        ({"update": range(5, 5)}, 0),
        ({"source": "after_step", "limit": 3}, 1),
        ({"source": "after_step", "limit": -3}, 1),
        ({"limit": 0}, 1),
    ],
)
def test_where_reads_only_the_chunks_that_may_hold_an_answer(
    long_log: TransitionLog, asked: dict[str, Any], chunks: int
):
    """Those between which a counter can be what it is to be, found without reading; up to the limit."""
    source = Counting(long_log.source)
    found = TransitionLog(source).where(**asked)
    limit = asked.pop("limit", None)
    whole = [t for t in long_log if all(_fits(getattr(t, name), value) for name, value in asked.items())]
    assert found == (whole if limit is None else whole[:limit] if limit >= 0 else whole[limit:])
    assert len(source.read) <= chunks


def _fits(value: Any, asked: Any) -> bool:
    return value in asked if isinstance(asked, range) else value == asked


def test_ranges_may_be_endless_stepped_and_backwards(long_log: TransitionLog):
    """What counts is what a range holds, however many numbers those are."""
    assert [t.step for t in long_log.where(source="after_step", step=range(2_998, 1 << 60))] == [2_998, 2_999, 3_000]
    assert [t.step for t in long_log.where(source="after_step", step=range(9, 2, -3))] == [3, 6, 9]


def test_durations_name_the_slowest_occurrences(long_log: TransitionLog):
    """The five longest stays, longest first, with the transitions that ended them."""
    stays = sorted(((t.duration_ns, -t.seq) for t in long_log if t.source == "process_batch"), reverse=True)[:5]
    assert long_log.durations()["process_batch"].slowest == tuple((-seq, spent) for spent, seq in stays)


def test_values_by_name():
    """All that was recorded, in order, with its place; or what was recorded under one name."""
    engine = small_engine(2)
    engine.on_exit("after_step")(lambda run: run.record("a", run.step))
    engine.on_enter("after_epoch")(lambda run: run.record("b", 7))
    log = engine.run().log
    assert [(v.name, v.value, v.seq, v.step) for v in log.values()] == [
        ("a", 1, 5, 1),
        ("a", 2, 9, 2),
        ("b", 7, 10, 2),
    ]
    assert [v.value for v in log.values("a")] == [1, 2]
    assert log.values("c") == []


# -- explain


class Noisy(Plugin):
    """Fails in its first exit of `after_step`, and is detached."""

    on_error = "detach"

    def on_exit_after_step(self, run: Run) -> None:
        raise ValueError("not today")

    def on_enter_optimizer_update(self, run: Run) -> None:
        run.note("never comes here")


class Rare(Plugin):
    """Is called every second time."""

    @on_exit("after_step", every=2)
    def look(self, run: Run) -> None:
        run.record("seen", run.step)


def calls(log: TransitionLog, seq: int) -> list[tuple[str, str, str, bool]]:
    """Return who was called in a turn: (moment, who, outcome, whether a time is given)."""
    return [(c.moment, c.who, c.outcome, c.duration_ns is not None) for c in log.explain(seq).calls]


@pytest.mark.parametrize("traced", [False, True])
def test_explain_names_the_handlers_of_both_moments_in_order(traced: bool):
    """Exit handlers of the source, the engine's own and the entry handlers of the destination; what became of each."""
    engine = small_engine(2, [Rare(), Noisy()], trace_handlers=traced)
    log = engine.run().log
    first, second = (t.seq for t in log.where(source="after_step"))
    assert calls(log, first) == [
        ("exit", "Rare.look", "held back" if traced else "open", False),
        ("exit", "Noisy.on_exit_after_step", "raised", traced),
        ("enter", OWN, "called", False),
        ("enter", "Noisy.on_enter_optimizer_update", "detached", False),
    ]
    assert calls(log, second) == [
        ("exit", "Rare.look", "called" if traced else "open", traced),
        ("exit", "Noisy.on_exit_after_step", "detached", False),
        ("enter", OWN, "called", False),
        ("enter", "Noisy.on_enter_optimizer_update", "detached", False),
    ]
    assert [value.name for value in log.explain(second).values] == ["seen"]


def test_explain_names_no_handler_of_a_plugin_detached_before_the_checkpoint(tmp_path: Path):
    """The resumed run's log does not hold the event of the detaching; that of resuming says that it stays detached."""

    def build() -> Engine:
        return small_engine(4, [Noisy(), Checkpoint(tmp_path, at="after_step", every=2)])

    build().run(until=lambda run: run.update == 3)
    run = build().run(resume="auto")
    assert [event.plugin for event in run.log.notes() if isinstance(event, StillDetached)] == ["Noisy"]
    called = [call for row in run.log for call in run.log.explain(row.seq).calls if call.who.startswith("Noisy.")]
    assert called
    assert {call.outcome for call in called} == {"detached"}


def test_explain_says_on_which_moment_of_a_turn_a_handler_of_both_raised():
    """Not by the handler's name alone, which is the same on both."""

    class Both(Plugin):
        on_error = "detach"

        @on_exit("before_step")
        @on_enter("process_batch")
        def look(self, run: Run) -> None:
            if run.state == "process_batch":
                raise ValueError("not here")

    log = small_engine(1, [Both()]).run().log
    assert calls(log, log.notes("detach")[0].seq) == [
        ("exit", "Both.look", "called", False),
        ("enter", "Both.look", "raised", False),
    ]


def test_str_of_an_explanation_reads_well():
    """Arcs, handlers with filters and times, values and notes, a line each."""
    called = [Called("exit", "after_step", "A.b", "every 2", "called", 1500), Called("enter", "x", "C.d", "", "raised")]
    assert [str(call) for call in called] == [
        "on exit of after_step: A.b (every 2, 1.5 µs)",
        "on entry to x: C.d (raised)",
    ]
    log = small_engine(2, [Rare(), Noisy()]).run().log
    last = log.where(source="after_step")[0].seq
    assert str(log.explain(last)).splitlines()[1:] == [
        "    to optimizer_update if update_due: yes "
        "(steps in the window 1, accumulation 1, remainder extend, batches 1, in a pass 2)",
        "    on exit of after_step: Rare.look (every 2, not recorded whether it was due)",
        "    on exit of after_step: Noisy.on_exit_after_step (raised)",
        f"    on entry to optimizer_update: {OWN}",
        "    on entry to optimizer_update: Noisy.on_enter_optimizer_update (detached)",
        "    detach: Noisy.on_exit_after_step raised ValueError: not today; Noisy is called no more",
    ]


@pytest.mark.parametrize(
    ("moment", "state", "expected"),
    [
        ("exit", "process_batch", {4: [("exit", "first"), ("exit", "fails")]}),
        ("enter", "process_batch", {3: [("enter", "first"), ("enter", "fails")], 4: []}),
    ],
)
def test_explain_of_a_failure_names_the_handlers_up_to_it(moment: str, state: str, expected: dict[int, Any]):
    """Those after the one that raised were not called; where it raised on entry, the turn before says so."""
    engine = small_engine(1)

    def first(run: Run) -> None:
        pass

    def fails(run: Run) -> None:
        raise ValueError("planned")

    def last(run: Run) -> None:
        pass

    for function in (first, fails, last):
        function.__qualname__ = function.__name__
        getattr(engine, f"on_{moment}")(state)(function)
    assert type(drive(engine)) is ValueError
    for seq, called in expected.items():
        found = engine.current.log.explain(seq).calls
        assert [(c.moment, c.who) for c in found] == called
        assert [c.outcome for c in found] == ["called", "raised"][: len(called)]


def test_explain_a_skipped_update():
    """The turn out of `optimizer_update` says that the update was left out, and why."""
    engine = small_engine(2)
    engine.on_enter("optimizer_update", every=2)(lambda run: run.skip_update("too large"))
    log = engine.run().log
    assert [log.explain(t.seq).skipped for t in log.where(source="optimizer_update")] == [None, "too large"]
    assert "the update was skipped" in str(log.explain(log.where(source="optimizer_update")[1].seq))


# -- diff


def staged(count: int = 3, plugins: Any = (), act: Callable[[Run], None] | None = None, **config: Any) -> TransitionLog:
    """Return the log of a seeded run, in which something may be done on exit of `after_step`."""
    engine = small_engine(count, plugins, **config)
    if act is not None:
        act.__qualname__ = "act"
        engine.on_exit("after_step")(act)
    return engine.run().log


class First(Plugin):
    """Hears the exit of `after_step`."""

    def on_exit_after_step(self, run: Run) -> None:
        pass


class Second(First):
    """Hears it too."""


def test_two_seeded_runs_differ_in_nothing_but_times():
    """Whatever the times, notes, values and handlers included; a diff that finds nothing is false."""

    def act(run: Run) -> None:
        run.record("loss", run.loss)
        run.note(f"step {run.step}")

    one, other = (staged(plugins=[First(), Second()], act=act, epochs=2) for _ in range(2))
    assert one[4].time_ns != other[4].time_ns
    found = one.diff(other)
    assert (bool(found), found.same, found.facts, found.seq, found.parted) == (False, True, (), None, ())
    assert str(found) == f"the same but for times: transitions #0 to #{len(one) - 1}, their notes and recorded values"
    assert found.to_plain()["same"] is True


def test_diff_finds_one_more_step():
    """The guard that said otherwise, with what it looked at, and both paths from there."""
    one, other = staged(2), staged(3)
    found = one.diff(other)
    assert [str(fact) for fact in found.facts] == ["batches: 2 here, 3 there"]
    last = one.where(source="optimizer_update", update=2)[0].seq
    assert (found.seq, [(p.kind, p.name) for p in found.parted]) == (last, [("guard", "batches_remain")])
    assert found.parted[0].here.startswith("no (steps in the window 0, batches 2, in a pass 2")
    assert found.parted[0].there.startswith("yes (steps in the window 0, batches 2, in a pass 3")
    assert [t.seq for t in found.before] == [last - 3, last - 2, last - 1]
    assert [t.dest for t in found.here] == ["after_epoch", "after_loop", "finished"]
    assert [t.dest for t in found.there] == ["before_step", "process_batch", "after_step"]


def test_diff_finds_another_answer_of_a_guard():
    """That of a plugin's guard, of which nothing is known but what it said."""

    def side(due: int) -> Side:
        return Side(Detour("sample", "after_step", lambda run: run.step == due, lambda run: None))

    one, other = staged(4, [side(2)]), staged(4, [side(3)])
    found = one.diff(other)
    (first,) = one.where(dest="sample")
    assert (found.facts, found.seq) == ((), first.seq)
    assert [str(part) for part in found.parted] == ["guard sample_due: yes here, no there"]


def test_diff_finds_another_order_of_handlers():
    """The path is the same; the moment whose handlers are called in another order is named."""
    found = staged(plugins=[First(), Second()]).diff(staged(plugins=[Second(), First()]))
    assert found.seq is None
    assert [str(fact) for fact in found.facts] == [
        "handlers on exit of after_step: First.on_exit_after_step, Second.on_exit_after_step here, "
        "Second.on_exit_after_step, First.on_exit_after_step there"
    ]


def with_rate(rate: float, plugins: Any = ()) -> TransitionLog:
    """Return the log of a run with that learning rate, in which nobody records anything."""
    network = torch.nn.Linear(4, 3)
    components = Components(
        network=network,
        loader=[(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))] * 3,
        criterion=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=rate),
    )
    return Engine(components, RunConfig(epochs=1), plugins=plugins).run().log


def test_diff_finds_a_changed_learning_rate_that_nobody_recorded():
    """It is an option of the optimizer, which the log knows from the start."""
    found = with_rate(0.1).diff(with_rate(0.2))
    assert found.seq is None
    assert [str(fact) for fact in found.facts] == ["optimizers[0].groups[0].lr: 0.1 here, 0.2 there"]
    assert found.to_plain()["facts"] == [{"name": "optimizers[0].groups[0].lr", "here": 0.1, "there": 0.2}]


def test_diff_finds_a_changed_learning_rate_that_was_recorded():
    """Two schedules that part in the second update: the first value that differs, and both."""

    def schedule(factor: float) -> LRSchedule:
        return LRSchedule(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1.0 if n < 2 else factor))

    one, other = with_rate(0.1, [schedule(0.5)]), with_rate(0.1, [schedule(0.25)])
    found = one.diff(other)
    assert found.facts == ()
    assert [(p.kind, p.name, p.here, p.there) for p in found.parted] == [("value", "lr", "0.05", "0.025")]
    assert found.seq == next(v.seq for v in one.values("lr") if v.value == 0.05)
    assert not one.diff(other, ignore=["l*"])


def test_diff_finds_a_note_another_note_and_one_that_is_missing():
    """A note that only one has, and one that says something else, in the turn in which it was made."""

    def noting(texts: dict[int, str]) -> TransitionLog:
        return staged(act=lambda run: run.note(texts[run.step]) if run.step in texts else None)

    one, other, none = noting({1: "a", 2: "b"}), noting({1: "a", 2: "c"}), noting({1: "a"})
    second = one.where(source="after_step", step=2)[0].seq
    for found, words in (
        (one.diff(other), "note note: b here, c there"),
        (one.diff(none), "note note: note b here, none there"),
    ):
        assert (found.facts, found.seq, [str(p) for p in found.parted]) == ((), second, [words])
    assert not one.diff(none, ignore=["note"])


def test_diff_says_where_one_log_ends_and_the_other_continues():
    """A run that was killed or is still running is a beginning of the other."""
    engine = small_engine(3)
    engine.run(until="after_epoch")
    found = engine.current.log.diff(small_engine(3).run().log, ignore=["pause"])
    assert [str(part) for part in found.parted] == ["end: the log ends with #14 here, the log continues to #16 there"]
    assert (found.here, [t.dest for t in found.there]) == ((), ["after_loop", "finished"])


def test_diff_of_runs_with_other_detours_compares_by_name():
    """Numbers of states and arcs mean nothing between tables: the tables differ, and the paths where they do."""
    side = Side(Detour("sample", "after_epoch", lambda run: True, lambda run: None))
    one, other = staged(2), staged(2, [side])
    found = one.diff(other)
    assert [fact.name for fact in found.facts] == ["arcs from after_epoch", "arcs from sample@after_epoch"]
    assert found.seq == one.where(source="after_epoch")[0].seq
    assert [str(p) for p in found.parted] == [
        "guard sample_due: not asked here, yes there",
        "guard epochs_remain: no (epochs 1, of 1, stop asked for False) here, not asked there",
    ]


def test_a_capped_log_is_compared_where_both_hold_something():
    """The message names the range that was compared."""
    found = staged(5).diff(staged(5, log_capacity=8))
    assert (found.same, found.first, found.end) == (True, 17, 25)


# -- other forms


def intervals(events: list[dict[str, Any]]) -> list[tuple[int, int, str, str]]:
    """Return the spans of a trace as (begin, end, kind, name) in nanoseconds; each `E` must close the newest `B`."""
    spans: list[tuple[int, int, str, str]] = []
    stack: list[dict[str, Any]] = []
    for event in events:
        at = round(event["ts"] * 1e3)
        if event["ph"] == "B":
            stack.append(event)
        elif event["ph"] == "E":
            begun = stack.pop()
            assert begun["cat"] == event["cat"]
            spans.append((round(begun["ts"] * 1e3), at, begun["cat"], begun["name"]))
    assert stack == []
    return spans


FIELDS = {
    "B": {"name", "ts"},
    "E": {"ts"},
    "C": {"name", "ts"},
    "i": {"name", "ts"},
    "M": {"name"},
}
DEPTH = ["epoch", "window", "step", "state", "handler"]


def assert_trace(log: TransitionLog, path: Path) -> list[tuple[int, int, str, str]]:
    """A trace has the fields that its format asks for, and its spans lie within each other in the order of `DEPTH`."""
    events = json.loads(log.to_trace(path).read_text())["traceEvents"]
    for event in events:
        assert {"pid", "tid"} | FIELDS[event["ph"]] <= event.keys()
        assert event.get("ts", 0) >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
    begins = [event["ts"] for event in events if event["ph"] in "BE"]
    assert begins == sorted(begins)
    spans = intervals(events)
    for place, (begin, end, kind, _) in enumerate(spans):
        for other_begin, other_end, other_kind, _ in spans[place + 1 :]:
            apart = end <= other_begin or other_end <= begin
            inside = other_begin <= begin and end <= other_end
            around = begin <= other_begin and other_end <= end
            assert (
                apart
                or (inside and DEPTH.index(kind) >= DEPTH.index(other_kind))
                or (around and DEPTH.index(other_kind) >= DEPTH.index(kind))
            )
    return spans


@settings(max_examples=30)
@given(plan=plans(), capacity=st.sampled_from([1_000_000, 40, 7]))
def test_spans_of_a_trace_lie_within_each_other(plan: Plan, capacity: int, tmp_path_factory: pytest.TempPathFactory):
    """For runs that stop, fail and pause, and logs that begin in mid-run; every stay, step and epoch has its span."""
    plan.config.update({"log_capacity": capacity, "trace_handlers": True})
    engine, _ = plan.build()
    engine.on_exit("process_batch")(lambda run: run.record("loss", run.loss))
    drive(engine)
    log = engine.current.log
    spans = assert_trace(log, tmp_path_factory.mktemp("log") / "trace.json")
    if not len(log):
        return
    assert [name for *_, kind, name in spans if kind == "state"] == log.path()
    made = log.counts()
    began = Counter(kind for *_, kind, _ in spans)
    opened = {"epoch": made["before_epoch"], "step": made["before_step"]}
    for kind, number in opened.items():
        assert began[kind] in (number, number + 1)  # one more where the log begins within one
        if log[0].seq == 0:
            assert began[kind] == number
    first = log[0].seq
    assert began["handler"] == sum(call.seq >= first for call in log.calls())


def test_a_trace_has_counters_and_names_what_it_shows(tmp_path: Path):
    """Spans of two epochs with windows of two steps, a traced handler, the recorded loss and learning rate."""
    engine = small_engine(4, accumulation=2, epochs=2, trace_handlers=True)

    @engine.on_exit("optimizer_update")
    def record(run: Run) -> None:
        run.record("loss", run.loss)
        run.record("lr", run.optimizer.param_groups[0]["lr"])

    log = engine.run().log
    spans = assert_trace(log, tmp_path / "trace.json")
    names = {kind: [name for *_, k, name in sorted(spans) if k == kind] for kind in DEPTH}
    assert names["epoch"] == ["epoch 0", "epoch 1"]
    assert names["window"] == [f"window {n}" for n in range(4)]
    assert names["step"] == [f"step {n}" for n in range(8)]
    assert [name.rpartition(".")[2] for name in names["handler"]] == ["record"] * 4
    trace = json.loads((tmp_path / "trace.json").read_text())
    counters = [(event["name"], event["args"]["value"]) for event in trace["traceEvents"] if event["ph"] == "C"]
    assert counters == [(value.name, value.value) for value in log.values()]
    assert trace["otherData"]["begins_ns_since_1970"] == log[0].time_ns - log[0].duration_ns
    stays = [end - begin for begin, end, kind, name in spans if (kind, name) == ("state", "process_batch")]
    assert stays == [t.duration_ns for t in log.where(source="process_batch")]


def test_a_paused_state_says_how_long_it_was_paused(tmp_path: Path):
    """Its span is as long as the run was in it; its args give the paused part of that."""
    engine = small_engine(2)
    engine.run(until="before_step")
    engine.run()
    events = json.loads(engine.current.log.to_trace(tmp_path / "trace.json").read_text())["traceEvents"]
    paused = [event for event in events if "paused_us" in event.get("args", {})]
    assert [event["name"] for event in paused] == ["idle", "before_step"][-len(paused) :]
    (stay,) = (event for event in paused if event["name"] == "before_step")
    row = engine.current.log[stay["args"]["seq"]]
    began = round(stay["ts"] * 1e3)
    (end,) = (end for begin, end, kind, _ in intervals(events) if (begin, kind) == (began, "state"))
    assert end - began - round(stay["args"]["paused_us"] * 1e3) == row.duration_ns


def test_a_data_frame_has_the_columns_of_a_transition(tmp_path: Path):
    """A row each, in order; guards in words."""
    log = staged(3, accumulation=2, remainder="flush")
    frame = log.to_dataframe()
    names = ["seq", "time_ns", "duration_ns", "source", "dest", "epoch", "batch_index", "step", "update"]
    assert list(frame.columns) == [*names[:5], "guards", *names[5:]]
    assert frame[names].values.tolist() == [[getattr(t, name) for name in names] for t in log]
    assert frame["guards"][5] == "update_due=no batches_remain=yes"
    assert len(small_engine().current.log.to_dataframe()) == 0


def test_without_pandas_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    """What is to be installed is said."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LogError, match=r"pip install 'heptad\[frames\]'"):
        staged(1).to_dataframe()


def test_run_log_and_transition_show_themselves_in_a_notebook():
    """As small tables, in which nothing that was given is taken for HTML."""
    engine = small_engine(40)
    engine.on_exit("after_step", every=30)(lambda run: run.stop("<script>alert(1)</script>"))
    engine.on_exit("after_step")(lambda run: run.record("<b>", run.step))
    run = engine.run()
    for shown in (run, run.log, run.log[3], small_engine().current, small_engine().current.log):
        html = shown._repr_html_()
        assert html.startswith("<table>")
        assert html.endswith("</table>")
        assert len(html) < 4_000
        assert "<script>" not in html
        assert "<b>" not in html
    assert "&lt;script&gt;" in run._repr_html_()
    assert run.log._repr_html_().count("<tr>") == 1 + 10
    assert "process_batch" in run.log[3]._repr_html_()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda log: pickle.loads(pickle.dumps(log))])
def test_a_log_is_handed_on_as_a_file(again: Callable[[TransitionLog], TransitionLog], tmp_path: Path):
    """The error says how a log comes to another process."""
    run = small_engine(1, [Journal(tmp_path / "run.db")]).run()
    with pytest.raises(EngineError, match=r"neither be pickled nor copied; add Journal\(path\) to the plugins"):
        again(run.log)
    with pytest.raises(LogError, match=r"run\.db can neither be pickled nor copied .*; hand on its path"):
        again(TransitionLog.load(tmp_path / "run.db"))
    assert list(copy.copy(run.log)) == list(run.log)


def test_reprs_fit_a_line():
    """In a terminal: at most 120 characters, for positions with many digits too."""
    from dataclasses import replace

    log = staged(2)
    row = replace(log[8], seq=10**7, step=10**6, update=10**6, batch_index=10**4)
    for shown in (log, row, log.diff(log), small_engine().current):
        assert len(repr(shown)) <= 120
        assert "\n" not in repr(shown)
    assert repr(log[8]) == "<Transition #8 process_batch -> after_step, epoch 0 batch 1 step 1 update 1>"


def test_questions_about_what_is_not_there_are_refused():
    """An unknown state and a transition that the log lacks are mistakes."""
    log = staged(1)
    with pytest.raises(EngineError, match="there is no state 'sample'"):
        log.where(source="sample", limit=1)
    with pytest.raises(EngineError, match="does not hold transition #99"):
        log.explain(99)
    for other, name in ((Run, "type"), ("first.db", "str"), (small_engine(1).run(), "Run")):
        with pytest.raises(EngineError, match=rf"diff takes the other run's TransitionLog, got {name}; .*run\.log"):
            log.diff(other)  # pyright: ignore[reportArgumentType]
    assert records(log.where(limit=2)) == records(log[:2])
