"""A run continued by another number of ranks, and by another strategy: that of one process that nobody interrupted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import elastic_cases
import pytest
import torch
from elastic_cases import CASES, PAIRS, REFUSALS, STRATEGIES, WORLDS, learner, name_of, numbers_of, stored_by
from launching import launch_warm, outcomes
from rank_program import Rank

from heptad import load_weights
from heptad.errors import counted

TOLERANCE = 1e-12
Given = dict[str, Any]
KEPT = ("weights", "average", "moments", "losses", "rates")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def stored(folder: Path) -> dict[str, list[Given]]:
    """What ranks that store are at the end of their runs, which nobody interrupted: by name, then by rank."""
    found = {who: [one] for who, one in elastic_cases.store_all(Rank(0, 1, folder / "1")).items()}
    for world in (2, 3):
        (folder / f"storing {world}").mkdir()
        ranks = outcomes("elastic_cases", "store_all", world, folder / f"storing {world}", limit=60)
        for rank, one in enumerate(ranks):
            assert one.code == 0, f"rank {rank}: {one.error}\n{one.output[-3000:]}"
        found |= {who: [one.result[who] for one in ranks] for who in ranks[0].result}
    return found


@pytest.fixture(scope="module")
def continued(folder: Path, stored: dict[str, list[Given]]) -> dict[int, Any]:
    """What those that continue have come to: by their number, a function of the name of a case."""
    alone = Rank(0, 1, folder / "alone")
    launches = {world: launch_warm("elastic_cases", world, folder / f"continuing {world}") for world in (2, 3)}
    return {1: lambda name: [CASES[1][name](alone)], **{world: one.of for world, one in launches.items()}}


def assert_equal(ranks: list[Given], one: Given) -> None:
    """Hold what all ranks have together to what one process has."""
    for rank in ranks:
        assert rank["counters"] == one["counters"]
        for name in KEPT:
            assert rank[name] == pytest.approx(one[name], rel=0, abs=TOLERANCE), name


def windows_of(ranks: list[Given]) -> dict[str, Counter[int]]:
    """Return how often all ranks together have taken each sample, by window."""
    return {
        window: Counter(number for rank in ranks for number in rank["taken"].get(window, []))
        for window in ranks[0]["taken"]
    }


@pytest.mark.parametrize("who", [who for who in WORLDS if who != "1"])
def test_ranks_are_one_process(stored: dict[str, list[Given]], who: str):
    """What is continued, before anything is."""
    assert_equal(stored[who], stored["1"][0])
    assert windows_of(stored[who]) == windows_of(stored["1"])


@pytest.mark.parametrize(("who", "source", "number"), PAIRS)
def test_others_continue_where_a_window_is_closed(
    continued: dict[int, Any], stored: dict[str, list[Given]], who: str, source: str, number: int
):
    """With the same samples in every window, each as often; from the end of an epoch, and from within one."""
    ranks, one = continued[WORLDS[who][0]](name_of(who, source, number)), stored["1"][0]
    assert_equal(ranks, one)
    windows = windows_of(ranks)
    assert windows == {window: taken for window, taken in windows_of([one]).items() if window in windows}
    assert [*windows] == [str(window) for window in range(8 - len(windows) - 2, 6)]
    others = WORLDS[who][0] != WORLDS[source][0]
    assert any("equal to rounding" in note for note in ranks[0]["notes"]) == others


@pytest.mark.parametrize(("who", "number"), [(who, number) for who, source, number in PAIRS if who == source])
def test_the_same_ranks_continue_to_the_bit(
    continued: dict[int, Any], stored: dict[str, list[Given]], who: str, number: int
):
    """Each has the parts that it had, of weights, averages and moments."""
    ranks = continued[WORLDS[who][0]](name_of(who, who, number))
    assert [rank["bits"] for rank in ranks] == [rank["bits"] for rank in stored[who]]


@pytest.mark.parametrize("world", [2, 3])
def test_the_gradients_of_a_complete_window_are_those_of_its_strategy(continued: dict[int, Any], world: int):
    """FSDP2 has averaged what ranks share by then, and not what each holds whole."""
    for rank in continued[world]("before the update"):
        assert rank["bits"][1] == rank["bits"][0]
        assert "taken with strategy='fsdp' where a window was open, and strategy='ddp' cannot finish it" in rank["told"]


@pytest.mark.parametrize("world", [2, 3])
def test_a_pause_waits_for_the_end_of_a_window_that_is_carried(continued: dict[int, Any], world: int):
    for place, equal in continued[world]("waits"):
        assert place == [f"asked (rank {world - 1})", "before_step", 1, 2]
        assert equal


@pytest.mark.parametrize("source", WORLDS)
def test_weights_are_read_without_any_ranks(folder: Path, stored: dict[str, list[Given]], source: str):
    """Those of the network, and their average; by a process that joins nobody."""
    for average, name in ((False, "weights"), (True, "average")):
        network = learner(5)
        load_weights(stored_by(folder, source), network, average=average)
        assert numbers_of(network.state_dict().values()) == stored[source][0][name]
    assert not torch.distributed.is_initialized()


TEXTS = {
    "mid-window": "in the middle of a window, after 1 of",
    "short": "RunConfig.window is 4 batches, which 3 ranks cannot share equally; take a multiple of 3, or as many "
    "ranks as divide it: 1 or 2 or 4",
    "grown": "batches in a window, ranks x accumulation: 2 x 2 = 4 in the checkpoint, 3 x 2 = 6 here; 3 ranks cannot "
    "share 4 batches equally: set RunConfig.window=4 and resume by one of 1, 2, 4",
}


@pytest.mark.parametrize(
    ("world", "source", "what", "strategy"),
    [(*row[:3], strategy) for row in REFUSALS for strategy in (STRATEGIES if row[0] > 1 else ("none",))],
)
def test_what_others_cannot_continue_is_refused(
    continued: dict[int, Any], world: int, source: str, what: str, strategy: str
):
    """On all ranks alike, with the numbers of ranks that could."""
    told = continued[world](f"{strategy} refuses {source} {what}")
    assert len({*told}) == 1
    if what == "mid-window" and strategy == "fsdp":  # an engine that could is refused already
        assert "Checkpoint(at='after_step')" in told[0]
        return
    assert TEXTS[what] in told[0]
    if what == "mid-window":
        assert f"resume with {counted(int(source), 'rank')}, or from a checkpoint of a closed window" in told[0]
