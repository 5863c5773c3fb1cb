"""`WandbLogger` in W&B's offline mode, read from its own files; and online, where nothing answers."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wandb.errors import UsageError

import trackers
from builders import Planned, small_engine
from heptad import Run
from heptad_plugins import WandbLogger
from heptad_plugins._outbox import MetricPoint
from heptad_plugins.wandb_logger import _WandbRun, name_in_wandb
from trackers import engine_of_ten, logger, points, recorded, wandb_config, wandb_files, wandb_records

SILENT = """
import os, sys, time
from builders import small_engine
from heptad_plugins import WandbLogger

engine = small_engine(50, [WandbLogger("a", directory=sys.argv[1], mode="online", wait=0.5)])
began = time.monotonic()
last = [began]
longest = [0.0]


@engine.on_exit("optimizer_update")
def look(run):
    longest[0] = max(longest[0], time.monotonic() - last[0])
    last[0] = time.monotonic()


run = engine.run()
print(run.state, longest[0], time.monotonic() - began, *run.log.notes("note"), flush=True)
os._exit(0)  # W&B would wait for its own process, which waits for the server
"""


def test_a_run_that_was_killed_and_resumed_has_each_value_once(tmp_path: Path):
    """In one run of W&B. The file of a process that is killed lacks its end, if not all: that is logged again."""
    trackers.killed("wandb", tmp_path, 7)
    run = engine_of_ten("wandb", tmp_path).run(resume="auto")
    assert run.resumed_from is not None
    assert points("wandb", tmp_path) == [recorded(run)]


def test_steps_of_all_files_of_a_run_go_up(tmp_path: Path):
    """W&B drops what goes back, in whatever file: so `wandb sync` of one after the other loses nothing."""
    stopped = engine_of_ten("wandb", tmp_path)
    stopped.run(until=lambda run: run.update == 6)
    stopped.close()
    run = engine_of_ten("wandb", tmp_path).run(resume="auto")
    (rows,) = trackers.wandb_rows(tmp_path).values()
    assert len(wandb_files(tmp_path)) == 2
    assert [row["_step"] for row in rows] == list(range(len(run.records())))
    assert all(one["update"] <= other["update"] for one, other in itertools.pairwise(rows))


def test_the_config_says_what_the_run_is(tmp_path: Path):
    hparams = {"width": 32, "a/b": "text"}
    small_engine(1, [logger("wandb", tmp_path, hparams=hparams)], accumulation=1).run()
    found = wandb_config(tmp_path)
    assert (found["config/accumulation"], found["optimizer_class"], found["optimizer/momentum"]) == (1, "SGD", 0.9)
    assert (found["width"], found["a/b"]) == (32, "text")
    assert {"version/torch", "version/python", "version/heptad", "argv"} <= set(found)


@pytest.mark.parametrize(("ends", "code"), [("well", 0), ("raises", 1), ("ctrl-c", 255)])
def test_the_exit_code_is_how_the_run_ended(ends: str, code: int, tmp_path: Path):
    engine = small_engine(2, [logger("wandb", tmp_path)])

    @engine.on_exit("optimizer_update", every=2)
    def end(run: Run) -> None:
        if ends != "well":
            raise Planned if ends == "raises" else KeyboardInterrupt

    try:
        engine.run()
    except (Planned, KeyboardInterrupt):
        assert ends != "well"
    trackers.wandb_rows(tmp_path)  # waits for the end of the file
    (file,) = wandb_files(tmp_path)
    assert [record.exit.exit_code for record in wandb_records(file) if record.HasField("exit")] == [code]


def test_what_wandb_refuses_ends_the_run_or_detaches_the_plugin(tmp_path: Path):
    """The name of a project without its rules is no outage."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* could not be sent")  # given if the refusal comes while the run goes on
        with pytest.raises(UsageError, match="project"):
            small_engine(2, [WandbLogger("a/b", directory=tmp_path)]).run()
        run = small_engine(2, [WandbLogger("a/b", directory=tmp_path, on_error="detach")]).run()
    assert run.state == "finished"
    assert run.log.notes("detach")


def test_a_server_that_never_answers_stalls_no_update_and_no_end(tmp_path: Path):
    """From the start."""
    with trackers.silent_server() as port:
        done = trackers.in_a_process(
            ["-c", SILENT, str(tmp_path)],
            WANDB_BASE_URL=f"http://127.0.0.1:{port}",
            WANDB_API_KEY="0" * 40,
            WANDB_INIT_TIMEOUT="2",
        )
    assert done.returncode == 0, done.stderr
    state, longest, lasted = done.stdout.split()[:3]
    # W&B alone waits for 90 seconds
    assert (state, float(longest) < 15, float(lasted) < 40) == ("finished", True, True)
    assert re.search(r"102 values and files could not be sent within 0.5 s of its end \(no answer", done.stdout)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("train/loss", "train/loss"), ("update", "update (recorded)"), ("_step", "step (recorded)"), ("é", "é")],
)
def test_a_name_that_wandb_needs_has_another(name: str, expected: str):
    assert name_in_wandb(name) == expected


class OnServer:
    """Stands for a run that W&B's server knows and no file tells of: there is no server here to ask."""

    def __init__(self, folder: Path, step: int) -> None:
        self.dir, self.step, self.disabled = str(folder / "wandb" / "run-1-a" / "files"), step, False
        self.config = SimpleNamespace(update=lambda *given, **options: None)
        self.logged: list[tuple[int, dict[str, float]]] = []

    def define_metric(self, name: str, **options: Any) -> None:
        assert name in ("update", "*")

    def log(self, row: dict[str, float], step: int) -> None:
        self.logged.append((step, row))


def test_where_no_file_tells_what_is_there_the_server_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What comes behind that is logged, at steps that W&B does not drop."""
    there = OnServer(tmp_path, 3)
    monkeypatch.setattr("wandb.init", lambda **options: there)
    made = _WandbRun({"dir": tmp_path}, "a", resumed=True, had=True, sent=0)
    assert made.begin() == []
    points = [MetricPoint("b", float(place), place // 2, 0, place) for place in range(5)]
    made.write(points[:2])
    made.write(points[2:])
    assert there.logged == [(3, {"b": 3.0, "update": 1}), (4, {"b": 4.0, "update": 2})]
