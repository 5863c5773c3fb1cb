"""One rank asks, raises, dies, hangs or is another: what becomes of all of them, and how soon. A row for each."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from failing_cases import PATIENCE
from launching import Outcome, outcomes, read

SOON = 2.0
"""Seconds to the error on all ranks where one raises or dies."""

KILLED, TERMINATED = -9, -15


@dataclass(frozen=True)
class Row:
    """What becomes of the ranks.

    Attributes:
        odd: What rank 1 raises, as a pattern; "" where it is ended by a signal, or ends in order.
        others: What all others raise.
        code: The exit code of rank 1; that of the others is 1.
        within: Seconds from the fault to the error.
        hangs: Whether rank 1 never ends by itself.
    """

    odd: str
    others: str
    code: int = 1
    within: float = SOON
    hangs: bool = False


def raised(error: str, where: str) -> Row:
    return Row(error, f"RankFailed: rank 1 failed{where}: {error}")


def dead(code: int, where: str) -> Row:
    others = (
        rf"RankFailed: rank 1 is gone without a word: .*; rank 1 was last heard after update .*; rank 0 waited {where}"
    )
    return Row("", others, code)


def hanging(where: str, *, code: int = KILLED, odd: str = "") -> Row:
    others = (
        rf"RankFailed: rank 1 did not come: it hangs, .*; rank 1 was last heard after update .*; rank 0 waited {where}"
    )
    return Row(odd, others, code, PATIENCE + 1, hangs=not odd)


def alike(text: str) -> Row:
    """All of them raise the same."""
    return Row(text, text)


def differ(what: str) -> Row:
    return alike(f"RankFailed: the ranks differ: .*{what} on rank 1")


ROWS = {
    "exits_gracefully": Row("SystemExit: 143", "SystemExit: 143", 143),
    # raises
    "raises_in_a_handler": raised("ValueError: my own", " in process_batch at step 4"),
    "raises_at_the_update": raised("ValueError: my own", " in optimizer_update at step 4"),
    "exits_in_a_handler": Row("SystemExit: 3", "RankFailed: rank 1 failed in process_batch .*: SystemExit: 3", 3),
    "raises_in_a_body": raised("OSError: the disk is gone", " in before_step at step 4"),
    "raises_in_building": raised("ValueError: no such optimizer", " in before_loop at step 0"),
    "raises_in_the_constructor": raised("ValueError: no detours here", ""),
    "raises_in_open": raised("OSError: the disk is full", ""),
    "raises_in_an_evaluation": raised("ValueError: cannot be measured", r" in run.evaluate\(data\)"),
    "has_no_batch_size": raised("ConfigError: RunConfig.batch_size is required", ""),
    "has_a_window_of_its_own": raised("ConfigError: RunConfig.window is [57] batches", ""),
    # dies
    "dies_in_backward": dead(KILLED, "in process_batch"),
    "dies_in_the_update": dead(KILLED, "in optimizer_update"),
    "dies_between": dead(KILLED, "in process_batch"),
    "is_terminated": dead(TERMINATED, "in process_batch"),
    "leaves_early": dead(0, "in process_batch"),
    # hangs
    "is_stopped": hanging("in process_batch"),
    "sleeps": hanging("in process_batch"),
    "sleeps_at_the_update": hanging("in optimizer_update"),
    "comes_too_late": hanging(
        "in process_batch", code=1, odd="RankFailed: this rank came too late, .*: rank 1 did not"
    ),
    # is another
    "skips_an_update": alike(
        "RankFailed: the ranks part: .*rank 0 is in optimizer_update with .* update 2, .* skipped False; "
        "rank 1 is in optimizer_update with .* update 1, .* skipped True"
    ),
    "writes_to_weights": alike("RankFailed: the weights of the ranks differ: weight of rank 1 from those of rank 0"),
    "has_a_sample_fewer": differ("data.samples is 48 on rank 0 and 47"),
    "has_a_loader": differ("data.samples is 48 on rank 0 and None"),
    "has_a_stream": differ("data.batches is 24 on rank 0 and None"),
    "has_another_seed": differ("RunConfig.seed is 3 on rank 0 and 4"),
    "has_another_accumulation": differ("RunConfig.accumulation is 2 on rank 0 and 3"),
    "has_another_batch_size": differ("RunConfig.batch_size is 2 on rank 0 and 3"),
    "has_another_remainder": differ("RunConfig.remainder is 'extend' on rank 0 and 'flush'"),
    "has_another_plugin": alike("RankFailed: the ranks differ: plugins: .*'GracefulStop' is not on both"),
    "has_another_order": differ("'GracefulStop' on rank 0 and 'CSVLogger'"),
    "has_another_order_of_handlers": differ("locals>.one' on rank 0 and .*locals>.two'"),
    "has_another_version": differ("version.torch is .* on rank 0 and '2.12.0'"),
    "resumes_alone": alike("EngineError: the ranks do not resume alike: rank 0 from no checkpoint, rank 1 from ckpt"),
}
"""By the name of the case."""

WORLDS = [(case, world) for case in ROWS for world in ((2,) if case.startswith(("sleeps", "comes")) else (2, 3))]
"""A hang costs seconds, so one of its rows alone is run on 3 ranks too."""


def happened(case: str, world: int, folder: Path, odd: int = 1) -> list[Outcome]:
    hanging = [odd] if case in ROWS and ROWS[case].hangs else []
    return outcomes("failing_cases", case, world, folder, variables=[{"ODD": str(odd)}] * world, hanging=hanging)


def check(row: Row, found: Sequence[Outcome], odd: int = 1) -> None:
    """Compare what became of the ranks with a row; a busy machine gets the time that it did not give them."""
    late = row.within + sum(one.starved for one in found)
    for rank, one in enumerate(found):
        expected = row.odd if rank == odd else row.others
        if odd == 0:
            expected = re.sub("rank ([01])", lambda found: f"rank {1 - int(found[1])}", expected)
        assert one.code == (row.code if rank == odd or row.code == 143 else 1), (rank, one)
        if not expected:
            assert one.error is None, (rank, one)
            continue
        assert re.match(expected, one.error or "", re.DOTALL), (rank, one)
        assert one.seconds is not None, (rank, one)
        assert rank == odd or one.seconds < late, (rank, one)


@pytest.mark.parametrize(("case", "world"), WORLDS)
def test_what_one_rank_does(case: str, world: int, tmp_path: Path):
    check(ROWS[case], happened(case, world, tmp_path))


@pytest.mark.parametrize("case", ["raises_in_a_handler", "dies_between", "is_stopped", "exits_gracefully"])
def test_rank_0_is_a_rank_as_any_other(case: str, tmp_path: Path):
    check(ROWS[case], happened(case, 2, tmp_path, odd=0), odd=0)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("case", "end"),
    [
        ("stops", ["finished", None, "enough (rank 1)"]),
        ("pauses", ["before_step", "lunch (rank 1)", None]),
        ("stopped_gracefully", ["before_step", "SIGTERM (rank 1)", None]),
    ],
)
def test_what_one_rank_asks_for_becomes_of_all(case: str, end: list[str | None], world: int, tmp_path: Path):
    """At the end of the window, the third, on the same turn."""
    found = happened(case, world, tmp_path)
    assert [(one.code, one.error) for one in found] == [(0, None)] * world
    state, paused, reason, turns, seq, update = found[0].result
    assert [state, paused, reason, update] == [*end, 3]
    assert seq == turns - 1
    assert [one.result for one in found] == [found[0].result] * world


def test_no_worker_process_of_a_killed_rank_is_left(tmp_path: Path):
    """It looks every 5 s whether its parent is there, as torch's do."""
    check(dead(KILLED, "in process_batch"), happened("dies_with_workers", 2, tmp_path))
    workers = [int(path.suffix[1:]) for path in tmp_path.glob("worker.*")]
    until = time.monotonic() + 15
    while (left := [pid for pid in workers if lives(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert workers
    assert not left


def lives(pid: int) -> bool:
    """Return whether there is such a process, and it has not ended."""
    return read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[:1] not in ([], ["Z"])


@pytest.mark.parametrize("world", [2, 3])
def test_two_that_fail_at_once_raise_their_own(world: int, tmp_path: Path):
    """And who waits for them hears of one of them at least."""
    found = happened("fail_at_two_places", world, tmp_path)
    own = {0: "ValueError: of rank 0", world - 1: f"ValueError: of rank {world - 1}"}
    late = SOON + sum(one.starved for one in found)
    for rank, one in enumerate(found):
        assert one.code == 1
        heard = r"RankFailed: rank [02] failed in (before|after)_step at step \d: ValueError: of rank [02]"
        assert re.match(own.get(rank, heard), one.error or ""), one
        assert one.seconds is not None
        assert one.seconds < late, one


@pytest.mark.parametrize("world", [2, 3])
def test_a_script_that_catches_the_error_has_to_start_anew(world: int, tmp_path: Path):
    """All that it tries says so, on the rank that failed too."""
    found = happened("goes_on_after_one_failed", world, tmp_path)
    for rank, one in enumerate(found):
        assert one.code == 0, one
        first, again, evaluation, engine = one.result
        assert first == "ValueError: my own" if rank == 1 else first.startswith("RankFailed: rank 1 failed"), one
        assert re.match(r"EngineError: run\(\) was called on a run that is failed", again)
        assert evaluation.startswith("RankFailed: "), one
        assert re.match("RankFailed: a rank has failed before, .*start all of them anew", engine)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_all_failed_alike_can_train_again(world: int, tmp_path: Path):
    """The groups belong to the process; what the next engine learns is what the first has learnt."""
    found = happened("begins_anew_after_all_failed", world, tmp_path)
    for one in found:
        assert one.code == 0, one
        first, handler, building, parting, last = one.result
        assert handler == building == "ValueError: my own"
        assert parting.startswith("RankFailed: the ranks part: ")
        assert first == last == found[0].result[0]
