"""`CSVLogger`: every recorded value, once, in a row for its position; a kill leaves all rows that were written.

Run as a program this file is what the tests below kill.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from builders import STATES, Planned, batches, small_engine, small_network, weights
from heptad import Components, Engine, LossOutput, Plugin, PluginError, Run, RunConfig
from heptad.record.values import RecordedValues
from heptad_plugins import Checkpoint
from heptad_plugins.csv_logger import CSVLogger
from heptad_plugins.evaluate import Evaluate
from programs import environment
from rebirth import Reborn

PLACE = ["step", "update", "epoch"]


class Records(Plugin):
    """Records values on a moment of a state: names and numbers by the event's number, from 0."""

    def __init__(self, moment: str, state: str, values: dict[int, list[tuple[str, float]]] | None = None) -> None:
        self.name = f"Records on {moment} {state}"
        self.moment, self.state, self.values = moment, state, values
        self.events = 0

    def hear(self, moment: str, state: str, run: Run) -> None:
        if (moment, state) != (self.moment, self.state):
            return
        named = [("value", self.events + 0.5)] if self.values is None else self.values.get(self.events, [])
        for name, value in named:
            run.record(name, value)
        self.events += 1


def _hear(moment: str, state: str) -> Any:
    return lambda self, run: self.hear(moment, state, run)


for _state in STATES:
    for _moment in ("enter", "exit"):
        setattr(Records, f"on_{_moment}_{_state}", _hear(_moment, _state))


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file, without the loss of each epoch."""
    rows = [{name: cell for name, cell in row.items() if name != "train/epoch_loss"} for row in read_all(path)]
    return [row for row in rows if not row.keys() <= set(PLACE)]


def read_all(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file, without the cells that are empty; every row has all columns."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert all(len(row) == len(header) for row in rows)
    assert len(set(header)) == len(header)
    return [{name: cell for name, cell in zip(header, row, strict=True) if cell} for row in rows]


def header(path: Path) -> list[str]:
    """Return the columns, without that of the loss of each epoch."""
    with path.open(newline="", encoding="utf-8") as file:
        return [name for name in next(csv.reader(file)) if name != "train/epoch_loss"]


def cells(path: Path) -> list[tuple[str, int, int, int, str]]:
    """Return (name, step, update, epoch, text) of every value, row by row; but for the loss of each epoch."""
    return [row for row in all_cells(path) if row[0] != "train/epoch_loss"]


def all_cells(path: Path) -> list[tuple[str, int, int, int, str]]:
    """Return the same with the loss of each epoch."""
    return [
        (name, *(int(row[place]) for place in PLACE), text)
        for row in read_all(path)
        for name, text in row.items()
        if name not in PLACE
    ]


def recorded(run: Run) -> list[tuple[str, int, int, int, str]]:
    """Return the same as `cells` of every value that a run has recorded."""
    return [
        (value.name, value.step, value.update, value.epoch, repr(value.value))
        for value in run.records()
        if value.name != "train/epoch_loss"
    ]


def without_losses(rows: list[tuple[str, int, int, int, str]]) -> list[tuple[str, int, int, int, str]]:
    """Return the values that are not the training loss."""
    return [row for row in rows if not row[0].startswith("train/")]


# -- rows


@pytest.mark.parametrize("moment", ["enter", "exit"])
@pytest.mark.parametrize("state", STATES)
def test_every_value_stands_once_at_its_position(moment, state, tmp_path):
    """Wherever it is recorded, also at the very end of the run; in the order of recording, beside the losses."""
    path = tmp_path / "log.csv"
    run = small_engine(4, [CSVLogger(path), Records(moment, state)], epochs=2, accumulation=2).run()
    assert {"value", "train/loss", "train/epoch_loss"} == run.names_recorded()
    assert sorted(cells(path)) == sorted(recorded(run))
    assert without_losses(cells(path)) == without_losses(recorded(run))


def test_a_row_for_each_position(tmp_path):
    """What is recorded at one position by several, and at several moments, stands in one row."""
    path = tmp_path / "log.csv"
    plugins = [
        CSVLogger(path),
        Records("exit", "optimizer_update", {event: [("a", 1.0 + event)] for event in range(4)}),
        Records("enter", "before_step", {event: [("b", 2.0 + event)] for event in range(4)}),
        Records("enter", "process_batch", {event: [("c", 3.0 + event)] for event in range(4)}),
        Evaluate(batches(1), at="optimizer_update", every=2),
    ]
    run = small_engine(4, plugins).run()
    rows = read(path)
    places = [[int(row[name]) for name in PLACE] for row in rows]
    assert places == sorted(places)
    assert len({tuple(place) for place in places}) == len(places)
    assert [(row["step"], row.get("a"), row.get("b"), row.get("c")) for row in rows if "b" in row] == [
        ("0", None, "2.0", "3.0"),
        ("1", "1.0", "3.0", "4.0"),
        ("2", "2.0", "4.0", "5.0"),
        ("3", "3.0", "5.0", "6.0"),
    ]
    assert [(row["step"], row["valid/loss"]) for row in rows if "valid/loss" in row] == [
        (step, repr(value)) for step, value in zip("24", run.history("valid/loss"), strict=True)
    ]


def test_a_value_recorded_twice_at_a_position_opens_a_second_row(tmp_path):
    """None is lost, and their order is kept."""
    path = tmp_path / "log.csv"
    values = {0: [("a", 1.0), ("b", 2.0), ("a", 3.0), ("a", 4.0), ("b", 5.0)]}
    small_engine(1, [CSVLogger(path), Records("exit", "after_epoch", values)]).run()
    place = {"step": "1", "update": "1", "epoch": "1"}
    assert read(path)[1:] == [
        {**place, "a": "1.0", "b": "2.0"},
        {**place, "a": "3.0"},
        {**place, "a": "4.0", "b": "5.0"},
    ]


@pytest.mark.parametrize("state", ["optimizer_update", "evaluate", "after_epoch"])
def test_rows_are_written_on_exit_of_the_states_that_bring_values(state, tmp_path):
    """The file has everything that was recorded as soon as the state is left, not only at the end."""
    path = tmp_path / "log.csv"
    engine = small_engine(
        4, [CSVLogger(path), Evaluate(batches(1)), Records("exit", "after_step"), Records("enter", "after_epoch")]
    )
    held = []
    engine.on_exit(state)(lambda run: held.append(sorted(cells(path)) == sorted(recorded(run))))
    engine.run()
    assert held == [True] * (4 if state == "optimizer_update" else 1)


def test_what_is_left_is_written_when_the_run_fails(tmp_path):
    """The values recorded in the turn that failed are the interesting ones."""
    path = tmp_path / "log.csv"
    engine = small_engine(3, [CSVLogger(path), Records("enter", "process_batch")])

    @engine.on_enter("process_batch", every=2)
    def fail(run: Run) -> None:
        raise ValueError("oh")

    with pytest.raises(ValueError, match="oh"):
        engine.run()
    assert without_losses(cells(path)) == without_losses(recorded(engine.current))
    assert len(without_losses(recorded(engine.current))) == 2


def test_numbers_have_full_precision(tmp_path):
    """Read back they are the same, bit for bit; so are infinities and NaN."""
    path = tmp_path / "log.csv"
    numbers = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e22, math.pi, math.inf, -math.inf, math.nan]
    values = {0: [(f"value {place}", number) for place, number in enumerate(numbers)]}
    small_engine(1, [CSVLogger(path), Records("exit", "after_step", values)]).run()
    found = [float(text) for name, *_, text in cells(path) if name.startswith("value")]
    assert list(map(float.hex, found)) == list(map(float.hex, numbers))


@pytest.mark.parametrize("name", ["a,b", 'say "it"', "two\nlines", " spaced ", "größe/µ", "a\r"])
def test_a_name_may_hold_anything(name, tmp_path):
    """The csv module quotes it, also where the file is written anew for it."""
    path = tmp_path / "log.csv"
    values = {0: [(name, 1.5)], 1: [("later", 2.5)]}
    small_engine(2, [CSVLogger(path), Records("exit", "after_step", values)]).run()
    assert [(cell[0], cell[-1]) for cell in without_losses(cells(path))] == [(name, "1.5"), ("later", "2.5")]


def test_a_value_named_like_a_column_of_the_position_is_kept_apart(tmp_path):
    """The position stays what it was."""
    path = tmp_path / "log.csv"
    values = {0: [("epoch", 7.0), ("step", 8.0)]}
    small_engine(1, [CSVLogger(path), Records("exit", "after_step", values)]).run()
    place = {"step": "1", "update": "0", "epoch": "0"}
    assert read(path)[0] == {**place, "epoch (recorded)": "7.0", "step (recorded)": "8.0"}


# -- the loss


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4]), (7, [])])
def test_every_nth_update_has_the_loss(every, expected, tmp_path):
    """The mean over its window, as `train/loss`, where it belongs; and each epoch has its own."""
    path = tmp_path / "log.csv"
    engine = small_engine(6, [CSVLogger(path, every=every)], accumulation=2, epochs=2)
    losses = []
    engine.on_exit("optimizer_update")(lambda run: losses.append(repr(run.mean_loss.item())))
    run = engine.run()
    found = [cell for cell in cells(path) if cell[0] == "train/loss"]
    assert found == [("train/loss", 2 * update, update, (update - 1) // 3, losses[update - 1]) for update in expected]
    assert [cell[-1] for cell in all_cells(path) if cell[0] == "train/epoch_loss"] == [
        repr(value) for value in run.history("train/epoch_loss")
    ]
    assert len(run.history("train/epoch_loss")) == 2


def test_a_skipped_update_has_no_loss(tmp_path):
    """Nothing was updated, and the count has not changed."""
    path = tmp_path / "log.csv"
    engine = small_engine(4, [CSVLogger(path)])
    engine.on_enter("optimizer_update", every=2)(lambda run: run.skip_update("no"))
    engine.run()
    assert [cell[:3] for cell in cells(path) if cell[0] == "train/loss"] == [("train/loss", 1, 1), ("train/loss", 3, 2)]


@pytest.mark.parametrize("state", ["process_batch", "optimizer_update"])
def test_a_recorded_loss_stands_alone(state, tmp_path):
    """Where somebody records one in a step, the update of that step has no other."""
    path = tmp_path / "log.csv"
    run = small_engine(3, [Records("exit", state, {1: [("train/loss", 42.0)]}), CSVLogger(path)]).run()
    found = [cell for cell in cells(path) if cell[0] == "train/loss"]
    assert found == [value for value in recorded(run) if value[0] == "train/loss"]
    assert [cell[-1] == "42.0" for cell in found] == [False, True, False]


def test_the_loss_is_read_at_these_updates_alone(tmp_path, monkeypatch):
    """Reading it waits for the device: 2 of 6 updates, and once for the epoch."""
    reads = []
    monkeypatch.setattr(RecordedValues, "since", counting(reads, RecordedValues.since))
    engine = small_engine(6, [CSVLogger(tmp_path / "log.csv", every=3)])
    engine.on_enter("after_epoch")(lambda run: reads.append("the end"))
    engine.run()
    assert reads.index("the end") == 2


def counting(calls: list[int], function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(1)
        return function(*arguments)

    return call


# -- columns that appear later


def test_columns_may_appear_later(tmp_path):
    """At any row, several at once: every value is where it was, and every row has all columns."""
    path = tmp_path / "log.csv"
    firsts = (0, 3, 3.5, 7)
    values = {event: [(f"from {first}", float(event)) for first in firsts if event >= first] for event in range(9)}
    run = small_engine(9, [CSVLogger(path), Records("exit", "after_step", values)]).run()
    assert header(path) == [*PLACE, "from 0", "train/loss", "from 3", "from 3.5", "from 7"]
    assert without_losses(cells(path)) == without_losses(recorded(run))
    assert len([cell for cell in cells(path) if cell[0] == "train/loss"]) == 9
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_the_file_is_whole_at_every_moment(tmp_path, monkeypatch):
    """Written anew for a column it is put in place at once: before and after, all rows so far are there."""
    path = tmp_path / "log.csv"
    seen = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        before = cells(target) if target.exists() else []
        result = real(self, target)
        seen.append((before, cells(target)))
        return result

    monkeypatch.setattr(Path, "replace", replace)
    values = {event: [(f"value {event}", float(event))] for event in range(4)}
    small_engine(4, [CSVLogger(path), Records("exit", "after_step", values)]).run()
    assert len(seen) == 6
    sizes = [(len(before), len(after)) for before, after in seen]
    assert sizes == [(0, 0), (0, 2), (2, 4), (4, 6), (6, 8), (8, 8)]
    assert all(set(before) <= set(after) for before, after in seen)


# -- pausing and continuing


@pytest.mark.parametrize("until", [*STATES[1:], lambda run: True], ids=[*STATES[1:], "every turn"])
def test_a_run_that_was_paused_has_the_same_file(until, tmp_path):
    """Whatever it is paused in, and however often."""

    def write(path: Path, **options: Any) -> str:
        plugins = [
            CSVLogger(path),
            Evaluate(batches(1)),
            Records("enter", "before_step"),
            Records("exit", "after_epoch", {1: [("late", 1.0)]}),
        ]
        engine = small_engine(3, plugins, epochs=2)
        while not engine.current.ended:
            engine.run(**options)
        return path.read_text()

    assert write(tmp_path / "paused.csv", until=until) == write(tmp_path / "straight.csv")


def test_advance_writes_the_same_file(tmp_path):
    """Turn by turn."""
    paths = [tmp_path / "advanced.csv", tmp_path / "straight.csv"]
    one, other = (small_engine(3, [CSVLogger(path), Records("exit", "after_step")], epochs=2) for path in paths)
    while not one.current.ended:
        one.advance()
    other.run()
    assert paths[0].read_text() == paths[1].read_text()


class Resumed(Reborn):
    """A logger that is built anew before a step, as after a kill: the one before it writes no more.

    Args:
        path: The logger's file.
        step: The step.
        held: What the file holds by then; `None` leaves it as it is.
    """

    def __init__(self, path: Path, step: int | None, held: bytes | None = None) -> None:
        loggers: list[CSVLogger] = []

        def make() -> CSVLogger:
            loggers.append(CSVLogger(path))
            return loggers[-1]

        def renew(run: Run) -> None:
            assert loggers[-2]._file is not None
            loggers[-2]._file.close()
            if held is not None:
                path.write_bytes(held)
            loggers[-1].open(run)

        super().__init__(make, step, renew)


@pytest.mark.parametrize("step", range(1, 6))
def test_a_resumed_run_continues_with_the_file(step, tmp_path):
    """Built anew from its state it adds to the file, and the whole is that of the straight run."""

    def write(path: Path, step: int | None) -> list[Any]:
        values = {event: [("a", event / 3)] + [("late", 0.5)] * (event == 4) for event in range(6)}
        small_engine(3, [Records("exit", "optimizer_update", values), Resumed(path, step)], epochs=2).run()
        return cells(path)

    assert write(tmp_path / "resumed.csv", step) == write(tmp_path / "straight.csv", None)


def resumed(path: Path, held: bytes) -> None:
    """Make four steps; before the third the logger is built anew, over a file that holds something else by then."""
    small_engine(4, [Records("exit", "after_step"), Resumed(path, 2, held)]).run()


def test_rows_behind_the_position_are_kept(tmp_path):
    """A run that went further before it was killed leaves rows that the resumed one does not take away."""
    path = tmp_path / "log.csv"
    resumed(path, b"step,update,epoch,loss,gone\n9,9,0,0.5,0.25\n")
    rows = read(path)
    assert rows[0] == {"step": "9", "update": "9", "epoch": "0", "loss": "0.5", "gone": "0.25"}
    assert header(path) == [*PLACE, "loss", "gone", "train/loss", "value"]
    assert [(row["step"], row["value"]) for row in rows if "value" in row] == [("3", "2.5"), ("4", "3.5")]


@pytest.mark.parametrize("torn", ["3", "3,3", "3,3,0,0.12", '3,3,0,"0.', "\u20ac".encode()[:2]])
def test_a_torn_last_line_never_hides_the_others(torn, tmp_path):
    """Not for a reader, and not for the run that continues: its first row stands on a line of its own."""
    path = tmp_path / "log.csv"
    torn = torn if isinstance(torn, bytes) else torn.encode()
    resumed(path, b"step,update,epoch,value\n1,0,0,0.5\n2,1,0,1.5\n" + torn)
    assert [(row["step"], row["value"]) for row in read(path) if "value" in row] == [
        ("1", "0.5"),
        ("2", "1.5"),
        ("3", "2.5"),
        ("4", "3.5"),
    ]


def test_a_resumed_run_without_its_file_writes_all_values(tmp_path):
    """A new file holds those from before as well."""
    path = tmp_path / "log.csv"
    resumed(path, b"")
    assert [(cell[1], cell[-1]) for cell in cells(path) if cell[0] == "value"] == [
        (1, "0.5"),
        (2, "1.5"),
        (3, "2.5"),
        (4, "3.5"),
    ]


@pytest.mark.parametrize("held", [b"a,b\n1,2\n", b"PK\x03\x04\xff", b"no line end", b"step,epoch\n"])
def test_a_resumed_run_leaves_a_file_of_another_kind_alone(held, tmp_path):
    """It is refused, and stays as it was."""
    path = tmp_path / "log.csv"
    with pytest.raises(PluginError, match=r"log\.csv does not begin with the columns step, update, epoch"):
        resumed(path, held)
    assert path.read_bytes() == held


# -- files that are there


def test_a_file_with_values_in_it_is_refused(tmp_path):
    """When the run is opened; nothing has run, and the file is as it was."""
    path = tmp_path / "log.csv"
    path.write_text("step,update,epoch,old\n1,1,1,1.0\n")
    engine = small_engine(1, [CSVLogger(path)])
    with pytest.raises(PluginError, match=r"log\.csv holds the values of another run; .* or say overwrite=True"):
        engine.run()
    assert (path.read_text(), engine.current.state) == ("step,update,epoch,old\n1,1,1,1.0\n", "idle")


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("held", [b"mine", b"import torch\n", b"\n", b"step,update\n", b'"' * 200_001, b"\x00\xff"])
def test_a_file_of_another_origin_is_never_touched(held, overwrite, resume, tmp_path):
    """Whatever the option says, and also where the run was asked to resume if it can."""
    path = tmp_path / "common.py"
    path.write_bytes(held)
    engine = small_engine(1, [CSVLogger(path, overwrite=overwrite), Checkpoint(tmp_path / "checkpoints")])
    with pytest.raises(PluginError, match=r"common\.py does not begin with .*: it is no file of CSVLogger's"):
        engine.run(resume=resume)
    assert path.read_bytes() == held
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["common.py"]


def test_what_is_no_regular_file_is_refused(tmp_path):
    """A device or a pipe would be replaced by a file."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(PluginError, match=r"pipe is no regular file; name one that is"):
        small_engine(1, [CSVLogger(path, overwrite=True)]).run()
    assert path.is_fifo()


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    """When the run is opened, as an error of the plugin's, with the cause."""
    (tmp_path / "file").touch()
    for path in (Path("/proc/x.csv"), tmp_path / "file" / "log.csv"):
        with pytest.raises(PluginError, match=rf"CSVLogger: {path} cannot be written: .*; name another file") as caught:
            small_engine(1, [CSVLogger(path)]).run()
        assert isinstance(caught.value.__cause__, OSError)


def test_a_second_run_of_the_same_object_has_the_file_to_itself(tmp_path):
    """With `overwrite`: not a value of the first is in it, and none of its own is missing."""
    path = tmp_path / "log.csv"
    logger = CSVLogger(path, overwrite=True)
    small_engine(5, [logger, Records("exit", "after_step", {0: [("first", 1.0)]})]).run()
    run = small_engine(2, [logger, Records("exit", "after_step")]).run()
    assert header(path) == [*PLACE, "value", "train/loss"]
    assert without_losses(cells(path)) == without_losses(recorded(run))


def test_an_engine_whose_start_failed_may_be_run_again(tmp_path):
    """What was recorded before the start is in the file, which is this run's: nothing is refused, and nothing twice."""
    path = tmp_path / "log.csv"
    fails = [True]

    class Fails(Plugin):
        def open(self, run: Run) -> None:
            if fails.pop():
                raise Planned

    engine = small_engine(2, [CSVLogger(path), Fails()])
    engine.current.record("before", 1.5)
    with pytest.raises(Planned):
        engine.run()
    fails[:] = [False]
    engine.run()
    assert [cell[0] for cell in cells(path)] == ["before", "train/loss", "train/loss"]


def test_a_second_run_does_not_write_over_the_first(tmp_path):
    """Two engines with the same path: the second is refused."""
    path = tmp_path / "log.csv"
    small_engine(1, [CSVLogger(path)]).run()
    before = path.read_text()
    with pytest.raises(PluginError, match="overwrite=True"):
        small_engine(1, [CSVLogger(path)]).run()
    assert path.read_text() == before


def test_overwrite_removes_what_was_there(tmp_path):
    """The file holds this run's values alone, though it is paused and continues in between."""
    path = tmp_path / "log.csv"
    path.write_text("step,update,epoch,old\n1,1,1,1.0\n" * 50)
    engine = small_engine(4, [CSVLogger(path, overwrite=True)])
    engine.run(until="before_step")
    engine.run(until="optimizer_update")
    engine.run()
    assert header(path) == [*PLACE, "train/loss"]
    assert [cell[1] for cell in cells(path)] == [1, 2, 3, 4]


def test_an_empty_file_is_taken(tmp_path):
    """As `touch` or `mktemp` leaves one."""
    path = tmp_path / "log.csv"
    path.touch()
    small_engine(1, [CSVLogger(path)]).run()
    assert len(cells(path)) == 1


def test_a_run_that_failed_before_its_first_value_may_be_begun_again(tmp_path):
    """Its file holds nothing but the header, which is nobody's loss."""
    path = tmp_path / "log.csv"
    engine = small_engine(2, [CSVLogger(path)])
    engine.on_enter("process_batch")(lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.run()
    assert header(path) == PLACE
    small_engine(2, [CSVLogger(path)]).run()
    assert len(cells(path)) == 2


def test_folders_are_made(tmp_path):
    """When the run is opened, not before."""
    path = tmp_path / "a" / "b" / "log.csv"
    engine = small_engine(1, [CSVLogger(path)])
    assert not (tmp_path / "a").exists()
    engine.run()
    assert len(cells(path)) == 1


def test_a_relative_path_is_where_the_plugin_was_built(tmp_path, monkeypatch):
    """A program that changes its directory later still has one file."""
    monkeypatch.chdir(tmp_path)
    engine = small_engine(2, [CSVLogger("log.csv")])
    engine.run(until="optimizer_update")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    engine.run()
    assert len(cells(tmp_path / "log.csv")) == 2


def test_a_file_that_cannot_be_written_may_cost_the_logger_alone(tmp_path):
    """With `on_error="detach"` the run continues, and the log says so."""
    run = small_engine(2, [CSVLogger(tmp_path, on_error="detach")]).run()
    assert run.state == "finished"
    (note,) = run.log.notes("detach")
    assert "is a directory; name a file in it" in note.text


@pytest.mark.parametrize("every", [0, 1.0, True, "1"])
def test_every_is_checked_where_the_plugin_is_built(every, tmp_path):
    """And the message says what was found."""
    with pytest.raises(PluginError, match=r"CSVLogger\(every=…\) must be a whole number from 1 on, got"):
        CSVLogger(tmp_path / "log.csv", every=every)


def test_logs_of_a_loss_function_have_a_column(tmp_path):
    """`LossOutput.logs` are recorded values like any other."""
    path = tmp_path / "log.csv"
    network = small_network()

    def compute_loss(network: nn.Module, batch: Any) -> LossOutput:
        loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
        return LossOutput(loss, weight=len(batch[1]), logs={"train/loss": loss})

    engine = Engine(
        Components(
            network=network,
            loader=batches(2),
            compute_loss=compute_loss,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        ),
        RunConfig(epochs=1),
        plugins=[CSVLogger(path)],
    )
    run = engine.run()
    assert [cell for cell in cells(path) if cell[0] == "train/loss"] == recorded(run)
    assert len(weights(network)) == 2


# -- a kill


def scene(folder: Path, moment: int) -> None:
    """Make a run that is killed at one of its moments: every moment, and beside every write."""
    rows = folder / f"{moment}.csv"
    counted = itertools.count()

    def moment_of(where: str) -> None:
        if next(counted) == moment:
            (folder / f"{moment}.json").write_text(json.dumps([where, engine.current.update]))
            os.kill(os.getpid(), signal.SIGKILL)

    def beside(function: Any, where: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            moment_of(f"before {where}")
            result = function(*arguments, **options)
            moment_of(f"after {where}")
            return result

        return call

    Path.replace = beside(Path.replace, "replace")
    Path.open = beside(Path.open, "open")
    values = {event: [(f"from {event // 3}", event / 3)] for event in range(8)}
    engine = small_engine(8, [Records("exit", "optimizer_update", values), CSVLogger(rows)])
    for state in ("process_batch", "after_step", "optimizer_update"):
        engine.on_enter(state)(lambda run, state=state: moment_of(f"enter {state}"))
        engine.on_exit(state)(lambda run, state=state: moment_of(f"exit {state}"))
    engine.run()


def program(folder: Path) -> None:
    """Fork off a run for every moment, until one ends by itself."""
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)]).zero_grad()  # imports what would take each of them seconds
    for moment in itertools.count():
        child = os.fork()
        if not child:
            scene(folder, moment)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break


if __name__ == "__main__":
    program(Path(sys.argv[1]))


def test_a_kill_leaves_every_row_that_was_written(tmp_path):
    """SIGKILL at every moment of a step and beside every write of the file: all updates before it have their row."""
    process = subprocess.run(
        [sys.executable, "-W", "error", __file__, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(),
    )
    assert (process.returncode, process.stderr) == (0, "")
    killed = {path: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(killed) > 60
    assert {"before replace", "after replace", "after open"} <= {where for where, _ in killed.values()}
    straight = read(tmp_path / f"{len(killed)}.csv")
    assert [row["update"] for row in straight] == [str(update) for update in range(1, 9)]
    for path, (where, update) in killed.items():
        file = path.with_suffix(".csv")
        rows = read(file) if file.exists() else []
        done = update if where == "exit optimizer_update" or not where.startswith(("before", "after")) else update - 1
        assert rows == straight[: len(rows)]
        assert len(rows) >= max(done, 0), (where, update)
