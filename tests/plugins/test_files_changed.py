"""Files that loggers write, removed, renamed, replaced or cut while the run goes on: said, not passed over."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import small_engine
from heptad import LogError, Plugin, PluginError, Run, TransitionLog
from heptad_plugins import Checkpoint, CSVLogger, Journal, TensorBoardLogger

STEPS = 12


def remove(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.1"))


def replace(path: Path) -> None:
    """Put a copy in place, as editors and `cp` through another name do."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def rotate(path: Path) -> None:
    """Copy and truncate, as logrotate does."""
    path.with_name(f"{path.name}.1").write_bytes(path.read_bytes())
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES = {
    remove: "is gone: it was removed or renamed",
    rename: "is gone: it was removed or renamed",
    replace: "was (removed, renamed or )?replaced by another file",
    rotate: r"was cut[a-z ]*: it ends after 0 of \d+ bytes",
    cut: r"was cut[a-z ]*: it ends after \d+ of \d+ bytes",
}
change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


class Meddles(Plugin):
    """Changes a file at one step, as somebody else would."""

    def __init__(self, find: Callable[[], Path], change: Callable[[Path], None], step: int = 6) -> None:
        self.find, self.change, self.step = find, change, step

    def on_enter_before_step(self, run: Run) -> None:
        if run.step == self.step:
            self.change(self.find())


@pytest.fixture(params=[6, STEPS - 1], ids=["in mid-run", "in the last step"])
def step(request: Any) -> int:
    return request.param


@change
def test_a_csv_file_that_is_changed_meanwhile_is_said_to_be(change, step, tmp_path):
    path = tmp_path / "values.csv"
    engine = small_engine(STEPS, [CSVLogger(path), Meddles(lambda: path, change, step)])
    with pytest.raises(PluginError, match=rf"CSVLogger: {path} {CHANGES[change]}") as caught:
        engine.run()
    assert not any("closing" in note for note in caught.value.__notes__)


def test_a_csv_file_that_is_cut_after_its_last_row_is_said_to_be(tmp_path):
    """By closing it."""
    path = tmp_path / "values.csv"
    engine = small_engine(3, [CSVLogger(path)])
    engine.on_exit("after_loop")(lambda run: cut(path))
    with pytest.raises(PluginError, match="was cut"):
        engine.run()


def test_a_csv_file_that_somebody_else_writes_to_is_said_to_be(tmp_path):
    path = tmp_path / "values.csv"

    def append(path: Path) -> None:
        with path.open("a") as file:
            file.write("1,2,3\n")

    with pytest.raises(PluginError, match=r"was changed: it has \d+ bytes in place of \d+"):
        small_engine(STEPS, [CSVLogger(path), Meddles(lambda: path, append)]).run()
    assert path.read_text().endswith("\n1,2,3\n")


def test_a_csv_file_that_is_cut_between_two_calls_is_said_to_be(tmp_path):
    path = tmp_path / "values.csv"
    engine = small_engine(STEPS, [CSVLogger(path)])
    engine.run(until=lambda run: run.update == 4)
    rotate(path)
    with pytest.raises(PluginError, match=r"was changed while the run was paused: it has 0 bytes in place of"):
        engine.run()
    assert path.read_bytes() == b""


def test_a_run_that_resumes_onto_a_cut_csv_file_says_so(tmp_path):
    """The rows that the file lacks are counted; the others stay."""
    path = tmp_path / "values.csv"

    def plugins() -> list[Plugin]:
        return [CSVLogger(path), Checkpoint(tmp_path / "runs", at="optimizer_update")]

    engine = small_engine(STEPS, plugins())
    engine.run(until=lambda run: run.update == 6)
    engine.close()
    os.truncate(path, len("".join(path.read_text().splitlines(keepends=True)[:3])))
    run = small_engine(STEPS, plugins()).run(resume="auto")
    (note,) = [str(note) for note in run.log.notes() if note.kind == "note"]
    assert f"CSVLogger: {path} lacks 2 of the rows that were written before the checkpoint" in note
    assert [row.split(",")[1] for row in path.read_text().splitlines()[1:]] == ["1", "2", *map(str, range(5, 13)), "12"]


def test_a_detached_logger_ends_no_run(tmp_path):
    path = tmp_path / "values.csv"
    run = small_engine(STEPS, [CSVLogger(path, on_error="detach"), Meddles(lambda: path, rotate)]).run()
    (note,) = [str(note) for note in run.log.notes() if note.kind == "detach"]
    assert "was cut" in note
    assert run.state == "finished"


# -- journals


@change
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_journal_that_is_changed_meanwhile_is_said_to_be(change, suffix, step, tmp_path):
    path = tmp_path / "run.journal"
    changed = path.with_name(path.name + suffix)
    engine = small_engine(STEPS, [Journal(path, flush_every=1), Meddles(lambda: changed, change, step)])
    subject = "has lost 'run.journal-wal', which belongs to it: that " if suffix else ""
    with pytest.raises(LogError, match=rf"Journal: {path} {subject}{CHANGES[change]}") as caught:
        engine.run()
    assert "Some of what the run has written is lost" in str(caught.value)
    assert "can be read" not in str(caught.value)


@change
def test_a_journal_that_is_written_four_times_a_second_is_looked_at_by_closing_it(change, tmp_path):
    path = tmp_path / "run.journal"
    with pytest.raises(LogError, match=rf"Journal: {path} {CHANGES[change]}"):
        small_engine(STEPS, [Journal(path), Meddles(lambda: path, change)]).run()


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_journal_that_is_cut_after_its_last_transition_is_said_to_be(suffix, tmp_path):
    """By closing it."""
    path = tmp_path / "run.journal"
    engine = small_engine(3, [Journal(path, flush_every=1)])
    engine.on_exit("after_loop")(lambda run: cut(path.with_name(path.name + suffix)))
    with pytest.raises(LogError, match="was cut while the run was writing it"):
        engine.run()


def test_a_journal_that_is_replaced_between_two_calls_is_said_to_be(tmp_path):
    """By an older state of itself."""
    path = tmp_path / "run.journal"
    engine = small_engine(STEPS, [Journal(path)])
    engine.run(until=lambda run: run.update == 2)
    before = path.read_bytes()
    engine.run(until=lambda run: run.update == 4)
    path.write_bytes(before)
    with pytest.raises(PluginError, match="was changed while the run was paused: it is not the file that was written"):
        engine.run()


def test_a_journal_that_is_removed_between_two_calls_is_written_anew(tmp_path):
    """All that the log has kept is in the new file."""
    path = tmp_path / "run.journal"
    engine = small_engine(STEPS, [Journal(path)])
    engine.run(until=lambda run: run.update == 2)
    path.unlink()
    run = engine.run()
    assert list(TransitionLog.load(path)) == list(run.log)


def test_a_journal_beside_a_reader_is_not_said_to_be_changed(tmp_path):
    """One that moves the newest transactions into the file, as `sqlite3` does on request."""
    path = tmp_path / "run.journal"

    def checkpoint(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        connection.close()

    run = small_engine(STEPS, [Journal(path, flush_every=1), Meddles(lambda: path, checkpoint)]).run()
    assert list(TransitionLog.load(path)) == list(run.log)


# -- event files


@change
def test_an_event_file_that_is_changed_meanwhile_is_said_to_be(change, tmp_path):
    """When the epoch is written: the file is made again where it is missing."""
    pytest.importorskip("tensorboard")

    def newest() -> Path:
        return next(tmp_path.glob("events.out.tfevents.*"))

    engine = small_engine(STEPS, [TensorBoardLogger(tmp_path), Meddles(newest, change)])
    said = "was removed, renamed or replaced by another file|is gone|was cut: it ends after"
    with pytest.raises(PluginError, match=rf"TensorBoardLogger: .*tfevents.* ({said})") as caught:
        engine.run()
    assert not any("closing" in note for note in caught.value.__notes__)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of tensorboard's thread
def test_a_directory_of_event_files_that_is_renamed_is_said_to_be(tmp_path):
    """By the error that names the file, not by that of the thread which writes it."""
    pytest.importorskip("tensorboard")
    folder = tmp_path / "events"
    engine = small_engine(STEPS, [TensorBoardLogger(folder, on_error="raise"), Meddles(lambda: folder, rename)])

    def wait(run: Run) -> None:
        if run.step > 6:
            time.sleep(0.02)

    engine.on_exit("after_step")(wait)
    with pytest.raises(PluginError, match=r"TensorBoardLogger: .*tfevents.* is gone: it was removed or renamed"):
        engine.run()


@pytest.mark.parametrize("change", [remove, cut], ids=lambda change: change.__name__)
def test_an_event_file_that_is_changed_between_two_calls_is_said_to_be(change, tmp_path):
    """What the run before the pause has written would be missing in a run that finished."""
    pytest.importorskip("tensorboard")
    engine = small_engine(STEPS, [TensorBoardLogger(tmp_path)])
    engine.run(until=lambda run: run.update == 2)
    engine.run(until=lambda run: run.update == 4)
    change(max(tmp_path.glob("events.out.tfevents.*")))
    with pytest.raises(PluginError, match=r"(is gone|was cut).* while the run was paused"):
        engine.run()


# -- links


@pytest.mark.parametrize("name", ["values.csv.new", "values.csv.before"])
def test_a_csv_file_is_not_rewritten_through_a_link(name, tmp_path):
    """Nor over a file that merely has such a name."""
    path, precious = tmp_path / "values.csv", tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / name).symlink_to(precious)
    small_engine(3, [CSVLogger(path)]).run()
    assert (precious.read_text(), (tmp_path / name).is_symlink()) == ("precious", True)
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted(["precious", "values.csv", name])


def test_a_csv_file_that_is_a_link_stays_one(tmp_path):
    path, target = tmp_path / "values.csv", tmp_path / "here.csv"
    path.symlink_to(target)
    small_engine(3, [CSVLogger(path)]).run()
    assert path.is_symlink()
    assert target.read_text().startswith("step,update,epoch,")


def test_an_export_is_not_written_through_a_link(tmp_path):
    path, precious = tmp_path / "log.jsonl", tmp_path / "precious"
    precious.write_text("precious")
    path.with_name("log.jsonl.new").symlink_to(precious)
    small_engine(3).run().log.to_jsonl(path)
    assert precious.read_text() == "precious"
    assert path.read_text().startswith("{")


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_journal_is_not_written_through_a_link_beside_it(suffix, tmp_path):
    """Where SQLite would, as in a folder that others may write to; a reader refuses too."""
    path, precious = tmp_path / "run.journal", tmp_path / "precious"
    precious.write_text("precious")
    path.with_name(path.name + suffix).symlink_to(precious)
    with pytest.raises(PluginError, match=f"has 'run.journal{suffix}' beside it, which is a link"):
        small_engine(3, [Journal(path)]).run()
    path.with_name(path.name + suffix).unlink()
    small_engine(3, [Journal(path)]).run()
    path.with_name(path.name + suffix).symlink_to(precious)
    with pytest.raises(LogError, match="which is a link"):
        TransitionLog.load(path)
    assert precious.read_text() == "precious"
