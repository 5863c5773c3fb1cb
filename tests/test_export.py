"""`heptad export`: every format, ranges, recorded values, compression; equal to what the log says."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import batches, small_engine
from heptad import Transition, TransitionLog
from heptad.cli.main import main
from heptad.history.part import LogPart
from heptad_plugins import Journal

FORMATS = ("jsonl", "csv", "parquet", "trace")


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of 3,000 transitions: several chunks, with notes, values and traced handlers."""
    path = tmp_path_factory.mktemp("export") / "run.journal"
    engine = small_engine(batches(250), [Journal(path)], accumulation=2, epochs=3, trace_handlers=True)
    engine.on_exit("optimizer_update", every=7)(lambda run: run.note(f"update {run.update}"))
    engine.on_exit("after_step", every=100)(lambda run: run.record("bad", float("nan")))
    engine.run()
    assert len(TransitionLog.load(path)) > 2048
    return path


def exported(journal: Path, path: Path, *words: object) -> Path:
    assert main(["export", str(journal), "-o", str(path), *map(str, words)]) == 0
    return path


def rows_of(path: Path, form: str) -> list[dict[str, Any]]:
    """Return the rows of a file, with all that is no text as it is."""
    if form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        return parquet.read_table(path).to_pylist()
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    if form == "csv":
        return list(csv.DictReader(text.splitlines()))
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if "format" not in line]


def seqs_of(path: Path, form: str) -> list[int]:
    """Return the numbers of the transitions in a file."""
    if form == "trace":
        events = json.loads(path.read_text())["traceEvents"]
        return [event["args"]["seq"] for event in events if event["ph"] == "B" and "seq" in event["args"]]
    return [int(row["seq"]) for row in rows_of(path, form)]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("words", "inside"),
    [
        (("--update", "100:200"), lambda t: 100 <= t.update < 200),
        (("--update", "374:"), lambda t: t.update >= 374),
        (("--epoch", "1"), lambda t: t.epoch == 1),
        (("--step", ":3"), lambda t: t.step < 3),
        (("--epoch", "1", "--update", "200:"), lambda t: t.epoch == 1 and t.update >= 200),
        ((), lambda t: True),
    ],
)
def test_a_range_holds_the_transitions_that_match(
    form: str, words: tuple[str, ...], inside: Callable[[Transition], bool], journal: Path, tmp_path: Path
):
    wanted = [t.seq for t in TransitionLog.load(journal) if inside(t)]
    assert seqs_of(exported(journal, tmp_path / "out", "--format", form, *words), form) == wanted


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_values_are_those_of_the_turns_that_match(form: str, journal: Path, tmp_path: Path):
    log = TransitionLog.load(journal)
    turns = {t.seq for t in log if 100 <= t.update < 200}
    wanted = [(v.seq, v.name, repr(v.value)) for v in log.values() if v.seq in turns]
    rows = rows_of(exported(journal, tmp_path / "out", "--format", form, "--values", "--update", "100:200"), form)
    assert [(int(row["seq"]), row["name"], repr(float(row["value"]))) for row in rows] == wanted
    whole = rows_of(exported(journal, tmp_path / "out", "--format", form, "--values"), form)
    assert [repr(float(row["value"])) for row in whole] == [repr(value.value) for value in log.values()]


def test_values_in_a_trace_are_its_counters(journal: Path, tmp_path: Path):
    path = exported(journal, tmp_path / "out.json", "--values", "--update", "100:200")
    events = json.loads(path.read_text())["traceEvents"]
    log = TransitionLog.load(journal)
    turns = {t.seq for t in log if 100 <= t.update < 200}
    wanted = [value.value for value in log.values() if value.seq in turns and value.value == value.value]
    assert [event["args"]["value"] for event in events if event["ph"] == "C"] == wanted
    assert {event["ph"] for event in events} == {"M", "C"}


@pytest.mark.parametrize(("name", "form"), [("a.csv", "csv"), ("a.jsonl", "jsonl"), ("a.parquet", "parquet")])
def test_the_name_says_which_format(name: str, form: str, journal: Path, tmp_path: Path):
    assert len(rows_of(exported(journal, tmp_path / name), form)) == len(TransitionLog.load(journal))


def test_the_format_may_be_another_than_the_name_says(journal: Path, tmp_path: Path):
    assert rows_of(exported(journal, tmp_path / "a.csv", "--format", "jsonl"), "jsonl")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_name_that_ends_in_gz_is_compressed(form: str, journal: Path, tmp_path: Path):
    packed = exported(journal, tmp_path / f"a.{form}.gz", "--update", "5:9")
    plain = exported(journal, tmp_path / f"a.{form}", "--update", "5:9")
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()


def test_a_compressed_trace_is_one(journal: Path, tmp_path: Path):
    packed = exported(journal, tmp_path / "a.json.gz", "--epoch", "0")
    assert json.loads(gzip.decompress(packed.read_bytes()))["traceEvents"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "a.parquet.gz"), "Parquet is compressed by itself; name the output a.parquet"),
        (("-o", "a.csv", "--update", "9000:"), "no transition matches"),
    ],
)
def test_what_cannot_be_written_is_said(
    words: tuple[str, ...], message: str, journal: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(journal), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_log_answers_as_the_log_does(journal: Path):
    """Transitions, notes, values and calls of the turns that it holds; the cut is within a chunk on both sides."""
    log = TransitionLog.load(journal)
    part = TransitionLog(LogPart(log.source, 700, 1500))
    assert list(part) == log[700:1500]
    assert part.notes() == [note for note in log.notes() if 700 <= note.seq < 1500]
    assert [v.seq for v in part.values()] == [v.seq for v in log.values() if 700 <= v.seq < 1500]
    assert part.calls() == log.calls(700, 1500)
    assert part.where(source="optimizer_update") == [t for t in log[700:1500] if t.source == "optimizer_update"]
    block, rows = part.source.value_block(3, 40), part.values()[3:43]
    assert [(block.names[name], value) for name, value in zip(block.name, block.value, strict=True)] == [
        (row.name, row.value) for row in rows
    ]
    assert list(block.place) == [count for row in rows for count in (row.seq, row.epoch, row.step, row.update)]
    assert len(part.source.value_block(len(part.values()), 40)) == 0
