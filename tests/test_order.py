"""The order of long datasets, computed as batches are taken, and what a run over it does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from builders import equal, small_components, small_config, weights
from heptad import CheckpointError, Components, Engine, Plugin, Run, RunConfig
from heptad.checkpoints.store import Store
from heptad.data import order as module
from heptad.data.build import build_feed
from heptad.data.feed import Feed
from heptad.data.order import HELD, ComputedOrder, HeldOrder, order, version_of_order
from heptad.data.placement import Placement
from heptad_plugins import Evaluate

HUNDRED_MILLION = 100_000_000


# -- it is a permutation


def test_an_epoch_of_millions_has_each_index_once_batch_by_batch():
    samples, batch = HELD + 1, 100_003
    taken = order(samples, 3, 1, 0, shuffle=True)
    parts = [taken.part(start, min(start + batch, samples)).numpy() for start in range(0, samples, batch)]
    assert (np.bincount(np.concatenate(parts)) == 1).all()


@pytest.mark.parametrize("samples", [HELD + 1, HUNDRED_MILLION, 10**12, 2**40 + 1, 2**62, sys.maxsize])
def test_the_longest_order_stays_within_its_samples(samples: int):
    taken = order(samples, 0, 0, 0, shuffle=True)
    parts = [taken.part(start, start + 5000) for start in (0, samples // 2, samples - 5000)]
    indices = torch.cat(parts)
    assert 0 <= int(indices.min()) <= int(indices.max()) < samples
    assert len(indices.unique()) == 15_000


# -- it is a function of the key


def test_the_computed_order_is_pinned_by_its_version():
    """The same key gives the same order in every release, or the version grows."""
    assert (module.ORDER_VERSION, module.COMPUTED_ORDER_VERSION, HELD) == (1, 2, 10_000_000)
    assert order(HELD + 1, 0, 0, 0, shuffle=True).part(0, 4).tolist() == [5223324, 7672958, 9590620, 9300769]
    assert order(HUNDRED_MILLION, 3, 2, 1, shuffle=True).part(77, 81).tolist() == [
        60616966,
        33137991,
        98299589,
        41140442,
    ]


def test_each_of_seed_epoch_and_pass_changes_the_order():
    keys = [(seed, epoch, number) for seed in (0, 1) for epoch in (0, 1) for number in (0, 1)]
    assert len({tuple(order(HELD + 1, *key, shuffle=True).part(0, 4).tolist()) for key in keys}) == len(keys)


PATTERNS: dict[str, list[tuple[int, int]]] = {
    "in turn": [(start, start + 128) for start in range(0, 20_000, 128)],
    "in turn from the middle": [(start, start + 1000) for start in range(HELD // 2, HELD // 2 + 40_000, 1000)],
    "every third": [(start, start + 100) for start in range(200, 60_000, 300)],
    "rank 999 of 1,000": [(start, start + 32) for start in range(999 * 32, HELD - 32, 32_000)],
    "backwards": [(start, start + 64) for start in range(9000, 0, -64)],
    "twice": [(0, 7), (0, 7), (7, 14), (7, 14), (14, 21), (0, 7)],
    "of any size": [(0, 1), (1, 4), (4, 4), (4, 9000), (3, 4), (9000, 30_000), (30_000, 30_000)],
    "to the end": [(HELD + 1 - back, min(HELD + 1 - back + 400, HELD + 1)) for back in range(2900, 0, -400)],
    "overlapping": [(start, start + 50) for start in range(0, 20_000, 20)],
}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_part_is_the_same_whatever_was_taken_before(pattern: list[tuple[int, int]], shuffle: bool):
    one = order(HELD + 1, 0, 0, 0, shuffle=shuffle)
    for start, stop in pattern:
        alone = order(HELD + 1, 0, 0, 0, shuffle=shuffle).part(start, stop)
        part = one.part(start, stop)
        assert part.dtype == torch.int64
        assert part.shape == (stop - start,)
        assert torch.equal(part, alone)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (HELD, HELD + 2)])
def test_a_part_that_no_order_has_is_refused(start: int, stop: int):
    with pytest.raises(IndexError, match=f"10000001 places, and those from {start} to {stop} were taken"):
        order(HELD + 1, 0, 0, 0, shuffle=True).part(start, stop)


# -- where it begins


def test_the_order_is_drawn_up_to_a_length_and_computed_above():
    assert isinstance(order(HELD, 0, 0, 0, shuffle=False), HeldOrder)
    assert isinstance(order(HELD + 1, 0, 0, 0, shuffle=False), ComputedOrder)
    assert [len(order(samples, 0, 0, 0, shuffle=False)) for samples in (HELD, HELD + 1)] == [HELD, HELD + 1]


def test_the_version_grows_only_where_the_order_has_changed():
    lengths = (1, HELD, HELD + 1, 10**12)
    assert [version_of_order(samples, shuffle=True) for samples in lengths] == [1, 1, 2, 2]
    assert [version_of_order(samples, shuffle=False) for samples in lengths] == [1, 1, 1, 1]


# -- the length costs nothing


class Long(Dataset[Any]):
    """So many samples, each its own index."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        assert 0 <= index < self.samples
        return torch.full((4,), float(index), dtype=torch.float64), index % 3


def feed_of(dataset: Any, share: tuple[int, int] = (0, 1), place: Placement | None = None, **config: Any) -> Feed:
    """Return the feed of a run over a dataset."""
    feed = build_feed(small_components(dataset=dataset), small_config(**config), share, place)
    feed.seed = 0
    return feed


def taken_from(feed: Feed, batches: int | None = None) -> list[int]:
    """Return the samples of a pass, or of its first batches."""
    feed.open(0, 0)
    return [int(data[0]) for _ in range(batches or feed.batches or 0) for data in feed.take()[0]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_of_a_million_million_samples_opens(shuffle: bool):
    """Eight terabytes would not be had for a tensor of the order."""
    feed = feed_of(Long(10**12), batch_size=100, shuffle=shuffle)
    assert feed.batches == 10**10
    assert taken_from(feed, 3) == order(10**12, 0, 0, 0, shuffle=shuffle).part(0, 300).tolist()


def test_a_view_of_a_million_million_rows_is_taken_from():
    dataset = TensorDataset(torch.ones(1, 4).expand(10**12, 4), torch.zeros(1).expand(10**12))
    feed = feed_of(dataset, batch_size=100)
    feed.open(0, 0)
    assert [tuple(part.shape) for part in feed.take()] == [(100, 4), (100,)]


def test_a_run_and_its_evaluation_over_a_million_million_samples_begin():
    seen: list[int] = []

    class Enough(Exception):
        """Ends the evaluation."""

    class Counted(Long):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            seen.append(index)
            if len(seen) > 40:
                raise Enough
            return super().__getitem__(index)

    config = {"epochs": 1, "batch_size": 4, "limit_batches": 2}
    with pytest.raises(Enough):
        long_engine(Long(10**12), Evaluate(Counted(10**12)), **config).run()
    assert seen == list(range(41))


# -- a run over it


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an order of more than five samples one that is computed."""
    monkeypatch.setattr(module, "HELD", 5)


def long_engine(dataset: Any, *plugins: Plugin, **config: Any) -> Engine:
    """Return an engine over float64 samples of which the order is computed."""
    network = nn.Linear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    components = Components(
        network=network,
        dataset=dataset,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    )
    return Engine(components, RunConfig(**{"epochs": 1, "batch_size": 4, **config}), [*plugins])


class Seen(Plugin):
    """Keeps the samples of each batch by (epoch, step)."""

    def __init__(self) -> None:
        self.samples: list[list[int]] = []

    def on_enter_process_batch(self, run: Run) -> None:
        self.samples.append([int(index) for index in run.batch[0][:, 0]])


def seen_by(dataset: Any, **config: Any) -> list[list[int]]:
    """Return the samples of each batch of a run."""
    seen = Seen()
    long_engine(dataset, seen, **config).run()
    return seen.samples


def rows(samples: int) -> TensorDataset:
    """Return the samples of `Long` as rows of tensors."""
    return TensorDataset(torch.arange(samples).double()[:, None].expand(-1, 4), torch.arange(samples) % 3)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("config", [
    {}, {"drop_last": False}, {"drop_last": False, "batch_size": 5, "accumulation": 3}, {"limit_batches": 3},
    {"epochs": 3}, {"drop_last": False, "shuffle": False}, {"accumulation": 2, "remainder": "flush"},
], ids=str)  # fmt: skip
def test_rows_samples_and_workers_give_the_batches_of_the_order(config: dict[str, Any]):
    """Written out: the batches of each epoch, and of the pass by which one is extended."""
    config = {"seed": 9, **config}
    size, limit, epochs = config.get("batch_size", 4), config.get("limit_batches"), config.get("epochs", 1)
    expected: list[list[int]] = []
    for epoch in range(epochs):
        batches: list[list[int]] = []
        for number in range(2):
            whole = order(23, 9, epoch, number, shuffle=config.get("shuffle", True)).part(0, 23)
            chunks = [chunk.tolist() for chunk in whole.split(size)]
            batches += chunks[: limit or (len(chunks) if config.get("drop_last") is False else 23 // size)]
        a_pass, k = len(batches) // 2, config.get("accumulation", 1)
        steps = a_pass if config.get("remainder") == "flush" else -(-a_pass // k) * k
        expected += batches[:steps]
    assert seen_by(Long(23), **config) == expected
    assert seen_by(rows(23), **config) == expected
    assert seen_by(Long(23), num_workers=2, **config) == expected


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("dataset", [Long(60), rows(60)], ids=["samples", "rows"])
def test_a_subset_is_taken_in_the_order_of_its_own_length(dataset: Any):
    chosen = list(range(59, 0, -3))
    places = order(20, 0, 0, 0, shuffle=True).part(0, 20).tolist()
    batches = seen_by(Subset(dataset, chosen), seed=0)
    assert [index for batch in batches for index in batch] == [chosen[place] for place in places]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_take_each_batch_of_the_order_once(world: int):
    ranks = [taken_from(feed_of(Long(12 * world), (rank, world), batch_size=4)) for rank in range(world)]
    batches = [ranks[number % world][number // world * 4 :][:4] for number in range(3 * world)]
    expected = order(12 * world, 0, 0, 0, shuffle=True).part(0, 12 * world).tolist()
    assert [index for batch in batches for index in batch] == expected


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("of", [None, list(range(10))], ids=["rows", "subset"])
def test_parts_lie_on_the_device_where_rows_are_kept(of: list[int] | None, shuffle: bool):
    dataset = rows(10) if of is None else Subset(rows(12), of)
    meta = torch.device("meta")
    feed = feed_of(dataset, place=Placement(meta), batch_size=4, drop_last=False, data_on_device=True, shuffle=shuffle)
    feed.open(0, 0)
    taken = [feed.take()[0] for _ in range(3)]
    assert [(part.device, len(part)) for part in taken] == [(meta, 4), (meta, 4), (meta, 2)]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("config", [{}, {"num_workers": 2}, {"shuffle": False}, {"data_on_device": True}], ids=str)
@pytest.mark.parametrize("step", [1, 4, 7, 9])
def test_a_run_that_is_resumed_in_a_pass_takes_the_rest_of_it(config: dict[str, Any], step: int, tmp_path: Path):
    config = {"epochs": 2, "accumulation": 2, "seed": 4, "drop_last": False, **config}
    before, after, unbroken = Seen(), Seen(), Seen()
    whole = long_engine(rows(23), unbroken, **config).run()
    run = long_engine(rows(23), before, **config).run(until=lambda run: run.step == step and run.state == "before_step")
    path = Store(tmp_path).save(run.snapshot()).path
    resumed = long_engine(rows(23), after, **config).run(resume=path)
    assert before.samples + after.samples == unbroken.samples
    assert equal(weights(resumed.network), weights(whole.network))


def saved(tmp_path: Path, samples: int, **config: Any) -> Path:
    """Return a checkpoint that was taken in the middle of a pass."""
    engine = long_engine(rows(samples), seed=1, **config)
    run = engine.run(until=lambda run: run.step == 2 and run.state == "before_step")
    return Store(tmp_path).save(run.snapshot()).path


@pytest.mark.parametrize(("samples", "config"), [(20, {}), (50, {"shuffle": False})], ids=["short", "in turn"])
def test_a_checkpoint_of_the_order_before_is_resumed_where_that_has_not_changed(
    samples: int, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = saved(tmp_path, samples, **config)
    monkeypatch.setattr(module, "HELD", 30)
    assert long_engine(rows(samples), seed=1, **config).run(resume=path).step == samples // 4


def test_a_checkpoint_of_a_long_dataset_says_which_version_its_order_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = saved(tmp_path / "before", 50)
    monkeypatch.setattr(module, "HELD", 30)
    now = saved(tmp_path / "now", 50)
    assert long_engine(rows(50), seed=1).run(resume=now).step == 12
    with pytest.raises(CheckpointError, match="data: version of the order 1 in the checkpoint, 2 here"):
        long_engine(rows(50), seed=1).run(resume=before)


def test_a_dataset_that_grows_over_the_length_goes_on_in_a_computed_order(monkeypatch: pytest.MonkeyPatch):
    """Each pass is of the length that the dataset has then; the version is that of the run as it was built."""
    monkeypatch.setattr(module, "HELD", 30)
    dataset = Long(20)
    feed = feed_of(dataset, batch_size=4)
    built = feed.identity()
    assert sorted(taken_from(feed)) == list(range(20))
    dataset.samples = 40
    feed.open(1, 0)
    indices = [int(data[0]) for _ in range(10) for data in feed.take()[0]]
    assert indices == order(40, 0, 1, 0, shuffle=True).part(0, 40).tolist()
    assert sorted(indices) == list(range(40))
    assert feed.identity() == {**built, "samples now": 40, "batches now": 10}
