"""Checkpoints of ranks in the background: to the bit those of the foreground, when all have written, and together."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from background_cases import LATE, LET_GO
from launching import Launch, launch_warm, outcomes

from heptad.checkpoints.store import Store

WORLDS = (2, 3)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Launch]:
    folder = tmp_path_factory.mktemp("ranks")
    return {world: launch_warm("background_cases", world, folder / str(world)) for world in WORLDS}


def same_on_all(launched: Launch, case: str) -> Any:
    """Return what a case returned on every rank."""
    first, *others = launched.of(case)
    assert others == [first] * len(others)
    return first


# -- what is stored


@pytest.mark.parametrize("world", WORLDS)
def test_the_files_are_byte_for_byte_those_of_the_foreground(launched: dict[int, Launch], world: int):
    """In mid-window too; and the runs end alike."""
    for found in launched[world].of("alike"):
        assert found["count"] == [12, 12]
        assert found["files"] == 12 * (4 + 2 * world)
        assert found["different"] == []
        assert found["ends"][0] == found["ends"][1]


def test_so_are_those_of_ranks_that_share_the_network(launched: dict[int, Launch]):
    for names, different in launched[2].of("sharded"):
        assert "checkpoint-00000003/network-00001.safetensors" in names
        assert different == []


@pytest.mark.parametrize("world", WORLDS)
def test_resumed_runs_end_as_the_one_that_was_never_interrupted(launched: dict[int, Launch], world: int):
    for whole, again in zip(launched[world].of("alike"), launched[world].of("resumed"), strict=True):
        assert again == [whole["ends"][0]] * 3


# -- when


@pytest.mark.parametrize("world", WORLDS)
def test_it_counts_on_all_ranks_from_the_first_agreement_at_which_all_have_written(
    launched: dict[int, Launch], world: int
):
    """Training goes on until then; with `agree_every` that is later."""
    found = same_on_all(launched[world], "late")
    each, seldom = found["each"], found["seldom"]
    assert each["seen"] == [0] * (LET_GO + 1) + [1] * (11 - LET_GO)
    assert seldom["seen"] == [0] * 12
    for row, update in ((each, (LET_GO + 1) // 2), (seldom, 6)):
        ((name, source, seq),) = row["written"]
        assert (name, source) == ("checkpoint-00000001", "optimizer_update")
        assert seq == turn_of_update(update)
        assert (row["updates"], row["left"]) == (6, [])


def turn_of_update(number: int) -> int:
    """Return the turn that leaves a later update than the first: behind 3 turns, 7 of each window, and the detour."""
    return 3 + 7 * number


def test_each_waits_for_the_one_before(launched: dict[int, Launch]):
    found = same_on_all(launched[2], "in_a_row")
    assert found == {"updates": 6, "stored": [1, 2, 3, 4, 5, 6], "written": 6, "left": []}


WAITING = {
    "pause": ["before_step", f"lunch (rank {LATE})", [], [2, 8], 1, [], "finished"],
    "signal": ["before_step", f"SIGTERM (rank {LATE})", [], [2, 8], 1, []],
    "end": ["finished", None, [], [2], 1, []],
    "until": ["before_step", "until a predicate held", [], [2], 1, [], "finished"],
    "close": ["before_step", "advance", [], [2], 1, []],
}
"""State and pause; the steps of the checkpoints before and after; how many events; what is left; how it ends."""


@pytest.mark.parametrize("what", WAITING)
@pytest.mark.parametrize("world", WORLDS)
def test_who_waits_for_the_threads_of_all_ranks(launched: dict[int, Launch], world: int, what: str):
    assert same_on_all(launched[world], "waits")[what] == WAITING[what]


# -- what fails

SAID = (
    r"rank 1: no checkpoint was written: writing DIR/\.temp\S+ failed: ENOSPC .* stay as they were; "
    r"heptad: in the background, of the checkpoint that was taken at epoch 0, step 2, update 1; heptad: in Checkpoint"
)


@pytest.mark.parametrize(
    ("what", "where", "end"),
    [
        ("raise", r"\.save on entry to before_step \(.* step 4, update 2\)", ["failed", None, 19, [], []]),
        ("end", r"\.on_exit_after_loop", ["failed", None, 48, [], []]),
        ("until", r"\.close", ["before_step", "until a predicate held", 14, [], []]),
        ("pause", r"\.on_pause; the run is paused in before_step", ["before_step", "lunch (rank 1)", 18, [], [1]]),
        ("detach", None, ["finished", None, 48, [["Checkpoint.on_exit_after_step", 20]], []]),
    ],
)
def test_a_full_disk_of_one_rank_is_raised_by_all_in_one_turn(
    launched: dict[int, Launch], what: str, where: str | None, end: list[Any]
):
    raised, *ended, left = same_on_all(launched[2], "full")[what]
    assert re.match(SAID + where if where else "$", raised), raised
    assert left == []
    assert ended == end


def test_an_operation_of_a_rank_that_fails_fails_all_alike_and_the_next_run_is_sound(launched: dict[int, Launch]):
    for odd, raised, sound, damage, *after in same_on_all(launched[2], "some_operations"):
        assert re.match(rf"rank {odd}: .*EIO", raised)
        assert len(sound) <= 2
        assert damage == []
        assert after == [1, [], 2]


@pytest.mark.parametrize("odd", [0, 1])
def test_a_rank_that_fails_elsewhere_leaves_the_checkpoint_before(tmp_path: Path, odd: int):
    """Nobody waits for the others; a new start sweeps away what was being written."""
    found = outcomes(
        "background_cases", "raises_elsewhere", 2, folder(tmp_path, "0"), variables=[{"ODD": str(odd)}] * 2
    )
    assert [one.code for one in found] == [1, 1]
    assert found[odd].error == "ValueError: my own"
    assert found[1 - odd].error == f"RankFailed: rank {odd} failed in process_batch at step 7: ValueError: my own"
    check_directory(tmp_path, [1])


@pytest.mark.parametrize(("odd", "place", "there"), [(0, 15, [1]), (0, 40, [1, 2]), (1, 2, [1])])
def test_a_rank_that_is_killed_while_it_writes_leaves_a_sound_checkpoint(
    tmp_path: Path, odd: int, place: int, there: list[int]
):
    given = [{"ODD": str(odd), "PLACE": str(place)}] * 2
    found = outcomes("background_cases", "dies_writing", 2, folder(tmp_path, "0"), variables=given)
    assert found[odd].code == -9
    assert found[1 - odd].code == 1
    assert f"RankFailed: rank {odd} is gone without a word" in (found[1 - odd].error or "")
    check_directory(tmp_path, there)


def folder(path: Path, name: str) -> Path:
    """Make a folder for one launch."""
    (path / name).mkdir()
    return path / name


def check_directory(path: Path, expected: list[int]) -> None:
    """Check that the checkpoints are sound, and that new ranks continue from the newest, and leave nothing else."""
    directory = path / "0" / "run"
    entry, _, damage = Store(directory).newest_sound()
    assert damage == []
    assert [one.number for one in Store(directory).entries()] == expected
    given = [{"DIRECTORY": str(directory)}] * 2
    for one in outcomes("background_cases", "continues", 2, folder(path, "1"), variables=given):
        assert one.code == 0, one
        assert one.result[:2] == ["finished", 6]
        assert one.result[3:] == [[], entry.path.name]
    shutil.rmtree(directory)
