"""`TrackioLogger` with Trackio's store on this machine: config, alerts, and a store that is lost or broken."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path

import pytest
from trackio.sqlite_storage import SQLiteStorage

import trackers
from builders import Planned, small_engine
from heptad import PluginError, Run
from heptad_plugins import TrackioLogger
from heptad_plugins.trackio_logger import name_in_trackio
from trackers import engine_of_ten, logger, points, project_of, recorded


def test_a_run_that_was_killed_and_resumed_has_each_value_once(tmp_path: Path):
    """In one run of Trackio; what the process that was killed had written is not written again."""
    trackers.killed("trackio", tmp_path, 7)
    (before,) = points("trackio", tmp_path)
    assert [step for step, _ in before["train/loss"]][-1] >= 6
    run = engine_of_ten("trackio", tmp_path).run(resume="auto")
    assert run.resumed_from is not None
    assert points("trackio", tmp_path) == [recorded(run)]


def test_the_config_says_what_the_run_is(tmp_path: Path):
    hparams = {"width": 32, "a/b": "text"}
    run = small_engine(1, [logger("trackio", tmp_path, hparams=hparams, run_name="x")], accumulation=1).run()
    found = SQLiteStorage.get_run_config(project_of(tmp_path), f"x-{run.id[:12]}")
    assert found is not None
    assert (found["config/accumulation"], found["optimizer_class"], found["optimizer/momentum"]) == (1, "SGD", 0.9)
    assert (found["width"], found["a/b"]) == (32, "text")
    assert {"version/torch", "version/python", "version/heptad", "argv"} <= set(found)


def test_an_alert_says_how_a_run_ended_that_is_not_finished(tmp_path: Path):
    """None for one that is."""
    engine = small_engine(2, [logger("trackio", tmp_path)])

    @engine.on_exit("optimizer_update", every=2)
    def fail(run: Run) -> None:
        raise Planned

    with pytest.raises(Planned):
        engine.run()
    assert [alert["title"] for alert in SQLiteStorage.get_alerts(project_of(tmp_path))] == ["The run is failed"]
    small_engine(2, [logger("trackio", tmp_path / "second")]).run()
    assert SQLiteStorage.get_alerts(project_of(tmp_path / "second")) == []


def test_a_store_that_is_deleted_while_a_run_is_paused_is_written_whole(tmp_path: Path):
    """The log says so."""
    engine = engine_of_ten("trackio", tmp_path)
    engine.run(until=lambda run: run.update == 5)
    SQLiteStorage.get_project_db_path(project_of(tmp_path)).unlink()
    run = engine.run()
    assert points("trackio", tmp_path) == [recorded(run)]
    assert any("it is written whole" in note.text for note in run.log.notes("note"))


def test_a_broken_store_ends_the_run_or_detaches_the_plugin(tmp_path: Path):
    """It is no outage."""
    store = SQLiteStorage.get_project_db_path(project_of(tmp_path))
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_bytes(b"no database" * 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Trackio's own, and that the values are unsent
        with pytest.raises(sqlite3.DatabaseError, match="not a database"):
            small_engine(2, [logger("trackio", tmp_path)]).run()
        run = small_engine(2, [logger("trackio", tmp_path, on_error="detach")]).run()
    assert run.state == "finished"
    assert run.log.notes("detach")


@pytest.mark.parametrize("name", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_an_environment_that_sends_runs_elsewhere_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "somewhere")
    with pytest.raises(PluginError, match=f"TrackioLogger writes to the local store, but {name} sends"):
        TrackioLogger("a")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("train/loss", "train/loss"), ("step", "step (recorded)"), ("__x", "x (recorded)"), ("é", "é")],
)
def test_a_name_that_trackio_needs_has_another(name: str, expected: str):
    assert name_in_trackio(name) == expected
