"""A journal from a stranger is read as it is, or refused with a `LogError`, in bounded time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from heptad import EngineError, LogError, TransitionLog
from heptad.cli.main import main
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


@pytest.mark.parametrize("command", ["show", "stats"])
def test_a_pipe_is_no_journal(command, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LogError, match="no regular file"):
        TransitionLog.load(tmp_path / "pipe")
    assert main([command, str(tmp_path / "pipe")]) == 2


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
