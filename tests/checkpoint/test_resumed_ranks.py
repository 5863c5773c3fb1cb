"""Runs of several processes, stored and resumed: to the bit on as many ranks, to rounding on others, or not at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "ranks_program.py"

Answers = list[dict[str, Any]]
"""What each rank has seen, by the name of the case."""


def ask(folder: Path, world: int, *names: str) -> Answers:
    """Run cases of the program on so many ranks; return what each has seen."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    others = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **others} for rank in range(world)] if world > 1 else [{}]
    command = [sys.executable, str(PROGRAM), str(folder), *names]
    started = [
        subprocess.Popen(command, env={**os.environ, **rank}, stderr=subprocess.PIPE, text=True) for rank in ranks
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [json.loads((folder / f"answers-{world}-{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> Answers:
    return ask(folder, 2, "unbroken", "resumed", "automatic", "damaged", "refused", "kept", "plain", "odd_plain")


@pytest.fixture(scope="module")
def three(folder: Path, two: Answers) -> Answers:
    return ask(folder, 3, "elastic", "odd", "unbroken", "resumed")


@pytest.fixture(scope="module")
def one(folder: Path, two: Answers) -> Answers:
    return ask(folder, 1, "elastic", "odd")


@pytest.mark.parametrize("world", ["two", "three"])
def test_resumed_ranks_end_as_those_that_were_never_interrupted(world: str, request: pytest.FixtureRequest):
    """Weights, buffers, optimizers, generators and records of each rank, bit for bit, in mid-window too."""
    answers: Answers = request.getfixturevalue(world)
    for rank in answers:
        assert len(rank["resumed"]) >= 5
        assert set(rank["resumed"].values()) == {rank["unbroken"]["end"]}
    assert len({rank["unbroken"]["end"] for rank in answers}) == len(answers), "each has masks of its own"


def test_auto_begins_or_continues_on_all_ranks(two: Answers):
    for rank in two:
        assert rank["automatic"] == {"end": rank["unbroken"]["end"], "from": "checkpoint-00000005"}


def test_all_ranks_take_the_one_before_a_checkpoint_that_one_finds_damaged(two: Answers):
    for rank in two:
        assert rank["damaged"]["from"] == "checkpoint-00000017"
        assert any("rank 1: " in note and "rank-00001.safetensors holds" in note for note in rank["damaged"]["notes"])


REFUSALS = {
    "not alike": "the ranks do not resume alike: rank 0 from no checkpoint, rank 1 from auto",
    "not there": "there is no directory",
    "none sound": "holds no checkpoint",
    "another's": "holds checkpoints of another run",
    "another run": "batches in a window, ranks x accumulation: 2 x 3 = 6 in the checkpoint, 2 x 6 = 12 here",
    "background": "Checkpoint(background=True) is for a single process, and this run has 2 ranks",
    "full": "rank 1: no checkpoint was written",
}


@pytest.mark.parametrize("mistake", REFUSALS)
def test_all_ranks_raise_the_same(two: Answers, mistake: str):
    first, second = (rank["refused"][mistake] for rank in two)
    assert first == second
    assert REFUSALS[mistake] in first


def test_a_checkpoint_of_two_ranks_that_was_kept_as_files_is_resumed(two: Answers):
    for rank in two:
        assert rank["kept"]["resumed"] == pytest.approx(rank["kept"]["unbroken"], rel=0, abs=1e-9)


@pytest.mark.parametrize("world", ["one", "three"])
def test_another_number_of_ranks_continues_at_closed_windows(world: str, request: pytest.FixtureRequest, two: Answers):
    """In an epoch and at its end, to rounding; the log says so, and the steps are those of the new number."""
    ranks: Answers = request.getfixturevalue(world)
    for rank in ranks:
        found = rank["elastic"]
        assert len(found["weights"]) == 3
        for weights in found["weights"].values():
            assert weights == pytest.approx(two[0]["plain"], rel=0, abs=1e-12)
        assert sum("from a run of 2 ranks" in note for note in found["notes"]) == 3
        assert found["counts"] == [[72 // len(ranks), 12, 3, 144]] * 3


@pytest.mark.parametrize("world", ["one", "three"])
def test_another_number_of_ranks_is_refused_in_mid_window(world: str, request: pytest.FixtureRequest):
    for rank in request.getfixturevalue(world):
        refused = list(rank["elastic"]["refused"].values())
        assert len(refused) == 9
        assert all("was taken by 2 ranks in the middle of a window" in text for text in refused)
        assert all("resume with 2 ranks, or from a checkpoint of a closed window" in text for text in refused)


STEPS = {"extend": (60, 20), "drop": (48, 16), "flush": (50, 18), "carry": (50, 17)}
"""Of two epochs of 25 batches, in one process and of each of three ranks."""


@pytest.mark.parametrize("remainder", STEPS)
@pytest.mark.parametrize("world", ["one", "three"])
def test_another_number_of_ranks_continues_where_sizes_do_not_divide(
    world: str, remainder: str, request: pytest.FixtureRequest, two: Answers
):
    updates, samples, expected = two[0]["odd_plain"][remainder]
    for rank in request.getfixturevalue(world):
        assert len(rank["odd"][remainder]) >= 3
        for *counts, weights in rank["odd"][remainder]:
            assert counts == [STEPS[remainder][world == "three"], updates, samples]
            assert weights == pytest.approx(expected, rel=0, abs=1e-12)
