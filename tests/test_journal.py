"""The file of a log: what a run wrote is what is read back, and what is damaged, foreign or newer is refused."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import heptad.record.buffer
from builders import Plan, Witness, drive, plans, small_engine
from heptad import EngineError, Plugin, PluginError, Run, TransitionLog
from heptad.errors import LogError
from heptad.history.journal import schema
from heptad.history.journal.reader import FileSource
from heptad.history.journal.writer import FileWriter
from heptad.history.source import Source
from heptad.plugin import Detour
from heptad.table import evaluation_table
from heptad_plugins import Journal


def write(path: Path, run: Run) -> None:
    """Write what a run's memory holds to a file, at once."""
    memory = run._buffer
    writer = FileWriter(path, run.table, run.id)
    writer.begin(memory.view().first, None)
    writer.transitions(memory.view().chunks, memory.failure)
    writer.events(memory.events(0))
    writer.record(memory.columns(0))
    writer.calls(memory.calls_since(0))
    writer.state(memory.facts, memory.windows, memory.stops, memory.failure)
    writer.commit()
    writer.close(finished=True)


def assert_same(path: Path, run: Run) -> None:
    """Every answer is the same from a file as from the live run."""
    live, source = run._buffer, FileSource(path)
    log = TransitionLog(source)
    assert list(log) == list(run.log)
    assert (source.view().first, source.view().end) == (live.view().first, live.view().end)
    assert log.notes() == run.log.notes()
    assert same_values(source.values(), live.values())
    assert same_values(source.values(3), live.values(3))
    assert source.failure == live.failure
    assert list(source.windows) == list(live.windows)
    assert set(source.stops) == set(live.stops)
    assert dict(source.facts) == live.facts
    assert source.calls(0, 1 << 62) == live.calls(0, 1 << 62)
    assert source.calls(3, 7) == live.calls(3, 7)
    assert log.durations() == run.log.durations()
    assert log.counts() == run.log.counts()
    assert log.path() == run.log.path()
    for transition in run.log:
        assert str(log.explain(transition.seq)) == str(run.log.explain(transition.seq))


def same_values(one: list[Any], other: list[Any]) -> bool:
    """Compare recorded values, bit by bit; NaN is the same as NaN."""

    def plain(values: list[Any]) -> list[Any]:
        return [replace(value, value=value.value.hex()) for value in values]

    return plain(one) == plain(other)


def rows(path: Path, statement: str, *values: Any) -> list[Any]:
    """Ask a file in SQL."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def assert_rows_say_the_same(path: Path, run: Run) -> None:
    """The views say in SQL what the library says."""
    assert rows(
        path,
        'SELECT seq, time_ns, duration_ns, source, dest, guards, epoch, batch_index, step, "update" FROM transitions '
        "ORDER BY seq",
    ) == [
        (t.seq, t.time_ns, t.duration_ns, t.source, t.dest, as_json(t.guards), t.epoch, t.batch_index, t.step, t.update)
        for t in run.log
    ]
    assert rows(path, "SELECT seq, kind, text, time_ns FROM notes") == [
        (note.seq, note.kind, note.text, note.time_ns) for note in run.log.notes()
    ]


def as_json(guards: Any) -> str:
    return "{" + ", ".join(f'"{name}": {"true" if answer else "false"}' for name, answer in guards.items()) + "}"


class Talker(Witness):
    """Record values of every kind, and note something, some of them odd."""

    def on_exit_process_batch(self, run: Run) -> None:
        run.record("number", run.step)
        run.record("nan", float("nan"))
        run.record("inf", -math.inf)
        run.record("tensor", torch.tensor(run.step / 3))
        if run.step % 2:
            run.note(f"step {run.step}\n\0 'quoted' ü 漢")


@settings(max_examples=60)
@given(
    plan=plans(),
    chunk=st.sampled_from([3, 16, 1024]),
    flush_every=st.sampled_from([None, 1, 5]),
    traced=st.booleans(),
    pause=st.booleans(),
)
def test_a_run_written_by_journal_is_read_back_as_it_was(plan: Plan, chunk: int, flush_every: Any, traced: bool, pause):
    """Any run: transitions, notes, values, calls, failure, explanations, durations; in SQL too."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(heptad.record.buffer, "CHUNK", chunk)
        plan.config["trace_handlers"] = traced
        path = Path(folder) / "run.journal"
        engine, _ = plan.build(plugins=[Journal(path, flush_every), Talker()])
        run = engine.current
        error = None
        while error is None and pause and not run.ended and len(run.log) < 12:
            try:
                engine.run(until=lambda run: True)
            except Exception as raised:
                error = raised
        if error is None and not run.ended:
            drive(engine)
        assert run.ended
        assert_same(path, run)
        assert_rows_say_the_same(path, run)
        assert [path.name for path in Path(folder).iterdir()] == ["run.journal"]


def test_the_file_keeps_what_memory_drops(tmp_path):
    """The file holds all transitions, notes and calls, whatever `log_capacity` is."""
    small = small_engine(
        400, [Journal(tmp_path / "a", values=False), Talker()], log_capacity=1, trace_handlers=True, epochs=4
    )
    whole = small_engine(400, [Journal(tmp_path / "b", values=False), Talker()], trace_handlers=True, epochs=4)
    small.run(), whole.run()
    log = TransitionLog.load(tmp_path / "a")
    assert len(small.current.log) == 1 < len(log)
    assert log.path() == whole.current.log.path()
    assert [note.text for note in log.notes()] == [note.text for note in whole.current.log.notes()]
    calls = [(call.seq, call.who, call.moment) for call in FileSource(tmp_path / "a").calls(0, 1 << 62)]
    assert calls == [(call.seq, call.who, call.moment) for call in whole.current._buffer.calls(0, 1 << 62)]


def test_only_what_a_question_needs_is_read(tmp_path):
    """The last transitions of a file whose first chunk is damaged can be read; the first cannot."""
    path = written(tmp_path, steps=700)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE chunk SET body = zeroblob(30) WHERE seq = 0")
    connection.commit()
    connection.close()
    log = TransitionLog.load(path)
    assert log.tail(3)[-1].dest == "failed"
    with pytest.raises(LogError, match="is damaged"):
        log[0]


def test_a_view_is_the_file_at_one_moment(tmp_path):
    """What is written later is in the next one; chunks of the first are as they were."""
    path = tmp_path / "run.journal"
    engine = small_engine(600, epochs=1)
    engine.run(until=lambda run: run.step == 100)
    run = engine.current
    writer = FileWriter(path, run.table, run.id)
    writer.begin(0, None)
    writer.transitions(run._buffer.view().chunks)
    writer.commit()
    source = FileSource(path)
    before = source.view()
    times = [chunk.times().tolist() for chunk in before.chunks]
    engine.run(until=lambda run: run.step == 500)
    writer.transitions(run._buffer.view().chunks)
    assert source.view() is before
    writer.commit()
    after = source.view()
    assert (before.end, after.end) == (times_in(before), run._buffer.seq)
    assert [chunk.times().tolist() for chunk in before.chunks] == times
    assert list(TransitionLog(source)) == list(run.log)
    writer.close()


def times_in(view: Any) -> int:
    return sum(len(chunk.times()) for chunk in view.chunks)


def test_minus_zero_is_zero_in_the_file(tmp_path):
    """SQLite stores no sign of zero."""
    run, path = small_engine(1).current, tmp_path / "run"
    run.record("minus zero", -0.0)
    write(path, run)
    assert [math.copysign(1, value.value) for value in FileSource(path).values()] == [1]
    assert rows(path, "SELECT value, typeof(value) FROM recorded") == [(0, "real")]


def test_a_run_that_recorded_minus_zero_does_not_differ_from_its_file(tmp_path):
    """The sign that the file lacks is no difference."""
    run, path = small_engine(1).current, tmp_path / "run"
    run.record("minus zero", -0.0)
    write(path, run)
    assert not TransitionLog.load(path).diff(run.log)


def test_text_with_half_a_surrogate_pair_is_written_out(tmp_path):
    """SQLite holds no such text, and a name of a file that is not UTF-8 must not end a run."""
    odd, written_out = "caf\udce9 ü \U0001f600", "caf\\udce9 ü \U0001f600"
    engine = small_engine(1)
    engine.on_exit("after_step")(lambda run: run.note(odd))
    engine.on_exit("after_step")(lambda run: run.record(odd, 1.0))

    def fails(run: Run) -> None:
        raise ValueError(odd)

    engine.on_exit("after_loop")(fails)
    drive(engine)
    path = tmp_path / "run"
    write(path, engine.current)
    source = FileSource(path)
    assert source.events(0)[0].text == odd  # an event is read from its JSON, which can hold it
    assert [value.name for value in source.values()] == [written_out]
    assert source.failure is not None
    assert source.failure.error == f"ValueError: {written_out}"
    assert rows(path, "SELECT text FROM notes LIMIT 1") == [(written_out,)]
    assert rows(path, "SELECT name, value FROM recorded") == [(written_out, 1.0)]


def test_a_name_with_half_a_surrogate_pair_is_found_again(tmp_path):
    """By a writer that continues the file: names are unique in it."""
    run, path = small_engine(1).current, tmp_path / "run"
    run.record("caf\udce9", 1.0)
    write(path, run)
    writer = FileWriter(path, run.table, run.id)
    writer.begin(0, None)
    writer.record(run._buffer.columns(0))
    writer.close(finished=True)
    assert [value.name for value in FileSource(path).values()] == ["caf\\udce9"] * 2


# -- what is no log


def written(folder: Path, steps: int = 3, traced: bool = False) -> Path:
    """Return the file of a finished run."""
    path = folder / "run.journal"
    engine = small_engine(steps, [Talker()], trace_handlers=traced)
    engine.on_exit("after_loop")(lambda run: 1 / 0)
    drive(engine)
    write(path, engine.current)
    return path


def foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (a)")
    connection.commit()
    connection.close()


def set_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def alter(statement: str) -> Any:
    def do(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()

    return do


WRONG = {
    "missing": (lambda path: path.unlink(), "there is no such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a directory without log.journal"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("seq,source\n" * 50), "not an SQLite database"),
    "another program's": (lambda path: (path.unlink(), foreign_database(path)), "of another program"),
    "cut in the head": (lambda path: path.write_bytes(path.read_bytes()[:60]), "damaged: it ends after 60 bytes"),
    "cut in the middle": (cut, r"damaged: it ends after \d+ of \d+ bytes"),
    "newer": (set_version, "has version 3 of the schema, this Heptad knows up to 2"),
    "without its table": (alter("DELETE FROM meta WHERE key = 'table'"), "damaged: its 'table' is missing"),
    "another table": (alter("UPDATE meta SET value = '[]' WHERE key = 'table'"), "does not fit its checksum"),
    "a state of another name": (alter("UPDATE meta SET value = replace(value, 'idle', 'idly')"), "its checksum"),
    "a dropped table": (alter("DROP TABLE chunk"), "damaged: no such table"),
    "another count": (alter("UPDATE chunk SET count = count + 1"), "damaged: the head of the chunk"),
    "another base": (alter('UPDATE chunk SET "update" = 7'), "damaged: the head of the chunk"),
    "another body": (alter("UPDATE chunk SET body = zeroblob(9)"), "damaged: Error -3"),
    "a short body": (alter("UPDATE chunk SET body = x'789c030000000001'"), "holds 0 bytes"),
    "other facts": (alter("UPDATE session SET facts = '{}'"), "does not fit its checksum"),
    "another note": (alter("UPDATE note SET text = 'all is well'"), "an event of transition .* its checksum"),
    "another window": (alter("UPDATE accumulation SET steps = 9"), "a window's size does not fit its checksum"),
    "another stop": (alter("INSERT INTO stop VALUES (3, 0)"), "a stop does not fit its checksum"),
    "another failure": (alter("UPDATE failure SET state = 'after_step'"), "the failure does not fit its checksum"),
    "a missing chunk": (alter("DELETE FROM chunk WHERE seq = 1024"), "transitions between 1024 and 2048 are missing"),
    "a missing chunk at its beginning": (alter("DELETE FROM chunk WHERE seq = 0"), "between 0 and 1024 are missing"),
    "a missing chunk at its end": (alter("DELETE FROM chunk WHERE seq = 2048"), r"between 2048 and \d+ are missing"),
    "no chunk": (alter("DELETE FROM chunk"), r"transitions between 0 and 17 are missing"),
    "a value of letters": (
        alter("UPDATE value SET value = 'x' WHERE number = 2"),
        "value 2 is 'x', which is no number",
    ),
    "a value of bytes": (alter("UPDATE value SET value = x'00' WHERE number = 2"), r"value 2 is b'\\x00', which is no"),
    "a value at no step": (alter("UPDATE value SET step = 'x' WHERE number = 2"), "value 2 has .* whole numbers"),
    "a call of no length": (alter("UPDATE call SET duration_ns = 'x'"), "a call in the turn of .* whole numbers"),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_file_that_is_not_a_sound_log_is_refused(how, tmp_path):
    """The message names the file and what was found, and the file is left as it is."""
    spoil, message = WRONG[how]
    path = written(tmp_path, steps=600 if "missing chunk" in how else 3, traced="call" in how)
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(LogError, match=message) as caught:
        explained(TransitionLog.load(path))
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, EngineError)
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bits_are_never_read_as_another_run(seed, tmp_path):
    """A byte changed anywhere in the file: an error that says so, or the same log."""
    path = written(tmp_path)
    expected = explained(TransitionLog.load(path))
    content = bytearray(path.read_bytes())
    place = (seed * 7919) % 100 if seed < 20 else (seed * 104_729) % len(content)
    content[place] ^= 1 << seed % 8
    path.write_bytes(content)
    with suppress(LogError):
        assert explained(TransitionLog.load(path)) == expected
    assert path.read_bytes() == bytes(content)


def explained(log: TransitionLog) -> list[str]:
    return [str(log.explain(transition.seq)) for transition in log]


def test_a_file_of_which_only_the_tables_for_sql_are_damaged_is_read(tmp_path):
    """The chunks are the truth; the rows are for people."""
    path = written(tmp_path)
    expected = list(TransitionLog.load(path))
    alter("DELETE FROM transition")(path)
    assert list(TransitionLog.load(path)) == expected


# -- reading leaves no trace


def test_reading_a_finished_file_makes_no_file_beside_it(tmp_path):
    """A finished journal is one plain file; copied alone it is whole."""
    path = written(tmp_path)
    before = path.read_bytes()
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(path, alone / "copy")
    assert list(TransitionLog.load(alone / "copy")) == list(TransitionLog.load(path))
    assert [path.name for path in alone.iterdir()] == ["copy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "run.journal"]
    assert path.read_bytes() == before


@pytest.fixture
def died(tmp_path: Path) -> Path:
    """A file as a process that was killed leaves it: what it wrote last lies beside it."""
    live = tmp_path / "live"
    live.mkdir()
    engine = small_engine(50)
    run = engine.run()
    writer = FileWriter(live / "run.journal", run.table, run.id)
    writer.begin(0, None)
    writer.transitions(run._buffer.view().chunks)
    writer.commit()
    dead = tmp_path / "dead"
    shutil.copytree(live, dead)
    writer.close()
    return dead / "run.journal"


def test_a_file_on_which_a_run_died_is_read_and_left_alone(died: Path):
    """Neither the file nor what lies beside it is altered, and it can be read again."""
    assert died.with_name("run.journal-wal").stat().st_size > 0
    names = ["run.journal", "run.journal-wal"]
    before = [died.with_name(name).read_bytes() for name in names]
    for _ in range(2):
        log = TransitionLog.load(died)
        assert log.path()[-1] == "finished"
        del log
        assert [died.with_name(name).read_bytes() for name in names] == before


def test_a_writer_may_continue_where_another_died(died: Path):
    """A dead process holds no lock."""
    source = FileSource(died)
    writer = FileWriter(died, source.table, source.run)
    assert not writer.new
    assert writer.end == source.view().end
    writer.close()


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    """In the same process too; the message says who writes."""
    run = small_engine(3).run()
    first = FileWriter(tmp_path / "run", run.table, run.id)
    first.begin(0, None)
    first.commit()
    with pytest.raises(LogError, match=rf"is being written \(process {os.getpid()} on"):
        FileWriter(tmp_path / "run", run.table, run.id)
    source = FileSource(tmp_path / "run")
    assert source.writer == (os.getpid(), platform.node())
    first.transitions(run._buffer.view().chunks)
    first.close()
    assert source.writer is None
    FileWriter(tmp_path / "run", run.table, run.id).close()
    assert list(TransitionLog.load(tmp_path / "run")) == list(run.log)


def test_a_file_with_another_table_is_refused(tmp_path):
    """The numbers of its arcs would mean something else."""
    path = written(tmp_path)
    with pytest.raises(LogError, match="another table of states"):
        FileWriter(path, evaluation_table(), "x")


def test_a_table_that_no_journal_holds_is_refused_before_there_is_a_file(tmp_path):
    """It could be written and not be read: 100 detours that follow one state have some 5,000 arcs between them."""

    class Busy(Plugin):
        def detours(self):
            names = [f"detour_{number}" for number in range(100)]
            return [Detour(name, "optimizer_update", lambda run: False, lambda run: None) for name in names]

    with pytest.raises(PluginError, match=r"run was not made: a journal holds a table of 1,024 states and 4,096 arcs"):
        small_engine(2, [Busy(), Journal(tmp_path / "run")]).run()
    assert list(tmp_path.iterdir()) == []


def test_the_schema_is_documented():
    """Every table and view is named in the page and in the module, and the version stands in the file's head."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in schema.statements():
            connection.execute(statement)
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        views = ("transitions", "notes", "recorded", "calls", "superseded")
        columns = [row[1] for view in views for row in connection.execute(f"PRAGMA table_info({view})")]
    names = [name for (name,) in rows]
    assert len(names) > 20
    assert f"`user_version` is the version of the schema, {schema.VERSION}." in PAGE
    for name in names:
        shown = "superseded_…" if name.startswith("superseded_") else name
        assert f"`{shown}`" in (schema.__doc__ or "")
        assert f"`{shown}`" in PAGE
    assert all(f"`{column}`" in PAGE for column in columns)
    assert len(columns) > 20


def test_memory_and_file_are_sources_alike(tmp_path):
    """Both have all that a `Source` has."""
    names = [name for name in vars(Source) if not name.startswith("_")]
    assert {"view", "events", "values", "calls", "failure"} <= set(names)
    for source in (FileSource(written(tmp_path)), small_engine(1).current._buffer):
        assert all(hasattr(source, name) for name in names)


def test_what_is_superseded_is_what_came_after_the_checkpoint(tmp_path):
    """Wherever it was taken: stops asked for in a body's turn and on entry, windows, notes, values."""
    engine = small_engine(8, [Talker()], accumulation=2)
    engine.on_exit("before_epoch")(lambda run: run.set_accumulation(6))
    engine.on_exit("process_batch")(lambda run: run.set_accumulation(5) if run.step == 4 else None)
    engine.on_enter("after_step")(lambda run: run.stop("on entry") if run.step in (2, 4) else None)
    engine.on_exit("process_batch")(lambda run: run.stop("on exit") if run.step == 3 else None)
    run = engine.run()
    asked_for = [note.seq for note in run.log.notes("stop")]
    assert len(asked_for) == len(run._buffer.stops) == 3
    assert sum(stop > seq for stop, seq in zip(run._buffer.stops, asked_for, strict=True)) == 2
    write(tmp_path / "whole", run)
    for seq in range(1, run._buffer.seq + 1):
        path = Path(shutil.copy(tmp_path / "whole", tmp_path / f"{seq}"))
        writer = FileWriter(path, run.table, run.id)
        writer.begin(seq, "a checkpoint")
        kept = [value for value in run.records() if value.seq < seq]
        writer.supersede(seq, len(kept))
        writer.commit()
        assert writer.end == seq
        writer.close()
        source = FileSource(path)
        assert list(TransitionLog(source)) == list(run.log)[:seq]
        assert source.stops == [stop for stop, note in zip(run._buffer.stops, asked_for, strict=True) if note < seq]
        assert source.windows == [window for window in run._buffer.windows if window[0] < seq]
        assert source.events(0) == [note for note in run.log.notes() if note.seq < seq]
        assert same_values(source.values(), kept)


# -- the page


PAGE = (Path(__file__).parent.parent / "docs" / "journal.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^([^\n]+)\n\n```sql\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that has something to say to each question."""
    path = tmp_path_factory.mktemp("asked") / "run.journal"
    small_engine(50, [Journal(path), Talker()], epochs=5, accumulation=2, trace_handlers=True).run()
    alter("INSERT INTO superseded_transition SELECT 1, * FROM transition WHERE seq > 900")(path)
    return path


@pytest.mark.parametrize(("question", "statement"), QUESTIONS)
def test_the_questions_of_the_page_are_answered(question, statement, asked):
    """Each example is legal, and its answer is not empty."""
    assert rows(asked, statement), question


def test_the_answers_are_those_of_the_library(asked):
    """The first two questions of the page, asked both ways."""
    log = TransitionLog.load(asked)
    time, around = (statement for _, statement in QUESTIONS[:2])
    assert {(source, stays, round(seconds * 1e9)) for source, stays, seconds, _ in rows(asked, time)} == {
        (state, stays.count, stays.total_ns) for state, stays in log.durations().items()
    }
    assert [row[0] for row in rows(asked, around)] == [t.seq for t in log.where(update=range(99, 101))]
    assert len(QUESTIONS) == PAGE.count("```sql")


def test_update_is_looked_up_in_an_index(asked):
    """Not by reading all rows."""
    plan = " ".join(row[-1] for row in rows(asked, f"EXPLAIN QUERY PLAN {QUESTIONS[1][1]}"))
    assert "USING INDEX transition_update" in plan
