"""The report page: what it is made of. What a browser makes of it is in `test_report_in_browser.py`."""

from __future__ import annotations

import builtins
import hashlib
import json
import math
import re
import subprocess
import sys
import zlib
from base64 import b64decode, b64encode
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from builders import CLASSES, FEATURES, batches, dataset_engine, small_engine
from heptad import LogError, PluginError, TransitionLog
from heptad.cli.main import main
from heptad.report.gathered import gathered
from heptad.report.graph import drawing
from heptad.report.page import named, write_report
from heptad.report.sections import PARTS
from heptad.report.series import RAW, WIDE, curves
from heptad.report.turns import remarkable, stretch_of_turns
from heptad.report.walk import BUCKETS, walk
from heptad_plugins import Checkpoint, Journal, Report

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import report as benchmark

NONE = np.zeros(0, np.int64)
HOSTILE = "</script><script>alert(1)</script>"


def trained(act: Any = None, steps: int = 7, plugins: Any = (), **config: Any) -> Any:
    """Return a run of two epochs and windows of two steps; `act` is called on exit of `after_step`."""
    engine = small_engine(batches(steps), plugins, epochs=2, accumulation=2, **config)
    if act is not None:
        engine.on_exit("after_step")(act)
    return engine.run()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> TransitionLog:
    """A journal of 200 chunks with a spike: the loss and the stay of update 12,345."""
    path = tmp_path_factory.mktemp("long") / "run.journal"
    benchmark.write_long(path, 200 * 1024, spike=12_345)
    return TransitionLog.load(path)


def page_of(logs: Any, tmp_path: Path) -> str:
    """Return the text of a page."""
    write_report(logs, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def data_of(page: str) -> Any:
    """Return what the page's script is given."""
    return json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])


# -- the walk


def test_counts_and_times_of_a_walk_are_those_of_the_log():
    log = trained().log
    found = walk(log.source, log.source.view(), NONE)
    stays = log.durations()
    assert {name: stay.count for name, stay in found.durations.items()} == {n: s.count for n, s in stays.items()}
    assert {name: stay.total_ns for name, stay in found.durations.items()} == {n: s.total_ns for n, s in stays.items()}
    assert {name: stay.slowest[0] for name, stay in found.durations.items()} == {
        name: stay.slowest[0] for name, stay in stays.items()
    }
    for name, stay in stays.items():
        assert found.durations[name].median_ns == pytest.approx(stay.median_ns, rel=1e-6)
    assert found.taken.sum() == len(log)
    assert found.shares.sum() == found.driven_ns == sum(turn.duration_ns for turn in log)
    assert found.ends == [turn.seq for turn in log if turn.source == "after_epoch"]


def test_the_slowest_turns_are_listed_with_their_times():
    log = trained().log
    found = walk(log.source, log.source.view(), NONE)
    expected = sorted(((turn.seq, turn.duration_ns) for turn in log), key=lambda row: (-row[1], row[0]))
    assert found.slowest == expected[: len(found.slowest)]


def test_the_time_at_a_turn_is_the_sum_of_the_stays_up_to_it():
    log = trained().log
    marks = np.arange(0, len(log), 3)
    found = walk(log.source, log.source.view(), marks)
    passed = list(accumulate(turn.duration_ns for turn in log))
    assert found.driven_until(marks).tolist() == [passed[seq] / 1e9 for seq in marks.tolist()]


def test_a_pause_is_no_time_of_a_walk():
    engine = small_engine(batches(4), epochs=1)
    for _ in range(5):
        engine.advance()
    log = engine.run().log
    found = walk(log.source, log.source.view(), NONE)
    assert found.driven_ns == sum(turn.duration_ns for turn in log)
    assert found.pauses


def test_whole_epochs_are_counted_at_their_ends():
    log = trained().log
    found = walk(log.source, log.source.view(), NONE)
    assert found.epochs_at(np.array(found.ends)).tolist() == [1, 2]


def test_every_bucket_keeps_its_longest_stay(long: TransitionLog):
    """No spike is lost, wherever it lies in its bucket."""
    found = walk(long.source, long.source.view(), NONE)
    assert len(found.most) == BUCKETS
    spike = 4 * 12_345
    assert int(found.most.max()) == 60 * 10**9
    assert int(found.longest[found.most.argmax()]) == spike
    spent = np.concatenate([np.diff(chunk.times(), prepend=chunk.clock) for chunk in long.source.view().chunks])
    places = np.arange(len(spent)) * BUCKETS // len(spent)
    expected = np.full(BUCKETS, -1)
    np.maximum.at(expected, places, spent)
    assert found.most.tolist() == expected.tolist()
    assert spent[found.longest].tolist() == expected.tolist()


# -- curves


def test_a_short_curve_has_every_value():
    log = trained(lambda run: run.record("score", run.step)).log
    (curve,) = curves(log.source, log.source.view())
    assert curve.whole
    assert curve.value.tolist() == [value.value for value in log.values("score")]
    assert curve.place[:, 2].tolist() == [value.step for value in log.values("score")]


def test_a_long_curve_keeps_a_spike(long: TransitionLog):
    loss, rate = curves(long.source, long.source.view())
    assert not loss.whole
    assert RAW >= len(loss.value) > WIDE
    assert loss.value.max() == 1e6
    assert loss.place[loss.value.argmax()].tolist() == [4 * 12_345 + 3, 0, 12_346, 12_346]
    assert loss.found.count == rate.found.count == 200 * 1024 // 4
    assert loss.found.highest is not None
    assert loss.found.highest.value == 1e6


def test_checkpoints_and_events_are_marked_where_they_were(tmp_path: Path):
    """Seven steps in windows of two, extended to eight: four updates an epoch, then a checkpoint.

    The note is bound to the transition out of `after_step`, whose body has counted the third step.
    """
    log = trained(lambda run: run.note("half") if run.step == 3 else None, plugins=[Checkpoint(tmp_path)]).log
    marks = gathered(log, "run").marks
    assert [place[3] for place, kind, _ in marks if kind == "checkpoint"] == [4, 8]
    assert [(place[2], words) for place, kind, words in marks if words.startswith("note")] == [(3, "note: half")]


def test_a_smoothed_curve_stays_between_its_values(long: TransitionLog):
    _, rate = curves(long.source, long.source.view())
    assert set(rate.smooth.tolist()) == {1e-3}


def test_values_that_are_not_finite_are_kept_apart():
    odd = [1.0, math.nan, math.inf, 2.0, -math.inf]
    log = trained(lambda run: run.record("score", odd[run.step % 5])).log
    (curve,) = curves(log.source, log.source.view())
    recorded = [value.value for value in log.values("score")]
    assert np.isfinite(curve.value).all()
    assert len(curve.value) == sum(map(math.isfinite, recorded))
    assert [str(row.value) for row in curve.odd] == [str(value) for value in recorded if not math.isfinite(value)]


# -- turns one by one


def unpacked(text: str, kind: type) -> Any:
    return np.frombuffer(zlib.decompress(b64decode(text)), kind)


def test_a_stretch_holds_each_of_its_turns(long: TransitionLog):
    view = long.source.view()
    found = stretch_of_turns(long.source, view, 1_000, 3_100)
    turns = long[1_000:3_100]
    assert np.allclose(unpacked(found["spent"], np.float32), [turn.duration_ns / 1e3 for turn in turns], rtol=1e-6)
    table = long.source.table
    assert [table.arcs[arc].source for arc in unpacked(found["arcs"], np.uint16)] == [turn.source for turn in turns]
    before = long[999]
    assert found["counters"][:4] == [before.epoch, before.batch_index, before.step, before.update]
    assert found["began"] == pytest.approx(before.time_ns / 1e6)


@pytest.mark.parametrize("most", [10_000, 300_000])
def test_a_page_holds_no_more_turns_than_it_may(long: TransitionLog, most: int):
    view = long.source.view()
    found = remarkable(view, [5, 100_000, 100_100, 204_799], most)
    assert sum(high - low for low, high in found) <= max(most, 0)
    assert all(high > low for low, high in found)
    assert all(one[1] < two[0] for one, two in pairwise(found))
    assert any(low <= 204_799 < high for low, high in found)


# -- the page


def test_a_page_asks_nobody_for_anything(tmp_path: Path):
    """No address but those that scripts hold as text: nothing is loaded by the elements of the page."""
    page = re.sub(r"<script.*?</script>", "", page_of(trained().log, tmp_path), flags=re.DOTALL)
    assert re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", page) == []
    assert "@import" not in page
    assert "url(http" not in page


def test_the_policy_allows_the_scripts_of_the_page_alone(tmp_path: Path):
    page = page_of(trained().log, tmp_path)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    words = policy[1].replace("&#39;", "'")
    assert words.startswith("default-src 'none';")
    assert "unsafe-eval" not in words
    assert "http" not in words
    allowed = re.search(r"script-src ([^;]*);", words)
    assert allowed is not None
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    assert allowed[1].split() == [
        f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    ]


def test_hostile_names_and_texts_stay_text(tmp_path: Path):
    def act(run: Any) -> None:
        run.record(HOSTILE, 1.0)
        run.record("=cmd|' /C calc'!A0", math.inf)
        run.note(f"{HOSTILE} \x00\x1b[31m \u202e \ud800 {{{{ 7 * 7 }}}}")

    page = page_of(trained(act).log, tmp_path)
    assert HOSTILE not in page
    assert len(re.findall(r"<script>", page)) == 2
    assert "{{ 7 * 7 }}" in page
    assert not re.search("[\x00\x1b\u202e]", page)


def test_a_very_long_text_is_cut(tmp_path: Path):
    empty = len(page_of(trained().log, tmp_path))
    page = page_of(trained(lambda run: run.note("x" * 5_000_000)).log, tmp_path)
    assert len(page) - empty < 200_000
    assert "characters more)" in page


def test_of_very_many_values_the_verdict_names_some(tmp_path: Path):
    def act(run: Any) -> None:
        if run.step == 2:
            for number in range(40):
                run.record(f"value_{number}", 1.0)

    page = page_of(trained(act).log, tmp_path)
    verdict = page.partition('id="verdict-0"')[2].partition("</section>")[0]
    assert verdict.count("value_") == PARTS
    assert "10 more" in verdict


@pytest.mark.parametrize("name", ["x" * 100_000, "@{y}", "$name", "a/b/c/loss"])
def test_a_name_of_any_form_can_be_drawn(tmp_path: Path, name: str):
    page = page_of(trained(lambda run: run.record(name, run.step)).log, tmp_path)
    assert "figure-curves-0" in data_of(page)["items"]


def test_a_run_of_no_turn_has_a_page(tmp_path: Path):
    page = page_of(small_engine().current.log, tmp_path)
    assert data_of(page)["items"] == {}
    assert "no transition yet" in page


def test_a_failed_run_says_why(tmp_path: Path):
    def act(run: Any) -> None:
        raise ValueError("no more <b>batches</b>")

    engine = small_engine(batches(3))
    engine.on_exit("after_step")(act)
    with pytest.raises(ValueError, match="no more"):
        engine.run()
    page = page_of(engine.current.log, tmp_path)
    ending = page.partition('id="ending-0"')[2].partition("</section>")[0]
    assert "no more &lt;b&gt;batches&lt;/b&gt;" in ending
    assert "exit of after_step" in ending
    assert ">failed</text>" in page  # the arc to the failure is drawn


def test_the_machine_says_how_often_each_guard_said_what(tmp_path: Path):
    """7 batches, windows of 2, extended to 8: 16 steps in two epochs, 8 updates."""
    log = trained().log
    (run,) = data_of(page_of(log, tmp_path))["runs"]
    rows = {row[0]: row[1:4] for row in run["graph"]["after_step"]}
    assert rows["update_due"] == ["optimizer_update", 16, 8]
    assert rows["batches_remain"] == ["before_step", 8, 8]
    assert rows[None] == ["after_epoch", 0, 0]


def test_the_drawing_of_the_machine_holds_every_arc():
    """Of the 15 arcs 9 are straight, each to the box below; half-way a curve is farthest aside."""
    run = gathered(trained().log, "run")
    text = drawing(run.log.source, run.walk, 0)
    low, _, wide, _ = map(float, re.findall(r'viewBox="([^"]+)"', text)[0].split())
    curves = re.findall(r'class="line" d="M(\d+) \d+C(\d+) \d+ (\d+) \d+ (\d+)', text)
    reached = [(int(a) + 3 * int(b) + 3 * int(c) + int(d)) / 8 for a, b, c, d in curves]
    assert len(curves) == 6
    assert low < min(reached) < max(reached) < low + wide


def test_the_page_of_a_long_run_is_small(long: TransitionLog, tmp_path: Path):
    write_report(long, tmp_path / "report.html")
    assert benchmark.own_bytes(tmp_path / "report.html") < 3e6


def test_several_runs_are_compared(tmp_path: Path):
    logs = [trained(lambda run, value=value: run.record("valid/loss", value)).log for value in (2.0, 1.0)]
    write_report(logs, tmp_path / "report.html", ["one", "other"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    section = page.partition('id="compare"')[2].partition("</section>")[0]
    assert re.findall(r">([^<>]*) ★<", section) == ["1 (epoch 1)"]
    assert "value valid/loss: 2.0 here, 1.0 there" in section
    assert set(data_of(page)["items"]) >= {"figure-curves-all", "figure-curves-0", "figure-curves-1"}


def test_a_report_of_no_run_or_of_wrong_labels_is_refused(tmp_path: Path):
    with pytest.raises(LogError, match="one run at least, got none"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(LogError, match="of 1 runs takes as many labels, got 2"):
        named([trained().log], ["one", "other"])


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "jinja2":
            raise ImportError("no jinja2")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LogError, match=r"pip install 'heptad\[report\]'"):
        write_report(trained().log, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_report_needs_no_torch(tmp_path: Path):
    trained(plugins=[Journal(tmp_path / "run.journal")])
    code = (
        "import sys; from heptad.history.query import TransitionLog; from heptad.report.page import write_report; "
        f"write_report(TransitionLog.load({str(tmp_path / 'run.journal')!r}), {str(tmp_path / 'r.html')!r}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "r.html").exists()


def test_provenance_has_the_command_line_and_the_commit(tmp_path: Path):
    trained(plugins=[Journal(tmp_path / "run.journal")])
    log = TransitionLog.load(tmp_path / "run.journal")
    (session,) = log.verdict().sessions
    assert session.origin["argv"]
    page = page_of(log, tmp_path)
    section = page.partition('id="provenance-0"')[2]
    assert "<dt>argv</dt>" in section
    assert "<dt>torch</dt>" in section
    assert "<dt>optimizers[0].class</dt>" in section


def test_no_line_of_the_verdict_is_broken_before_a_unit(tmp_path: Path):
    """Nor does a command that is copied hold a space that a shell does not know."""
    trained(plugins=[Journal(tmp_path / "7 s" / "run.journal")])
    page = page_of(TransitionLog.load(tmp_path / "7 s" / "run.journal"), tmp_path)
    verdict = page.partition('id="verdict-0"')[2].partition("</section>")[0]
    assert re.search("process_batch [0-9.]+\u00a0%", verdict)
    assert "7 s/run.journal" in verdict
    assert "7\u00a0s/run.journal" not in verdict


def test_provenance_has_the_sizes_of_the_data(tmp_path: Path):
    """Samples of a dataset that is indexed, and batches in a pass."""
    data = TensorDataset(torch.zeros(18, FEATURES), torch.arange(18) % CLASSES)
    section = page_of(dataset_engine(data, epochs=1).run().log, tmp_path).partition('id="provenance-0"')[2]
    assert "<dt>samples</dt><dd>18</dd>" in section
    assert "<dt>batches</dt>" in section


# -- the command


def test_the_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained(plugins=[Journal(tmp_path / "run.journal")])
    assert main(["report", str(tmp_path / "run.journal"), "-o", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "open it in a browser" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["run.journal", "link", "run.journal-wal", "run.journal-shm", "run.journal-journal"])
def test_no_page_replaces_a_journal_or_what_belongs_to_one(name: str, tmp_path: Path):
    path = tmp_path / "run.journal"
    log = trained(plugins=[Journal(path)]).log
    (tmp_path / "link").symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(LogError, match=r"is the journal of a run|belongs to the journal .*run\.journal"):
        write_report(log, tmp_path / name)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "run.journal"]


def test_the_command_does_not_replace_a_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.journal"
    trained(plugins=[Journal(path)])
    assert main(["report", str(path), "-o", str(path)]) == 2
    assert "is the journal of a run" in capsys.readouterr().err


def test_gathering_reads_a_log_as_it_is_at_one_moment():
    engine = small_engine(batches(4), epochs=1)
    for _ in range(6):
        engine.advance()
    found = gathered(engine.current.log, "run")
    assert found.walk.end == len(engine.current.log)


# -- the plugin


def test_the_plugin_writes_the_page_of_its_journal(tmp_path: Path):
    path, page = tmp_path / "run.journal", tmp_path / "new" / "report.html"
    run = trained(plugins=[Journal(path), Report(page, journal=path)])
    (shown,) = data_of(page.read_text(encoding="utf-8"))["runs"]
    assert shown["end"] == len(run.log)


def test_the_plugin_writes_the_page_of_a_run_that_fails_and_none_of_one_that_pauses(tmp_path: Path):
    def act(run: Any) -> None:
        if run.step == 2:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        trained(act, plugins=[Report(tmp_path / "failed.html")])
    assert "enough" in (tmp_path / "failed.html").read_text(encoding="utf-8")
    trained(lambda run: run.pause("for lunch"), plugins=[Report(tmp_path / "paused.html")])
    assert not (tmp_path / "paused.html").exists()


def test_the_plugin_says_when_it_is_built_that_an_extra_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("heptad_plugins.report.find_spec", lambda name: None if name == "bokeh" else object())
    with pytest.raises(PluginError, match=r"needs bokeh: pip install 'heptad\[report\]'"):
        Report()


def test_the_plugin_says_that_a_page_was_not_written(tmp_path: Path):
    with pytest.raises(PluginError, match="was not written"):
        trained(plugins=[Report(tmp_path)])
    trained(plugins=[Report(tmp_path, on_error="detach")])
