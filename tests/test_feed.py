"""Feeds: when a batch is fetched, and what happens where the data hold more or less than they said."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from builders import CLASSES, FEATURES, STATES, Unsized, batches, equal, small_engine, small_network, weights
from heptad import Components, DataError, Engine, Run, RunConfig


class Probe:
    """A loader without a length that counts how often it was asked for a batch. An exception among its items is raised.

    Several lists of items are one for each pass; the last of them serves all further passes.
    """

    def __init__(self, *passes: list[Any]) -> None:
        self.passes = [*passes]
        self.asked = 0

    def __iter__(self) -> Iterator[Any]:
        items = self.passes.pop(0) if len(self.passes) > 1 else self.passes[0]
        for item in items:
            self.asked += 1
            if isinstance(item, BaseException):
                raise item
            yield item
        self.asked += 1


class SizedProbe(Probe):
    """A probe that says how many batches it has, rightly or not."""

    def __init__(self, *passes: list[Any], says: int | None = None) -> None:
        super().__init__(*passes)
        self.says = says

    def __len__(self) -> int:
        return len(self.passes[0]) if self.says is None else self.says


class ProbeDataset(Dataset):
    """A map-style dataset that counts how often it was asked for a sample."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.asked = 0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return torch.full((FEATURES,), float(index)), index % CLASSES


class Once:
    """Batches that can be iterated once, and that know how many they are."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Once:
        return self

    def __next__(self) -> Any:
        if not self.items:
            raise StopIteration
        return self.items.pop(0)

    def __len__(self) -> int:
        return len(self.items)


class Samples(IterableDataset):
    """An iterable dataset that says a length of its own."""

    def __init__(self, samples: int, says: int | None = None) -> None:
        self.samples = samples
        self.says = samples if says is None else says

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((FEATURES,), float(index)), index % CLASSES) for index in range(self.samples))

    def __len__(self) -> int:
        return self.says


def engine_over(dataset: Any, **config: Any) -> Engine:
    """Return an engine over a dataset, in batches of two samples."""
    network = small_network()
    components = Components(
        network=network,
        dataset=dataset,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    )
    config = {"batch_size": 2, **config}
    if "max_updates" not in config:
        config.setdefault("epochs", 1)
    return Engine(components, RunConfig(**config))


def reads(engine: Engine, data: Any) -> list[tuple[str, int]]:
    """Run an engine; return in which bodies, or after handlers on which exit, the data were asked, and how often."""
    found: list[tuple[str, int]] = []
    before = 0
    left = ""

    def count(where: str) -> None:
        nonlocal before
        if data.asked != before:
            found.append((where, data.asked - before))
        before = data.asked

    def leave(state: str) -> None:
        nonlocal left
        count(state)
        left = state

    for state in STATES:
        engine.on_enter(state)(lambda run: count(f"exit of {left}"))
        engine.on_exit(state)(lambda run: leave(run.state))
    engine.run()
    count("elsewhere")
    return found


def fails(engine: Engine, error: type[BaseException] | tuple[type[BaseException], ...], match: str = "") -> Run:
    """Run an engine that is to fail, and return its run."""
    with pytest.raises(error, match=match):
        engine.run()
    assert engine.current.state == "failed"
    return engine.current


def position(run: Run) -> tuple[str, str, int, int, int, int]:
    """Return what the log's last record says: source, destination, epoch, batch_index, step, update."""
    last = run.log[-1]
    return last.source, last.dest, last.epoch, last.batch_index, last.step, last.update


# -- when a batch is fetched


def test_a_sized_loader_is_asked_for_a_batch_in_its_own_step_only():
    """One batch in each `before_step`, and nothing beyond its length."""
    loader = SizedProbe(batches(2))
    assert reads(small_engine(loader, epochs=2), loader) == [("before_step", 1)] * 4


def test_a_sized_loader_that_never_ends_is_left_at_its_length():
    """Asking for its end would not come back, or cost a batch that nobody trains on."""

    class EndlessProbe(SizedProbe):
        def __iter__(self) -> Iterator[Any]:
            for number in count():
                self.asked += 1
                yield self.passes[0][number % 3]

    loader = EndlessProbe(batches(3))
    run = small_engine(loader, epochs=2, accumulation=2).run()
    assert (run.step, loader.asked) == (8, 8)


class Endless(DataLoader):
    """A loader whose batches never end, though it has a length."""

    asked = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            for batch in super().__iter__():
                self.asked += 1
                yield batch


class EndlessSampler(Sampler[int]):
    """Indices that never end, though they have a number."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[int]:
        for number in count():
            self.asked += 1
            yield number % 6


class Short(BatchSampler):
    """Torch's batch sampler with too small a length."""

    asked = 0

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            self.asked += 1
            yield batch


SIX = TensorDataset(torch.randn(6, FEATURES), torch.arange(6) % CLASSES)


def too_long(kind: str) -> tuple[Any, Any]:
    """Return a loader that says three batches and has more, and what counts how many of them were asked for."""
    if kind == "loader":
        loader = Endless(SIX, batch_size=2)
        return loader, loader
    if kind == "sampler":
        sampler = EndlessSampler()
        return DataLoader(SIX, batch_size=2, sampler=sampler), sampler
    if kind == "batch sampler":
        sampler = Short(range(5), 1, drop_last=False)
        return DataLoader(SIX, batch_sampler=sampler), sampler
    loader = SizedProbe(batches(5), says=3)
    return loader, loader


@pytest.mark.parametrize("kind", ["loader", "sampler", "batch sampler", "own"])
@pytest.mark.parametrize("use", ["train", "evaluate", "predict"])
def test_a_sized_loader_is_never_asked_beyond_its_length(kind, use):
    """Whatever it is made of; neither in training, over several passes, nor in evaluation and prediction."""
    loader, counter = too_long(kind)
    engine = small_engine(loader, epochs=2)
    if use == "train":
        batches_read = engine.run().step
    elif use == "evaluate":
        batches_read = 3
        engine.evaluate(loader)
    else:
        batches_read = len(list(engine.predict(loader)))
    assert counter.asked == batches_read * (2 if kind == "sampler" else 1)
    assert batches_read == (6 if use == "train" else 3)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_loader_that_is_left_in_mid_pass_end(persistent):
    """Those of the user's own loader too; the passes are the plain loop's."""
    dataset = TensorDataset(torch.arange(8.0).reshape(4, 2), torch.arange(4) % CLASSES)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=persistent)
    network = nn.Linear(2, CLASSES)
    seen: list[float] = []
    engine = small_engine(loader, network=network, max_updates=5)
    engine.on_enter("process_batch")(lambda run: seen.append(run.batch[0].sum().item()))
    engine.run()
    assert seen == [6.0, 22.0, 6.0, 22.0, 6.0]
    del engine, loader
    gc.collect()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("samples", [5, 6])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shuffled_data_loader_has_the_orders_of_the_plain_loop(samples, workers):
    """Torch's sampler draws once more at its end if the batches divide the samples, so the end must be seen."""

    def loader() -> DataLoader:
        dataset = TensorDataset(torch.arange(float(samples)).reshape(-1, 1), torch.arange(samples) % CLASSES)
        generator = torch.Generator().manual_seed(3)
        return DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers, generator=generator)

    plain, seen = loader(), []
    expected = [data.flatten().tolist() for _ in range(3) for data, _ in plain]
    engine = small_engine(loader(), network=nn.Linear(1, CLASSES), epochs=3)
    engine.on_enter("process_batch")(lambda run: seen.append(run.batch[0].flatten().tolist()))
    engine.run()
    assert seen == expected


def test_a_sized_loader_is_not_asked_for_what_no_step_needs():
    """A run that ends in mid-epoch, or drops its last batches, leaves the rest of the loader alone."""
    loader = SizedProbe(batches(3))
    assert reads(small_engine(loader, max_updates=2), loader) == [("before_step", 1)] * 2
    loader = SizedProbe(batches(3))
    assert reads(small_engine(loader, accumulation=2, remainder="drop"), loader) == [("before_step", 1)] * 2


def test_an_extension_takes_only_the_batches_that_it_needs():
    """The pass that fills the last window is left where the window is full."""
    loader = SizedProbe(batches(3))
    assert reads(small_engine(loader, accumulation=2), loader) == [
        ("before_step", 1),
        ("before_step", 1),
        ("before_step", 1),
        ("before_step", 1),  # of the second pass
    ]


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_map_style_dataset_is_asked_for_samples_in_their_own_step_only(drop_last):
    """The engine's own loader fetches nothing ahead either."""
    dataset = ProbeDataset(5)
    expected = [("before_step", 2), ("before_step", 2)] + ([] if drop_last else [("before_step", 1)])
    assert reads(engine_over(dataset, drop_last=drop_last), dataset) == expected


def test_an_unsized_loader_is_read_ahead_after_the_update_and_all_handlers():
    """The first batch is read in `before_epoch`, every other and the end on exit of `optimizer_update`."""
    loader = Probe(batches(2))
    epoch = [("before_epoch", 1), ("exit of optimizer_update", 1), ("exit of optimizer_update", 1)]
    assert reads(small_engine(loader, epochs=2), loader) == [*epoch, *epoch]


@pytest.mark.parametrize("remainder", ["flush", "drop"])
def test_an_unsized_loader_is_read_ahead_in_an_open_window_where_the_path_depends_on_it(remainder):
    """Whether the window stays open, is flushed or is dropped."""
    loader = Probe(batches(3))
    assert reads(small_engine(loader, accumulation=2, remainder=remainder), loader) == [
        ("before_epoch", 1),
        ("exit of after_step", 1),
        ("exit of optimizer_update", 1),
        ("exit of after_step", 1),  # the end
    ]


def test_an_unsized_loader_is_not_read_ahead_of_the_end_of_the_run():
    """`max_updates` is reached in the body of `optimizer_update`."""
    loader = Probe(batches(3))
    assert reads(small_engine(loader, max_updates=1), loader) == [("before_epoch", 1)]


def test_the_extension_of_an_unsized_loader_begins_in_the_step_that_needs_it():
    """A further pass is opened in `before_step`, and its batch after the one that fills the window is not read."""
    loader = Probe(batches(3))
    assert reads(small_engine(loader, accumulation=2), loader) == [
        ("before_epoch", 1),
        ("before_step", 1),
        ("exit of optimizer_update", 1),
        ("before_step", 2),  # the end of the first pass, and the first batch of the second
    ]


def test_the_length_of_a_loader_is_asked_anew_in_every_pass():
    """A loader may hold another number of batches in each epoch."""
    run = small_engine(SizedProbe(batches(1), batches(3)), epochs=2).run()
    assert [(t.epoch, t.batch_index) for t in run.log.where(source="after_epoch")] == [(1, 1), (2, 3)]


@pytest.mark.parametrize("kind", ["dataset", "workers", "sized loader", "unsized loader"])
def test_a_paused_run_continues_after_the_engine_was_closed(kind):
    """`close()` ends the worker processes; the run continues in mid-epoch with the batch that comes next."""

    def build() -> Engine:
        if kind in ("dataset", "workers"):
            return engine_over(ProbeDataset(6), num_workers=2 if kind == "workers" else 0)
        return small_engine(batches(3) if kind == "sized loader" else Unsized(batches(3)))

    straight = build().run()
    engine = build()
    engine.run(until="after_step")
    engine.close()
    assert equal(weights(engine.run().network), weights(straight.network))


# -- too few, too many


def test_a_loader_that_ends_early_is_an_error_with_both_numbers():
    """A loader has as many batches as its `len()` says; the error names what it said and what it did."""
    run = fails(small_engine(SizedProbe(batches(3), says=5)), DataError, "5 batches.* after 3")
    assert position(run) == ("before_step", "failed", 0, 3, 3, 3)


def test_the_passes_of_an_extension_are_held_to_their_length_too():
    """The further one is checked where it is read."""
    run = fails(small_engine(SizedProbe(batches(3), [], says=3), accumulation=2), DataError, "3 batches.* after 0")
    assert position(run) == ("before_step", "failed", 0, 3, 3, 1)


@pytest.mark.parametrize("says", [1, 100])
def test_a_loader_over_an_iterable_dataset_has_no_known_length(says):
    """Its `len()` is a guess, since workers may each yield a part: it is iterated to its end, whatever it says."""
    engine = small_engine(DataLoader(Samples(6, says=says), batch_size=2), epochs=2)
    run = engine.run()
    assert (run.step, run.epoch, run.total_updates) == (6, 2, None)


def test_a_data_loader_with_a_length_is_iterated_by_it():
    """The loader that most people bring: sized, shuffled, its last batch smaller."""
    dataset = TensorDataset(torch.randn(5, FEATURES), torch.arange(5) % CLASSES)
    run = small_engine(DataLoader(dataset, batch_size=2, shuffle=True), epochs=2).run()
    assert (run.step, run.samples, run.epoch, run.total_updates) == (6, 10, 2, 6)


class Stops(ProbeDataset):
    """A dataset that raises StopIteration where a sample should be."""

    def __init__(self) -> None:
        super().__init__(6)

    def __getitem__(self, index: int) -> Any:
        raise StopIteration


def test_a_dataset_that_ends_in_its_worker_is_an_error_with_both_numbers():
    """A StopIteration from a worker would end the pass silently; it says what was announced and what came."""
    fails(engine_over(Stops(), num_workers=1), DataError, "3 batches.* gave 0")


# -- nothing at all


@pytest.mark.parametrize(
    ("build", "at"),
    [
        pytest.param(lambda: small_engine(Unsized([])), ("before_epoch", "failed", 0, 0, 0, 0), id="first epoch"),
        pytest.param(
            lambda: small_engine(Probe(batches(2), []), epochs=2),
            ("before_epoch", "failed", 1, 0, 2, 2),
            id="second epoch",
        ),
        pytest.param(
            lambda: small_engine(Probe(batches(3), []), accumulation=2),
            ("before_step", "failed", 0, 3, 3, 1),
            id="extension",
        ),
        pytest.param(
            lambda: small_engine(DataLoader(Samples(0, says=4))), ("before_epoch", "failed", 0, 0, 0, 0), id="loader"
        ),
        pytest.param(
            lambda: engine_over(Samples(1), drop_last=True), ("before_epoch", "failed", 0, 0, 0, 0), id="drop_last"
        ),
    ],
)
def test_a_pass_that_yields_nothing_is_an_error(build, at):
    """An epoch or an extension without a batch cannot do its work."""
    run = fails(build(), DataError, "yields nothing; the data must hold at least one batch")
    assert position(run) == at


def test_a_sized_loader_without_batches_is_refused_before_the_run():
    """Where the length says so, nothing has to be tried."""
    with pytest.raises(DataError, match="no batches"):
        small_engine([])


def test_a_window_that_no_pass_can_fill_is_refused_before_a_run_that_counts_updates():
    """`remainder="drop"` and fewer batches than a window holds would mean a run without end."""
    with pytest.raises(DataError, match=r"2 batches, fewer than accumulation=3.*'extend' or 'flush'"):
        small_engine(2, accumulation=3, remainder="drop", max_updates=5)


def test_a_window_that_no_pass_of_unknown_length_can_fill_is_an_error():
    """The same for data without a length: the first epoch has shown it."""
    engine = small_engine(Unsized(batches(2)), accumulation=3, remainder="drop", max_updates=5)

    @engine.on_enter("before_epoch", every=4)
    def give_up(run: Run) -> None:
        raise AssertionError("three epochs have gone by without an update")

    fails(engine, DataError, "accumulation=3")


@pytest.mark.parametrize(("epochs", "steps"), [(1, 0), (2, 0)])
def test_a_window_that_no_pass_can_fill_is_an_epoch_without_steps(epochs, steps):
    """Where the number of epochs is given the run has an end, and drops everything on its way."""
    run = small_engine(2, accumulation=3, remainder="drop", epochs=epochs).run()
    assert (run.state, run.step, run.epoch) == ("finished", steps, epochs)


# -- data that raise


ERRORS: list[type[BaseException]] = [ValueError, KeyboardInterrupt, SystemExit]


@pytest.mark.parametrize("probe", [Probe, SizedProbe])
@pytest.mark.parametrize("kind", ERRORS)
def test_what_the_data_raise_is_raised_by_the_step_that_needs_it(probe, kind):
    """The same object, in the same place, whether the batch was read in its step or one ahead."""
    error = kind("torn")
    engine = small_engine(probe([*batches(1), error, *batches(1)]))
    with pytest.raises(kind) as caught:
        engine.run()
    assert caught.value is error
    assert engine.current.log.path() == [
        "idle",
        "before_loop",
        "before_epoch",
        "before_step",
        "process_batch",
        "after_step",
        "optimizer_update",
        "before_step",
        "failed",
    ]
    assert position(engine.current) == ("before_step", "failed", 0, 1, 1, 1)


@pytest.mark.parametrize("probe", [Probe, SizedProbe])
def test_the_first_batch_of_an_epoch_raises_in_its_step_too(probe):
    """What `before_epoch` reads ahead is raised by the `before_step` that follows."""
    error = OSError("gone")
    engine = small_engine(probe(batches(2), [error, *batches(1)]), epochs=2)
    with pytest.raises(OSError, match="gone") as caught:
        engine.run()
    assert caught.value is error
    assert position(engine.current) == ("before_step", "failed", 1, 0, 2, 2)
    assert any("in the body of before_step (epoch 1, batch 0, step 2, update 2)" in note for note in error.__notes__)


@pytest.mark.parametrize("probe", [Probe, SizedProbe])
def test_what_no_step_needs_is_never_raised(probe):
    """A run that ends before the torn batch, as a plain loop would, does not hear of it."""
    run = small_engine(probe([*batches(2), ValueError("torn"), *batches(1)]), max_updates=2).run()
    assert (run.state, run.update) == ("finished", 2)


def test_a_loader_that_cannot_be_opened_raises_in_before_epoch():
    """What `__iter__` itself raises comes where the pass is opened."""

    class Closed:
        def __iter__(self) -> Iterator[Any]:
            raise OSError("closed")

    run = fails(small_engine(Closed()), OSError, "closed")
    assert position(run) == ("before_epoch", "failed", 0, 0, 0, 0)


# -- data that can be iterated once


def generator(count: int) -> Iterator[Any]:
    """Return a generator of batches."""
    return (batch for batch in batches(count))


def samples(count: int) -> Iterator[Any]:
    """Return a generator of samples."""
    return iter(Samples(count))


def loader_iterator(count: int) -> Iterator[Any]:
    """Return an iterator that was made of a DataLoader, which has a length."""
    return iter(DataLoader(TensorDataset(torch.randn(count, FEATURES), torch.arange(count) % CLASSES)))


Build = Callable[[], Engine]
REFUSED: dict[str, Build] = {
    "a generator, two epochs": lambda: small_engine(generator(3), epochs=2),
    "a generator of samples, two epochs": lambda: engine_over(samples(6), epochs=2),
    "a DataLoader's iterator, two epochs": lambda: small_engine(loader_iterator(3), epochs=2),
    "a known length, two epochs": lambda: small_engine(Once(batches(3)), epochs=2),
    "a known length that needs an extension": lambda: small_engine(Once(batches(3)), accumulation=2),
    "a known length and more updates": lambda: small_engine(Once(batches(3)), max_updates=4),
    "a known length and an update short": lambda: small_engine(Once(batches(3)), accumulation=2, max_updates=2),
    "a known length and dropped batches": lambda: small_engine(
        Once(batches(3)), accumulation=2, max_updates=2, remainder="drop"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_can_be_iterated_once_are_refused_where_more_is_known_to_be_needed(name):
    """The engine says so when it is built, and what to pass instead."""
    with pytest.raises(DataError, match=r"iterated once.* further pass is needed; pass something whose __iter__"):
        REFUSED[name]()


ACCEPTED: dict[str, tuple[Build, int, int]] = {
    "a generator, one epoch": (lambda: small_engine(generator(3)), 3, 3),
    "a generator of samples, one epoch": (lambda: engine_over(samples(6)), 3, 3),
    "a DataLoader's iterator, one epoch": (lambda: small_engine(loader_iterator(3)), 3, 3),
    "a generator that fills its windows": (lambda: small_engine(generator(4), accumulation=2), 4, 2),
    "a generator with enough for the updates": (lambda: small_engine(generator(4), max_updates=3), 3, 3),
    "a generator with just enough": (lambda: small_engine(generator(4), accumulation=2, max_updates=2), 4, 2),
    "a generator, zero epochs": (lambda: small_engine(generator(3), epochs=0), 0, 0),
    "a known length, one epoch": (lambda: small_engine(Once(batches(3))), 3, 3),
    "a known length, just enough": (lambda: small_engine(Once(batches(3)), max_updates=3), 3, 3),
    "a known length, flushed": (lambda: small_engine(Once(batches(3)), accumulation=2, remainder="flush"), 3, 2),
    "a known length, dropped": (lambda: small_engine(Once(batches(3)), accumulation=2, remainder="drop"), 2, 1),
    "updates that need no extension": (lambda: small_engine(Once(batches(3)), accumulation=2, max_updates=1), 2, 1),
    "an epoch that ends before its extension": (
        lambda: small_engine(Once(batches(3)), accumulation=2, max_updates=1, epochs=1),
        2,
        1,
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_data_that_can_be_iterated_once_serve_where_one_pass_is_enough(name):
    """One pass is all that such a run needs."""
    build, steps, updates = ACCEPTED[name]
    run = build().run()
    assert (run.state, run.step, run.update) == ("finished", steps, updates)


@pytest.mark.parametrize(
    ("build", "at"),
    [
        pytest.param(
            lambda: small_engine(generator(3), accumulation=2), ("before_step", "failed", 0, 3, 3, 1), id="extension"
        ),
        pytest.param(
            lambda: engine_over(samples(6), accumulation=2), ("before_step", "failed", 0, 3, 3, 1), id="of samples"
        ),
        pytest.param(
            lambda: small_engine(generator(3), max_updates=4), ("before_epoch", "failed", 1, 0, 3, 3), id="next epoch"
        ),
    ],
)
def test_data_that_can_be_iterated_once_and_run_out_are_an_error(build, at):
    """Where nobody could know, the run fails when it needs the second pass."""
    run = fails(build(), DataError, "iterated once, and a further pass is needed")
    assert position(run) == at


@pytest.mark.parametrize("workers", [0, 2])
def test_fetching_leaves_the_generators_of_devices_alone(workers: int, monkeypatch: pytest.MonkeyPatch):
    """Those are the network's, and would not be put back; they are seeded once, before the loop."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)

    class Samples(Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return torch.rand(FEATURES), index % CLASSES

    network = small_network()
    parts = Components(
        network=network,
        dataset=Samples(),
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters()),
    )
    Engine(parts, RunConfig(epochs=2, batch_size=2, num_workers=workers, seed=5, device="cpu")).run()
    assert seeded == [5]
