"""Shipped plugins on two real ranks, which are started once for all cases."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "two_ranks.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the program on both ranks; return where its files are."""
    given = tmp_path_factory.mktemp("two ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join(path for path in sys.path if path)
    ranks: list[subprocess.Popen[str]] = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, **{name: str(value) for name, value in own.items()}}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(given)],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [rank.communicate(timeout=100)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all((given / f"{rank}.json").exists() for rank in range(2)), "\n".join(said)
    return given


@pytest.fixture
def found(folder: Path, request: pytest.FixtureRequest) -> list[Any]:
    """Return what came of a case on each rank."""
    return [json.loads((folder / f"{rank}.json").read_text())[request.param] for rank in range(2)]


@pytest.mark.parametrize("found", ["stop"], indirect=True)
def test_all_end_in_the_turn_in_which_the_time_of_one_is_up(found: list[Any]):
    assert found[0] == found[1]
    assert found[0][0] == 3
    assert found[0][2].endswith("(rank 1)")


@pytest.mark.parametrize("found", ["pause"], indirect=True)
def test_each_pause_gives_all_ranks_the_full_time_again(found: list[Any]):
    """Rank 0, whose clock is slower, would else pause the run at update 4."""
    assert found == [[3, 6, 8]] * 2  # of 16 batches


@pytest.mark.parametrize("found", ["sigterm"], indirect=True)
def test_a_signal_to_one_rank_pauses_and_ends_both(found: list[Any]):
    assert found == [[143, 3, "SIGTERM (rank 1)", "finished"]] * 2


@pytest.mark.parametrize("found", ["loggers"], indirect=True)
def test_the_first_rank_writes_and_both_go_the_same_way(found: list[Any]):
    assert found[0][:2] == found[1][:2]
    assert [row[2] for row in found] == [True, False]
    assert found[0][3] == pytest.approx(4.0)  # two samples on each of two ranks


def test_no_file_is_written_twice(folder: Path):
    assert sorted(path.name for path in (folder / "files").iterdir()) == [
        "a.csv",
        "events",
        "trace.json",
        "trace.rank1.json",
    ]
    assert len(list((folder / "files" / "events").iterdir())) == 1


@pytest.mark.parametrize("found", ["steered"], indirect=True)
def test_a_first_only_plugin_that_steers_is_named_on_both(found: list[Any]):
    assert found[0].startswith("PluginError: Skips.on_enter_optimizer_update has skipped an update")
    assert found[1].startswith("RankFailed: rank 0 failed in optimizer_update at step 2: PluginError: Skips.")
