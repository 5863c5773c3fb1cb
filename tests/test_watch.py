"""`heptad watch`, and what it shows: `look` says where a run is, as the end of its log says."""

from __future__ import annotations

import math
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from builders import batches, small_engine
from heptad import Run, TransitionLog
from heptad.cli import follow, watch
from heptad.cli.main import main
from heptad.history.now import look, sparkline, total_updates
from heptad_plugins import Journal
from test_terminal import in_terminal


def journal_of(path: Path, loader: Any = 6, act: Any = None, **config: Any) -> TransitionLog:
    """Return the log of a run that has ended."""
    engine = small_engine(loader, [Journal(path)], **config)
    if act is not None:
        act(engine)
    engine.run()
    return TransitionLog.load(path)


@pytest.mark.parametrize(
    ("config", "updates"),
    [
        ({"accumulation": 4, "epochs": 3, "remainder": "drop"}, 3),  # one window of 4 in each epoch of 6
        ({"accumulation": 4, "epochs": 3, "remainder": "flush"}, 6),
        ({"accumulation": 4, "epochs": 3, "remainder": "extend"}, 6),
        ({"accumulation": 4, "epochs": 3, "remainder": "carry"}, 5),  # 18 steps: 4 windows and one that is flushed
        ({"max_updates": 5}, 5),
        ({"epochs": 3, "max_updates": 100}, 18),
    ],
)
def test_the_updates_of_a_run_are_known_from_what_it_was_asked_for(config: Any, updates: int, tmp_path: Path):
    log = journal_of(tmp_path / "run.journal", **config)
    assert (total_updates(log.source), log[-1].update) == (updates, updates)
    assert look(log.source).share == 1.0


def test_where_windows_changed_their_size_they_are_not(tmp_path: Path):
    log = journal_of(tmp_path / "run.journal", act=lambda e: e.on_exit("after_epoch")(lambda run: run.set_accumulation(2)), epochs=2)  # fmt: skip # noqa: E501
    assert total_updates(log.source) is None


def test_it_says_where_a_run_is(tmp_path: Path):
    """Half of the updates are made, the speed is theirs, and the rest takes as long as it says."""

    def act(engine: Any) -> None:
        engine.on_exit("after_step")(lambda run: run.record("a", run.step))
        engine.on_exit("after_epoch")(lambda run: (run.note("half"), run.pause("now")))

    log = journal_of(tmp_path / "run.journal", act=act, epochs=2)
    now = look(log.source)
    assert (now.share, now.total_updates, now.epochs) == (0.5, 12, 2)
    assert now.recent["a"] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert now.event is not None
    assert now.event.kind == "pause"
    assert now.seconds_left == pytest.approx(6 / now.updates_per_second)
    spent = sum(t.duration_ns for t in log[1:])
    assert now.updates_per_second == pytest.approx(6e9 / spent)


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([9, 0, 7], 2, "▁█"),
        ([1, 1, 1], 5, "▄▄▄"),
        ([0, math.nan, 7], 5, "▁x█"),
        ([math.inf, math.nan], 5, "xx"),
        ([-1.7e308, 1.7e308], 5, "▁█"),
        ([], 5, ""),
    ],
)
def test_a_sparkline_spans_its_own_range(values: list[float], width: int, bars: str):
    assert sparkline(values, width) == bars


@pytest.mark.parametrize("rich", [True, False])
def test_a_live_run_is_watched_to_its_end(
    rich: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """In a pipe a line for each epoch and event; the run takes the path that it takes alone."""
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.live", None)
        monkeypatch.setattr(watch, "terminal_width", lambda: 80)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    path = tmp_path / "run.journal"
    engine = small_engine(batches(3), [Journal(path, flush_every=1)], epochs=4)
    begun, seen = threading.Event(), threading.Event()

    @engine.on_exit("after_epoch")
    def wait(run: Run) -> None:
        begun.set()
        if run.epoch == 2:
            seen.wait(10)

    thread = threading.Thread(target=engine.run)
    thread.start()
    assert begun.wait(10)
    threading.Timer(0.2, seen.set).start()
    assert main(["watch", str(path)]) == 0
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("in finished  epoch 4/4 complete  step 12  update 12/12  ")
    assert len(lines) >= 2
    assert TransitionLog.load(path).path() == small_engine(batches(3), epochs=4).run().log.path()


def test_in_a_terminal_it_is_redrawn_and_ends_with_how_the_run_ended(tmp_path: Path):
    path = tmp_path / "run.journal"
    journal_of(path, epochs=2)
    (shown,) = in_terminal(80, [["watch", str(path)]])
    assert "━" * 20 in shown
    assert re.search(r"train/loss +\d\.\d+  [▁▂▃▄▅▆▇█]{12}", shown)
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    assert re.search(r"ended +finished: epochs=2 complete; epoch 2, step 12, update 12\n", plain)


def test_once_shows_where_it_is_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.journal"
    journal_of(path, act=lambda engine: engine.on_exit("after_epoch")(lambda run: run.pause("now")), epochs=2)
    assert main(["watch", str(path), "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "in before_epoch  epoch 1/2 complete  step 6  update 6/12"
    assert " 50 %" in lines[1]
    assert lines[-1].startswith("last event ")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int, tmp_path: Path):
    """Names and events are cut: a name at its end, an event after three lines."""

    def record(run: Run) -> None:
        run.record("a/long/name/" * 20, -1.5e308)
        run.note("word " * 500)

    log = journal_of(tmp_path / "run.journal", act=lambda engine: engine.on_exit("after_step")(record))
    lines = watch.lines_of(look(log.source), width)
    assert max(map(len, lines)) <= width
    assert next(line for line in lines if line.startswith("a/long")).split()[:2][-1] == "-1.5e+308"
    assert lines[-1] == "…"
    assert len([line for line in lines if "word" in line]) == watch.MOST_EVENT_LINES
