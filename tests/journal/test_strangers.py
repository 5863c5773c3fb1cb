"""A journal from a stranger is read as it is, or refused with a `LogError`, in bounded time."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from builders import small_engine
from heptad import EngineError, LogError, PluginError, TransitionLog
from heptad.cli.main import main
from heptad.history.journal import stranger
from heptad.record.format_1 import from_format_1
from heptad_plugins import Checkpoint, Journal
from journal.crafted import Crafted, sound

FOREVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound(tmp_path_factory.mktemp("sound") / "run.journal")


@pytest.fixture
def crafted(original: Path, tmp_path: Path) -> Crafted:
    return Crafted(original, tmp_path / "crafted.journal")


@pytest.mark.parametrize("table", ["note", "meta", "name", "superseded_note"])
def test_a_view_does_not_answer_for_a_table(table, crafted):
    crafted.sql(f"DROP TABLE {table}", f"CREATE VIEW {table} AS {FOREVER} SELECT i AS seq, i AS key FROM n")
    with pytest.raises(LogError, match=f"no such table or index: {table}"):
        TransitionLog.load(crafted.path)


def test_a_trigger_is_refused_by_readers_and_writers(crafted):
    crafted.sql("CREATE TRIGGER t AFTER INSERT ON note BEGIN DELETE FROM value; END")
    with pytest.raises(LogError, match="it has the trigger 't'"):
        TransitionLog.load(crafted.path)


def test_a_view_of_a_users_own_is_fine(crafted, original):
    crafted.sql("CREATE VIEW mine AS SELECT * FROM value")
    assert list(TransitionLog.load(crafted.path)) == list(TransitionLog.load(original))


@pytest.mark.parametrize("count", [20_000_000, 1025, 0, -1])
def test_a_head_that_says_too_many_transitions_is_refused(count, crafted):
    crafted.set("chunk", "count", count)
    with pytest.raises(LogError, match=f"says {count} transitions"):
        TransitionLog.load(crafted.path)


def test_a_body_that_inflates_beyond_its_head_is_refused(crafted):
    crafted.body(bytes(50_000_000))
    with pytest.raises(LogError, match=r"holds \d+ bytes, not"):
        TransitionLog.load(crafted.path)


COMMANDS = ["show", "stats", "explain 0", "diagram", "diff JOURNAL", "export -o out", "export --format trace -o -"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_is_no_journal(command, original, tmp_path, monkeypatch, capsys):
    """And is not waited for, whichever of two it is."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(LogError, match="no regular file"):
        TransitionLog.load("pipe")
    name, *words = [str(original) if word == "JOURNAL" else word for word in command.split()]
    assert main([name, "pipe", *words]) == 2
    if name == "diff":
        assert main([name, *words, "pipe"]) == 2
    assert "no regular file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "loop"])
def test_a_path_that_cannot_be_looked_at_is_refused(name, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(LogError, match=r"cannot be read: (File name too long|Too many levels|embedded null byte)"):
        TransitionLog.load(tmp_path / name)


def test_no_file_is_removed_that_something_beside_a_journal_names(original, tmp_path):
    """SQLite removes what a `-journal` names as the list of files of one transaction."""
    path, undo, mine = tmp_path / "run.journal", tmp_path / "run.journal-journal", tmp_path / "mine"
    shutil.copy(original, path)
    mine.write_text("mine")
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(mine)
    head = magic + bytes(12) + (512).to_bytes(4, "big") + (4096).to_bytes(4, "big")
    tail = (1).to_bytes(4, "big") + name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + magic
    undo.write_bytes(head.ljust(512, b"\0") + tail)
    with pytest.raises(PluginError, match="names a further file"):
        small_engine(3, [Journal(path, overwrite=True)]).run()
    with pytest.raises(LogError, match="names a further file"):
        TransitionLog.load(path)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_was_being_made_when_its_process_was_killed_is_made_anew(whole, original, tmp_path):
    """SQLite writes its first page first, and keeps beside it that nothing was there."""
    path, undo = tmp_path / "run.journal", tmp_path / "run.journal-journal"
    path.write_bytes(original.read_bytes() if whole else original.read_bytes()[:4096])
    numbers = (0).to_bytes(4, "big") + bytes(4) + bytes(4) + (512).to_bytes(4, "big") + (4096).to_bytes(4, "big")
    undo.write_bytes((bytes.fromhex("d9d505f920a163d7") + numbers).ljust(512, b"\0"))
    for suffix in ("", "-journal"):
        shutil.copy(f"{path}{suffix}", tmp_path / f"copy{suffix}")
    with closing(sqlite3.connect(tmp_path / "copy")) as connection:  # as SQLite has it
        assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    with pytest.raises(LogError):
        TransitionLog.load(path)
    run = small_engine(3, [Journal(path)]).run()
    assert list(TransitionLog.load(path)) == list(run.log)
    assert not undo.exists()


def test_a_pipe_is_not_written_to_nor_removed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EngineError, match="no regular file"):
        sound(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", [b"caf\xe9", b'it\'s "quoted"', b"a\nline", b"%20?#&mode=memory", b"x" * 200])
def test_a_journal_is_read_whatever_its_folder_is_called(name, original, tmp_path):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    path = Path(shutil.copy(original, folder / "run.journal"))
    assert list(TransitionLog.load(path)) == list(TransitionLog.load(original))


@pytest.mark.parametrize(
    ("objects", "text", "says"),
    [
        (1000, "CREATE VIEW {name} AS SELECT 1", "takes more steps"),
        (1, "CREATE VIEW {name} AS SELECT 1 IN (" + "1," * 10_000 + "1)", "too big|malformed database schema"),
    ],
)
def test_a_schema_larger_than_any_is_not_parsed(objects, text, says, crafted):
    """SQLite does that before the first statement, and takes 80 bytes for each byte."""
    connection = sqlite3.connect(crafted.path)
    connection.execute("PRAGMA writable_schema = ON")
    for name in (f"v{number}" for number in range(objects)):
        row = ("view", name, name, 0, text.format(name=name))
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    with pytest.raises(LogError, match=says):
        TransitionLog.load(crafted.path)


def test_a_file_with_many_views_is_read(crafted):
    crafted.sql(*(f"CREATE VIEW v{number} AS SELECT {number}" for number in range(60)))
    assert len(TransitionLog.load(crafted.path)) > 0


# -- rows without a checksum, and rows that are not there


def test_a_chunk_with_a_number_below_0_is_not_passed_over(crafted):
    crafted.sql(
        'INSERT INTO chunk SELECT -5, count, clock, "offset", epoch, batch_index, step, "update", "window", skipped, '
        "gaps, crc, body FROM chunk"
    ).seal("chunk")
    with pytest.raises(LogError, match="the head of the chunk at transition -5 says"):
        TransitionLog.load(crafted.path)


@pytest.mark.parametrize("table", ["name", "handler"])
def test_what_rows_name_is_missed_where_it_is_gone(table, crafted):
    crafted.sql(f"DELETE FROM {table} WHERE number = 0")
    log = TransitionLog.load(crafted.path)
    with pytest.raises(LogError, match="the name or the handler of number 0 is missing"):
        log.values() if table == "name" else log.calls()


@pytest.mark.parametrize(("where", "which"), [("number = 3", "3 to 3"), ("number < 2", "0 to 1")])
def test_recorded_values_are_missed_where_they_are_gone(where, which, crafted):
    crafted.sql(f"DELETE FROM value WHERE {where}")
    log = TransitionLog.load(crafted.path)
    for question in (log.values, lambda: log.diff(log)):
        with pytest.raises(LogError, match=f"the recorded values {which} are missing"):
            question()


@pytest.mark.parametrize("place", [1 << 62, -(1 << 62)])
def test_places_of_values_that_no_run_reaches_are_refused(place, crafted):
    crafted.sql("UPDATE value SET seq = ? WHERE number = 3", values=(place,))
    with pytest.raises(LogError, match=r"a recorded value has .* in place of whole numbers"):
        TransitionLog.load(crafted.path).source.value_block(0, 100)


def test_a_gap_in_the_values_that_is_as_long_as_a_block_is_seen(crafted, monkeypatch):
    """Values are read in blocks, and a block without a value is the end only where nothing follows."""
    monkeypatch.setattr("heptad.history.collected.BLOCK", 4)
    crafted.sql("DELETE FROM value WHERE number BETWEEN 4 AND 7")
    with pytest.raises(LogError, match=r"recorded values between 4 and \d+ are missing"):
        TransitionLog.load(crafted.path).verdict()


@pytest.mark.parametrize(("column", "value"), [("edge", "leave"), ("state", "sleep")])
def test_a_handler_of_another_form_is_refused(column, value, crafted):
    crafted.sql(f"UPDATE handler SET {column} = ?", values=(value,))
    with pytest.raises(LogError, match=r"the handler \d is called on"):
        TransitionLog.load(crafted.path).calls()


@pytest.mark.parametrize("seq", [-7, 3])
def test_a_note_whose_number_is_damaged_does_not_disappear(seq, crafted):
    crafted.sql(f"UPDATE note SET seq = {seq} WHERE number = 2")
    log = TransitionLog.load(crafted.path)
    for question in (log.notes, lambda: log.explain(20)):
        with pytest.raises(LogError, match=f"an event of transition {seq} does not fit its checksum"):
            question()


def test_a_note_that_says_it_is_another_is_refused(crafted):
    crafted.set("note", "seq", 3, "number = 2")
    with pytest.raises(LogError, match="an event of transition 3 says that it is another one"):
        TransitionLog.load(crafted.path).notes()


def failed(**change: object) -> str:
    failure = {"seq": 2, "state": "idle", "moment": "body", "who": "", "guard": "", "error": "", "counters": [0] * 5}
    return json.dumps({"event": "Failed", "seq": 2, "time_ns": 1, "failure": {**failure, "guards": {}, **change}})


@pytest.mark.parametrize("change", [{"moment": "x"}, {"guards": 5}, {"guards": {"a": 1}}, {"counters": ["a"]}])
def test_an_event_of_a_failure_of_another_form_is_refused(change, crafted):
    for column, value in {"seq": 2, "time_ns": 1, "kind": "failure", "data": failed(**change)}.items():
        crafted.set("note", column, value, "number = 2")
    with pytest.raises(LogError, match=r"describes no failure|has not the fields of one"):
        TransitionLog.load(crafted.path).notes()


@pytest.mark.parametrize("writer", [{"pid": 2**60, "host": "h"}, {"pid": 0, "host": "h"}, {"pid": 1}, [1], "x"])
def test_a_writer_that_is_no_process_is_refused(writer, crafted):
    """It is not asked of the system, which would take 0 for all of a group."""
    crafted.sql("INSERT INTO meta VALUES ('writer', ?, 0)", values=(json.dumps(writer),)).seal("meta")
    with pytest.raises(LogError, match="what it says of the process that writes it"):
        _ = TransitionLog.load(crafted.path).source.writer


# -- time and memory


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal whose tables have several pages."""
    return sound(tmp_path_factory.mktemp("long") / "run.journal", 300)


@pytest.mark.parametrize("table", ["note", "value"])
def test_pages_that_lead_to_one_page_are_not_followed(table, long, tmp_path):
    log = TransitionLog.load(Crafted(long, tmp_path / "crafted.journal").lead_astray(table).path)
    with pytest.raises(LogError, match=r"its pages are out of order: \(\d,\) comes after"):
        log.notes() if table == "note" else log.values()


def test_a_question_ends_that_takes_more_steps_than_a_file_of_its_size_has_rows_for(long, monkeypatch):
    monkeypatch.setattr(stranger, "_STRIDE", 100)
    monkeypatch.setattr(stranger, "_STEPS", 500)
    monkeypatch.setattr(stranger, "STEPS_A_BYTE", 0)
    with pytest.raises(LogError, match="takes more steps than a file of its size has rows for"):
        TransitionLog.load(long).values()


def test_ctrl_c_while_sqlite_reads_is_no_damage(long, monkeypatch):
    """It comes while SQLite calls back, which knows no exception but only that it was interrupted."""
    pressed = []

    def count(limits):
        if pressed:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(stranger, "_STRIDE", 100)
    monkeypatch.setattr(stranger.Limits, "_count", count)
    log = TransitionLog.load(long)
    pressed.append(True)
    with pytest.raises(KeyboardInterrupt):
        log.values()


def test_no_sound_journal_comes_near_the_bound_of_steps(long, monkeypatch):
    monkeypatch.setattr(stranger, "_STRIDE", 100)
    monkeypatch.setattr(stranger, "_STEPS", 0)
    monkeypatch.setattr(stranger, "STEPS_A_BYTE", stranger.STEPS_A_BYTE // 4)
    log = TransitionLog.load(long)
    assert (len(log.values()), len(log.notes()), len(log.calls())) == (599, 301, 902)


def test_a_field_longer_than_the_file_is_not_read(crafted, monkeypatch):
    """One of 3 MB, which a few bytes stand for where the pages of a text lead to one another."""
    crafted.sql("UPDATE note SET text = ? WHERE number = 1", values=("x" * 3_000_000,)).seal("note")
    assert len(TransitionLog.load(crafted.path).notes()[0].text) < 100  # the words are in `data` too
    monkeypatch.setattr(stranger, "_size", lambda path: 1000)
    with pytest.raises(LogError, match=r"too big"):
        TransitionLog.load(crafted.path).notes()


def test_texts_are_not_longer_together_than_the_file(crafted, monkeypatch):
    for number in range(1, 5):
        crafted.sql(f"UPDATE note SET text = ? WHERE number = {number}", values=("x" * 600_000,))
    crafted.seal("note")
    assert len(TransitionLog.load(crafted.path).notes()) == 7
    monkeypatch.setattr(stranger, "_size", lambda path: 1000)
    with pytest.raises(LogError, match="its texts are longer together than the file"):
        TransitionLog.load(crafted.path).notes()


@pytest.mark.parametrize("inside", ["[" * 900 + "0" + "]" * 900, "[" + "[]," * 1_100_000 + "[]]"])
def test_facts_that_hold_too_much_are_refused(inside, crafted):
    crafted.edit("session", "facts", lambda facts: facts | {"x": "@"})
    crafted.sql("UPDATE session SET facts = replace(facts, '\"@\"', ?)", values=(inside,)).seal("session")
    with pytest.raises(LogError, match=r"nested in more than 100 levels|more than 1,048,576 lists and objects"):
        TransitionLog.load(crafted.path)


def test_a_note_may_hold_as_many_brackets_as_it_likes(tmp_path):
    engine = small_engine(1, [Journal(tmp_path / "run.journal")])
    engine.on_exit("after_step")(lambda run: run.note('\\"[' * 1_100_000))
    assert engine.run().log.notes() == TransitionLog.load(tmp_path / "run.journal").notes()


def test_a_table_larger_than_any_is_refused(crafted):
    crafted.edit("meta", "value", lambda table: table | {"arcs": table["arcs"] * 300}, "key = 'table'")
    with pytest.raises(LogError, match="a journal holds a table of 1,024 states and 4,096 arcs at most, this one has "):
        TransitionLog.load(crafted.path)


def edited(rows: list[list[object]], place: tuple[int, int], value: object) -> list[list[object]]:
    return [[value if (i, j) == place else old for j, old in enumerate(row)] for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("states", lambda rows: edited(rows, (1, 3), 7), "no text"),
        ("states", lambda rows: edited(rows, (1, 3), {"a": 1}), "no text"),
        ("states", lambda rows: edited(rows, (1, 2), None), "no text"),
        ("states", lambda rows: [row for row in rows if row[0] != "failed"], "no state 'failed'"),
        ("arcs", lambda rows: edited(rows, (0, 2), 7), "no text"),
        ("arcs", lambda rows: edited(rows, (0, 0), None), "no text"),
        ("guards", lambda names: [7, *names], "no text"),
        ("origin", lambda _: {"x": "1"}, "no number"),
        ("origin", lambda _: [], "has no attribute"),
        ("states", lambda _: 7, "has no len"),
    ],
)
def test_a_table_of_another_form_is_refused(part, change, said, crafted):
    crafted.edit("meta", "value", lambda table: table | {part: change(table[part])}, "key = 'table'")
    with pytest.raises(LogError, match=said):
        TransitionLog.load(crafted.path)


def test_pauses_beyond_all_time_are_refused(crafted):
    crafted.set("chunk", "gaps", json.dumps([[0, 1 << 60]] * 5))
    with pytest.raises(LogError, match="was paused beyond all time"):
        TransitionLog.load(crafted.path)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("detach", " raised ; " * 5_000 + "x"),
        ("detach", " raised ; " * 5_000 + "x is called no more"),
        ("resume", "the plugin x" + " cannot take back its state: " * 20_000),
    ],
)
def test_a_sentence_of_format_1_is_parsed_in_one_pass(kind, text):
    """Each of these took minutes."""
    assert from_format_1(0, kind, text, 0).seq == 0


def test_facts_that_are_no_json_numbers_are_printed(crafted, original, capsys):
    crafted.edit("session", "facts", lambda facts: facts | {"patience": float("nan")})
    assert main(["diff", str(original), str(crafted.path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["facts"][0]["there"] == "NaN"


# -- writers


def test_a_run_that_starts_again_reads_what_it_writes_to(crafted, tmp_path):
    crafted.sql("UPDATE chunk SET count = 'x'").seal("chunk")
    plugins = [Journal(crafted.path), Checkpoint(tmp_path / "runs")]
    with pytest.raises(PluginError, match="is damaged: the head of a chunk has"):
        small_engine(3, plugins).run(resume="auto")
