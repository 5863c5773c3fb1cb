"""The demo on ranks: `heptad demo --ranks 2`, and the same example, unchanged, under torchrun."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import rank_environment, read, torchrun

from heptad import TransitionLog

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "heptad", "demo", "--ranks=2"]
ACTS = ("first", "killed")


def test_the_demo_trains_dies_and_resumes_on_ranks(tmp_path: Path):
    """It shows what the first rank prints; both have journals, of one path."""
    done = subprocess.run(
        [*DEMO, "--epochs=2"], cwd=tmp_path, env=rank_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("the process was ended by SIGKILL") == 1
    assert sum(line.endswith("the same") for line in lines) == 6
    first, killed = (TransitionLog.load(tmp_path / "runs" / "digits" / name / "log.journal") for name in ACTS)
    assert list(first.ranks) == list(killed.ranks) == [0, 1]
    assert not first.diff_ranks()
    assert first.counts()["optimizer_update"] == killed.counts()["optimizer_update"] == 24


def test_the_example_runs_under_torchrun_as_it_stands(tmp_path: Path):
    command = torchrun(2, str(ROOT / "examples" / "digits.py"), "--epochs=1")
    done = subprocess.run(command, cwd=tmp_path, env=rank_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weight  the same") == 6  # three tensors, and each rank says so
    assert TransitionLog.load(tmp_path / "runs" / "digits" / "first" / "log.journal").world == 2


@pytest.mark.usefixtures("ctrl_c")
def test_ranks_end_with_ctrl_c(tmp_path: Path):
    """No process is left behind, and the exit code is that of the command alone."""
    with (tmp_path / "output").open("w") as file:
        demo = subprocess.Popen([*DEMO, "--epochs=500"], cwd=tmp_path, env=rank_environment(), stdout=file, stderr=file)
        journal = tmp_path / "runs" / "digits" / "first" / "log.journal"
        until = time.monotonic() + 60
        while not journal.exists() and time.monotonic() < until:
            time.sleep(0.05)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(40) == 130, read(tmp_path / "output")
    assert not [path for path in Path("/proc").glob("[0-9]*/cwd") if here(path) == tmp_path]


def here(path: Path) -> Path | None:
    """Return where a process has its working directory; `None` if it is gone by now."""
    try:
        return path.readlink()
    except OSError:
        return None


def test_a_number_of_ranks_that_is_none_is_refused():
    command = [*DEMO[:-1], "--ranks=0"]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "argument --ranks: must be at least 1, got 0" in done.stderr
