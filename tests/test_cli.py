"""The command line: its answers, their form, and its errors for bad files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
import types
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import heptad
from builders import batches, drive, small_engine
from heptad import Detour, LogError, Run, TransitionLog
from heptad.cli import follow, output
from heptad.cli.main import COMMANDS, main
from heptad.history.table_form import table_to_plain
from heptad_plugins import Journal


class Answer(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line."""
        return [line.split() for line in self.out.splitlines()]


Ask = Callable[..., Answer]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return a function that runs a command in this process."""

    def run(*argv: object) -> Answer:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return Answer(code, *capsys.readouterr())

    return run


def journalled(path: Path, loader: Any = 3, act: Callable[[Any], None] | None = None, **config: Any) -> Run:
    """Return a run that was driven to its end and has written a journal; `act` is called on its engine before."""
    engine = small_engine(loader, [Journal(path)], **config)
    if act is not None:
        act(engine)
    drive(engine)
    return engine.current


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of two epochs of three batches, two to an update, with a note and a recorded value in each epoch."""
    path = tmp_path_factory.mktemp("plain") / "run.db"

    def act(engine: Any) -> None:
        engine.on_exit("after_epoch")(lambda run: (run.note(f"epoch {run.epoch} is over"), run.record("a", run.epoch)))

    journalled(path, act=act, accumulation=2, remainder="flush", epochs=2)
    return path


# -- the four questions


def test_why_did_the_optimizer_not_step_the_window_was_not_full(ask: Ask, tmp_path: Path):
    """`explain` of the step names the guard that was false, and the one step of four."""
    journalled(tmp_path / "run.db", 4, accumulation=4)
    answer = ask("explain", tmp_path / "run.db", "--source", "after_step", "--step", 1)
    assert "to optimizer_update if update_due: no (steps in the window 1, accumulation 4" in answer.out


def test_why_did_the_optimizer_not_step_the_update_was_skipped(ask: Ask, tmp_path: Path):
    """`explain` of the update says that it was skipped, and why."""

    def act(engine: Any) -> None:
        @engine.on_enter("optimizer_update", every=2)
        def guard_against_nan(run: Run) -> None:
            run.skip_update("the gradient holds NaN")

    journalled(tmp_path / "run.db", 4, act)
    answer = ask("explain", tmp_path / "run.db", "--source", "optimizer_update", "--step", 2)
    assert "the update was skipped, the weights and `update` did not change: the gradient holds NaN" in answer.out
    assert "the gradient holds NaN" in ask("show", tmp_path / "run.db", "--notes").out


def test_why_did_the_optimizer_not_step_a_stop_was_asked_for(ask: Ask, tmp_path: Path):
    """`explain` of the last update says that no batch follows because of a stop, and why."""

    def act(engine: Any) -> None:
        engine.on_exit("optimizer_update", every=2)(lambda run: run.stop("good enough"))

    journalled(tmp_path / "run.db", 9, act)
    answer = ask("explain", tmp_path / "run.db", "--source", "optimizer_update")
    assert "batches_remain: no (steps in the window 0, batches 2, in a pass 9, stop asked for True)" in answer.out
    assert "stop: good enough" in answer.out


def test_where_did_the_time_go_into_slow_data(ask: Ask, tmp_path: Path):
    """`stats` puts the state first that took most, with its share and its slowest occurrences."""

    class Slow:
        """Batches that take their time, the third most of all."""

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            for number, batch in enumerate(batches(4)):
                time.sleep(0.3 if number == 2 else 0.05)  # beside them, a slow machine's steps take no time
                yield batch

    journalled(tmp_path / "run.db", Slow())
    answer = ask("stats", tmp_path / "run.db")
    first = answer.rows[4]
    assert first[:2] == ["before_step", "4"]
    assert float(first[4]) > 50
    slowest = TransitionLog.load(tmp_path / "run.db").where(source="before_step", step=2)[0].seq
    assert first[-3] == f"#{slowest},"


def test_where_did_the_time_go_into_a_slow_handler(ask: Ask, tmp_path: Path):
    """With `trace_handlers` it puts the handler first that took most."""

    def act(engine: Any) -> None:
        @engine.on_exit("optimizer_update")
        def average_slowly(run: Run) -> None:
            time.sleep(0.05)

        average_slowly.__qualname__ = "average_slowly"

    journalled(tmp_path / "run.db", 4, act, trace_handlers=True)
    answer = ask("stats", tmp_path / "run.db", "--json")
    name, stays = next(iter(json.loads(answer.out)["handlers"].items()))
    assert name.endswith("average_slowly (exit optimizer_update)")
    assert stays["count"] == 4
    lines = ask("stats", tmp_path / "run.db").out.splitlines()
    (heading,) = (place for place, line in enumerate(lines) if line.split()[:2] == ["handler", "calls"])
    assert "average_slowly (exit optimizer_update)" in lines[heading + 2]


def test_what_happened_before_it_died_of_an_exception(ask: Ask, tmp_path: Path):
    """`show` ends with the last steps, the exception, and where it came from."""

    def act(engine: Any) -> None:
        def fails(run: Run) -> None:
            raise ValueError("no space in the cache")

        fails.__qualname__ = "fails"
        engine.on_exit("process_batch", every=2)(fails)

    journalled(tmp_path / "run.db", 4, act)
    answer = ask("show", tmp_path / "run.db", "--tail", 3)
    states = [(row[1], row[2]) for row in answer.rows[2:5]]
    assert states == [
        ("optimizer_update", "before_step"),
        ("before_step", "process_batch"),
        ("process_batch", "failed"),
    ]
    assert answer.out.splitlines()[-1] == (
        "failed: ValueError: no space in the cache in fails on exit of process_batch "
        "(epoch 0, batch 1, step 1, update 1)"
    )


KILLED = """
import os, signal, sys
import torch
from builders import small_engine
from heptad_plugins import Journal
from heptad.history.table_form import table_to_plain

torch.set_num_threads(1)
engine = small_engine(9, [Journal(sys.argv[1], flush_every=1)])

@engine.on_enter("process_batch", every=4)
def kill(run):
    run.note("the last words")
    os.kill(os.getpid(), signal.SIGKILL)

engine.run()
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a run whose process was killed."""
    path = tmp_path_factory.mktemp("killed") / "run.db"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    return path


def test_what_happened_before_it_was_killed(ask: Ask, killed: Path):
    """`show` ends with what the killed process had written, and says that the run has not ended."""
    answer = ask("show", killed, "--tail", 2)
    (last,) = answer.rows[-2:-1]
    assert last[1:3] in (["optimizer_update", "before_step"], ["before_step", "process_batch"])
    assert int(last[3]) == 3
    assert answer.out.splitlines()[-1].endswith(": it has not ended")


def test_where_do_two_runs_part(ask: Ask, tmp_path: Path):
    """`diff` names the first turn that differs and returns 1; for two runs of one seed it returns 0."""

    def act(engine: Any) -> None:
        @engine.on_exit("after_step", every=2)
        def act(run: Run) -> None:
            run.note(f"step {run.step}")
            if engine.stops and run.step == 4:
                run.stop("enough")

    for name, stops in (("a", False), ("b", False), ("c", True)):

        def build(engine: Any, stops: bool = stops) -> None:
            engine.stops = stops
            act(engine)

        journalled(tmp_path / name, 6, build)
    same = ask("diff", tmp_path / "a", tmp_path / "b")
    assert (same.code, same.out.startswith("the same but for times")) == (0, True)
    differs = ask("diff", tmp_path / "a", tmp_path / "c")
    assert differs.code == 1
    assert "the runs part in turn #17:\n    note stop: none here, stop enough there\n" in differs.out
    plain = json.loads(ask("diff", tmp_path / "a", tmp_path / "c", "--json").out)
    assert (plain["same"], plain["seq"], [p["kind"] for p in plain["parted"]]) == (False, 17, ["note"])
    ignored = ask("diff", tmp_path / "a", tmp_path / "c", "--ignore", "st*")
    assert "guard batches_remain: yes" in ignored.out


# -- commands


def test_show_filters_by_state_and_counters_as_where_does(ask: Ask, plain: Path):
    """The last twenty by default; numbers, ranges, open ranges."""
    log = TransitionLog.load(plain)

    def shown(*argv: object) -> list[int]:
        return [json.loads(line)["seq"] for line in ask("show", plain, "--json", *argv).out.splitlines()]

    every = [t.seq for t in log]
    assert shown() == every[-20:]
    assert shown("--all") == every
    assert shown("--tail", 3) == every[-3:]
    assert shown("--tail", 0) == []
    assert shown("--source", "after_step") == [t.seq for t in log.where(source="after_step")]
    assert shown("--dest", "before_step", "--epoch", 1) == [t.seq for t in log.where(dest="before_step", epoch=1)]
    assert shown("--step", "2:4") == [t.seq for t in log.where(step=range(2, 4))]
    assert shown("--update", "3:", "--all") == [t.seq for t in log.where(update=range(3, 99))]
    assert shown("--update", ":2", "--tail", 2) == [t.seq for t in log.where(update=range(2))][-2:]


@pytest.mark.parametrize(
    "asked",
    [
        ("--step", 77),
        ("--source", "after_epoch", "--epoch", "5:"),
        ("--notes", "--step", 2),
        ("--values", "--epoch", 9),
    ],
)
def test_show_says_that_nothing_matches(ask: Ask, plain: Path, asked: tuple[object, ...]):
    """In place of a table without rows; as data there is no line."""
    answer = ask("show", plain, *asked)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[0] == "nothing matches"
    assert (ask("show", plain, *asked, "--json").out, ask("show", plain, *asked).code) == ("", 0)


def test_options_stand_where_they_like(ask: Ask, plain: Path, tmp_path: Path):
    """Before, between and behind what has no name."""
    for orders in (
        (("explain", plain, 5, "--json"), ("explain", plain, "--json", 5), ("explain", "--json", plain, 5)),
        (("explain", plain, -1, "--json"), ("explain", plain, "--json", -1), ("explain", "--json", plain, -1)),
        (("show", plain, "--tail", 3, "--notes"), ("show", "--tail", 3, plain, "--notes")),
        (("diff", plain, plain, "--ignore", "a"), ("diff", plain, "--ignore", "a", plain)),
        (("export", plain, "-o", tmp_path / "out"), ("export", "-o", tmp_path / "out", plain)),
        (("stats", plain, "--json"), ("stats", "--json", plain)),
    ):
        first, *others = (ask(*order) for order in orders)
        assert (first.code, first.err) == (0, "")
        assert all(other == first for other in others)


def test_a_shown_row_holds_what_a_transition_does(ask: Ask, plain: Path):
    """As data the fields of `Transition` and its notes; in the table the same in words, a row a line."""
    log = TransitionLog.load(plain)
    data = [json.loads(line) for line in ask("show", plain, "--all", "--json").out.splitlines()]
    for row, transition in zip(data, log, strict=True):
        notes = [note.text for note in log.notes() if note.seq == transition.seq]
        assert [note["text"] for note in row.pop("notes")] == notes
        assert row == {name: getattr(transition, name) for name in row}
        assert len(row) == 10
    answer = ask("show", plain, "--all")
    assert answer.rows[0][:5] == ["seq", "from", "to", "step", "update"]
    assert [row[0] for row in answer.rows[2:-1]] == [str(t.seq) for t in log]
    assert all(len(line) <= 220 for line in answer.out.splitlines())
    assert "note: epoch 2 is over" in answer.out
    assert answer.out.splitlines()[-1] == "finished"


def test_notes_and_values_are_shown_of_what_matches(ask: Ask, plain: Path):
    """All of them, the last ones, or those of the turns that match."""

    def shown(*argv: object) -> list[Any]:
        rows = [json.loads(line) for line in ask("show", plain, "--json", *argv).out.splitlines()]
        return [row.get("text", row.get("value")) for row in rows]

    assert shown("--notes") == ["epoch 1 is over", "epoch 2 is over"]
    assert shown("--notes", "--tail", 1) == ["epoch 2 is over"]
    assert shown("--notes", "--epoch", 1, "--all") == ["epoch 1 is over"]
    assert shown("--notes", "--source", "after_step") == []
    values = TransitionLog.load(plain).values()
    assert shown("--values", "--all") == [value.value for value in values]
    assert shown("--values", "--tail", 2) == [value.value for value in values[-2:]]
    ends = {t.seq for t in TransitionLog.load(plain).where(source="after_epoch")}
    assert shown("--values", "--source", "after_epoch") == [value.value for value in values if value.seq in ends]
    assert shown("--values", "--update", "3:", "--all") == [value.value for value in values if value.update >= 3]
    assert ask("show", plain, "--values").rows[0] == ["seq", "name", "value", "epoch", "step", "update"]
    assert ask("show", plain, "--notes").rows[-1][3:] == ["epoch", "2", "is", "over"]


def test_stats_as_data_is_what_the_log_says(ask: Ask, plain: Path):
    """Entries, durations and notes."""
    log = TransitionLog.load(plain)
    answer = json.loads(ask("stats", plain, "--json").out)
    assert answer["transitions"] == len(log)
    assert {name: row["entries"] for name, row in answer["states"].items() if row["entries"]} == dict(log.counts())
    assert {name: row["p99_ns"] for name, row in answer["states"].items() if "p99_ns" in row} == {
        name: stay.p99_ns for name, stay in log.durations().items()
    }
    assert answer["notes"] == {"note": 2}
    text = ask("stats", plain).out
    assert text.startswith(f"{len(log)} transitions from #0")
    assert text.endswith("notes: 2 note\n")


def test_explain_by_number_from_the_end_and_by_what_it_is_like(ask: Ask, plain: Path):
    """The same text as `str(log.explain(seq))`; data on demand."""
    log = TransitionLog.load(plain)
    assert ask("explain", plain, 12).out == f"{log.explain(12)}\n"
    assert ask("explain", plain, -1).out == f"{log.explain(len(log) - 1)}\n"
    found = [t.seq for t in log.where(source="after_step")][-2:]
    asked = ("--source", "after_step", "--tail", 2)
    assert ask("explain", plain, *asked).out == "".join(f"{log.explain(seq)}\n" for seq in found)
    data = [json.loads(line) for line in ask("explain", plain, *asked, "--json").out.splitlines()]
    assert [row["seq"] for row in data] == found
    assert data[0]["tried"][0]["guard"] == "update_due"
    assert [call["moment"] for call in data[0]["calls"]] == [call.moment for call in log.explain(found[0]).calls]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "explain needs the number of a transition"),
        ((3, "--step", 2), "not both"),
        ((99,), "does not hold transition #99; it holds #0 to #28"),
        (("--step", 77), "no transition matches"),
        (("--source", "after_stp"), "did you mean 'after_step'"),
    ],
)
def test_explain_says_what_it_cannot_find(ask: Ask, plain: Path, argv: tuple[object, ...], message: str):
    """With 2, and no traceback."""
    answer = ask("explain", plain, *argv)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


def test_diagram_is_the_table_of_the_run(ask: Ask, tmp_path: Path):
    """With the detours that it had."""

    def detours() -> Any:
        return (Detour("sample", "after_epoch", lambda run: True, lambda run: None),)

    journal = Journal(tmp_path / "run.db")
    journal.detours = detours
    engine = small_engine(1, [journal])
    engine.run()
    assert ask("diagram", tmp_path / "run.db").out == f"{engine.diagram()}\n"
    answer = json.loads(ask("diagram", tmp_path / "run.db", "--json").out)
    assert (answer["mermaid"], answer["table"]) == (engine.diagram(), table_to_plain(engine.current.table))
    assert "sample --> after_loop" in answer["mermaid"]


def json_lines(path: Path) -> list[Any]:
    """Return what the lines of a file hold."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_export_writes_every_format(ask: Ask, plain: Path, tmp_path: Path):
    """JSON lines and CSV with a row for each transition, a trace; folders are made."""
    log = TransitionLog.load(plain)
    answer = ask("export", plain, "-o", tmp_path / "deep" / "log.jsonl", "--json")
    assert json.loads(answer.out)["transitions"] == len(log)
    assert [line["seq"] for line in json_lines(tmp_path / "deep" / "log.jsonl")[1:]] == [t.seq for t in log]

    assert ask("export", plain, "--format", "csv", "-o", tmp_path / "log.csv").code == 0
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [(int(row["seq"]), row["source"], row["guards"]) for row in rows] == [
        (t.seq, t.source, t.answers()) for t in log
    ]
    assert [row["notes"] for row in rows if row["notes"]] == ["note: epoch 1 is over", "note: epoch 2 is over"]

    assert ask("export", plain, "--format", "trace", "-o", tmp_path / "trace.json").code == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event["name"] for event in events if (event["ph"], event.get("cat")) == ("B", "state")]
    assert spans == log.path()


@pytest.mark.parametrize("format", ["jsonl", "csv", "trace"])
def test_export_to_standard_output_is_what_the_file_would_hold(ask: Ask, plain: Path, tmp_path: Path, format: str):
    """By the name `-`; nothing else is printed, with `--json` neither."""
    assert ask("export", plain, "--format", format, "-o", tmp_path / "out").code == 0
    for more in ((), ("--json",)):
        answer = ask("export", plain, "--format", format, "-o", "-", *more)
        assert (answer.code, answer.out, answer.err) == (0, (tmp_path / "out").read_text(), "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert ask("export", tmp_path / "lost", "-o", "-").code == 2


@pytest.mark.parametrize("format", ["jsonl", "csv", "trace"])
def test_export_to_a_pipe_leaves_it_one(ask: Ask, plain: Path, tmp_path: Path, format: str):
    """As `-o >(gzip > log.gz)` is; it gets what a file would hold."""
    assert ask("export", plain, "--format", format, "-o", tmp_path / "out").code == 0
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    assert ask("export", plain, "--format", format, "-o", tmp_path / "pipe").code == 0
    reader.join(10)
    assert (tmp_path / "pipe").is_fifo()
    assert read == [(tmp_path / "out").read_text()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pipe"]


def test_export_never_writes_over_the_log(ask: Ask, plain: Path, tmp_path: Path):
    """Nor to a folder; both are said."""
    before = plain.read_bytes()
    answer = ask("export", plain, "-o", plain)
    assert (answer.code, "is the journal of a run" in answer.err) == (2, True)
    assert plain.read_bytes() == before
    assert ask("export", plain, "-o", tmp_path).code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_live_run_is_followed_to_its_end(ask: Ask, tmp_path: Path):
    """Every transition is shown once, those that come while the file is being followed too."""
    begun = threading.Event()

    def slowly(run: Run) -> None:
        begun.set()
        time.sleep(0.15)

    engine = small_engine(6, [Journal(tmp_path / "run.db", flush_every=1)])
    engine.on_enter("after_step")(slowly)
    thread = threading.Thread(target=engine.run)
    thread.start()
    assert begun.wait(10)
    while not (tmp_path / "run.db").exists() or not len(TransitionLog.load(tmp_path / "run.db")):
        time.sleep(0.01)
    answer = ask("show", tmp_path / "run.db", "--follow", "--json", "--tail", 99)
    thread.join()
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["seq"] for row in rows] == list(range(len(engine.current.log)))
    assert rows[-1]["dest"] == "finished"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a follower warn after an instant, and press Ctrl-C when it has looked some more times after that."""
    began, late = None, 0

    def sleep(seconds: float) -> None:
        nonlocal began, late
        now = time.monotonic()
        began = now if began is None else began
        late += now > began + 0.2
        if late > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(follow, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(follow.time, "sleep", sleep)


def test_ctrl_c_while_a_command_is_imported_ends_it(monkeypatch: pytest.MonkeyPatch):
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("heptad.cli.main.import_module", interrupt)
    assert main(["summary", "run.db"]) == 130


@pytest.mark.usefixtures("quiet")
def test_following_a_killed_run_warns_that_its_process_is_gone(ask: Ask, killed: Path):
    """Once, on standard error; a resumed run continues in the same file, so the command waits."""
    answer = ask("show", killed, "--follow", "--tail", 0)
    assert (answer.code, answer.out) == (130, "")
    assert re.fullmatch(
        r"heptad: nothing has been written for 0\.1 s, and the process that wrote it \(\d+ on .*\) is gone; "
        r"a resumed run continues in this file, Ctrl-C ends the waiting\n",
        answer.err,
    )


@pytest.mark.usefixtures("quiet")
def test_following_a_live_run_warns_of_nothing(ask: Ask, tmp_path: Path):
    """However long a step takes."""
    engine = small_engine(9, [Journal(tmp_path / "run.db", flush_every=1)])
    for _ in range(5):
        engine.advance()
    answer = ask("show", tmp_path / "run.db", "--follow")
    assert (answer.code, answer.err) == (130, "")
    engine.close()


@pytest.mark.usefixtures("quiet")
def test_following_a_paused_run_warns_that_no_process_writes(ask: Ask, tmp_path: Path):
    engine = small_engine(9, [Journal(tmp_path / "run.db")])
    engine.run(until="after_step")
    answer = ask("show", tmp_path / "run.db", "--follow")
    assert answer.code == 130
    assert answer.err.startswith(
        "heptad: nothing has been written for 0.1 s, and no process has the file open for writing;"
    )


def test_without_rich_all_is_plain_text(ask: Ask, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tables too: only what is redrawn in its place needs rich."""
    for name in ("rich", "rich.live", "rich.console"):
        monkeypatch.setitem(sys.modules, name, None)
    for argv in (("show",), ("show", "--notes"), ("show", "--values"), ("stats",), ("explain", 3), ("diagram",)):
        for more in ((), ("--json",)):
            assert ask(argv[0], plain, *argv[1:], *more).code == 0
    assert ask("diff", plain, plain).code == 0
    assert ask("export", plain, "-o", tmp_path / "log.jsonl", "--json").code == 0


@pytest.mark.parametrize(
    "argv",
    [
        ("--columns",),
        ("shew", "x"),
        ("show",),
        ("show", "x", "--step", "a:b"),
        ("show", "x", "--step", "-1"),
        ("show", "x", "--step", "5:2"),
        ("show", "x", "--update", "5:5"),
        ("show", "x", "--epoch", ":0"),
        ("show", "x", "--epoch", "-3:"),
        ("show", "x", "--tail", "-3"),
        ("show", "x", "--tail", "all"),
        ("explain", "x", "--tail", "-1", "--step", "1"),
        ("explain", "x", "--json", "5", "6"),
        ("show", "x", "--notes", "--values"),
        ("export", "x"),
        ("export", "x", "-o", "y", "--format", "xml"),
    ],
)
def test_arguments_that_no_command_takes_end_with_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    """What was expected is said."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: heptad" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--tail", "-3"), "argument --tail: expected a number of at least 0, got '-3'"),
        (("--step", "-1"), "argument --step: counters begin at 0, got '-1'"),
        (("--step", "5:2"), "argument --step: the range '5:2' is empty; a:b is from a to before b"),
        (("--step", "5:-2"), "argument --step: the range '5:-2' is empty"),
        (("--step", "five"), "argument --step: expected a number or a range such as 3:9, 3: or :9, got 'five'"),
    ],
)
def test_numbers_that_select_nothing_are_refused(argv: Any, message: str, capsys: pytest.CaptureFixture[str]):
    """With what is wrong with them."""
    with pytest.raises(SystemExit):
        main(["show", "x", *argv])
    assert message in capsys.readouterr().err


def test_alone_it_is_help(capsys: pytest.CaptureFixture[str]):
    """On standard output, with exit code 0, and every command in it."""
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"\n +{name}\s", shown) for name in COMMANDS)


@pytest.mark.parametrize(("word", "near"), [("shew", "show"), ("sumary", "summary"), ("stat", "stats")])
def test_an_unknown_command_suggests_the_nearest(word: str, near: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert ended.value.code == 2
    assert f"no command and no file is called '{word}'; did you mean '{near}'?" in capsys.readouterr().err


def test_an_option_that_there_is_not_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["--verison"])
    assert "is called '--verison'; did you mean '--version'?" in capsys.readouterr().err


def test_a_file_in_place_of_a_command_may_be_missing(ask: Ask, tmp_path: Path):
    """It is named, as for every command."""
    answer = ask(tmp_path / "lost.journal")
    assert (answer.code, "there is no such file" in answer.err) == (2, True)


def test_a_shell_is_told_of_the_options_of_every_command(monkeypatch: pytest.MonkeyPatch):
    """By argcomplete, which asks the whole parser; without it nothing is answered."""
    found: dict[str, set[str]] = {}

    def autocomplete(parser: Any) -> None:
        (commands,) = (action.choices for action in parser._actions if action.dest == "==SUPPRESS==")
        for name, command in commands.items():
            found[name] = {option for action in command._actions for option in action.option_strings}
        raise SystemExit(0)

    monkeypatch.setitem(sys.modules, "argcomplete", types.SimpleNamespace(autocomplete=autocomplete))
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    with pytest.raises(SystemExit):
        main([])
    assert set(found) == set(COMMANDS)
    assert {"--columns", "--follow"} <= found["show"]
    assert {"--values", "--format"} <= found["export"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("heptad su", {"summary "}),
        ("heptad show --co", {"--columns "}),
        ("heptad export --fo", {"--format "}),
        ("heptad export --format pa", {"parquet "}),
    ],
)
def test_argcomplete_completes_a_line(line: str, words: set[str], tmp_path: Path):
    """As a shell asks: the line in the environment, the answer in a file."""
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SHELL": "bash"}
    subprocess.run(program(), env=environment() | asked, check=False, timeout=60)
    assert set(answer.read_text(encoding="utf-8").split("\n")) == words


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    """At a terminal and in Python, where it is looked up when somebody asks; it is no exported name."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"heptad {version('heptad')}\n"
    assert heptad.__version__ == version("heptad")
    assert "__version__" not in vars(heptad)
    with pytest.raises(AttributeError, match=r"^module 'heptad' has no attribute 'Engin'$"):
        _ = heptad.Engin  # pyright: ignore[reportAttributeAccessIssue]


# -- where it prints to


class Terminal(io.TextIOWrapper):
    """Standard output that takes an encoding and nothing else."""

    def __init__(self, encoding: str, errors: str = "strict") -> None:
        super().__init__(io.BytesIO(), encoding, errors)

    @property
    def shown(self) -> str:
        """What stands there."""
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("encoding", "errors", "micro"),
    [
        ("utf-8", "strict", "µs"),
        ("cp1252", "strict", "µs"),
        ("iso-8859-1", "strict", "µs"),
        ("ascii", "strict", "us"),
        ("ascii", "surrogateescape", "us"),
    ],
)
def test_a_terminal_that_lacks_a_sign_shows_one_that_is_near(
    encoding: str, errors: str, micro: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Lines of tables, units, marks of what was left out; letters that it lacks by their numbers. Never a traceback."""

    def act(engine: Any) -> None:
        engine.on_exit("after_step", every=2)(lambda run: run.note("漢 caf\udce9"))

    journalled(tmp_path / "run.db", 3, act)
    shown: dict[str, str] = {}
    for argv in (("show",), ("show", "--notes"), ("stats",), ("explain", 9), ("diff", plain)):
        terminal = Terminal(encoding, errors)
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main([str(word) for word in (argv[0], tmp_path / "run.db", *argv[1:])]) == (argv[0] == "diff")
        assert terminal.errors == errors
        shown[" ".join(map(str, argv[:2]))] = terminal.shown
    assert micro in shown["stats"]
    assert set(shown["stats"].splitlines()[3].strip()) == {"─" if encoding == "utf-8" else "-"}
    letter = "漢" if encoding == "utf-8" else r"\u6f22"
    assert f"note: {letter} caf\\udce9" in shown["show"]
    assert f"{letter} caf\\udce9" in shown["show --notes"]
    assert f"note: {letter} caf\\udce9" in shown["explain 9"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with long names, traced handlers, and a note that would command a terminal."""
    path = tmp_path_factory.mktemp("wide") / "run.db"

    def act(engine: Any) -> None:
        @engine.on_exit("optimizer_update")
        def a_handler_with_a_name_that_is_longer_than_a_column(run: Run) -> None:
            run.record("gradient_norm/of_the_whole_network/before_clipping", 0.123456789)

        engine.on_exit("after_step", once=True)(lambda run: run.note("\x1b[31mred\x07"))

    journalled(path, 5, act, trace_handlers=True)
    return path


def test_control_characters_of_a_note_do_not_reach_the_terminal(ask: Ask, wide: Path):
    for argv in (
        ("show", wide, "--notes"),
        ("show", wide, "--all"),
        ("explain", wide, "--source", "after_step", "--step", 1),
    ):
        out = ask(*argv).out
        assert r"\x1b[31mred\x07" in out
        assert "\x1b" not in out


@pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")])
def test_where_standard_output_is_closed_nothing_can_be_said(
    streams: tuple[str, ...], plain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """As by `>&-`: 2, and a line on standard error if there is one."""
    for stream in streams:
        monkeypatch.setattr(sys, stream, None)
    assert main(["show", str(plain)]) == 2
    answer = (
        "" if "stderr" in streams else "heptad: standard output is closed; redirect it to a file, or to /dev/null\n"
    )
    assert capsys.readouterr().err == answer


def test_nothing_of_a_table_is_taken_for_markup(ask: Ask, tmp_path: Path):
    """Brackets in notes stand as they were written."""

    def act(engine: Any) -> None:
        engine.on_exit("after_epoch")(lambda run: run.note("[red]loss[/red] :smile: [x"))

    journalled(tmp_path / "run.db", 1, act)
    assert "[red]loss[/red] :smile: [x" in ask("show", tmp_path / "run.db", "--notes").out
    assert "[red]loss[/red] :smile: [x" in ask("show", tmp_path / "run.db").out


# -- as a program


def environment() -> dict[str, str]:
    """Return an environment in which a program finds the packages of this tree."""
    folders = [str(Path(output.__file__).parents[2]), str(Path(__file__).parent)]
    folders.append(str(Path(sys.modules["heptad_plugins"].__file__ or "").parents[1]))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def program(*argv: object) -> list[str]:
    """Return the command line of a program."""
    return [sys.executable, "-m", "heptad", *map(str, argv)]


def test_it_runs_as_a_program(plain: Path, tmp_path: Path):
    """`python -m heptad`, with its exit codes; errors go to stderr, in one line."""
    done = subprocess.run(program("diff", plain, plain), env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the same but for times")
    lost = subprocess.run(program("show", "lost"), env=environment(), capture_output=True, text=True, check=False)
    assert (lost.returncode, lost.stdout) == (2, "")
    assert lost.stderr == "heptad: lost: there is no such file; Journal('lost') among the plugins writes one\n"


HEAVY = ("torch", "pandas", "pydantic", "transitions", "heptad_plugins", "numpy")
"""Packages that take long to import; numpy, the least of them, decodes chunks."""

WHAT_IS_LOADED = f"""
import sys
from contextlib import suppress
with suppress(SystemExit):
    from heptad.cli.main import main
    main(sys.argv[1:])
sys.stderr.write(",".join(name for name in {HEAVY} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("argv", "loaded"),
    [
        (("--version",), ""),
        (("--help",), ""),
        (("demo", "--help"), ""),
        (("weights", "--help"), ""),
        *((("show", "{}", *more), "numpy") for more in ((), ("--notes",), ("--values", "--json"), ("--follow",))),
        (("stats", "{}"), "numpy"),
        (("explain", "{}", "3"), "numpy"),
        (("diff", "{}", "{}"), "numpy"),
        (("diagram", "{}"), "numpy"),
        *((("export", "{}", "-o", "-", "--format", name), "numpy") for name in ("jsonl", "csv", "trace")),
    ],
)
def test_a_command_loads_no_torch(argv: tuple[str, ...], loaded: str, plain: Path):
    """What it needs and nothing else: a question is answered in less time than importing torch takes."""
    words = [word.format(plain) for word in argv]
    asked = [sys.executable, "-c", WHAT_IS_LOADED, *words]
    done = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=True)
    assert done.stderr == loaded
    assert done.stdout


def test_the_package_is_imported_without_what_it_needs_to_train():
    """`import heptad` and the names that ask a log load no torch."""
    code = "import sys, heptad; from heptad import LogError, TransitionLog; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_its_arguments(name: str, capsys: pytest.CaptureFixture[str]):
    """`heptad … --help`."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: heptad {name} ")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path):
    """As `| head` does: the pipe is closed in the middle, nothing is said, the exit code is 0."""
    journalled(tmp_path / "run.db", [batches(1)[0]] * 1_500)
    with subprocess.Popen(
        program("show", tmp_path / "run.db", "--all", "--json"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as reading:
        assert reading.stdout is not None
        assert reading.stderr is not None
        assert json.loads(reading.stdout.readline())["seq"] == 0
        reading.stdout.close()
        assert reading.stderr.read() == b""
        assert reading.wait() == 0


def test_a_disk_that_is_full_is_said_in_a_line(plain: Path):
    """With 2; what could not be printed is not tried again when the program ends."""
    with Path("/dev/full").open("wb") as full:  # it takes no byte, and is no file that could come to harm by this
        done = subprocess.run(
            program("show", plain), env=environment(), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (2, b"heptad: [Errno 28] No space left on device\n")


def test_export_to_the_file_that_standard_output_goes_to(plain: Path, tmp_path: Path):
    """By its own name, as /dev/stdout is one: the file stays the same one, and holds the log and nothing else."""
    with (tmp_path / "out").open("wb") as out:
        argv = program("export", plain, "-o", tmp_path / "out")
        subprocess.run(argv, env=environment(), stdout=out, check=True)
        assert os.path.samestat(os.fstat(out.fileno()), (tmp_path / "out").stat())
    assert [line["seq"] for line in json_lines(tmp_path / "out")[1:]] == [t.seq for t in TransitionLog.load(plain)]


def test_it_is_installed_as_heptad():
    """The script that the package installs is `main`."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"heptad": f"{main.__module__}:{main.__name__}"}


# -- files that are no good


def flipped(data: bytes, place: int) -> bytes:
    """Return data with one bit flipped."""
    return data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :]


def spoilt(journal: bytes, parts: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield bad files: cut, with a bit flipped where it counts, of another format, of a newer version."""
    for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.95):
        yield f"journal cut at {share}", journal[: int(len(journal) * share)]
    for number, part in enumerate(parts):
        for where in (len(part) // 3, len(part) - 1):  # wherever it stands: SQLite leaves old copies behind
            yield f"journal, a bit of part {number} at {where}", journal.replace(part, flipped(part, where))
    yield "journal of a newer version", journal[:60] + (99).to_bytes(4, "big") + journal[64:]
    yield "journal of another program", journal[:68] + (77).to_bytes(4, "big") + journal[72:]
    yield "nothing", b""
    yield "zeros", bytes(5_000)
    yield "text", b"epoch 1: loss 0.3\n" * 100
    yield "JSON of something else", b'{"loss": [1, 2, 3]}\n'
    yield "JSON, but no object", b"[1, 2, 3]\n"
    yield "SQLite's first bytes", b"SQLite format 3\x00" + bytes(84)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of some chunks, with notes and recorded values."""
    path = tmp_path_factory.mktemp("sound") / "run.db"

    def act(engine: Any) -> None:
        engine.on_exit("after_step", every=100)(lambda run: run.note(f"step {run.step}"))

    journalled(path, [batches(1)[0]] * 600, act)
    return path


def parts_that_count(path: Path) -> list[bytes]:
    """Return what every question reads of a journal's bytes: the table, the facts, bodies of chunks."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        texts = [connection.execute(f"SELECT {what}").fetchone()[0] for what in (
            "value FROM meta WHERE key = 'table'", "facts FROM session",
        )]  # fmt: skip
        bodies = [body for (body,) in connection.execute("SELECT body FROM chunk ORDER BY seq LIMIT 3")]
    finally:
        connection.close()
    return [text.encode()[:200] for text in texts] + [body[:200] for body in bodies]


ASKED = (("stats",), ("show", "--all"), ("diagram",), ("explain", "1"), ("diff",), ("export",), ("summary",))


def test_bad_files_are_named_and_left_alone(ask: Ask, sound: Path, tmp_path: Path):
    """More than twenty: 2, a line that names the file, no traceback, nothing changed and nothing left beside it."""
    cases = list(spoilt(sound.read_bytes(), parts_that_count(sound)))
    assert len(cases) >= 20
    folder = tmp_path / "spoilt"
    folder.mkdir()
    file = folder / "run.db"
    for number, (what, data) in enumerate(cases):
        file.write_bytes(data)
        os.utime(file, ns=(10**18, 10**18))
        for name, *more in (("stats",), ("show", "--all", "--json"), ASKED[number % len(ASKED)]):
            paths = [file, sound] if name == "diff" else [file]
            extra = ["-o", tmp_path / "out"] if name == "export" else []
            if name in ("diagram", "explain") and "part" in what:
                continue  # these read but one chunk, or none
            answer = ask(name, *paths, *more, *extra)
            assert answer.code == 2, (what, name, answer)
            assert answer.err.startswith("heptad: "), what
            assert answer.err.count("\n") == 1, answer.err
            assert str(file) in answer.err, answer.err
            assert "Traceback" not in answer.out + answer.err
            assert not (tmp_path / "out").exists()
        assert file.read_bytes() == data, what
        assert file.stat().st_mtime_ns == 10**18, what
        assert [path.name for path in folder.iterdir()] == ["run.db"], what


def test_an_export_is_not_read_back(ask: Ask, plain: Path, tmp_path: Path):
    """At a terminal and in Python: the error says that a journal is what can be asked."""
    export = TransitionLog.load(plain).to_jsonl(tmp_path / "log.jsonl")
    message = f"{export} holds JSON: an export such as to_jsonl writes cannot be read back; name the journal of the run"
    assert ask("stats", export) == Answer(2, "", f"heptad: {message}\n")
    with pytest.raises(LogError, match=re.escape(message)):
        TransitionLog.load(export)


def test_files_of_other_programs_are_refused(ask: Ask, tmp_path: Path):
    """A database, an archive, a saved network, a picture, a folder, a name without a file."""
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE a (b)")
    connection.commit()
    connection.close()
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("a", "b")
    torch.save({"a": torch.zeros(3)}, tmp_path / "network.pt")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "folder").mkdir()
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in (*names, "lost"):
        answer = ask("stats", tmp_path / name)
        assert (answer.code, answer.out) == (2, "")
        assert str(tmp_path / name) in answer.err
        assert answer.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_sound_file_is_left_alone_too(ask: Ask, plain: Path):
    """Reading writes nothing and leaves nothing beside it."""
    before = (plain.read_bytes(), plain.stat().st_mtime_ns)
    for argv in (("show",), ("stats",), ("explain", 3), ("diagram",)):
        assert ask(argv[0], plain, *argv[1:]).code == 0
    assert (plain.read_bytes(), plain.stat().st_mtime_ns) == before
    assert [path.name for path in plain.parent.iterdir()] == ["run.db"]
