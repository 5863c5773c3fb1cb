"""N ranks with k steps a window are one process with N · k: weights, samples, counters, values."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any

import pytest
from equality_cases import EPOCHS, FEW, KEYS, SAMPLES, Key, learn, name_of
from launching import Launch, launch

from programs import environment

TOLERANCE = 1e-12
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Launch]:
    return {world: launch("equality_cases", world, tmp_path_factory.mktemp(f"of {world}")) for world in WORLDS}


@cache
def alone(kind: str, remainder: str, window: int, **config: Any) -> dict[str, Any]:
    """Return what one process learns, which other cases may share."""
    return learn(kind, remainder=remainder, accumulation=window, **config)


def assert_equal(ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Hold ranks to one process, and to each other to the bit."""
    for rank in ranks:
        assert rank["counters"] == one["counters"]
        assert rank["digests"] == ranks[0]["digests"]
        assert rank["metrics"] == ranks[0]["metrics"]
    assert len(ranks[0]["digests"]) == len(one["digests"])  # skipped ones too
    assert ranks[0]["weights"] == pytest.approx(one["weights"], abs=TOLERANCE, rel=0)
    assert ranks[0]["metrics"] == pytest.approx(one["metrics"], abs=TOLERANCE, rel=0)


def seen_in(ranks: list[dict[str, Any]], epoch: int) -> Counter[int]:
    """Return how often each sample was taken in an epoch, over all ranks."""
    return Counter(number for rank in ranks for number in rank["samples"].get(str(epoch), []))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("key", KEYS, ids=name_of)
def test_ranks_are_one_process_with_longer_windows(launched: dict[int, Launch], world: int, key: Key):
    """19 samples in batches of 2, two epochs: for each kind of weight, remainder, and length of the window."""
    kind, remainder, size = key
    ranks, one = launched[world].of(name_of(key)), alone(kind, remainder, size * world)
    assert_equal(ranks, one)
    for epoch in range(EPOCHS):
        found = seen_in(ranks, epoch)
        if remainder != "carry":  # ranks share an epoch: it may end a batch later than that of one process
            assert found == seen_in([one], epoch)
        if remainder == "flush":
            assert found == Counter(range(SAMPLES))
        if remainder == "drop":
            assert set(found.values()) <= {1}
        if remainder == "extend":
            assert set(found) == set(range(SAMPLES))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("remainder", FEW)
def test_fewer_batches_than_ranks(launched: dict[int, Launch], world: int, remainder: str, count: int):
    """One sample, and three: a batch, and two."""
    ranks = launched[world].of(f"{remainder} {count}")
    assert_equal(ranks, alone("samples", remainder, 2 * world, samples=count))


@pytest.mark.parametrize("world", WORLDS)
def test_a_window_over_all_is_the_same_on_any_number_of_ranks(launched: dict[int, Launch], world: int):
    assert_equal(launched[world].of("window_over_all"), learn("tokens", window=6))


@pytest.mark.parametrize("world", WORLDS)
def test_a_window_that_ranks_cannot_share_is_refused_on_all(launched: dict[int, Launch], world: int):
    told = launched[world].of("window_that_does_not_divide")
    assert (
        told
        == [
            f"RunConfig.window is {2 * world + 1} batches, which {world} ranks cannot share equally; "
            f"take a multiple of {world}, or as many ranks as divide it: 1 or {2 * world + 1}"
        ]
        * world
    )


@pytest.mark.parametrize("world", WORLDS)
def test_gradients_are_reduced_once_a_window(launched: dict[int, Launch], world: int):
    for told in launched[world].of("counted"):
        for found in told.values():
            assert found["reductions"] == found["updates"] > 0


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_exchange_something_once_a_window_and_once_an_epoch(launched: dict[int, Launch], world: int):
    """On the control plane; what they exchange as they begin and end does not depend on the length of the run."""
    for told in launched[world].of("counted"):
        short, long = told["1"], told["3"]
        assert long["control"] - short["control"] == long["updates"] - short["updates"] + 2


PLAIN_THEN_ENGINE = """
import sys, torch
network = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
for data in torch.utils.data.DataLoader(torch.ones(2, 4)):
    network(data).sum().backward()
    optimizer.step()
before = set(sys.modules)
from builders import small_engine
small_engine(3).run()
print(sorted(name for name in set(sys.modules) - before if "distributed" in name or name.startswith("heptad.ranks.")))
"""


def test_a_run_alone_imports_nothing_of_several():
    """Nothing of torch.distributed that a plain loop of torch does not import, which has some of it from torch 2.13."""
    command = [sys.executable, "-c", PLAIN_THEN_ENGINE]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "['heptad.ranks.choosing', 'heptad.ranks.strategy']\n"
