"""What goes on beside the plain loop with strategy="fsdp": two and three ranks are one process, or it is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from launching import Launch, launch_warm
from rank_program import Rank
from sharded_cases import ALONE, REFUSED, RUNS, WAYS, learn, shown

TOLERANCE = 1e-12
OF_SINGLE = {"gain": 2e-7}
"""The tolerance for parameters of single precision: the last bit depends on the processor and the order of a sum."""
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Launch]:
    return {world: launch_warm("sharded_cases", world, tmp_path_factory.mktemp(f"of {world}")) for world in WORLDS}


@cache
def alone(name: str, world: int) -> dict[str, Any]:
    return learn(RUNS[name], times=world)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what nested dicts and lists hold, with its place."""
    if isinstance(value, dict | list):
        yield at, len(value)
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, f"{at}/{key}")
    else:
        yield at, "nan" if isinstance(value, float) and math.isnan(value) else value


def assert_near(found: Any, expected: Any) -> None:
    """Hold numbers to others within the tolerance, and all else to the same."""
    found, expected = dict(leaves(found)), dict(leaves(expected))
    numbers = {at for at, value in expected.items() if isinstance(value, float) and isinstance(found.get(at), float)}
    assert {at: one for at, one in found.items() if at not in numbers} == {
        at: one for at, one in expected.items() if at not in numbers
    }
    near = {at: tolerance for at in numbers for name, tolerance in OF_SINGLE.items() if f"/{name}" in at}
    for at, tolerance in near.items():
        assert found[at] == pytest.approx(expected[at], rel=tolerance, abs=tolerance), at
    rest = numbers - near.keys()
    assert {at: found[at] for at in rest} == pytest.approx(
        {at: expected[at] for at in rest}, rel=TOLERANCE, abs=TOLERANCE
    )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", RUNS)
def test_ranks_are_one_process(launched: dict[int, Launch], world: int, name: str):
    """Weights, averages, counters, mean losses, recorded norms, values, and why the run has ended."""
    ranks = launched[world].of(name)
    for one in ranks[1:]:
        assert dict(leaves(one)) == dict(leaves(ranks[0]))
    assert_near(ranks[0], alone(name, world))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_the_reason(launched: dict[int, Launch], world: int, name: str):
    for told in launched[world].of("refused"):
        assert REFUSED[name][1] in told[name]


@pytest.mark.parametrize("world", WORLDS)
def test_a_smoke_run_is_refused(launched: dict[int, Launch], world: int):
    for told in launched[world].of("smoked"):
        assert told.startswith("smoke() puts everything back, and strategy='fsdp' shards the network for good")


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_name_a_nan_in_the_part_of_one(launched: dict[int, Launch], world: int):
    assert launched[world].of("raised") == ["NonFiniteGuard: not finite in update 1: gradient of inp.weight"] * world


@pytest.mark.parametrize("world", WORLDS)
def test_an_error_that_only_shared_parameters_bring_about_says_what_to_do(launched: dict[int, Launch], world: int):
    for notes in launched[world].of("mistaken"):
        assert any("run.whole(tensor)" in note and "Components.blocks" in note for note in notes)


@pytest.mark.parametrize("world", WORLDS)
def test_a_damaged_checkpoint_leaves_all_as_it_was(launched: dict[int, Launch], world: int):
    """The network is not even sharded: weights, buffers and generators have their bits on all ranks."""
    told = launched[world].of("damaged")
    assert len({row["text"] for row in told}) == 1
    for row in told:
        assert row["part"] in row["text"]
        assert row["untouched"]


@pytest.mark.parametrize("world", WORLDS)
def test_what_shows_a_network_shows_it_whole(launched: dict[int, Launch], world: int, tmp_path: Path):
    """Its classes, sizes, FLOPs of a step, and means; and torch warns of nothing."""
    first, *others = launched[world].of("shown")
    one = shown(Rank(0, world, tmp_path), "none")
    assert first["parts"] == one["parts"]
    assert first["measured"] == pytest.approx(one["measured"], rel=TOLERANCE)
    assert first["names"] == one["names"]
    assert all(rank["measured"] == first["measured"] for rank in others)
    assert [rank["warnings"] for rank in (first, *others)] == [[]] * world


@pytest.mark.parametrize("world", WORLDS)
def test_a_criterion_is_trained_beside_a_frozen_network(launched: dict[int, Launch], world: int):
    ranks = launched[world].of("frozen")
    assert ranks == [[ranks[0][0], False]] * world
    assert ranks[0][0] != 1.5


@pytest.mark.parametrize("world", WORLDS)
def test_buffers_and_their_averages_are_each_ranks_own(launched: dict[int, Launch], world: int):
    ranks = launched[world].of("normed")
    for one, other in pairwise(ranks):
        assert one != other


@pytest.mark.parametrize("world", WORLDS)
def test_bf16_is_near_fp32_and_equal_to_itself(launched: dict[int, Launch], world: int):
    for once, again, whole, branching, whole_branching in launched[world].of("halves"):
        assert once == again
        assert once["dtypes"] == ["torch.bfloat16"]
        assert whole["dtypes"] == ["torch.float32"]
        assert once["losses"] == pytest.approx(whole["losses"], rel=0.02)
        assert branching["losses"] == pytest.approx(whole_branching["losses"], rel=0.02)


@pytest.mark.parametrize("world", WORLDS)
def test_an_infinity_on_one_rank_makes_all_skip_and_halve_the_scale(launched: dict[int, Launch], world: int):
    """In its part of a parameter, and in one that each has whole."""
    ranks = launched[world].of("overflown")
    assert ranks == [ranks[0]] * world
    for rows in ranks[0]:
        (_, before), (skipped, after) = rows[1:3]  # the third update
        assert skipped
        assert after == before / 2


@pytest.mark.parametrize("world", WORLDS)
def test_a_network_may_be_its_only_block(launched: dict[int, Launch], world: int):
    assert launched[world].of("in_one_block") == [True] * world


def test_blocks_are_compiled_and_recomputed_around_what_shards_them(launched: dict[int, Launch]):
    for plain, compiled in launched[2].of("compiled"):
        assert compiled == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("world", WORLDS)
def test_averages_go_from_one_strategy_to_another(launched: dict[int, Launch], world: int):
    """Those of a whole run in one process."""
    expected = learn(ALONE, times=world)["averages"]
    for told in launched[world].of("resumed"):
        assert len(told) == len(WAYS)
        for one in told:
            assert_near(one, expected)


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_goes_on_by_another_strategy_where_torch_steps_one_by_one(launched: dict[int, Launch], world: int):
    """The engine has set foreach for that, and not the user."""
    assert launched[world].of("resumed_mixed") == [["finished"] * len(WAYS)] * world
