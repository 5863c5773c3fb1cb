"""Data: the order of samples, what random transforms draw, and fetching a batch at a time."""

from __future__ import annotations

import multiprocessing
import random
from collections import UserDict, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, get_worker_info

from builders import CLASSES, FEATURES, small_network
from heptad import Components, DataError, Engine, Plugin, Run, RunConfig
from heptad.data.build import build_feed
from heptad.data.order import ORDER_VERSION, order
from heptad.data.placement import place

SAMPLES, BATCH = 10, 4


class Noisy(Dataset):
    """Samples that hold their own index and a number from each of the three global generators."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]
        return torch.tensor([index, *drawn], dtype=torch.float64), index % CLASSES


class NoisyStream(IterableDataset):
    """The same samples in order; several workers deal them out by whole batches."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        worker = get_worker_info()
        first, share = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(self.samples):
            if index // BATCH % share == first:
                yield Noisy()[index]


class Keep(Plugin):
    """Keeps every batch by its epoch."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[Any]] = {}

    def on_enter_process_batch(self, run: Run) -> None:
        self.epochs.setdefault(run.epoch, []).append(run.batch)


def engine_over(dataset: Any, *plugins: Plugin, collate_fn: Any = None, **config: Any) -> Engine:
    """Return an engine over a dataset of float64 samples."""
    network = small_network(torch.float64)
    components = Components(
        network=network,
        dataset=dataset,
        collate_fn=collate_fn,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    )
    return Engine(components, RunConfig(**{"epochs": 1, "batch_size": BATCH, **config}), [*plugins])


def epochs_of(dataset: Any, **config: Any) -> list[list[torch.Tensor]]:
    """Train, and return the data that the network was given: for each epoch a tensor a batch."""
    keep = Keep()
    engine_over(dataset, keep, **config).run()
    return [[data for data, _ in keep.epochs[epoch]] for epoch in sorted(keep.epochs)]


def pass_of(dataset: Any, epoch: int, pass_index: int, **config: Any) -> list[Any]:
    """Return the batches of one pass, from a feed that has opened no other."""
    components = Components(
        network=small_network(),
        dataset=dataset,
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.1),
    )
    config = {"epochs": 1, "batch_size": BATCH, "seed": 0, **config}
    feed = build_feed(components, RunConfig(**config))
    feed.seed = config["seed"]
    feed.open(epoch, pass_index)
    if feed.batches is not None:
        return [feed.take() for _ in range(feed.batches)]
    taken = []
    while feed.more():
        taken.append(feed.take())
    return taken


def indices(batches: list[torch.Tensor]) -> list[int]:
    """Return the indices that the samples of a pass hold, in order."""
    return [int(index) for batch in batches for index in batch[:, 0]]


def drawn(batches: list[torch.Tensor]) -> torch.Tensor:
    """Return what the samples of a pass drew, shape (samples, generators)."""
    return torch.cat(batches)[:, 1:]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Return whether two passes have the same batches, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def global_state() -> tuple[int, ...]:
    """Return hashes of the states of the global generators of torch, numpy and python."""
    _, keys, place, *_ = np.random.get_state()
    return hash(tuple(torch.get_rng_state().tolist())), hash((*keys.tolist(), place)), hash(random.getstate())


@pytest.fixture
def start_method():
    """Set how worker processes are started, and restore it."""
    before = multiprocessing.get_start_method()
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


# -- the order


def test_every_epoch_takes_all_samples_once():
    """An epoch is a permutation of the samples."""
    for epoch in epochs_of(Noisy(), epochs=3, drop_last=False):
        assert sorted(indices(epoch)) == list(range(SAMPLES))


def test_the_order_differs_between_epochs_seeds_and_passes():
    """Each of (seed, epoch, pass) changes the order."""
    keys = [(seed, epoch, pass_index) for seed in (0, 1) for epoch in (0, 1) for pass_index in (0, 1)]
    orders = {tuple(order(64, *key, shuffle=True).part(0, 64).tolist()) for key in keys}
    assert len(orders) == len(keys)


def test_the_order_is_pinned_by_its_version():
    """The same key gives the same order in every release, or the version grows."""
    assert ORDER_VERSION == 1
    assert order(8, 0, 0, 0, shuffle=True).part(0, 8).tolist() == [6, 2, 7, 1, 4, 5, 0, 3]
    assert order(8, 3, 2, 1, shuffle=True).part(0, 8).tolist() == [7, 3, 4, 0, 5, 6, 2, 1]


@pytest.mark.parametrize("dataset", [Noisy(), NoisyStream()], ids=["map", "iterable"])
def test_an_epoch_is_a_function_of_its_number_and_not_of_what_ran_before(dataset):
    """A feed that opens epoch 2 at once gives what a run gives in its epoch 2, random transforms included."""
    run = epochs_of(dataset, epochs=3, drop_last=False)
    direct = [data for data, _ in pass_of(dataset, 2, 0, drop_last=False)]
    assert same(run[2], direct)


def test_the_extension_of_an_epoch_is_the_pass_of_its_number():
    """An extended epoch continues with pass 1 of that epoch, whose order is not that of pass 0."""
    [epoch] = epochs_of(Noisy(), accumulation=4, drop_last=False)
    first = [data for data, _ in pass_of(Noisy(), 0, 0, drop_last=False)]
    second = [data for data, _ in pass_of(Noisy(), 0, 1, drop_last=False)]
    assert same(epoch, [*first, second[0]])
    assert not torch.equal(first[0], second[0])


def test_an_extension_of_several_passes_draws_each_anew():
    """Where one further pass does not fill the window, the next has an order of its own too."""
    [epoch] = epochs_of(Noisy(), accumulation=7, drop_last=False)
    expected = [data for number in range(3) for data, _ in pass_of(Noisy(), 0, number, drop_last=False)]
    assert same(epoch, expected[:7])


def test_without_shuffle_the_samples_come_in_order_in_every_pass():
    """`shuffle=False` keeps the dataset's own order, in each epoch and in an extension."""
    for epoch in epochs_of(Noisy(), epochs=2, shuffle=False, accumulation=2, batch_size=3, drop_last=False):
        assert indices(epoch) == list(range(SAMPLES))
    [extended] = epochs_of(Noisy(), shuffle=False, accumulation=2, drop_last=False)
    assert indices(extended) == [*range(SAMPLES), 0, 1, 2, 3]


@pytest.mark.parametrize("dataset", [Noisy(), NoisyStream()], ids=["map", "iterable"])
@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_drop_last_leaves_out_the_smaller_batch(dataset, drop_last, sizes):
    """`drop_last` decides whether the last, smaller batch of a pass is a step."""
    [epoch] = epochs_of(dataset, drop_last=drop_last)
    assert [len(batch) for batch in epoch] == sizes


def test_a_dataset_that_divides_evenly_has_no_smaller_batch():
    """Ten samples in batches of five are two batches, whatever `drop_last` says."""
    for drop_last in (True, False):
        [epoch] = epochs_of(Noisy(), batch_size=5, drop_last=drop_last)
        assert [len(batch) for batch in epoch] == [5, 5]


# -- random transforms


@pytest.mark.parametrize("dataset", [Noisy(), NoisyStream()], ids=["map", "iterable"])
@pytest.mark.parametrize("generator", [0, 1, 2], ids=["torch", "numpy", "random"])
def test_every_sample_of_every_epoch_draws_anew(dataset, generator):
    """No number is drawn twice: not in a batch, not in the next one, not in the next epoch."""
    numbers = torch.cat([drawn(epoch)[:, generator] for epoch in epochs_of(dataset, epochs=3, drop_last=False)])
    assert len(numbers.unique()) == 3 * SAMPLES


@pytest.mark.parametrize("dataset", [Noisy(), NoisyStream()], ids=["map", "iterable"])
def test_random_transforms_follow_the_seed(dataset):
    """The same seed draws the same numbers, another seed draws others; the order does not decide it."""
    one, again = (epochs_of(dataset, shuffle=False, seed=5)[0] for _ in range(2))
    other = epochs_of(dataset, shuffle=False, seed=6)[0]
    assert same(one, again)
    assert not bool((drawn(one) == drawn(other)).any())


def test_random_transforms_do_not_depend_on_the_state_of_the_global_generators():
    """What a handler or the network draws in between changes nothing in the data."""

    class Draws(Plugin):
        def on_exit_after_step(self, run: Run) -> None:
            torch.rand(3), np.random.rand(3), random.random()

    keep = Keep()
    engine_over(Noisy(), keep, Draws(), epochs=2).run()
    disturbed = [[data for data, _ in keep.epochs[epoch]] for epoch in (0, 1)]
    assert all(map(same, epochs_of(Noisy(), epochs=2), disturbed))


# -- worker processes


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_data_are_the_same_with_and_without_workers(method, start_method):
    """Two workers, however they are started, give the batches of none: extensions and random transforms included."""
    start_method(method)
    config = {"epochs": 2, "accumulation": 2, "drop_last": False}
    alone, together = (epochs_of(Noisy(), num_workers=workers, **config) for workers in (0, 2))
    assert [len(epoch) for epoch in alone] == [4, 4]
    assert all(map(same, alone, together))


@pytest.mark.parametrize("drop_last", [True, False])
def test_an_iterable_dataset_that_deals_out_batches_gives_the_same_with_workers(drop_last):
    """Two workers take turns; what a batch draws is seeded by its number in the pass and not by its worker."""
    config = {"epochs": 2, "drop_last": drop_last}
    alone, together = (epochs_of(NoisyStream(), num_workers=workers, **config) for workers in (0, 2))
    assert [len(epoch) for epoch in alone] == ([2, 2] if drop_last else [3, 3])
    assert all(map(same, alone, together))


def test_workers_fetch_tensor_rows_as_the_engine_does():
    """A dataset that is gathered straight from tensors gives the same rows from a worker."""
    dataset = TensorDataset(torch.randn(SAMPLES, FEATURES, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES)
    alone, together = (epochs_of(dataset, num_workers=workers) for workers in (0, 2))
    assert same(alone[0], together[0])


# -- the global generators


@pytest.mark.parametrize("dataset", [Noisy(), NoisyStream()], ids=["map", "iterable"])
@pytest.mark.parametrize("workers", [0, 2])
def test_fetching_leaves_the_global_generators_alone(dataset, workers):
    """With no seed of its own to set, a whole run ends with the generators where they were."""
    engine = engine_over(dataset, seed=None, epochs=2, num_workers=workers)
    before = global_state()
    engine.run()
    assert global_state() == before


def test_a_seed_sets_the_global_generators_once_and_fetching_leaves_them_there():
    """After `before_loop` nothing but the network's own draws moves them."""
    states = []

    class Look(Plugin):
        def on_exit_before_loop(self, run: Run) -> None:
            states.append(global_state())

        on_exit_after_step = on_exit_after_loop = on_exit_before_loop

    engine_over(Noisy(), Look(), seed=7).run()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    assert states == [global_state()] * 4


def test_a_dataset_that_raises_leaves_the_global_generators_alone():
    """They are put back where a sample fails as well."""

    class Torn(Noisy):
        def __getitem__(self, index: int) -> Any:
            torch.rand(3), np.random.rand(3), random.random()
            raise OSError(f"sample {index} cannot be read")

    engine = engine_over(Torn(), seed=None)
    before = global_state()
    with pytest.raises(OSError, match="cannot be read"):
        engine.run()
    assert global_state() == before


# -- a batch at a time


class ByList(Dataset):
    """A dataset that is indexed by list; it counts the calls."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a dataset with __getitems__ was indexed one by one")

    def __getitems__(self, places: list[int]) -> list[Any]:
        self.asked.append(places)
        return [(torch.full((FEATURES,), float(place), dtype=torch.float64), place % CLASSES) for place in places]


class Doubled(TensorDataset):
    """A tensor dataset whose samples are not its rows."""

    def __getitem__(self, index: int) -> Any:
        data, target = super().__getitem__(index)
        return data * 2, target


class Counted(torch.Tensor):
    """A tensor that counts how often rows are taken from it."""

    calls: list[str]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func.__name__ in ("index_select", "__getitem__", "select"):
            cls.calls.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)


DATA = torch.arange(SAMPLES * FEATURES, dtype=torch.float64).reshape(SAMPLES, FEATURES)
TARGET = torch.arange(SAMPLES) % CLASSES
PAIRS = TensorDataset(DATA, TARGET)
DATASETS = {
    "tensors": PAIRS,
    "three tensors": TensorDataset(DATA, TARGET, DATA.float()),
    "a bare tensor": DATA,
    "a subset": Subset(PAIRS, [7, 1, 8, 2, 9, 3, 0]),
    "a subset of a subset": Subset(Subset(PAIRS, [9, 1, 8, 2, 7, 3]), [5, 0, 3, 1, 2]),
    "a subset by range": Subset(PAIRS, range(9, 1, -1)),
    "a subset by array": Subset(PAIRS, np.array([4, 4, 6, 0, 1])),
    "a subset from the end": Subset(PAIRS, [-1, 0, -2, 1, -10]),
    "a subset of a bare tensor": Subset(DATA, [3, 1, 4, 1, 5]),
    "a subclass": Doubled(DATA, TARGET),
    "a subset of a subclass": Subset(Doubled(DATA, TARGET), [5, 4, 3, 2, 1]),
    "indexed by list": ByList(),
    "a subset of one indexed by list": Subset(ByList(), [6, 5, 4, 3, 2]),
    "one by one": [(DATA[place], int(TARGET[place])) for place in range(SAMPLES)],
}


@pytest.mark.parametrize("name", DATASETS)
def test_batches_are_those_of_a_data_loader_with_the_same_indices(name):
    """However a dataset is fetched, a batch has the container, types and values that `DataLoader` gives it."""
    dataset = DATASETS[name]
    jobs = [chunk.tolist() for chunk in order(len(dataset), 0, 0, 0, shuffle=True).part(0, len(dataset)).split(BATCH)]
    expected = list(DataLoader(dataset, batch_sampler=jobs))
    found = pass_of(dataset, 0, 0, drop_last=False)
    assert [type(batch) for batch in found] == [type(batch) for batch in expected]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_rows_are_gathered_once_a_batch():
    """Tensors are indexed with a batch's indices in one call each, not sample by sample."""
    Counted.calls = []
    data = DATA.as_subclass(Counted)
    batches = pass_of(TensorDataset(data, TARGET), 0, 0)
    assert (len(batches), Counted.calls) == (2, ["index_select"] * 2)


def test_a_nested_subset_is_looked_through():
    """The subset's indices are mapped as tensors, and the rows gathered once a batch."""
    Counted.calls = []
    dataset = Subset(Subset(TensorDataset(DATA.as_subclass(Counted), TARGET), range(9)), range(1, 9))
    batches = pass_of(dataset, 0, 0)
    assert (len(batches), Counted.calls) == (2, ["index_select"] * 2)


@pytest.mark.parametrize("subset", [False, True], ids=["itself", "behind a subset"])
def test_a_dataset_with_getitems_is_asked_once_a_batch(subset):
    """`__getitems__` is called with a list of plain indices, once a batch."""
    dataset = ByList()
    [epoch] = epochs_of(Subset(dataset, range(SAMPLES)) if subset else dataset)
    assert dataset.asked == [batch[:, 0].int().tolist() for batch in epoch]
    assert {type(place) for places in dataset.asked for place in places} == {int}


def test_a_subclass_of_a_tensor_dataset_gives_its_own_samples():
    """Only exact types are looked through: the meaning that a subclass gives its samples holds."""
    [epoch] = epochs_of(Doubled(DATA, TARGET), shuffle=False)
    assert torch.equal(torch.cat(epoch), DATA[:8] * 2)


@pytest.mark.parametrize(
    "dataset", [PAIRS, Subset(PAIRS, range(SAMPLES)), ByList(), NoisyStream()], ids=lambda value: type(value).__name__
)
def test_a_collate_function_makes_the_batch(dataset):
    """`collate_fn` is called with the list of a batch's samples, for tensors too, and what it returns is the batch."""
    given: list[Any] = []

    def collate(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        given.append(samples)
        data = torch.stack([data for data, _ in samples])
        return -data, torch.tensor([int(target) for _, target in samples])

    [epoch] = epochs_of(dataset, collate_fn=collate)
    assert [(type(samples), len(samples)) for samples in given] == [(list, BATCH)] * 2
    expected = [-torch.stack([data for data, _ in samples]) for samples in given]
    assert same(epoch, expected)


# -- what goes wrong where a batch is made


@pytest.mark.parametrize("dataset", [PAIRS, Noisy(), NoisyStream()], ids=lambda value: type(value).__name__)
def test_a_collate_function_that_returns_nothing_is_an_error(dataset):
    """`None` is no batch; the error says of what one was to be made."""
    with pytest.raises(DataError, match=r"^Components.collate_fn returned None for a list of 4: a tuple of 2: float64"):
        engine_over(dataset, collate_fn=lambda samples: None).run()


@pytest.mark.parametrize("dataset", [Noisy(), NoisyStream()], ids=["map", "iterable"])
def test_a_batch_that_cannot_be_made_says_of_what(dataset):
    """What the collate function raises comes out with a note, however its samples were read."""

    def collate(samples: list[Any]) -> Any:
        raise ValueError("ragged")

    with pytest.raises(ValueError, match="ragged") as caught:
        engine_over(dataset, collate_fn=collate).run()
    assert caught.value.__notes__[0].startswith("heptad: while a batch was made of a list of 4: a tuple of 2: float64")


class Torn(Dataset):
    """A dataset that cannot read one of its samples."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        if index == 6:
            raise OSError("cannot be read")
        return PAIRS[index]


class TornByList(ByList):
    """One that cannot read one of its samples, and is asked for many at once."""

    def __getitems__(self, places: list[int]) -> list[Any]:
        if 6 in places:
            raise OSError("cannot be read")
        return super().__getitems__(places)


@pytest.mark.parametrize(
    ("dataset", "batch_size", "note"),
    [
        (Torn(), BATCH, "sample 6 of the Torn was read"),
        (Subset(Torn(), [9, 8, 7, 6, 5]), BATCH, "sample 3 of the Subset was read"),
        (Subset(Subset(Torn(), range(1, 9)), [1, 2, 5, 3]), BATCH, "sample 2 of the Subset was read"),
        (TornByList(), BATCH, "samples 4, 5, 6, 7 of the TornByList were read"),
        (Subset(TornByList(), [9, 8, 7, 6]), BATCH, "samples 0, 1, 2, 3 of the Subset were read"),
        (TornByList(), SAMPLES, "samples 0, 1, 2, 3, 4, 5, 6, 7, … of the TornByList were read"),
    ],
)
def test_a_sample_that_cannot_be_read_is_named(dataset, batch_size, note):
    """By its number in the dataset that was given; where many are asked for at once, with those beside it."""
    with pytest.raises(OSError, match="cannot be read") as caught:
        engine_over(dataset, shuffle=False, batch_size=batch_size).run()
    assert caught.value.__notes__[0] == f"heptad: while {note}"


def test_containers_of_any_make_are_placed():
    """A copy of their own class, whose making may take more than the items; what was given stays as it is."""

    class Named(dict):
        def __init__(self, name, **items):
            super().__init__(items)
            self.name = name

    tensor = torch.ones(2)
    for batch in (
        Named("a", x=tensor),
        defaultdict(list, x=tensor),
        UserDict(x=tensor),
        {"x": [tensor], "y": (tensor,)},
    ):
        placed = place(batch, torch.device("meta"))
        assert type(placed) is type(batch)
        first = placed["x"][0] if isinstance(placed["x"], list) else placed["x"]
        assert first.device.type == "meta"
        assert (batch["x"][0] if isinstance(batch["x"], list) else batch["x"]) is tensor
    assert place(Named("a", x=tensor), torch.device("meta")).name == "a"
