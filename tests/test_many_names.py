"""Values recorded under more names than two bytes count: as many as memory holds, everywhere but in a CSV file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from builders import small_engine
from heptad import Plugin, PluginError, Run, TransitionLog
from heptad.record.counters import Counters
from heptad.record.values import RecordedValues
from heptad_plugins import Checkpoint, CSVLogger, Journal, Progress, TensorBoardLogger

MILLION = 1_000_000
NAMES = 40_000
"""That one update records; two record more than 65,536."""


class ManyNames(Plugin):
    """Records values under names of their own at each update."""

    def __init__(self, names: int = NAMES) -> None:
        self.names = names

    def on_exit_optimizer_update(self, run: Run) -> None:
        for number in range(self.names):
            run.record(f"norm/{run.update}/{number}", number + run.update / 4)


def expected(updates: int) -> dict[str, float]:
    return {f"norm/{update}/{n}": n + update / 4 for update in range(1, updates + 1) for n in range(NAMES)}


def test_a_million_names_are_kept():
    recorded = RecordedValues()
    for number in range(MILLION):
        recorded.record(f"norm/{number}", float(number), number, Counters())
    other = RecordedValues()
    other.restore(recorded.columns(0))
    other.record("one more", 0.5, MILLION, Counters())
    assert [one.name for one in other.since(MILLION - 2)] == ["norm/999998", "norm/999999", "one more"]
    assert (other.history("norm/65536"), other.newest()["norm/999999"]) == ([65536.0], 999_999.0)


def test_names_after_the_65536th_are_in_journals_and_checkpoints(tmp_path: Path):
    def plugins() -> list[Plugin]:
        journal = Journal(tmp_path / "run.journal", values=False)
        return [ManyNames(), journal, Checkpoint(tmp_path / "runs", at="optimizer_update")]

    stopped = small_engine(3, plugins())
    stopped.run(until=lambda run: run.update == 2)
    stopped.close()
    run = small_engine(3, plugins()).run(resume="auto")
    assert run.resumed_from is not None
    assert run.metrics == expected(3)
    log = TransitionLog.load(tmp_path / "run.journal")
    assert {value.name: value.value for value in log.values()} == expected(3)


ODD = ["\0", "a\nb", "\r", '"q"', ",", "%s{0}", "=f()", "'; DROP TABLE value; --", " ", "step", "x" * 100_000]


class OddNames(Plugin):
    """Records values under names that files must escape."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        for number, name in enumerate(ODD):
            run.record(name, number + run.update / 4)


def test_odd_names_are_in_every_file_and_are_resumed(tmp_path: Path):
    """No column is added a second time when the run is resumed."""
    pytest.importorskip("tensorboard")

    def plugins() -> list[Plugin]:
        loggers = [CSVLogger(tmp_path / "values.csv"), TensorBoardLogger(tmp_path), Journal(tmp_path / "run.journal")]
        return [OddNames(), *loggers, Checkpoint(tmp_path / "runs", at="optimizer_update")]

    stopped = small_engine(3, plugins())
    stopped.run(until=lambda run: run.update == 2)
    stopped.close()
    run = small_engine(3, plugins()).run(resume="auto")
    assert run.resumed_from is not None
    values = TransitionLog.load(tmp_path / "run.journal").values()
    assert {value.name: value.value for value in values if value.name in ODD} == dict(
        zip(ODD, (number + 0.75 for number in range(len(ODD))), strict=True)
    )
    with (tmp_path / "values.csv").open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    csv_names = ["step (recorded)" if name == "step" else name for name in ODD]
    assert sorted(header) == sorted(["step", "update", "epoch", "train/loss", "train/epoch_loss", "lr", *csv_names])


def test_half_a_surrogate_pair_in_a_name_stands_in_files_as_its_escape(tmp_path: Path):
    pytest.importorskip("tensorboard")
    loggers = [CSVLogger(tmp_path / "values.csv"), TensorBoardLogger(tmp_path), Journal(tmp_path / "run.journal")]
    engine = small_engine(1, loggers)
    engine.on_exit("optimizer_update")(lambda run: run.record("caf\udce9", 1.0))
    engine.run()
    assert "caf\\udce9" in {value.name for value in TransitionLog.load(tmp_path / "run.journal").values()}
    assert "caf\\udce9" in (tmp_path / "values.csv").read_text(encoding="utf-8")


def test_a_csv_file_refuses_more_columns_than_a_spreadsheet_opens(tmp_path: Path):
    engine = small_engine(3, [ManyNames(20_000), CSVLogger(tmp_path / "values.csv")])
    with pytest.raises(
        PluginError, match=r"at most 16384 of them; 20004 are needed with 'norm/1/0'\. Record"
    ) as caught:
        engine.run()
    assert not any("closing" in note for note in caught.value.__notes__)


def test_the_line_of_an_epoch_shows_64_values_and_how_many_there_are():
    file = io.StringIO()
    small_engine(1, [ManyNames(100), Progress(file)]).run()
    (line,) = file.getvalue().splitlines()
    assert line.endswith("  norm/1/63 63.25  and 36 more")
