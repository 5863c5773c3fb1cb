"""Runs of several processes, stored and resumed: to the bit on as many ranks, to rounding on others, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import resumed_cases
from launching import Launch, launch_warm
from rank_program import Rank

WORLDS = (2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def launched(folder: Path) -> dict[int, Launch]:
    """What ranks have told, by their number; three resume what two have stored."""
    return {world: launch_warm("resumed_cases", world, folder / str(world)) for world in WORLDS}


@pytest.fixture(scope="module")
def alone(folder: Path, launched: dict[int, Launch]) -> dict[str, Any]:
    """What one process makes of it."""
    rank = Rank(0, 1, folder / "1")
    return {case.__name__: case(rank) for case in (resumed_cases.elastic, resumed_cases.odd, resumed_cases.grown)}


@pytest.fixture
def others(request: pytest.FixtureRequest, launched: dict[int, Launch], alone: dict[str, Any]) -> list[Any]:
    """What each of another number of ranks has made of it, of one case."""
    world, case = request.param
    return [alone[case]] if world == 1 else launched[world].of(case)


OTHERS = (1, 3)


@pytest.mark.parametrize("world", WORLDS)
def test_resumed_ranks_end_as_those_that_were_never_interrupted(launched: dict[int, Launch], world: int):
    """Weights, buffers, averages, optimizers, generators and records of each rank, bit for bit, in mid-window too."""
    unbroken, resumed = launched[world].of("unbroken"), launched[world].of("resumed")
    for whole, again in zip(unbroken, resumed, strict=True):
        assert len(again) >= 2
        for end in again.values():
            assert end == whole["end"]
    for own in ("buffers", "average", "drawn"):
        assert len({whole["end"][own] for whole in unbroken}) == world, "each has masks of its own"


@pytest.mark.parametrize("world", WORLDS)
def test_auto_begins_or_continues_on_all_ranks(launched: dict[int, Launch], world: int):
    """And so do the journals: the path, and no row twice."""
    for whole, again in zip(launched[world].of("unbroken"), launched[world].of("automatic"), strict=True):
        assert again["from"] == "checkpoint-00000005"
        assert again["end"] == whole["end"]
        assert again["journal"]["values"] == whole["journal"]["values"]


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_not_agreed_on_yet_is_stored(launched: dict[int, Launch], world: int):
    """And ranks that agree seldom do so after the same updates when they are resumed."""
    for whole, *again in launched[world].of("agreed_seldom"):
        assert whole["counts"][4] == "enough (rank 1)"
        assert ["looked", 6.0, 6] in whole["records"]
        assert again == [whole, whole, whole]


def test_all_ranks_take_the_one_before_a_checkpoint_that_one_finds_damaged(launched: dict[int, Launch]):
    for rank in launched[2].of("damaged"):
        assert rank["from"] == "checkpoint-00000017"
        assert any("rank 1: " in note and "rank-00001.safetensors holds" in note for note in rank["notes"])


REFUSALS = {
    "not alike": "the ranks do not resume alike: rank 0 from no checkpoint, rank 1 from auto",
    "not there": "there is no directory",
    "none sound": "holds no checkpoint",
    "another's": "holds checkpoints of another run",
    "another run": "batches in a window, ranks x accumulation: 2 x 3 = 6 in the checkpoint, 2 x 6 = 12 here",
    "full": "rank 1: no checkpoint was written",
}


@pytest.mark.parametrize("mistake", REFUSALS)
def test_all_ranks_raise_the_same(launched: dict[int, Launch], mistake: str):
    first, second = (rank[mistake] for rank in launched[2].of("refused"))
    assert first == second
    assert REFUSALS[mistake] in first


def test_a_state_that_one_rank_cannot_give(launched: dict[int, Launch]):
    """All raise the same, or go on without checkpoints; a plugin that may be detached is, there, and stays so."""
    first, second = launched[2].of("forgotten")
    assert first["raised"] == second["raised"] == "rank 1: ValueError: forgotten"
    assert first["no checkpoint"] == second["no checkpoint"] == ["finished", ["Checkpoint"]]
    assert (first["no plugin"], second["no plugin"]) == (["finished", []], ["finished", ["Forgetful"]])


def test_one_process_continues_what_ranks_do_and_the_reverse(launched: dict[int, Launch]):
    for one, many, *again in launched[2].of("there_and_back")[:1]:
        assert many == pytest.approx(one, rel=0, abs=1e-12)
        assert again == [pytest.approx(one, rel=0, abs=1e-12)]


def test_the_journals_of_a_run_that_other_numbers_of_ranks_continue(launched: dict[int, Launch], alone: dict[str, Any]):
    """No row is there twice, none is missing, and what a rank that is no more has written counts no more."""
    whole = {"missing": {}, "parted": 0}
    for found in launched[2].of("grown"):
        assert found == {**whole, "ranks": [0, 1], "0": [False, 4, 4], "1": [False, 4, 4]}
    for found in launched[3].of("grown"):
        assert found == {**whole, "ranks": [0, 1, 2], "0": [False, 7, 7], "1": [False, 7, 7], "2": [True, 7, 7]}
    assert alone["grown"] == {**whole, "ranks": [0], "0": [False, 9, 9]}


def test_a_checkpoint_of_two_ranks_that_was_kept_as_files_is_resumed(launched: dict[int, Launch]):
    """To rounding: the processor that wrote it was another.

    The bias before BatchNorm, numbers 32 to 39, has no gradient but rounding, and Adam makes steps of that.
    """
    for rank in launched[2].of("kept"):
        assert rank["resumed"] == pytest.approx(rank["unbroken"], rel=0, abs=1e-6)
        found, expected = (rank[name][:32] + rank[name][40:] for name in ("resumed", "unbroken"))
        assert found == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize("others", [(world, "elastic") for world in OTHERS], indirect=True)
def test_another_number_of_ranks_continues_at_closed_windows(others: list[Any], launched: dict[int, Launch]):
    """In an epoch and at its end, to rounding; the log says so, and the steps are those of the new number."""
    expected = launched[2].of("plain")[0]
    for found in others:
        assert len(found["values"]) == 3
        for values in found["values"].values():
            assert values == pytest.approx(expected, rel=0, abs=1e-12)
        assert sum("from a run of 2 ranks" in note for note in found["notes"]) == 3
        assert found["counts"] == [[72 // len(others), 12, 3, 144]] * 3


@pytest.mark.parametrize("others", [(world, "elastic") for world in OTHERS], indirect=True)
def test_another_number_of_ranks_is_refused_in_mid_window(others: list[Any]):
    for found in others:
        refused = list(found["refused"].values())
        assert len(refused) == 9
        assert all("was taken by 2 ranks in the middle of a window" in text for text in refused)
        assert all("resume with 2 ranks, or from a checkpoint of a closed window" in text for text in refused)


STEPS = {"extend": (60, 20), "drop": (48, 16), "flush": (50, 18), "carry": (50, 17)}
"""Of two epochs of 25 batches, in one process and of each of three ranks."""


MEANS = 4
"""Of two epochs, which stand before the weights."""


@pytest.mark.parametrize("remainder", STEPS)
@pytest.mark.parametrize("others", [(world, "odd") for world in OTHERS], indirect=True)
def test_another_number_of_ranks_continues_where_sizes_do_not_divide(
    others: list[Any], remainder: str, launched: dict[int, Launch]
):
    updates, samples, expected = launched[2].of("odd_plain")[0][remainder]
    for rank in others:
        assert len(rank[remainder]) >= 3
        for *counts, values in rank[remainder]:
            assert counts == [STEPS[remainder][len(others) == 3], updates, samples]
            first = MEANS if remainder == "carry" else 0  # an epoch of others ends after other batches
            assert values[first:] == pytest.approx(expected[first:], rel=0, abs=1e-12)
