"""The harness that starts ranks: what it tells of cases that end well, raise, hang, die or stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launching import Launch, launch, outcomes, read


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return launch("launching_cases", 2, tmp_path_factory.mktemp("launch"))


@pytest.mark.parametrize("case", ["adds", "adds_again"])
def test_cases_of_one_launch_share_their_processes(launched: Launch, case: str):
    """Each has its own results, one a rank."""
    assert launched.of(case) == [3.0, 3.0]


def test_a_case_that_raises_shows_the_traceback_of_its_rank(launched: Launch):
    with pytest.raises(AssertionError, match=r"^rank 1: Traceback(.|\n)*ValueError: only here"):
        launched.of("raises_on_one")


def test_a_launch_that_hangs_is_ended_and_shows_where_the_ranks_were(tmp_path: Path):
    """What ended before is there, and no process is left."""
    hung = launch("hanging_cases", 2, tmp_path, limit=1)
    assert hung.of("ends") == [0, 1]
    with pytest.raises(AssertionError, match=r"hangs did not end on ranks \[1\](.|\n)*in hangs"):
        hung.of("hangs")
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int(read(tmp_path / f"{rank}.pid")), 0)


def test_a_rank_that_dies_is_told_from_one_that_fails(tmp_path: Path):
    """Its exit code is the signal; the other's error and the seconds to it are there."""
    other, dead = outcomes("launching_cases", "dies", 2, tmp_path)
    assert (dead.code, dead.error) == (-9, None)
    assert other.code == 1
    assert other.error is not None
    assert other.seconds is not None
    assert 0 < other.seconds < 2


def test_a_rank_that_stopped_itself_is_ended_when_the_others_have(tmp_path: Path):
    other, stopped = outcomes("launching_cases", "stops", 2, tmp_path)
    assert (other.code, other.result) == (0, "well")
    assert stopped.code == -9


def test_ranks_that_do_not_end_are_ended_with_their_stacks(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"had not ended after 1 s:(.|\n)*in waits"):
        outcomes("launching_cases", "waits", 2, tmp_path, limit=1)
