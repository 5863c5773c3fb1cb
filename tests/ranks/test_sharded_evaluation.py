"""Evaluations and predictions under `strategy="fsdp"` of two and three processes, beside the same of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from launching import Launch, launch_warm
from rank_program import Rank
from sharded_evaluating_cases import CASES, VALID, network
from torch.nn.functional import cross_entropy

WORLDS = (2, 3)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Launch]:
    given = {}
    for world in WORLDS:
        folder = tmp_path_factory.mktemp(f"of {world}")
        given[world] = launch_warm("sharded_evaluating_cases", world, folder, limit=90)
    return given


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process tells."""
    rank = Rank(0, 1, tmp_path_factory.mktemp("alone"))
    return {name: case(rank) for name, case in CASES.items()}


def assert_near(found: Any, expected: Any, where: str = "") -> None:
    """Compare nested values, numbers to 1e-12."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, one in expected.items():
            assert_near(found[name], one, f"{where} {name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_near(one, other, f"{where} {place}")
    else:
        assert found == pytest.approx(expected, abs=1e-12), where


EQUAL = ("criterion", "computed", "spared", "detached", "again", "by_handler", "teacher", "within_step", "resumed")


@pytest.mark.parametrize("case", EQUAL)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_find_what_one_process_does(launched, alone, world, case):
    for found in launched[world].of(case):
        assert_near(found, alone[case], case)


def test_the_loss_of_one_process_is_that_of_a_plain_loop(alone):
    """Before anything is trained, over all 13 samples at once."""
    with torch.no_grad():
        loss = cross_entropy(network()(VALID.tensors[0]), VALID.tensors[1])
    assert alone["criterion"]["before"] == pytest.approx(loss.item(), abs=1e-12)
    assert alone["criterion"]["valid/loss 0"] == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_an_idle_round_leaves_buffers_and_generators_alone(launched, world):
    for _, made, alike in launched[world].of("spared"):
        assert (made, alike) == (0, True)


@pytest.mark.parametrize("world", WORLDS)
def test_predictions_of_all_ranks_are_those_of_one_process(launched, alone, world):
    """Whether the network is sharded by then or not; a rank yields its own, and may have none."""
    joined: dict[str, Any] = {name: {} for name in alone["predicted"]}
    for rank, found in enumerate(launched[world].of("predicted")):
        for name, outputs in found.items():
            assert all(int(number) % world == rank for number in outputs), name
            joined[name] |= outputs
    weights = joined.pop("weights")
    assert_near(joined, {name: one for name, one in plain(alone["predicted"]).items() if name != "weights"})
    for one in weights.values():
        assert_near(one, alone["predicted"]["weights"][0])


def plain(value: Any) -> Any:
    """Return nested values as JSON has them."""
    return {str(name): plain(one) for name, one in value.items()} if isinstance(value, dict) else value


# Of 13 samples in batches of two, and of streams of as many: which rank has batch 2, the third, by the world.
FAILING = {2: 0, 3: 2}


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_fail_together_and_can_evaluate_again(launched, alone, world):
    """The errors, and after each the loss of an evaluation that goes well."""
    raised = [
        (1, "ValueError: on rank 1 only"),
        (1, "ValueError: on rank 1 only"),
        (FAILING[world], "OSError: sample 5 cannot be read"),
        (FAILING[world], "IndexError: Target 3 is out of bounds."),
        (None, "OSError: cut off"),
        (None, "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x7)"),
    ]
    for rank, found in enumerate(launched[world].of("failed")):
        errors, losses = found[::2], found[1::2]
        of_others = "RankFailed: rank {} failed in Engine.evaluate(data): {}"
        assert errors == [own if who in (rank, None) else of_others.format(who, own) for who, own in raised]
        assert_near(losses, [alone["failed"][0]] * len(raised))


@pytest.mark.parametrize("world", WORLDS)
def test_unequal_samplers_are_refused_on_all_ranks(launched, world):
    counts = ", ".join(f"rank {rank} has {rank + 1}" for rank in range(world))
    for found in launched[world].of("unequal"):
        assert found.startswith("DataError: Engine.evaluate(data): the ranks do not have the same data")
        assert counts in found


@pytest.mark.parametrize("world", WORLDS)
def test_a_forward_pass_that_one_rank_breaks_off_ends_the_run_of_all(launched, world):
    """Also where its plugin was to be detached: the others have waited for the rest of the pass."""
    for rank, (error, seconds) in enumerate(launched[world].of("broken")):
        own = "ValueError: after half a pass"
        assert error == own if rank == 1 else error.startswith("RankFailed: rank 1 failed in evaluate") and own in error
        assert seconds < 10
