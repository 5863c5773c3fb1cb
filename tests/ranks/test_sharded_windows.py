"""Windows with strategy="fsdp": short and long ones are those of one process, and reduce gradients once."""

from __future__ import annotations

import pytest
from launching import Launch, launch_warm
from sharded_window_cases import RUNS, learn
from test_sharded import assert_near

WORLDS = (2, 3)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Launch]:
    return {
        world: launch_warm("sharded_window_cases", world, tmp_path_factory.mktemp(f"of {world}")) for world in WORLDS
    }


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", RUNS)
def test_ranks_are_one_process(launched: dict[int, Launch], world: int, name: str):
    """By token weights, clipped, with averages: k = 1 and 4, AdamW and SGD with momentum."""
    ranks, one = launched[world].of(name), learn(RUNS[name], times=world)
    for rank in ranks:
        assert_near(rank, one)
    assert one["counters"][0] > 1


@pytest.mark.parametrize("world", WORLDS)
def test_gradients_are_reduced_once_a_window(launched: dict[int, Launch], world: int):
    """The network around its two blocks, and each of these; that which calls it holds nothing."""
    for found in launched[world].of("counted"):
        assert len(found["1"]) > len(found["3"]) > 1
        assert {*found["1"], *found["3"]} == {3}


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_exchange_something_once_a_window_and_once_an_epoch(launched: dict[int, Launch], world: int):
    """On the control plane, as under ddp; once more in a window where a rank has not used a parameter."""
    for found in launched[world].of("exchanged"):
        for kind, each in (("used", 1), ("unused", 2)):
            (short, few), (long, many) = found[kind]["1"], found[kind]["3"]
            assert many > few > 0
            assert long - short == each * (many - few) + 2


@pytest.mark.parametrize("world", WORLDS)
def test_what_ranks_share_is_recorded_whole(launched: dict[int, Launch], world: int):
    for told in launched[world].of("recorded"):
        norm, gradient = told["expected"]
        assert told["found"][0] == pytest.approx(norm, rel=1e-12)
        assert told["found"][1] == gradient
