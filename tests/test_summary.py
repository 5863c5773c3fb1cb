"""How a run went and how runs compare: `TransitionLog.verdict`, `compare_runs`, `heptad RUN.journal`, `heptad diff`."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builders import batches, small_engine
from heptad import Run, TransitionLog
from heptad.cli.main import main
from heptad.errors import counted
from heptad.history.comparison import compare_runs, short_names
from heptad.history.figures import better_of
from heptad.history.journal.sessions import Again
from heptad.history.wording import date_and_time, first_words, long_time, rate
from heptad.record.event_codec import EVENTS
from heptad_plugins import Checkpoint, Journal, Throughput

TITLES = ["ended", "when", "took", "resumed", "last", "best", "speed", "time", "unusual", "next"]


def engine_in(folder: Path, act: Any = None, **config: Any) -> Any:
    """Return an engine with a journal and a checkpoint every epoch, of three epochs of five batches, two an update."""
    plugins = [Checkpoint(folder / "checkpoints"), Throughput(), Journal(folder / "run.journal", flush_every=1)]
    engine = small_engine(
        batches(5), plugins, **{"accumulation": 2, "remainder": "flush", "epochs": 3, "seed": 0, **config}
    )
    if act is not None:
        act(engine)
    return engine


def lines_of(log: TransitionLog) -> dict[str, str]:
    return {line.title: line.text for line in log.verdict().lines}


# -- the ten lines


def test_a_finished_run_says_so_with_what_it_counted(tmp_path: Path):
    """Three epochs of three updates each."""
    run = engine_in(tmp_path).run()
    log = TransitionLog.load(tmp_path / "run.journal")
    found, lines = log.verdict(), lines_of(log)
    assert list(lines) == TITLES
    assert (found.outcome, found.why) == ("finished", "epochs=3 complete")
    assert lines["ended"] == "finished: epochs=3 complete; epoch 3, step 15, update 9"
    assert lines["resumed"] == "never"
    assert found.driven_ns == sum(t.duration_ns for t in log)
    assert found.updates_per_second == pytest.approx(9e9 / found.driven_ns)
    assert found.steps_per_second == pytest.approx(15e9 / found.driven_ns)
    assert (found.began_ns, found.ended_ns) == (log[0].time_ns - log[0].duration_ns, log[-1].time_ns)
    assert list(found.states) == sorted(found.states, key=lambda name: -found.states[name].total_ns)
    assert str(run.log.verdict()).splitlines()[0] == str(found).splitlines()[0]


@pytest.mark.parametrize(
    ("config", "act", "outcome", "why"),
    [
        ({"max_updates": 4}, None, "finished", "max_updates=4 reached"),
        ({"epochs": 2}, lambda run: run.update == 3 and run.stop("enough"), "stopped", "enough"),
        ({"epochs": 2, "max_updates": 4}, lambda run: run.update == 2 and run.stop("enough"), "stopped", "enough"),
    ],
)
def test_a_run_that_ended_says_why(config: Any, act: Any, outcome: str, why: str, tmp_path: Path):
    run = engine_in(tmp_path, lambda engine: act and engine.on_exit("optimizer_update")(act), **config).run()
    found = TransitionLog.load(tmp_path / "run.journal").verdict()
    assert (found.outcome, found.why) == (outcome, why)
    assert run.reason == why


def test_a_run_that_failed_says_where(tmp_path: Path):
    def fails(run: Run) -> None:
        raise ValueError("no space")

    engine = engine_in(tmp_path, lambda engine: engine.on_exit("process_batch", every=4)(fails))
    with pytest.raises(ValueError, match="no space"):
        engine.run()
    found = TransitionLog.load(tmp_path / "run.journal").verdict()
    assert found.outcome == "failed"
    assert found.why.startswith("ValueError: no space in ")
    assert found.why.endswith("on exit of process_batch (epoch 0, batch 3, step 3, update 1)")
    assert found.next[0][0] == f"heptad explain {tmp_path / 'run.journal'} -1"


def test_a_paused_run_says_why(tmp_path: Path):
    engine = engine_in(tmp_path, lambda engine: engine.on_exit("after_epoch")(lambda run: run.pause("lunch")))
    engine.run()
    found = TransitionLog.load(tmp_path / "run.journal").verdict()
    assert (found.outcome, found.why) == ("paused", "lunch")


def test_a_run_without_a_transition_says_so():
    found = small_engine(2).current
    assert found.log.verdict().outcome == "empty"
    assert len(found.log.verdict().lines) == 10


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
sys.path[:0] = sys.argv[2].split(os.pathsep)
from test_summary import engine_in
torch.set_num_threads(1)
engine = engine_in(Path(sys.argv[1]))

@engine.on_exit("optimizer_update")
def kill(run):
    if run.update == 5:
        os.kill(os.getpid(), signal.SIGKILL)

engine.run()
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Two journals: of an undisturbed run, and of one that was killed in update 5 and resumed; how it was between."""
    folder = tmp_path_factory.mktemp("pair")
    engine_in(folder / "undisturbed").run()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder / "killed"), os.pathsep.join(sys.path)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    log = TransitionLog.load(folder / "killed" / "run.journal")
    between = {"verdict": log.verdict(), "transitions": list(log)}
    del log
    engine_in(folder / "killed").run(resume="auto")
    return folder / "undisturbed" / "run.journal", folder / "killed" / "run.journal", between


def test_a_first_start_that_found_no_checkpoint_is_not_a_resume(tmp_path: Path):
    """A script that always passes `resume="auto"` would else be resumed once more than it was."""
    engine = engine_in(tmp_path)
    assert engine.run(resume="auto").log.verdict().resumes == ()
    log = TransitionLog.load(tmp_path / "run.journal")
    assert lines_of(log)["resumed"] == "never"
    assert len(log.notes("resume")) == 1


def test_a_killed_run_says_that_its_process_is_gone(pair: Any):
    found = pair[2]["verdict"]
    assert found.outcome == "killed"
    assert "is gone" in found.why


def test_a_resumed_run_says_what_was_made_again(pair: Any):
    """All that the killed process had written beyond its checkpoint, which the sessions hold."""
    log, before = TransitionLog.load(pair[1]), pair[2]["transitions"]
    found = log.verdict()
    (resume,) = found.resumes
    assert resume.checkpoint is not None
    lost = [t for t in before if t.seq >= resume.seq]
    assert len(lost) > 0
    (again,) = [session.again for session in found.sessions if session.again]
    updates = sum(t.source == "optimizer_update" for t in lost)
    assert again == Again(len(lost), resume.seq, updates, lost[-1].time_ns - before[resume.seq - 1].time_ns)
    assert lines_of(log)["resumed"].startswith(f"once, from {resume.checkpoint} before #{resume.seq}; {updates} update")
    assert found.ended_ns - found.began_ns > found.driven_ns


def test_the_last_and_the_best_values_have_their_epoch(tmp_path: Path):
    """The epoch is counted as people do, for what is recorded within it and at its end."""

    def act(engine: Any) -> None:
        engine.on_exit("after_epoch")(lambda run: run.record("valid/accuracy", [0.5, 0.75, 0.625][run.epoch - 1]))
        engine.on_exit("optimizer_update")(lambda run: run.record("error", run.update % 4))
        engine.on_exit("optimizer_update")(
            lambda run: run.record("gradient_norm", math.nan if run.update == 4 else 1.0)
        )

    engine_in(tmp_path, act).run()
    found = TransitionLog.load(tmp_path / "run.journal").verdict()
    accuracy, error, norm = (found.figures[name] for name in ("valid/accuracy", "error", "gradient_norm"))
    assert (accuracy.last.value, accuracy.last.epoch) == (0.625, 3)
    assert accuracy.best is not None
    assert (accuracy.best.value, accuracy.best.epoch) == (0.75, 2)
    assert error.best is not None
    assert (error.best.value, error.best.update, error.best.epoch) == (0.0, 4, 2)
    assert (norm.best, norm.not_finite) == (None, 1)
    assert norm.first_not_finite is not None
    assert norm.first_not_finite.update == 4
    lines = {line.title: line.text for line in found.lines}
    assert lines["last"].startswith("valid/accuracy 0.625 (epoch 3); ")
    assert lines["best"].startswith("valid/accuracy 0.75 (epoch 2); ")
    assert "1 × not finite at #" in lines["unusual"]
    assert "(gradient_norm is nan in update 4)" in lines["unusual"]


def test_what_is_unusual_is_counted_by_kind_with_its_first_place(tmp_path: Path):
    def act(engine: Any) -> None:
        engine.on_enter("optimizer_update", every=3)(lambda run: run.skip_update("too large"))

    engine_in(tmp_path, act).run()
    log = TransitionLog.load(tmp_path / "run.journal")
    skips = log.notes("skip")
    assert lines_of(log)["unusual"] == f"3 × skip, first at #{skips[0].seq} (too large)"
    assert log.verdict().next[0][0].endswith(f" {skips[0].seq}")


def test_a_long_exception_of_several_lines_leaves_ten_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its beginning is there, and where it was raised."""

    def fail(run: Run) -> None:
        raise RuntimeError("two lines:\nthe second" + " and more" * 1_000)

    with pytest.raises(RuntimeError):
        engine_in(tmp_path, lambda engine: engine.on_exit("after_step")(fail)).run()
    assert main([str(tmp_path / "run.journal")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == TITLES
    assert lines[0].startswith("ended    failed: RuntimeError: two lines: the second and more and")
    assert " … in " in lines[0]
    assert "on exit of after_step" in lines[0]


@pytest.mark.parametrize(("number", "words"), [(0, "0 turns"), (1, "1 turn"), (2, "2 turns"), (12345, "12,345 turns")])
def test_an_amount_has_its_thousands_apart_and_one_is_no_plural(number: int, words: str):
    assert counted(number, "turn") == words


def test_a_note_of_one_word_without_an_end_is_cut_within_it(tmp_path: Path):
    """99 of its letters and the sign of what is left out make the 100 that have room."""
    engine_in(tmp_path, lambda engine: engine.on_enter("before_loop")(lambda run: run.note("n" * 5_000))).run()
    found = lines_of(TransitionLog.load(tmp_path / "run.journal"))["unusual"]
    assert found == f"1 × note at #0 ({'n' * 99}…)"


def test_a_journal_alone_is_summarised_in_ten_lines(pair: Any, capsys: pytest.CaptureFixture[str]):
    assert main([str(pair[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == TITLES
    assert main(["summary", str(pair[1])]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert main([str(pair[1]), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert list(plain["lines"]) == TITLES
    assert plain["values"]["train/loss"]["last"]["update"] == 9


# -- two runs and more


def test_a_killed_and_resumed_run_equals_an_undisturbed_one(pair: Any, capsys: pytest.CaptureFixture[str]):
    """Exit code 0, though the second has an event of its being resumed and other speeds."""
    one, other, _ = pair
    assert TransitionLog.load(other).notes("resume")
    assert main(["diff", str(one), str(other)]) == 0
    assert capsys.readouterr().out.startswith("the same but for times")
    assert main(["diff", str(one), str(other), "--strict"]) == 1
    assert "the runs part in turn" in capsys.readouterr().out


def test_diff_compares_values_times_and_facts_after_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    engine_in(tmp_path / "a").run()
    engine_in(tmp_path / "b", epochs=2).run()
    paths = [str(tmp_path / name / "run.journal") for name in "ab"]
    assert main(["diff", *paths]) == 1
    shown = capsys.readouterr().out
    places = [shown.index(words) for words in ("the runs part in turn", "its epoch", "driven", "fact that differs")]
    assert places == sorted(places)
    assert main(["diff", *paths, "--json"]) == 1
    plain = json.loads(capsys.readouterr().out)
    assert plain["same"] is False
    assert plain["facts"] == [{"name": "epochs", "here": 3, "there": 2}]
    assert [row["name"] for row in plain["summary"]["facts"]] == ["epochs"]
    assert [run["epoch"] for run in plain["summary"]["runs"]] == [3, 2]


def test_a_summary_compares_any_number_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    paths = []
    for number in range(3):

        def act(engine: Any, number: int = number) -> None:
            engine.on_exit("after_epoch")(lambda run: run.record("valid/loss", abs(number - 1) + run.epoch / 10))

        engine_in(tmp_path / f"run{number}", act, epochs=1 + number).run()
        paths.append(tmp_path / f"run{number}" / "run.journal")
    found = compare_runs([TransitionLog.load(path) for path in paths])
    assert found.names == ("run0", "run1", "run2")
    values = {value.name: value for value in found.values}
    assert values["valid/loss"].ahead == (1,)
    assert [figure and figure.last.value for figure in values["valid/loss"].figures] == [1.1, 0.2, 1.3]
    assert [(fact.name, fact.values) for fact in found.facts] == [("epochs", (1, 2, 3))]
    assert main(["diff", "--summary", *map(str, paths)]) == 0
    shown = capsys.readouterr().out
    assert "part in turn" not in shown
    assert "0.1 *" in shown
    assert main(["diff", "--summary", "--json", *map(str, paths)]) == 0
    assert json.loads(capsys.readouterr().out)["values"][0]["ahead"] == [1]


@pytest.mark.parametrize("time_ns", [10**30, -(10**30)])
def test_a_time_that_no_calendar_has_is_no_error(time_ns: int):
    """An event of a damaged journal may say so."""
    assert date_and_time(time_ns) == "no date"


def test_only_what_a_process_did_is_left_out_of_diff():
    """Who changes an option on resuming has another run: that counts, though it is an event of the kind resume."""
    assert {event.__name__ for event in EVENTS.values() if event.of_session} == {
        "Pause", "Remark", "Resume", "StillDetached"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (1, (), "any number and --summary; got 1"),
        (3, (), "any number and --summary; got 3"),
        (2, ("--summary", "--strict"), "diff --summary takes neither --ignore nor --strict"),
        (2, ("--ranks",), "diff --ranks takes one journal"),
    ],
)
def test_diff_says_how_many_journals_it_takes(files: int, options: Any, message: str, pair: Any, capsys: Any):
    assert main(["diff", *[str(pair[0])] * files, *options]) == 2
    assert message in capsys.readouterr().err


# -- words


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("valid/loss", "lower"),
        ("train/epoch_loss", "lower"),
        ("valid/accuracy", "higher"),
        ("accuracy/cat", "higher"),
        ("valid/MulticlassF1Score", "higher"),
        ("word_error", "lower"),
        ("lr", ""),
        ("gradient_norm", ""),
        ("accumulation", ""),
    ],
)
def test_the_name_of_a_value_says_whether_lower_is_better(name: str, better: str):
    assert better_of(name) == better


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one  two\nthree", "one two three"),
        ("one two three four five", "one two …"),
        ("x" * 14, f"{'x' * 12}…"),
        ("loss=123456789", "loss=…"),
        ("x" + " " * 200, "x …"),
        ("", ""),
    ],
)
def test_the_first_words_of_a_text_stand_in_a_line(text: str, words: str):
    assert first_words(text, 13).strip() == words


def test_of_a_text_of_any_length_the_first_words_cost_little():
    class Long(str):
        def split(self, *_: Any) -> Any:
            raise AssertionError("all of it was taken apart")

    assert first_words(Long("word " * 1_000), 20) == "word word word …"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.85, "850 ms"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (250, "4 min 10 s"),
        (11100, "3 h 05 min"),
        (187200, "2 d 4 h"),
        (0, "0 ms"),
        (3599.6, "1 h 00 min"),
        (86399, "1 d 0 h"),
    ],
)
def test_long_times_have_two_units(seconds: float, words: str):
    assert long_time(seconds * 1e9) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(1234.5, "1,234 updates/s"), (73.12, "73.1 updates/s"), (0.02, "50.0 s/update"), (0.0, "0.0 updates/s")],
)
def test_rates_have_their_unit(number: float, words: str):
    assert rate(number, "updates") == words


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/log.journal", "runs/b/log.journal"], ["a", "b"]),
        (["a.journal", "b.journal"], ["a.journal", "b.journal"]),
        (["x/a.journal", "x/a.journal"], ["1 a.journal", "2 a.journal"]),
        (["r/a/1/log", "r/b/2/log", "r/b/1/log"], ["a/1", "b/2", "b/1"]),
        (["", ""], ["1 live run", "2 live run"]),
    ],
)
def test_runs_are_called_by_what_differs_in_their_paths(paths: list[str], names: list[str]):
    assert short_names(paths) == names
