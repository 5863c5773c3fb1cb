"""Evaluations of two and three processes, beside the same script of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("ranks_evaluating.py")
SECONDS = 120


def ports() -> dict[int, int]:
    """Return a free port for each number of ranks."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for held in (one, two, three):
            held.bind(("127.0.0.1", 0))
        return {1: one.getsockname()[1], 2: two.getsockname()[1], 3: three.getsockname()[1]}


def launch(world: int, rank: int, port: int, folder: Path) -> subprocess.Popen[str]:
    """Start a rank, as torchrun does; a process alone knows of no rank."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    given |= {name: str(value) for name, value in ranks.items()} if world > 1 else {}
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], stderr=subprocess.PIPE, text=True, env=given)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """Return what each rank has told, by the number of ranks."""
    folder = tmp_path_factory.mktemp("evaluating")
    launched = {
        (world, rank): launch(world, rank, port, folder) for world, port in ports().items() for rank in range(world)
    }
    try:
        for process in launched.values():
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, errors[-4000:]
    finally:
        for process in launched.values():
            process.kill()
    found: dict[int, list[Any]] = {1: [], 2: [], 3: []}
    for world, rank in launched:
        found[world].append(json.loads((folder / f"{world}.{rank}").read_text()))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_what_is_recorded_is_equal_on_all_ranks_and_that_of_one_process(told, world):
    """Means, objects of torchmetrics, the metrics of the training itself, an evaluation after the run."""
    alone = told[1][0]["found"]
    found = [one["found"] for one in told[world]]
    shared = [{name: value for name, value in one.items() if name != "detached"} for one in found]
    assert all(one == shared[0] for one in shared)  # to the bit
    for name, value in shared[0].items():
        assert value == pytest.approx(alone[name], abs=1e-12), name
    assert {"train/right", "valid/all/auroc", "few/loss", "beside"} <= shared[0].keys()


@pytest.mark.parametrize("world", [2, 3])
def test_predictions_of_all_ranks_are_those_of_one_process(told, world):
    joined: dict[str, Any] = {}
    for rank, one in enumerate(told[world]):
        assert [int(number) for number in one["predicted"]] == list(range(rank, 7, world))
        joined |= one["predicted"]
    alone = told[1][0]["predicted"]
    assert joined.keys() == alone.keys()
    for number, output in joined.items():
        for row, expected in zip(output, alone[number], strict=True):
            assert row == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("world", [2, 3])
def test_a_metric_that_fails_on_one_rank_is_named_on_all(told, world):
    """And where the plugin is to be detached, it is on all ranks, and the run goes on."""
    for rank, one in enumerate(told[world]):
        own = "ValueError: on rank 1 only"
        expected = own if rank == 1 else f"RankFailed: rank 1 failed in run.evaluate(data): {own}"
        assert one["failed"].startswith(expected)
        assert one["found"]["detached"] == told[1][0]["found"]["detached"]
