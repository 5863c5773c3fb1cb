"""Ranks killed again and again under torchrun: a sample; `make chains-ranks` has some hundred kills."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from rank_chains import Task, differences, elastic, ending


@cache
def whole(world: int, strategy: str = "ddp") -> dict[str, Any]:
    return ending(world, "static", "", 0, Task(strategy))


CHAINS = [(2, "c10d", "ddp", 4), (3, "static", "ddp", 4), (2, "static", "fsdp", 3), (3, "c10d", "fsdp", 3)]


@pytest.mark.parametrize(("world", "meeting", "strategy", "kills"), CHAINS)
def test_a_chain_of_kills_ends_as_the_run_that_nobody_killed(world: int, meeting: str, strategy: str, kills: int):
    """On each rank, to the bit; the log is one path, and no turn of it stands there twice."""
    chain = ending(world, meeting, f"{world} {meeting} 0", kills, Task(strategy))
    assert differences(whole(world, strategy), chain) == []
    assert len(chain["kills"]) == kills


def test_so_does_one_that_torchrun_starts_as_programs():
    """The others fork the ranks, by the agent of torchrun."""
    chain = ending(3, "c10d", "programs", 1, forked=False)
    assert differences(whole(3), chain) == []
    assert len(chain["kills"]) == 1


@pytest.mark.parametrize(("meeting", "worlds"), [("static", (2, 3, 1)), ("c10d", (3, 2))])
def test_torchrun_starts_another_number_of_ranks_after_each_kill(meeting: str, worlds: tuple[int, ...]):
    """They end as one process that nobody killed, to rounding; a process that joins nobody reads what they learnt."""
    one, chain = elastic((1,), "static", "whole", "none"), elastic(worlds, meeting, "0", "fsdp")
    assert chain["weights"] == pytest.approx(one["weights"], rel=0, abs=1e-12)
    for losses in chain["losses"]:
        assert losses == pytest.approx(one["losses"][0], rel=0, abs=1e-12)


def test_a_run_of_other_bits_is_found():
    """What is compared can differ."""
    found = differences(whole(2), {**whole(2), "ends": whole(2)["ends"][::-1]})
    assert found == ["the random state of rank 0", "the random state of rank 1"]
