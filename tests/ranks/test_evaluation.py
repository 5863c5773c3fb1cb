"""Evaluations of two and three processes, beside the same of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluating_cases import CASES
from launching import Launch, launch_warm
from rank_program import Rank

WORLDS = (2, 3)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Launch]:
    return {world: launch_warm("evaluating_cases", world, tmp_path_factory.mktemp(f"of {world}")) for world in WORLDS}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process tells."""
    return {name: case(Rank(0, 1, Path())) for name, case in CASES.items()}


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_recorded_is_equal_on_all_ranks_and_that_of_one_process(launched, alone, world):
    """Means, objects of torchmetrics, the metrics of the training itself, an evaluation after the run."""
    found = launched[world].of("measured")
    assert all(one == found[0] for one in found)  # to the bit
    for name, value in found[0].items():
        assert value == pytest.approx(alone["measured"][name], abs=1e-12), name
    assert {"train/right", "valid/all/auroc", "few/loss", "beside"} <= found[0].keys()


@pytest.mark.parametrize("world", WORLDS)
def test_predictions_of_all_ranks_are_those_of_one_process(launched, alone, world):
    joined: dict[str, Any] = {}
    for rank, predicted in enumerate(launched[world].of("predicted")):
        assert [int(number) for number in predicted] == list(range(rank, 7, world))
        joined |= predicted
    assert joined.keys() == alone["predicted"].keys()
    for number, output in joined.items():
        for row, expected in zip(output, alone["predicted"][number], strict=True):
            assert row == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_a_metric_that_fails_on_one_rank_is_named_on_all(launched, alone, world):
    """And where the plugin is to be detached, it is on all ranks, and the run goes on."""
    own = "ValueError: on rank 1 only"
    for rank, failed in enumerate(launched[world].of("failed")):
        expected = own if rank == 1 else f"RankFailed: rank 1 failed in run.evaluate(data): {own}"
        assert failed.startswith(expected)
    assert launched[world].of("detached") == [alone["detached"]] * world
