"""`Journal`: a file that survives a kill, may be read meanwhile, continues with its run, and guards what it holds."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import TensorDataset

import heptad.history.journal.recorder
import heptad.record.buffer
from builders import CLASSES, FEATURES, Planned, Side, batches, records, small_engine, small_network
from heptad import Components, Detour, Engine, Plugin, PluginError, Run, RunConfig, TransitionLog
from heptad.errors import LogError
from heptad.history.journal.reader import FileSource
from heptad.history.journal.writer import FileWriter
from heptad_plugins import Checkpoint, Journal, LRSchedule
from programs import environment

HERE = Path(__file__).parents[1]
SECOND = 1_000_000_000
KILLED = 50


def process(*arguments: object, timeout: float = 120) -> str:
    """Run `tests/journalling.py` and return what it printed."""
    command = [sys.executable, str(HERE / "journalling.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def asked(path: Path, statement: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


# -- killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty folders, each of a run that was killed: its file, its true path, when it was killed."""
    folder = tmp_path_factory.mktemp("killed")
    process("kill", folder, KILLED, 5)
    return folder


@pytest.mark.parametrize("seed", range(KILLED))
def test_a_killed_run_leaves_a_file_that_lacks_at_most_the_last_second(killed, seed):
    """Or 7 transitions, with `flush_every=7`: it opens, is a prefix of the true path, and its parts agree."""
    folder = killed / str(seed)
    path = folder / "run.journal"
    lines = (folder / "true path").read_text().splitlines()
    true = [tuple(map(int, line.split())) for line in lines if len(line.split()) == 3]
    moment = int((folder / "killed at").read_text())
    source = FileSource(path)
    view = source.view()
    written = [
        (chunk.seq + place, int(arc), int(at))
        for chunk in view.chunks
        for place, (arc, at) in enumerate(zip(chunk.arcs(), chunk.times(), strict=True))
    ]
    assert written[: len(true)] == true[: len(written)]
    assert len(written) <= len(true) + 1  # killed between making the last one and reporting it
    assert len(written) >= sum(at < moment - SECOND for _, _, at in true)
    if seed % 5 == 4:
        assert len(true) - len(written) <= 7
    log = list(TransitionLog(source))
    assert [t.seq for t in log] == list(range(len(written)))
    assert all(before.dest == after.source for before, after in pairwise(log))
    losses = [value for value in source.values() if value.name == "train/loss"]
    assert [value.update for value in losses] == list(range(1, len(losses) + 1))
    assert len(losses) >= sum(t.source == "optimizer_update" for t in log)
    assert asked(path, "PRAGMA integrity_check") == [("ok",)]
    assert asked(path, "SELECT count(*) FROM transition") == [(len(written),)]


def test_a_reader_beside_the_run_sees_whole_beginnings_and_delays_nothing(tmp_path):
    """One that reads all in a loop, and one that keeps a transaction open until the run has ended."""
    report = json.loads(process("read", tmp_path, 700))
    assert report["codes"] == [0, 0]
    assert report["same"]
    assert report["loops"] >= report["ends"] >= 8  # one an epoch
    assert report["end"] > 11_000


def test_the_file_is_written_in_the_middle_of_a_long_body(tmp_path):
    """Without another turn; a body of torch's releases the interpreter, as this one does by sleeping."""
    path = tmp_path / "run.journal"
    found: list[bool] = []

    def long(run: Run) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until and FileSource(path).view().end < run._buffer.seq:
            time.sleep(0.01)
        found.append(FileSource(path).view().end == run._buffer.seq)

    engine = small_engine(3, [Journal(path)])
    engine.on_exit("process_batch")(long)
    engine.run()
    assert found == [True] * 3


@pytest.mark.parametrize("chunk", [4, 1024])
@pytest.mark.parametrize("most", [1, 7])
def test_flush_every_says_how_many_may_be_missing(most, chunk, tmp_path, monkeypatch):
    """At every event of the run, whatever else makes the loop return."""
    monkeypatch.setattr(heptad.record.buffer, "CHUNK", chunk)
    monkeypatch.setattr(heptad.history.journal.recorder, "INTERVAL", 1e6)
    path = tmp_path / "run.journal"
    missing: list[int] = []
    engine = small_engine(6, [Journal(path, most)], epochs=2)
    source: list[FileSource] = []

    def look(run: Run) -> None:
        source.extend([] if source else [FileSource(path)])
        missing.append(run._buffer.seq - source[0].view().end)

    for state in engine.current.table.scopes():
        engine.on_exit(state)(look)
    engine.run()
    assert max(missing) <= most
    assert most == 1 or max(missing) >= most - 1


def test_the_file_is_not_behind_a_checkpoint_nor_a_paused_run(tmp_path, monkeypatch):
    """It is written on entry to `checkpoint`, and before what other plugins do on being paused."""
    monkeypatch.setattr(heptad.history.journal.recorder, "INTERVAL", 1e6)
    path = tmp_path / "run.journal"
    ends: list[tuple[int, int]] = []

    class Checkpoint(Plugin):
        def detours(self) -> list[Detour]:
            return [Detour("checkpoint", "optimizer_update", lambda run: True, self.save)]

        def save(self, run: Run) -> None:
            ends.append((FileSource(path).view().end, run._buffer.seq))

        def on_pause(self, run: Run) -> None:
            notes = FileSource(path).events(0)
            assert notes == run.log.notes()
            assert [note.kind for note in notes][-1:] == ["pause"]
            self.save(run)

    engine = small_engine(5, [Checkpoint(), Journal(path)])
    engine.on_exit("before_step", every=3)(lambda run: run.pause("now"))
    while not engine.current.ended:
        engine.run()
    assert len(ends) == 6
    assert all(end == seq for end, seq in ends)


def test_nothing_is_lost_where_the_disk_is_slow(tmp_path, monkeypatch):
    """The run waits at a bound of memory, and says so: once, until half of it is written."""
    monkeypatch.setattr(heptad.record.buffer, "CHUNK", 3)
    monkeypatch.setattr(heptad.history.journal.recorder, "TOGETHER", 1)
    monkeypatch.setattr(heptad.history.journal.recorder, "AT_ONCE", 1)
    monkeypatch.setattr(heptad.history.journal.recorder, "MOST_BEHIND", 200)
    commit = FileWriter.commit
    monkeypatch.setattr(FileWriter, "commit", lambda self: (time.sleep(0.003), commit(self)))
    path = tmp_path / "run.journal"
    held: list[int] = []
    journal = Journal(path)
    engine = small_engine(60, [journal])
    engine.on_exit("process_batch")(lambda run: held.append(journal._recorder._held))
    run = engine.run()
    log = TransitionLog.load(path)
    assert list(log) == list(run.log)
    assert max(held) == 210  # a chunk takes 30
    behind = run.log.notes("behind")
    assert log.notes("behind") == behind
    assert 1 <= len(behind) <= 5  # of 80 chunks
    assert "transitions wait to be written to the journal" in behind[0].text
    bare = small_engine(60).run()
    assert run.log.diff(bare.log, ignore=["train/*", "lr"]).seq is None


def test_a_run_does_not_wait_for_a_slow_disk(tmp_path, monkeypatch):
    """Until a pause, a checkpoint or the end: then everything is in the file, whatever one transaction takes."""
    monkeypatch.setattr(heptad.record.buffer, "CHUNK", 3)
    monkeypatch.setattr(heptad.history.journal.recorder, "TOGETHER", 1)
    monkeypatch.setattr(heptad.history.journal.recorder, "AT_ONCE", 2)
    path = tmp_path / "run.journal"
    gate = threading.Event()
    commit = FileWriter.commit
    held: list[tuple[int, int, int]] = []

    def slow(self: FileWriter) -> None:
        assert not self.end or gate.wait(60)
        commit(self)
        source = FileSource(path)  # as a kill after this commit would leave it
        bound = [*source.events(0), *source.values(), *source.calls(0, 1 << 40)]
        held.append((self.end or 0, source.view().end, max((one.seq for one in bound), default=0)))

    monkeypatch.setattr(FileWriter, "commit", slow)
    journal = Journal(path)
    engine = small_engine(60, [journal], trace_handlers=True)
    engine.on_exit("process_batch", every=7)(lambda run: run.note("seventh"))
    engine.on_exit("process_batch", every=60)(lambda run: (run.pause("enough"), gate.set()))
    run = engine.run()
    assert run.log.notes("behind") == []
    assert len(held) > 30
    assert all(last <= end == seen for end, seen, last in held)
    log = TransitionLog.load(path)
    assert list(log) == list(run.log)
    assert log.notes() == run.log.notes()
    assert log.values() == run.log.values()
    assert log.calls() == run.log.calls()
    engine.close()


def test_no_thread_outlives_close(tmp_path):
    """Nor does one outlive a run that failed."""
    before = threading.enumerate()
    small_engine(3, [Journal(tmp_path / "a")]).run()
    assert threading.enumerate() == before
    engine = small_engine(3, [Journal(tmp_path / "b")])
    engine.on_exit("after_step")(fail)
    with pytest.raises(Planned):
        engine.run()
    assert threading.enumerate() == before
    assert TransitionLog.load(tmp_path / "b")[-1].dest == "failed"


def fail(run: Run) -> None:
    raise Planned("as planned")


def test_a_program_that_closes_nothing_ends(tmp_path):
    """The thread keeps no interpreter alive."""
    process("leave", tmp_path, timeout=60)
    assert len(TransitionLog.load(tmp_path / "run.journal")) <= 10


def test_forked_processes_leave_the_file_alone(tmp_path):
    """Worker processes of a loader, and a child that ends with the plugin in its hands."""
    path = tmp_path / "run.journal"
    network = small_network()
    dataset = TensorDataset(torch.randn(60, FEATURES), torch.randint(0, CLASSES, (60,)))
    parts = Components(
        network=network,
        dataset=dataset,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    )
    plugins: list[Any] = [Journal(path)]
    engine = Engine(parts, RunConfig(epochs=3, batch_size=4, num_workers=2), plugins)

    def fork(run: Run) -> None:
        child = os.fork()
        if not child:
            plugins.clear()
            engine._manager.plugins = ()
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)

    engine.on_exit("process_batch", every=5)(fork)
    run = engine.run()
    assert list(TransitionLog.load(path)) == list(run.log)
    assert asked(path, "PRAGMA integrity_check") == [("ok",)]


# -- a disk that fails


@pytest.mark.parametrize("on_error", ["raise", "detach"])
def test_where_the_disk_is_full_the_run_ends_or_continues_without(on_error, tmp_path):
    """The error names the file and what to do; what was written stays readable."""
    report = json.loads(process("full", tmp_path, on_error))
    path = tmp_path / "run.journal"
    message = report["error"] if on_error == "raise" else " ".join(report["notes"])
    assert f"{path} cannot be written any more: " in message
    assert "can be read" in message
    assert "on_error='detach'" in message
    assert report["state"] == ("failed" if on_error == "raise" else "finished")
    assert len(report["notes"]) == (on_error == "detach")
    log = TransitionLog.load(path)
    assert len(log) > 500
    assert log.path() == report["path"][: len(log) + 1]
    assert f"before {len(log)} are in it" in message


def breaks_after(monkeypatch: pytest.MonkeyPatch, commits: int) -> None:
    """Make writing fail from then on, as it does on a full disk."""
    commit, count = FileWriter.commit, [0]

    def failing(self: FileWriter) -> None:
        count[0] += 1
        if count[0] > commits:
            raise sqlite3.OperationalError("database or disk is full")
        commit(self)

    monkeypatch.setattr(FileWriter, "commit", failing)


@pytest.mark.parametrize("on_error", ["raise", "detach"])
def test_an_error_is_raised_at_the_next_step(on_error, tmp_path, monkeypatch):
    """By a handler of the plugin, so that the log says who, and it can be detached; and only once."""
    breaks_after(monkeypatch, 3)
    path = tmp_path / "run.journal"
    engine = small_engine(20, [Journal(path, flush_every=1, on_error=on_error)])
    if on_error == "raise":
        with pytest.raises(LogError, match="database or disk is full") as caught:
            engine.run()
        assert any("in Journal.on_exit_after_step on exit of after_step" in note for note in caught.value.__notes__)
        assert not any("closing" in note for note in caught.value.__notes__)
        assert engine.current.step == 1
    else:
        run = engine.run()
        (note,) = [note for note in run.log.notes() if note.kind == "detach"]
        assert "Journal.on_exit_after_step raised LogError" in note.text
        assert run.state == "finished"
        assert run._buffer.room > 1
    assert TransitionLog.load(path).path() == engine.current.log.path()[:3]


def test_an_error_that_comes_last_is_raised_by_close(tmp_path, monkeypatch):
    """And not lost."""
    breaks_after(monkeypatch, 1)
    engine = small_engine(2, [Journal(tmp_path / "run.journal")])
    with pytest.raises(LogError, match=r"cannot be written any more: database or disk is full; it holds nothing"):
        engine.run()
    assert engine.current.state == "finished"


def test_a_run_does_not_wait_for_a_writer_that_is_gone(tmp_path, monkeypatch):
    """Chunks that nobody will write are dropped."""
    breaks_after(monkeypatch, 1)
    monkeypatch.setattr(heptad.record.buffer, "CHUNK", 3)
    monkeypatch.setattr(heptad.history.journal.recorder, "MOST_BEHIND", 60)
    journal = Journal(tmp_path / "run.journal", flush_every=100, on_error="detach")
    assert small_engine(50, [journal]).run().state == "finished"


@pytest.mark.parametrize("error", [TypeError("no text"), OverflowError("too large"), sqlite3.ProgrammingError("type")])
def test_what_cannot_be_written_is_not_blamed_on_the_disk(error, tmp_path, monkeypatch):
    """The message says what kind of fault it is; what was written before is kept."""
    events = FileWriter.events

    def failing(self: FileWriter, some: Any) -> None:
        if any(note.text == "bad" for note in some):
            raise error
        events(self, some)

    monkeypatch.setattr(FileWriter, "events", failing)
    path = tmp_path / "run.journal"
    engine = small_engine(20, [Journal(path, flush_every=1)])
    engine.on_exit("process_batch", every=9)(lambda run: run.note("bad"))
    with pytest.raises(LogError) as caught:
        engine.run()
    log = TransitionLog.load(path)
    assert len(log) > 20
    assert log.path() == engine.current.log.path()[: len(log) + 1]
    assert f"{type(error).__name__}: {error}; the transitions before {len(log)} are in it" in str(caught.value)
    assert "a fault in what was to be written, not of the disk" in str(caught.value)
    assert "Make room" not in str(caught.value)


def test_a_file_that_is_removed_meanwhile_is_said_to_be_gone(tmp_path):
    """Nothing is promised of what was in it."""
    path = tmp_path / "run.journal"
    engine = small_engine(20, [Journal(path, flush_every=1)])

    @engine.on_exit("process_batch", every=9)
    def remove(run: Run) -> None:
        for file in tmp_path.glob("run.journal*"):
            file.unlink()

    with pytest.raises(LogError, match=rf"Journal: {path} is gone: it was removed or renamed") as caught:
        engine.run()
    assert "can be read" not in str(caught.value)
    assert "Make room" not in str(caught.value)


# -- whose file it is


def test_a_file_that_holds_another_run_is_refused(tmp_path):
    """The message names the ways on; the file is left as it was; `overwrite` discards it."""
    path = tmp_path / "run.journal"
    small_engine(3, [Journal(path)]).run()
    before = path.read_bytes()
    with pytest.raises(PluginError, match=r"name another file, remove this one, say overwrite=True, or resume that"):
        small_engine(4, [Journal(path)]).run()
    assert path.read_bytes() == before
    run = small_engine(4, [Journal(path, overwrite=True)]).run()
    assert list(TransitionLog.load(path)) == list(run.log)


def test_the_same_object_in_another_engine_is_refused_too(tmp_path):
    """It is another run."""
    journal = Journal(tmp_path / "run.journal")
    small_engine(3, [journal]).run()
    with pytest.raises(PluginError, match="another run"):
        small_engine(3, [journal]).run()


def test_a_second_run_of_the_same_object_is_written_whole(tmp_path):
    """With `overwrite`: calls, notes and values of the first are not in it, and none of its own is missing."""
    path = tmp_path / "run.journal"
    journal = Journal(path, overwrite=True)
    for count in (5, 3):
        engine = small_engine(count, [journal], trace_handlers=True)
        engine.on_exit("after_step")(lambda run: run.note(f"step {run.step}"))
        run = engine.run()
    log = TransitionLog.load(path)
    assert list(log) == list(run.log)
    assert [note.text for note in log.notes()] == [note.text for note in run.log.notes()]
    assert [value.value for value in log.values("train/loss")] == run.history("train/loss")
    assert log.calls() == run.log.calls() != []


def test_the_same_object_resumes_in_another_engine(tmp_path):
    """What the run that failed had written beyond it is kept apart, as it is for a fresh object."""
    path = tmp_path / "run.journal"
    journal = Journal(path)

    def engine() -> Engine:
        return small_engine(8, [journal, Checkpoint(tmp_path / "at", at="after_step", every=3)])

    first = engine()
    first.on_exit("process_batch", every=6)(lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        first.run()
    run = engine().run(resume="auto")
    log = TransitionLog.load(path)
    assert log.path()[-len(run.log) :] == run.log.path()[1:]
    assert [t.seq for t in log] == list(range(run.log[-1].seq + 1))
    assert len(log.values("train/loss")) == 8
    assert asked(path, "SELECT count(*) FROM superseded_transition")[0][0] > 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_another_program_is_never_touched(overwrite, tmp_path):
    """Text or a database, `overwrite` or not."""
    text, database = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("precious " * 100)
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE precious (a)")
    connection.commit()
    connection.close()
    for path in (text, database):
        before = path.read_bytes()
        with pytest.raises(PluginError, match=f"{path} is not the log of a run"):
            small_engine(3, [Journal(path, overwrite=overwrite)]).run()
        assert path.read_bytes() == before


def test_a_damaged_journal_may_be_overwritten(tmp_path):
    """It is one of ours, whatever is left of it; an empty file may be taken."""
    path = tmp_path / "run.journal"
    small_engine(3, [Journal(path)]).run()
    path.write_bytes(path.read_bytes()[:5000])
    run = small_engine(4, [Journal(path, overwrite=True)]).run()
    assert list(TransitionLog.load(path)) == list(run.log)
    path.write_bytes(b"")
    run = small_engine(5, [Journal(path)]).run()
    assert list(TransitionLog.load(path)) == list(run.log)


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    """A folder, and a path below a file; folders that are missing are made."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "run.journal"):
        with pytest.raises(PluginError, match="cannot be"):
            small_engine(1, [Journal(path)]).run()
    small_engine(1, [Journal(tmp_path / "a" / "b" / "run.journal")]).run()


def test_a_file_that_is_being_written_is_refused_even_with_overwrite(tmp_path):
    """The lock is that of the process that lives."""
    path = tmp_path / "run.journal"
    first = small_engine(3, [Journal(path)])
    first.advance()
    with pytest.raises(PluginError, match="is being written"):
        small_engine(3, [Journal(path, overwrite=True)]).run()
    second = small_engine(3, [Journal(path)])
    second.current._id, second.current._resumed_from = first.current.id, "a checkpoint"
    with pytest.raises(PluginError, match="is being written"):
        second.run()
    run = first.run()
    assert list(TransitionLog.load(path)) == list(run.log)


def test_options_are_checked_when_it_is_built():
    """Before anything runs."""
    with pytest.raises(PluginError, match=r"Journal\(flush_every=…\) must be a whole number from 1 on, got 0"):
        Journal("run.journal", flush_every=0)


# -- continuing


def test_a_paused_run_continues_its_file(tmp_path):
    """One session, however often it is paused; what is noted and recorded meanwhile is not lost."""
    path = tmp_path / "run.journal"
    engine = small_engine(4, [Journal(path)])
    run = engine.current
    run.note("before the start")
    while not run.ended:
        engine.run(until=lambda run: True)
        if not run.ended:
            run.note(f"paused before {run._buffer.seq}")
            run.record("paused", run._buffer.seq)
        assert TransitionLog.load(path).path() == run.log.path()
    assert FileSource(path).events(0) == run.log.notes()
    assert FileSource(path).values() == run.records()
    assert TransitionLog.load(path).durations() == run.log.durations()
    assert asked(path, "SELECT count(*) FROM session") == [(1,)]


class Late(Journal):
    """A journal that opens only when `late` is False: for a run that stands for one that was resumed."""

    late = True

    def open(self, run: Run) -> None:
        if not self.late:
            super().open(run)


Late.name = "Journal"


def resumed(path: Path, identity: str, seq: int, *, broken: bool = False, **options: Any) -> Engine:
    """Return an engine as it is after its run was resumed before that transition."""
    journal = Late(path, **options)
    engine = training(journal, broken=broken)
    run = engine.current
    while run._buffer.seq < seq:
        engine.advance()
    engine.close()
    run._buffer.restore(run._buffer.seq, run._position.node, run.counters())
    run._buffer._events.clear()
    run._id, run._resumed_from = identity, f"checkpoint-{seq}"
    journal.late = False
    return engine


def training(journal: Plugin, *, broken: bool = False) -> Engine:
    """Return an engine whose run grows its windows and is asked to stop; a broken one fails before."""
    engine = small_engine(7, [journal], epochs=3)
    engine.on_exit("after_step")(lambda run: run.record("step", run.step))
    engine.on_enter("before_step")(lambda run: run.set_accumulation(2) if run.step == 4 else None)
    engine.on_enter("after_step")(lambda run: run.stop("enough") if run.step == 17 else None)
    if broken:
        engine.on_exit("process_batch")(lambda run: fail(run) if run.step == 15 else None)
    return engine


def failed_run(path: Path) -> Run:
    engine = training(Journal(path), broken=True)
    with pytest.raises(Planned):
        engine.run()
    return engine.current


@pytest.mark.parametrize("chunk", [5, 1024])
@pytest.mark.parametrize("seq", [1, 2, 19, 20, 33, 50])
def test_a_resumed_run_continues_its_file_which_reads_as_one_path(seq, chunk, tmp_path, monkeypatch):
    """It is the path of the run that never died: transitions, values, notes, explanations and durations."""
    monkeypatch.setattr(heptad.record.buffer, "CHUNK", chunk)
    path = tmp_path / "run.journal"
    died = failed_run(path)
    run = resumed(path, died.id, seq).run()
    whole = training(Journal(tmp_path / "whole")).run()
    log, source = TransitionLog.load(path), FileSource(path)
    assert records(log) == records(whole.log)
    assert [t.time_ns for t in log] == [t.time_ns for t in [*list(died.log)[:seq], *run.log]]
    assert [(v.name, v.value, v.seq, v.update) for v in source.values()] == [
        (v.name, v.value, v.seq, v.update) for v in whole.records()
    ]
    assert [(n.seq, n.kind, n.text) for n in log.notes() if n.seq < seq or n.kind != "pause"] == [
        (n.seq, n.kind, n.text) for n in whole.log.notes()
    ]
    assert source.failure is None
    assert source.windows == whole._buffer.windows
    assert set(source.stops) == set(whole._buffer.stops)
    assert [str(x) for t in log for x in log.explain(t.seq).tried] == [
        str(x) for t in whole.log for x in whole.log.explain(t.seq).tried
    ]
    spent = [duration for (duration,) in asked(path, "SELECT duration_ns FROM transitions ORDER BY seq")]
    assert spent == [t.duration_ns for t in log]


@pytest.mark.parametrize("seq", [1, 2, 19, 20, 33, 50])
def test_what_a_resumed_run_made_again_is_kept_apart(seq, tmp_path):
    """The tables of what was superseded say what happened before the run died."""
    path = tmp_path / "run.journal"
    died = failed_run(path)
    engine = resumed(path, died.id, seq)
    kept = len(engine.current.records())
    engine.run()
    assert asked(path, "SELECT session, seq, source, dest FROM superseded ORDER BY seq") == [
        (2, t.seq, t.source, t.dest) for t in list(died.log)[seq:]
    ]
    assert asked(path, "SELECT number, value FROM superseded_value ORDER BY number") == [
        (number, value.value) for number, value in enumerate(died.records()[kept:], kept)
    ]
    assert asked(path, "SELECT error FROM superseded_failure") == [("Planned: as planned",)]
    assert ("failure",) in asked(path, "SELECT kind FROM superseded_note")
    assert asked(path, "SELECT first_seq, resumed_from FROM session") == [(0, None), (seq, f"checkpoint-{seq}")]
    assert asked(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_run_may_die_and_be_resumed_again_and_again(tmp_path):
    """Earlier or later than the last time; a reader that has the file open sees each path."""
    path = tmp_path / "run.journal"
    died = failed_run(path)
    source = FileSource(path)
    assert source.view().end == died._buffer.seq
    for seq in (40, 20, 50):
        engine = resumed(path, died.id, seq, broken=True)
        with pytest.raises(Planned):
            engine.run()
        assert [t.seq for t in TransitionLog(source)] == list(range(died._buffer.seq))
        assert source.failure == FileSource(path).failure
    run = resumed(path, died.id, 30).run()
    log = TransitionLog(source)
    assert records(log)[30:] == records(run.log)
    assert records(log) == records(training(Journal(tmp_path / "whole")).run().log)


def test_a_resumed_run_may_be_paused_and_continued(tmp_path):
    """Opening the file a second time supersedes nothing."""
    path = tmp_path / "run.journal"
    died = failed_run(path)
    engine = resumed(path, died.id, 20)
    while not engine.current.ended:
        engine.run(until=lambda run: True)
    assert records(TransitionLog.load(path)) == records(training(Journal(tmp_path / "whole")).run().log)
    assert asked(path, "SELECT count(*) FROM superseded") == [(died._buffer.seq - 20,)]


def test_a_resumed_run_needs_all_transitions_before_it(tmp_path):
    """A file that ends too early is refused and left as it is."""
    path = tmp_path / "run.journal"
    engine = training(Journal(path))
    engine.run(until=lambda run: run._buffer.seq == 10)
    before = path.read_bytes()
    with pytest.raises(PluginError, match="ends before transition 10, the run continues from 30: those between"):
        resumed(path, engine.current.id, 30).run()
    assert path.read_bytes() == before


def test_a_resumed_run_may_begin_a_new_file(tmp_path):
    """It begins where the run continues, and holds the values that the run has kept."""
    path = tmp_path / "run.journal"
    engine = resumed(path, "0123", 30)
    run = engine.run()
    log = TransitionLog.load(path)
    assert log[0].seq == 30
    assert list(log) == list(run.log)
    assert FileSource(path).values() == run.records()
    assert FileSource(path).run == "0123"
    assert asked(path, "SELECT duration_ns FROM transitions ORDER BY seq LIMIT 1") == [(log[0].duration_ns,)]


def test_a_resumed_run_leaves_the_file_of_another_run_alone(tmp_path):
    """The checkpoint and the file do not belong together; `overwrite` does not touch a file that does belong."""
    path = tmp_path / "run.journal"
    died = failed_run(path)
    with pytest.raises(PluginError, match="holds the log of another run"):
        resumed(path, "another", 20).run()
    resumed(path, died.id, 20, overwrite=True).run()
    assert TransitionLog.load(path)[0].seq == 0


# -- loss and learning rate


def values_of(run: Run, name: str) -> list[float]:
    return [value.value for value in run.records() if value.name == name]


def test_each_update_has_its_loss_and_the_rate_it_was_made_with():
    """Also where the rate is changed on exit of the update; a skipped update has none."""
    journal = Journal(os.devnull)
    engine = small_engine(6, [journal], accumulation=2)
    seen: list[tuple[float, float]] = []
    journal.open = journal.close = lambda run: None

    def update(run: Run) -> None:
        assert run.mean_loss is not None
        if run.update == 1:
            run.skip_update("so")
        else:
            seen.append((run.mean_loss.item(), run.optimizer.param_groups[0]["lr"]))

    engine.on_enter("optimizer_update")(update)

    def change(run: Run) -> None:
        run.optimizer.param_groups[0]["lr"] *= 0.5

    engine.on_exit("optimizer_update")(change)
    run = engine.run()
    assert list(zip(values_of(run, "train/loss"), values_of(run, "lr"), strict=True)) == seen


def test_what_somebody_else_records_under_these_names_stands_alone(tmp_path):
    """A schedule's rate, and a loss recorded in each step."""
    schedule = LRSchedule(lambda optimizer: StepLR(optimizer, step_size=1, gamma=0.5))
    engine = small_engine(4, [Journal(tmp_path / "run.journal"), schedule])
    engine.on_exit("process_batch")(lambda run: run.record("train/loss", 7) if run.step % 2 else None)
    run = engine.run()
    assert values_of(run, "lr") == [0.1, 0.05, 0.025, 0.0125]
    losses = values_of(run, "train/loss")
    assert losses[1::2] == [7, 7]
    assert len(losses) == 4
    assert 7 not in losses[::2]


def test_several_groups_have_numbers_and_rates_that_are_tensors_are_read_in_time(tmp_path):
    """Over all optimizers; a rate that is a tensor is written into by what changes it."""
    network = small_network()
    rate = torch.tensor(0.5)
    groups = [{"params": [network.weight], "lr": rate}, {"params": [network.bias], "lr": 0.25}]
    parts = Components(
        network=network,
        loader=batches(2),
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(groups, lr=0.1),
    )

    class Halve(Plugin):
        runs_before = ("Journal",)

        def on_exit_optimizer_update(self, run: Run) -> None:
            rate.mul_(0.5)

    engine = Engine(parts, RunConfig(epochs=1), [Journal(tmp_path / "run.journal"), Halve()])
    run = engine.run()
    assert (values_of(run, "lr/0"), values_of(run, "lr/1")) == ([0.5, 0.25], [0.25, 0.25])
    assert values_of(run, "lr") == []


def test_values_can_be_switched_off(tmp_path):
    """Then it records nothing of its own."""
    run = small_engine(3, [Journal(tmp_path / "run.journal", values=False)]).run()
    assert run.records() == []


def test_detours_are_in_the_file_under_the_name_that_users_see(tmp_path):
    """One state, whatever it was left from."""
    side = Side(Detour("side", ["after_step", "optimizer_update"], lambda run: True, lambda run: None))
    run = small_engine(3, [Journal(tmp_path / "run.journal"), side]).run()
    assert asked(tmp_path / "run.journal", "SELECT count(*) FROM transitions WHERE source = 'side'") == [
        (run.log.counts()["side"],)
    ]
