"""Data over ranks: N ranks take in every window just the samples that one process with N times the window takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from builders import Unsized
from dealt import OneOf, Steps, numbered, on_ranks, together
from heptad import Plugin
from heptad.ranks.strategy import Alone
from heptad_plugins import Checkpoint

REMAINDERS = ("extend", "flush", "drop", "carry")


def cases(count: int, seed: int) -> list[tuple[Any, ...]]:
    """Return seeded cases: remainder, world, k, samples, batch size, epochs, limit, workers."""
    draw = random.Random(seed)
    found: list[tuple[Any, ...]] = []
    for number in range(count):
        remainder = REMAINDERS[number % 4]
        world, k, size = draw.choice((2, 2, 3, 4, 8)), draw.choice((1, 1, 2, 3, 4)), draw.randint(1, 4)
        limit = draw.choice((None, None, draw.randint(1, 9)))
        found.append((remainder, world, k, draw.randint(1, 40), size, draw.randint(1, 4), limit))
    return found


class Stream(IterableDataset[Any]):
    """Samples of unknown number."""

    def __init__(self, samples: int) -> None:
        self.dataset = numbered(samples)

    def __iter__(self) -> Iterator[Any]:
        return (self.dataset[number] for number in range(len(self.dataset)))


KINDS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "dataset": lambda samples, size: {"dataset": numbered(samples)},
    "stream": lambda samples, size: {"dataset": Stream(samples)},
    "loader": lambda samples, size: {"loader": DataLoader(numbered(samples), size, shuffle=True)},
    "list": lambda samples, size: {"loader": list(DataLoader(numbered(samples), size))},
    "unsized": lambda samples, size: {"loader": Unsized(list(DataLoader(numbered(samples), size)))},
    "loader of a stream": lambda samples, size: {"loader": DataLoader(Stream(samples), size)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases(60, 1), ids=str)
def test_ranks_take_in_each_window_what_one_process_takes(case: tuple[Any, ...], kind: str) -> None:
    remainder, world, k, samples, size, epochs, limit = case
    config: dict[str, Any] = {"remainder": remainder, "epochs": epochs, "limit_batches": limit, "seed": 3}
    if kind in ("dataset", "stream"):
        config |= {"batch_size": size, "drop_last": False}
    batches = min(-(-samples // size), limit or samples)
    if batches < world and (remainder == "drop" or (remainder == "carry" and kind != "dataset")):
        pytest.skip("refused, or begun early and empty")
    give = KINDS[kind]
    one = Steps(Alone(), give(samples, size), {**config, "accumulation": k * world}).drive()
    ranks = on_ranks(world, lambda rank: give(samples, size), accumulation=k, **config)
    assert together(ranks) == one.windows
    assert len({rank.run.step for rank in ranks}) == 1
    assert {len(rank.windows) for rank in ranks} == {one.run.update}
    assert {rank.run.total_updates for rank in ranks} <= {one.run.update, one.run.total_updates}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_goes_on_in_the_middle_of_a_pass_as_it_would_have(
    kind: str, remainder: str, rank: int, tmp_path: Path
) -> None:
    """Nine batches on two ranks: in windows of two steps an epoch ends inside of one, and inside of a group."""

    def steps(*plugins: Plugin) -> Steps:
        config = {"remainder": remainder, "epochs": 2, "seed": 3, "accumulation": 2}
        config |= {"batch_size": 2, "drop_last": False} if kind in ("dataset", "stream") else {}
        torch.manual_seed(0)
        return Steps(OneOf(rank, 2), KINDS[kind](17, 2), config, plugins=plugins)

    whole = steps().drive().seen
    for step in range(1, len(whole)):
        directory = tmp_path / str(step)
        first = steps(Checkpoint(directory, at="after_step", every=step))
        first.drive(until=lambda run, step=step: run.step == step and run.state == "before_step")
        then = steps(Checkpoint(directory, at="after_step", every=1000))
        then.drive(resume=directory)
        assert [*first.seen, *then.seen] == whole
