"""Ranks killed again and again under torchrun: a sample; `make chains-ranks` has some hundred kills."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from rank_chains import differences, ending


@cache
def whole(world: int) -> dict[str, Any]:
    return ending(world, "static", "", 0)


@pytest.mark.parametrize(("world", "meeting"), [(2, "c10d"), (3, "static")])
def test_a_chain_of_kills_ends_as_the_run_that_nobody_killed(world: int, meeting: str):
    """On each rank, to the bit; the log is one path, and no turn of it stands there twice."""
    chain = ending(world, meeting, f"{world} {meeting} 0", 5)
    assert differences(whole(world), chain) == []
    assert len(chain["kills"]) == 5


def test_so_does_one_that_torchrun_starts_as_programs():
    """The others fork the ranks, by the agent of torchrun."""
    chain = ending(3, "c10d", "programs", 1, forked=False)
    assert differences(whole(3), chain) == []
    assert len(chain["kills"]) == 1


def test_a_run_of_other_bits_is_found():
    """What is compared can differ."""
    found = differences(whole(2), {**whole(2), "ends": whole(2)["ends"][::-1]})
    assert found == ["the random state of rank 0", "the random state of rank 1"]
