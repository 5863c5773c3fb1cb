"""`RunFolder`: one numbered folder for each run, which the other plugins write to."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import small_components, small_network
from heptad import Engine, EngineError, Plugin, PluginError, Run, RunConfig, TransitionLog, load_weights
from heptad.cli.main import main
from heptad.plugin import OutputPath
from heptad_plugins import Checkpoint, CSVLogger, Journal, Profiler, Report, RunFolder, TensorBoardLogger


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
    """Writes a line to a file in the folder that it is given."""

    observes = True

    def __init__(self, folder: RunFolder) -> None:
        self.output = OutputPath(Path("lines.txt"), folder)

    def on_exit_after_loop(self, run: Run) -> None:
        self.output.path.write_text(f"{run.step}\n")


def test_a_plugin_of_ones_own_writes_there_too(tmp_path: Path):
    folder = RunFolder(tmp_path)
    engine_in(folder, Lines(folder)).run()
    assert (folder.path / "lines.txt").read_text() == "6\n"


def test_commands_and_functions_take_a_numbered_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = RunFolder(tmp_path)
    trained = engine_in(folder).run()
    assert not main(["summary", str(folder.path)])
    assert "finished" in capsys.readouterr().out
    network = small_network()
    load_weights(folder.path, network)
    torch.testing.assert_close(network.state_dict(), trained.network.state_dict(), rtol=0, atol=0)


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
    subprocess.run([*torchrun, str(tmp_path / "runs")], check=True, timeout=100)
    assert names(tmp_path / "runs") == ["0001"]
    assert {"checkpoints", "log.journal", "log.journal.rank1"} <= set(names(tmp_path / "runs" / "0001"))
