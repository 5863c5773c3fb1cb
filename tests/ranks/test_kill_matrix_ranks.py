"""One rank is killed by SIGKILL at any moment; all are started anew, and end as those that nobody killed.

A seeded sample of the moments; `make kill-matrix-ranks` takes them all. What is compared on each rank: weights and
buffers, the optimizer, its random generators, counters, the state of every plugin; and the log of all, bit for bit, in
which each step has recorded its samples.
"""

from __future__ import annotations

import pytest
from kill_matrix_ranks import BACKGROUND, STRATEGIES, differences, drawn, lived, moments, trial

from builders import STATES

SAMPLE = [
    (2, "ddp", "of a file"),
    (2, "ddp", "exchange"),
    (2, "ddp", "body of"),
    (2, "fsdp", "of a file"),
    (2, "fsdp", "backward"),
    (2, "fsdp", "on exit of"),
    (3, "ddp", "checkpoint"),
    (3, "fsdp", "of a file"),
    (2, f"fsdp{BACKGROUND}", "of a file"),
]


@pytest.mark.parametrize(("world", "strategy", "kind"), SAMPLE)
def test_a_rank_is_killed_and_all_begin_anew(world: int, strategy: str, kind: str):
    rank, at = drawn(world, strategy, kind)
    assert trial(world, strategy, rank, at) == [], moments(world, strategy, rank)[at]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_moments_are_at_both_ends_of_every_state_and_of_its_body(strategy: str):
    """On each rank; and in forward and backward, at exchanges, and where each rank writes."""
    states = [*STATES, "evaluate", "checkpoint"]
    expected = {f"on {moment} of {state}" for state in states for moment in ("enter", "exit")}
    expected |= {f"body of {state} {end}" for state in STATES for end in ("begins", "ends")}
    expected |= {"after forward", "as backward begins", "before an exchange", "after an exchange"}
    expected |= {f"before {name} of a file" for name in ("create", "write", "sync", "close")}
    for rank in range(2):
        assert expected <= {*moments(2, strategy, rank)}
    assert "before rename of a file" in moments(2, strategy, 0)


def test_a_run_of_other_bits_is_found():
    """What is compared can differ: each rank has masks of its own, and its own statistics of batches."""
    whole = lived(2, "ddp")
    found = differences(whole, {**whole, "ranks": whole["ranks"][::-1]})
    assert {"the weights of rank 0", "the random state of rank 0", "the weights of rank 1"} <= {*found}
