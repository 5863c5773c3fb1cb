"""`RunFolder`: one numbered folder for each run, which the other plugins write to."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import trackers
from builders import Planned, small_components, small_network
from heptad import (
    CheckpointError,
    Engine,
    EngineError,
    LogError,
    Plugin,
    PluginError,
    Run,
    RunConfig,
    TransitionLog,
    load_weights,
)
from heptad.cli.main import main
from heptad.plugin import OutputPath
from heptad_plugins import Checkpoint, CSVLogger, Journal, Profiler, Report, RunFolder, TensorBoardLogger
from programs import environment


def engine_in(folder: RunFolder, *more: Plugin, epochs: int = 2) -> Engine:
    return Engine(
        small_components(),
        RunConfig(epochs=epochs, device="cpu"),
        [folder, Checkpoint(folder), Journal(folder), CSVLogger(folder), *more],
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_each_start_has_the_next_number(tmp_path: Path):
    for number in ("0001", "0002"):
        folder = RunFolder(tmp_path / "digits")
        engine_in(folder).run()
        assert folder.path == folder.latest == tmp_path / "digits" / number
    assert names(tmp_path / "digits") == ["0001", "0002"]


def test_all_plugins_write_to_the_folder(tmp_path: Path):
    folder = RunFolder(tmp_path)
    engine_in(folder, TensorBoardLogger(folder), Report(folder, folder), Profiler(folder, range(1, 2))).run()
    expected = ["checkpoints", "log.csv", "log.journal", "report.html", "tensorboard", "trace.json"]
    assert names(folder.path) == expected


def test_nothing_is_made_before_the_run_begins(tmp_path: Path):
    root = tmp_path / "digits"
    folder = RunFolder(root)
    engine = engine_in(folder)
    engine.smoke()
    assert not root.exists()
    assert folder.latest is None
    with pytest.raises(EngineError, match="known when a run begins"):
        _ = folder.path


def test_one_folder_serves_two_engines(tmp_path: Path):
    folder = RunFolder(tmp_path)
    plugins = [folder, Checkpoint(folder), Journal(folder), CSVLogger(folder)]
    for number in ("0001", "0002"):
        Engine(small_components(), RunConfig(epochs=1, device="cpu"), plugins).run()
        assert folder.path.name == number
        assert names(folder.path / "checkpoints")[-1].startswith("checkpoint-")


def test_a_paused_run_continues_in_its_folder_after_another_had_the_plugin(tmp_path: Path):
    folder = RunFolder(tmp_path)
    first = engine_in(folder, epochs=4)
    first.run(until="after_epoch")
    engine_in(folder).run()
    kept = names(tmp_path / "0002" / "checkpoints")
    first.run()
    assert folder.path == tmp_path / "0001"
    assert names(tmp_path / "0002" / "checkpoints") == kept
    assert names(tmp_path / "0001" / "checkpoints") != kept


def test_a_run_that_is_refused_makes_no_folder(tmp_path: Path):
    paused(RunFolder(tmp_path / "a"))
    for source, seed in ((tmp_path / "missing", 0), (tmp_path / "a" / "0001", 7)):
        folder = RunFolder(tmp_path / "b")
        config = RunConfig(epochs=2, device="cpu", seed=seed)
        with pytest.raises(CheckpointError):
            Engine(small_components(), config, [folder, Checkpoint(folder), CSVLogger(folder)]).run(resume=source)
        assert names(tmp_path / "b") == []


def test_a_paused_run_stays_in_its_folder(tmp_path: Path):
    folder = RunFolder(tmp_path)
    engine = engine_in(folder)
    engine.run(until="after_epoch")
    engine.run()
    assert names(tmp_path) == ["0001"]


def paused(folder: RunFolder) -> None:
    engine = engine_in(folder)
    engine.on_exit("optimizer_update", once=True)(lambda run: run.pause("enough"))
    engine.run()


@pytest.mark.parametrize("source", ["auto", "folder", "checkpoints"])
def test_a_run_resumes_in_its_folder(tmp_path: Path, source: str):
    paused(RunFolder(tmp_path))
    first = tmp_path / "0001"
    given: Any = {"auto": "auto", "folder": first, "checkpoints": first / "checkpoints"}[source]
    folder = RunFolder(tmp_path)
    resumed = engine_in(folder)
    resumed.run(resume=given)
    whole = engine_in(RunFolder(tmp_path / "other"))
    whole.run()
    assert names(tmp_path) == ["0001", "other"]
    state = whole.current.network.state_dict()
    torch.testing.assert_close(resumed.current.network.state_dict(), state, rtol=0, atol=0)
    assert TransitionLog.load(first / "log.journal")[-1].seq == whole.current.log[-1].seq
    rows = [(path / "log.csv").read_text() for path in (first, tmp_path / "other" / "0001")]
    assert rows[0] == rows[1]


def test_resume_auto_begins_a_new_folder_where_none_has_a_checkpoint(tmp_path: Path):
    (tmp_path / "0001").mkdir()
    folder = RunFolder(tmp_path)
    engine_in(folder).run(resume="auto")
    assert folder.path.name == "0002"


def test_resume_auto_passes_over_a_newer_folder_without_a_checkpoint(tmp_path: Path):
    paused(RunFolder(tmp_path))
    (tmp_path / "0002").mkdir()
    folder = RunFolder(tmp_path)
    engine_in(folder).run(resume="auto")
    assert folder.path.name == "0001"


def test_resume_auto_of_a_finished_run_ends_in_its_folder(tmp_path: Path):
    engine_in(RunFolder(tmp_path)).run()
    folder = RunFolder(tmp_path)
    assert engine_in(folder).run(resume="auto").state == "finished"
    assert names(tmp_path) == ["0001"]


def test_a_run_from_elsewhere_has_a_new_number(tmp_path: Path):
    paused(RunFolder(tmp_path / "a"))
    folder = RunFolder(tmp_path / "b")
    engine = Engine(small_components(), RunConfig(epochs=2, device="cpu"), [folder, Checkpoint(folder)])
    engine.run(resume=tmp_path / "a" / "0001")
    assert folder.path == tmp_path / "b" / "0001"


def test_resume_auto_without_a_checkpoint_plugin_makes_no_folder(tmp_path: Path):
    folder = RunFolder(tmp_path)
    engine = Engine(small_components(), RunConfig(epochs=1, device="cpu"), [folder, CSVLogger(folder)])
    with pytest.raises(EngineError, match="add Checkpoint"):
        engine.run(resume="auto")
    assert names(tmp_path) == []


def test_runs_that_begin_at_once_have_different_folders(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunFolder(tmp_path).place(None), range(40)))
    assert len(set(made)) == 40 == len(names(tmp_path))


def test_a_folder_that_is_not_in_the_list_is_refused(tmp_path: Path):
    folder = RunFolder(tmp_path)
    with pytest.raises(PluginError, match=r"Checkpoint writes to a RunFolder that is not in the list.*folder, Checkp"):
        Engine(small_components(), RunConfig(epochs=1, device="cpu"), [Checkpoint(folder)])


def test_a_mirror_does_not_go_with_a_folder(tmp_path: Path):
    with pytest.raises(PluginError, match="mirror"):
        Checkpoint(RunFolder(tmp_path), mirror="memory://runs")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / "file" / "digits")
    with pytest.raises(PluginError, match="no folder can be made in"):
        engine_in(folder).run()


class Lines(Plugin):
    """Writes a line to a file in the folder that it is given; it does not say that it observes."""

    def __init__(self, folder: RunFolder) -> None:
        self.output = OutputPath(Path("lines.txt"), folder)

    def on_exit_after_loop(self, run: Run) -> None:
        self.output.path.write_text(f"{run.step}\n")


def test_a_plugin_of_ones_own_writes_there_too(tmp_path: Path):
    folder = RunFolder(tmp_path)
    engine_in(folder, Lines(folder)).run()
    assert (folder.path / "lines.txt").read_text() == "6\n"


def test_a_smoke_run_in_which_a_plugin_writes_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A plugin that does not observe takes part in `smoke`, and would write to the working directory else."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs")
    engine = engine_in(folder, Lines(folder))
    engine.smoke()
    assert names(tmp_path / "runs" / "0001") == ["lines.txt"]
    assert not folder.is_placed
    engine.run()
    assert folder.path.name == "0002"
    assert names(tmp_path) == ["runs"]


class OpensLate(Plugin):
    """Fails when it is opened first."""

    observes = True
    failed = False

    def open(self, run: Run) -> None:
        if not self.failed:
            self.failed = True
            raise Planned


@pytest.mark.parametrize("source", [None, "auto"])
def test_a_run_that_is_called_again_since_a_plugin_failed_to_open_stays_in_its_folder(tmp_path: Path, source: Any):
    engine = engine_in(RunFolder(tmp_path), OpensLate())
    with pytest.raises(Planned):
        engine.run(resume=source)
    assert engine.run(resume=source).state == "finished"
    assert names(tmp_path) == ["0001"]


@pytest.mark.parametrize("tool", trackers.TOOLS)
def test_a_tracker_takes_the_folder_in_place_of_paths(tmp_path: Path, tool: str):
    folder = RunFolder(tmp_path / "runs")
    place = {"directory": folder} if tool == "wandb" else {}
    engine_in(folder, trackers.logger(tool, tmp_path, checkpoints=folder, **place)).run()
    written = {path.name for path in (folder.path / "checkpoints").glob("checkpoint-*")}
    assert written == trackers.uploaded(tool, folder.path if tool == "wandb" else tmp_path)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """Return a directory of two numbered runs, and the first of them."""
    root = tmp_path_factory.mktemp("two")
    run = engine_in(RunFolder(root)).run()
    engine_in(RunFolder(root), epochs=1).run()
    return root, run


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("summary 0001", "finished"),
        ("show 0001", "after_loop"),
        ("export 0001 -o log.jsonl", "log.jsonl"),
        ("diff 0001 0002", "here is 0001"),
        ("diff --summary 0001 0002", "0002"),
        ("report 0001 0002 -o page.html", "page.html"),
        ("weights 0001 -o model.safetensors", "checkpoint-"),
    ],
)
def test_commands_take_numbered_folders(
    two_runs: tuple[Path, Run],
    command: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(two_runs[0])
    assert main(command.split()) == command.startswith("diff 0001")
    assert said in capsys.readouterr().out


def test_functions_take_a_numbered_folder(two_runs: tuple[Path, Run]):
    folder, run = two_runs[0] / "0001", two_runs[1]
    network = small_network()
    load_weights(folder, network)
    torch.testing.assert_close(network.state_dict(), run.network.state_dict(), rtol=0, atol=0)
    assert TransitionLog.load(folder).path() == run.log.path()


def test_a_folder_without_a_journal_is_no_log(tmp_path: Path):
    with pytest.raises(LogError, match=r"directory without log.journal; name a journal, or the folder of a run$"):
        TransitionLog.load(tmp_path)


def test_a_directory_of_numbered_folders_is_refused_with_the_last_of_them(two_runs: tuple[Path, Run]):
    """A command must not guess which run is meant."""
    root, last = two_runs[0], re.escape(str(two_runs[0] / "0002"))
    with pytest.raises(LogError, match=f"it holds runs, such as {last}: name one of them"):
        TransitionLog.load(root)
    with pytest.raises(CheckpointError, match=f"holds no checkpoint itself, but runs, such as {last}: name one"):
        load_weights(root, small_network())
    with pytest.raises(CheckpointError, match=f"such as {last}"):
        engine_in(RunFolder(root)).run(resume=root)


SCRIPT = """
import os, signal, sys
from builders import small_components
from heptad import Engine, RunConfig
from heptad_plugins import Checkpoint, CSVLogger, Journal, Profiler, Report, RunFolder, TensorBoardLogger

folder = RunFolder("runs/digits")
plugins = [
    folder,
    Checkpoint(folder, at="optimizer_update"),
    Journal(folder),
    CSVLogger(folder),
    TensorBoardLogger(folder),
    Report(folder, folder),
    Profiler(folder, range(1, 2)),
]
engine = Engine(small_components(), RunConfig(epochs=2, device="cpu"), plugins)
if "dies" in sys.argv:
    engine.on_exit("after_step")(lambda run: os.kill(os.getpid(), signal.SIGKILL) if run.step == 5 else None)
engine.run(resume="auto" if "auto" in sys.argv else None)
"""


def test_a_script_that_is_started_again_needs_no_overwrite(tmp_path: Path):
    """Started twice, the second time killed, and a third time to resume: the second run ends as the first did."""
    (tmp_path / "train.py").write_text(SCRIPT)
    for argument, code in (("", 0), ("dies", -9), ("auto", 0)):
        done = subprocess.run(
            [sys.executable, "train.py", argument],
            cwd=tmp_path,
            env=environment(),
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
    root = tmp_path / "runs" / "digits"
    assert names(root) == ["0001", "0002"]
    expected = ["checkpoints", "log.csv", "log.journal", "report.html", "tensorboard", "trace.json"]
    assert [names(root / "0001"), names(root / "0002")] == [expected, expected]
    first, second = small_network(), small_network()
    load_weights(root / "0001", first)
    load_weights(root / "0002", second)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert (root / "0001" / "log.csv").read_text() == (root / "0002" / "log.csv").read_text()


RANKS = """
import sys
from builders import small_components
from heptad import Engine, RunConfig
from heptad_plugins import Checkpoint, Journal, RunFolder

folder = RunFolder(sys.argv[1])
Engine(small_components(), RunConfig(epochs=1, device="cpu"), [folder, Checkpoint(folder), Journal(folder)]).run()
assert folder.path.name == "0001", folder.path
"""


def test_ranks_share_the_folder_of_the_first(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(RANKS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*torchrun, str(tmp_path / "runs")], check=True, timeout=100, env=environment())
    assert names(tmp_path / "runs") == ["0001"]
    assert {"checkpoints", "log.journal", "log.journal.rank1"} <= set(names(tmp_path / "runs" / "0001"))
