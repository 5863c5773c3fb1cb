"""Journals that the version before format 2 wrote: they are read as that version read them, and continued.

`tests/journal/format_1/write.py` says what they hold. One has a run that finished; the other one that failed, was
resumed from before the failure, and failed again.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from heptad import LogError, TransitionLog
from heptad.history.journal.reader import FileSource
from heptad.history.journal.writer import FileWriter
from heptad.record.events import Note, Stop
from heptad.table import evaluation_table

FOLDER = Path(__file__).parent / "journal" / "format_1"
NAMES = ["finished", "failed"]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def path(name: str, tmp_path: Path) -> Path:
    """Return a copy of a kept journal."""
    return Path(shutil.copy(FOLDER / f"{name}.journal", tmp_path))


@pytest.fixture
def expected(name: str) -> dict[str, Any]:
    """Return what the version that wrote it read in it."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def log(path: Path) -> TransitionLog:
    return TransitionLog.load(path)


@pytest.fixture
def source(path: Path) -> FileSource:
    return FileSource(path)


def transitions(log: TransitionLog) -> list[list[Any]]:
    return [
        [t.seq, t.time_ns, t.duration_ns, t.source, t.dest, dict(t.guards), t.epoch, t.batch_index, t.step, t.update]
        for t in log
    ]


def values(source: FileSource) -> list[list[Any]]:
    return [[v.name, v.value.hex(), v.seq, v.epoch, v.step, v.update] for v in source.values()]


def in_sql(path: Path, statement: str) -> list[list[Any]]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [list(row) for row in connection.execute(statement)]
    finally:
        connection.close()


def test_the_path_is_the_same(log: TransitionLog, expected: dict[str, Any]):
    assert log.path() == expected["path"]


def test_transitions_are_the_same(log: TransitionLog, expected: dict[str, Any]):
    """With their times, durations, guards and counters."""
    assert transitions(log) == expected["transitions"]


def test_recorded_values_are_the_same(source: FileSource, expected: dict[str, Any]):
    """Also -0.0, for which format 1 had a code of its own, and NaN."""
    assert values(source) == expected["values"]
    assert {"-0x0.0p+0", "nan"} <= {value for _, value, *_ in expected["values"]}


def test_calls_of_handlers_are_the_same(source: FileSource, expected: dict[str, Any]):
    calls = source.calls(0, source.view().end)
    assert [[c.seq, c.who, c.moment, c.state, c.time_ns, c.duration_ns] for c in calls] == expected["calls"]
    assert calls


def test_notes_are_at_the_same_places(log: TransitionLog, expected: dict[str, Any]):
    assert [[note.seq, note.time_ns] for note in log.notes()] == [[seq, at] for seq, _, _, at in expected["notes"]]


def test_a_note_with_half_a_surrogate_pair_is_the_same(log: TransitionLog, expected: dict[str, Any]):
    """Format 1 had a code of its own for such text."""
    assert "caf\udce9 漢" in [note.text for note in log.notes()]
    assert "caf\udce9 漢" in [text for _, _, text, _ in expected["notes"]]


def test_notes_are_shown_in_sql(path: Path, expected: dict[str, Any]):
    plain = [note for note in expected["notes"] if "\udce9" not in note[2]]
    shown = in_sql(path, "SELECT seq, kind, text, time_ns FROM notes")
    assert [note for note in shown if "udce9" not in note[2]] == plain


def test_what_the_run_was_asked_for_is_the_same(source: FileSource, expected: dict[str, Any]):
    assert (source.run, dict(source.facts)) == (expected["run"], expected["facts"])


def test_windows_and_stops_are_the_same(source: FileSource, expected: dict[str, Any]):
    assert [list(window) for window in source.windows] == expected["windows"]
    assert list(source.stops) == expected["stops"]


def test_the_failure_is_the_same(source: FileSource, expected: dict[str, Any]):
    failure = source.failure
    assert expected["failure"] == (
        failure
        and [
            *(failure.seq, failure.state, failure.moment, failure.who, failure.guard, failure.error),
            list(failure.counters),
            failure.guards,
        ]
    )


def test_every_transition_is_explained(log: TransitionLog):
    assert all(log.explain(transition.seq).tried for transition in log if transition.dest != "failed")


def test_reading_leaves_the_file_alone(path: Path):
    before = path.read_bytes()
    list(TransitionLog.load(path))
    assert path.read_bytes() == before


def resume(path: Path, seq: int) -> FileWriter:
    """Return a writer of a run that is resumed from before a transition."""
    source = FileSource(path)
    kept = [value for value in source.values() if value.seq < seq]
    writer = FileWriter(path, source.table, source.run)
    writer.begin(seq, "a checkpoint")
    writer.supersede(seq, len(kept))
    return writer


@pytest.mark.parametrize("seq", [1, 19, 30])
def test_a_resumed_run_continues_the_file(seq: int, path: Path, expected: dict[str, Any]):
    """It makes the same transitions again, and records the same values; the path reads as one."""
    chunks, source = FileSource(FOLDER / path.name).view().chunks, FileSource(FOLDER / path.name)
    writer = resume(path, seq)
    assert writer.end == seq
    writer.transitions(chunks, source.failure)
    writer.commit()
    writer.close(finished=True)
    assert transitions(TransitionLog.load(path))[:seq] == expected["transitions"][:seq]
    assert TransitionLog.load(path).path() == expected["path"]
    assert values(FileSource(path)) == [value for value in expected["values"] if value[2] < seq]


def test_a_file_that_is_continued_is_upgraded(path: Path):
    assert in_sql(path, "PRAGMA user_version") == [[1]]
    resume(path, 19).close(finished=True)
    assert in_sql(path, "PRAGMA user_version") == [[2]]


def test_events_from_before_and_after_the_upgrade_are_read(path: Path, expected: dict[str, Any]):
    added = Stop(30, 1, "enough"), Note(31, 2, "caf\udce9")
    writer = resume(path, 30)
    writer.events(added)
    writer.commit()
    writer.close(finished=True)
    before = [[seq, at] for seq, _, _, at in expected["notes"] if seq < 30]
    assert [[event.seq, event.time_ns] for event in TransitionLog.load(path).notes()] == [*before, [30, 1], [31, 2]]
    assert FileSource(path).events(30) == list(added)


def test_a_file_that_is_refused_is_not_upgraded(path: Path):
    with pytest.raises(LogError, match="another table of states"):
        FileWriter(path, evaluation_table(), "another")
    assert in_sql(path, "PRAGMA user_version") == [[1]]


def test_what_is_made_again_is_kept_apart(path: Path, expected: dict[str, Any]):
    before = in_sql(path, "SELECT count(*) FROM superseded")[0][0]
    resume(path, 19).close(finished=True)
    assert in_sql(path, "SELECT count(*) FROM superseded") == [[before + len(expected["transitions"]) - 19]]
