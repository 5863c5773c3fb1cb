"""Transfer: batches are pinned, and copied on a side stream while the step before is computed.

The device is one made of the CPU (`far_device`): a batch that is used before its copy has arrived is garbage.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from builders import (
    Witness,
    batches,
    dataset_engine,
    equal,
    small_components,
    small_config,
    small_engine,
    weights,
)
from far_device import FarDevice, far_device
from heptad import ConfigError, Engine, RunConfig
from heptad.data.ahead import AheadFeed
from heptad.data.build import build_feed
from heptad.data.device_rows import ResidentRows
from heptad.data.feed import SizedFeed
from heptad.data.fetch import build_fetch
from heptad.data.placement import Placement
from heptad.data.streams import TorchStreams, streams_of
from heptad.data.transfer import Transfer
from heptad_plugins import Checkpoint
from scenario import digest, full_engine, outcome


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FarDevice:
    return far_device(monkeypatch)


@pytest.fixture
def pins_in_vain():
    """Torch warns that a loader is to pin where there is no accelerator."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        yield


class Rows(Dataset[Any]):
    """Samples with noise from a generator of the dataset's own; it notes what was read."""

    def __init__(self, samples: int = 10, bad: int | None = None) -> None:
        self.data, self.target = rows(samples)
        self.generator = np.random.default_rng(3)
        self.bad = bad
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.read.append(place)
        if place == self.bad:
            raise OSError("the disk is gone")
        noise = torch.rand(4) + float(self.generator.random())
        return self.data[place] + noise, self.target[place]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(*rows(10), strict=True))


def rows(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(samples, 4, generator=generator)
    return data, torch.randint(0, 3, (samples,), generator=generator)


DATA: dict[str, Any] = {
    "rows": lambda **config: dataset_engine(TensorDataset(*rows(10)), **config),
    "subset": lambda **config: dataset_engine(Subset(TensorDataset(*rows(12)), range(10)), **config),
    "samples": lambda **config: dataset_engine(Rows(), **config),
    "workers": lambda **config: dataset_engine(Rows(), num_workers=2, **config),
    "stream": lambda **config: dataset_engine(Stream(), **config),
    "stream, workers": lambda **config: dataset_engine(Stream(), num_workers=1, **config),
    "loader": lambda **config: small_engine(batches(5), **config),
    "loader, workers": lambda **config: small_engine(
        DataLoader(TensorDataset(*rows(10)), batch_size=2, shuffle=True, num_workers=1), **config
    ),
}


@pytest.mark.usefixtures("pins_in_vain")
@pytest.mark.parametrize("config", [
    {"prefetch": 0}, {}, {"prefetch": 3, "accumulation": 4}, {"accumulation": 4, "remainder": "flush"},
    {"accumulation": 2, "remainder": "drop"}, {"accumulation": 3, "remainder": "carry", "max_updates": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("data", [name for name in DATA if "workers" not in name])
def test_the_bits_are_those_of_the_cpu(data: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Whatever batches come from, and however windows and passes end."""
    config = {"epochs": 2, **config}
    here = DATA[data](**config).run()
    device = far_device(monkeypatch)
    there = DATA[data](**config).run()
    assert equal(weights(there.network), weights(here.network))
    assert there.log.path() == here.log.path()
    assert device.offences == []
    assert {"copy on main"} >= set(device.log) - {"pin"} if config.get("prefetch") == 0 else "main waits" in device.log


@pytest.mark.usefixtures("pins_in_vain")
@pytest.mark.parametrize("data", [name for name in DATA if "workers" in name])
def test_batches_of_workers_are_the_same(data: str, monkeypatch: pytest.MonkeyPatch):
    here = DATA[data](epochs=2, accumulation=2).run()
    device = far_device(monkeypatch)
    engine = DATA[data](epochs=2, accumulation=2)
    assert engine.current._runtime.feed.reads_early
    assert equal(weights(engine.run().network), weights(here.network))
    assert device.offences == []


def test_the_next_batch_is_copied_while_the_step_runs(device: FarDevice):
    """After its backward pass was queued and before anything that may wait for the device; none after the last."""
    engine = dataset_engine(TensorDataset(*rows(6)), [Tells(device)], prefetch=1)
    engine.run()
    copy = ["copy on side", "copy on side", "record side"]
    first = ["before_step", *copy, "main waits", "process_batch", *copy, "optimizer_update"]
    middle = ["before_step", "main waits", "process_batch", *copy, "optimizer_update"]
    last = ["before_step", "main waits", "process_batch", "optimizer_update"]
    assert device.log == [*first, *middle, *last]
    assert device.streams == 1


class Tells(Witness):
    """Writes into the log of the device which body comes next, or is done."""

    def __init__(self, device: FarDevice) -> None:
        super().__init__(())
        self.log = device.log

    def on_enter_before_step(self, run: Any) -> None:
        self.log.append("before_step")

    def on_exit_process_batch(self, run: Any) -> None:
        self.log.append("process_batch")

    def on_enter_optimizer_update(self, run: Any) -> None:
        self.log.append("optimizer_update")


def test_without_prefetch_a_batch_is_copied_when_its_step_begins(device: FarDevice):
    """From pinned memory, on the stream of the computation."""
    engine = small_engine(1, [Tells(device)], prefetch=0)
    engine.run()
    copy = ["pin", "copy on main"]
    assert device.log == ["before_step", *copy, *copy, "process_batch", "optimizer_update"]
    assert device.streams == 0


def test_a_loader_that_acts_in_this_process_is_read_when_its_step_begins(device: FarDevice):
    """It may act with the network, whose new weights it must see; its batches are copied beside what is queued."""
    engine = small_engine(2, [Tells(device)])
    assert type(engine.current._runtime.feed) is SizedFeed
    engine.run()
    copy = ["pin", "copy on side"] * 2 + ["record side", "main waits"]
    assert device.log == ["before_step", *copy, "process_batch", "optimizer_update"] * 2


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_more_is_read_ahead_than_was_asked_for(depth: int, device: FarDevice):
    dataset, most = Rows(20), []
    engine = dataset_engine(dataset, prefetch=depth, batch_size=2)
    engine.on_exit("process_batch")(lambda run: most.append(len(dataset.read) // 2 - run.step - 1))
    engine.on_enter("optimizer_update")(lambda run: most.append(len(dataset.read) // 2 - run.step))
    engine.run()
    assert max(most) == depth
    assert len(dataset.read) == 20


@pytest.mark.parametrize(("config", "read"), [
    ({"max_updates": 2}, 2), ({"max_updates": 1, "accumulation": 3}, 3),
    ({"epochs": 1, "accumulation": 2, "remainder": "drop"}, 4), ({"epochs": 1, "limit_batches": 3}, 3),
    ({"epochs": 1, "accumulation": 2}, 6), ({"epochs": 1, "accumulation": 4, "remainder": "flush"}, 5),
], ids=str)  # fmt: skip
def test_what_is_known_not_to_be_taken_is_not_read(config: dict[str, Any], read: int, device: FarDevice):
    """Of five batches; under `extend` a further pass gives one of its own."""
    dataset = Rows(10)
    dataset_engine(dataset, **config).run()
    assert len(dataset.read) == 2 * read


def test_a_stop_leaves_what_was_read_ahead(device: FarDevice):
    """The run ends as it does on the CPU."""
    engine = dataset_engine(Rows(20), epochs=3)
    engine.on_exit("process_batch", every=3)(lambda run: run.stop("enough"))
    run = engine.run()
    assert (run.step, run.state, run.samples) == (3, "finished", 6)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_of_the_data_is_raised_where_a_plain_loop_has_it(depth: int, device: FarDevice):
    """In the step of that batch, not in the one before; what comes after it is not read."""
    dataset = Rows(10, bad=6)
    engine = dataset_engine(dataset, shuffle=False, prefetch=depth)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        engine.run()
    run = engine.current
    assert (run.step, run.update) == (3, 3)
    assert run.log[-1].source == "before_step"
    assert max(dataset.read) == 6
    assert "before_step" in "".join(caught.value.__notes__)


def test_an_error_of_a_batch_that_is_not_taken_is_dropped(device: FarDevice):
    engine = dataset_engine(Rows(10, bad=6), shuffle=False, epochs=1)
    engine.on_exit("optimizer_update", every=3)(lambda run: run.stop("enough"))
    assert engine.run().state == "finished"


# -- its place in checkpoints


@pytest.mark.parametrize(("prefetch", "back_to"), [(1, "the device"), (3, "the cpu")])
def test_a_batch_that_was_copied_and_not_taken_is_not_consumed(
    prefetch: int, back_to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Resumed from each step, on this device or another, a run is the one that was never paused, to the bit."""
    straight = full_engine(tmp_path / "s")
    straight.run()
    expected = outcome(straight)
    for step in (2, 6, 11):
        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            far_device(patch)
            first = full_engine(folder, prefetch=prefetch)
            first.run(until=lambda run, step=step: run.step == step)
            first.close()
            if back_to == "the device":
                second = full_engine(folder, prefetch=prefetch)
                second.run(resume="auto")
        if back_to == "the cpu":
            second = full_engine(folder)
            second.run(resume="auto")
        assert {**outcome(second), "plugins": ""} == {**expected, "plugins": ""}, step


def test_a_generator_of_the_dataset_is_stored_as_it_was_before_the_batch_was_read(device: FarDevice, tmp_path: Path):
    """It is drawn from when a batch is read, and that batch is read again."""
    straight = dataset_engine(Rows(), epochs=2).run()
    for step in (1, 4, 8):
        folder = tmp_path / str(step)
        first = dataset_engine(Rows(), [Checkpoint(folder, at="after_step")], epochs=2)
        first.run(until=lambda run, step=step: run.step == step and run.state == "optimizer_update")
        first.close()
        second = dataset_engine(Rows(), [Checkpoint(folder, at="after_step")], epochs=2).run(resume=folder)
        assert equal(weights(second.network), weights(straight.network))


def test_a_run_that_pauses_after_every_turn_is_the_same(device: FarDevice):
    """`close` between turns ends workers and keeps what was read."""
    straight = dataset_engine(Rows(), epochs=2, accumulation=2).run()
    engine = dataset_engine(Rows(), epochs=2, accumulation=2)
    while not engine.current.ended:
        engine.advance()
        engine.close()
    assert equal(weights(engine.current.network), weights(straight.network))


# -- evaluation


def test_an_evaluation_copies_beside_its_steps_too(monkeypatch: pytest.MonkeyPatch):
    """As many as are taken, in predictions as well."""
    data = TensorDataset(*rows(7))
    engine = dataset_engine(TensorDataset(*rows(6)), batch_size=2)
    here = [engine.evaluate(data), engine.evaluate(data, limit=2), list(engine.predict(data))]
    device = far_device(monkeypatch)
    engine = dataset_engine(TensorDataset(*rows(6)), batch_size=2)
    calls = [lambda: engine.evaluate(data), lambda: engine.evaluate(data, limit=2), lambda: list(engine.predict(data))]
    for call, expected, taken in zip(calls, here, (4, 2, 4), strict=True):
        device.log.clear()
        assert digest(call()) == digest(expected)
        assert device.log.count("main waits") == device.log.count("record side") == taken
    assert device.offences == []


# -- batches that cannot be copied beside the step


class Graph:
    """A batch that moves itself."""

    moves = 0

    def __init__(self, data: torch.Tensor, target: torch.Tensor) -> None:
        self.data, self.target = data, target

    def to(self, device: torch.device) -> Graph:
        Graph.moves += 1
        return Graph(self.data.clone(), self.target.clone())


def test_a_batch_that_moves_itself_is_moved_on_the_stream_of_the_computation(device: FarDevice):
    """Its tensors cannot be seen, so nobody could say that the computation uses them; it is moved once."""
    Graph.moves = 0

    def loss(network: Any, batch: Graph) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(network(batch.data), batch.target)

    data = [Graph(*batch) for batch in batches(4)]
    parts = small_components(dataset=data, collate_fn=lambda samples: samples[0], compute_loss=loss)
    run = Engine(parts, small_config(batch_size=1, shuffle=False)).run()
    assert Graph.moves == 4
    assert "copy on side" not in device.log
    assert run.step == 4


def test_memory_that_is_short_ahead_is_asked_for_again(device: FarDevice, monkeypatch: pytest.MonkeyPatch):
    """When the batch is taken: only then does it end the run."""
    engine, copy, fails = dataset_engine(Rows(20)), device.copy, iter([False, False, True, False])

    def short(tensor: torch.Tensor) -> torch.Tensor:
        if next(fails, False):
            raise torch.OutOfMemoryError("no memory")
        return copy(tensor)

    monkeypatch.setattr(device, "copy", short)
    run = engine.run()
    monkeypatch.undo()
    assert equal(weights(run.network), weights(dataset_engine(Rows(20)).run().network))


# -- pinning


def test_rows_are_gathered_into_pinned_memory(device: FarDevice):
    """No further copy on the host."""
    dataset_engine(TensorDataset(*rows(6))).run()
    assert "pin" not in device.log
    assert device.offences == []


@pytest.mark.parametrize("data", ["samples", "stream"])
def test_what_workers_give_is_pinned_by_their_loader(data: str, device: FarDevice, monkeypatch: pytest.MonkeyPatch):
    pinned: list[bool] = []
    module = {"samples": "heptad.data.index_cursor", "stream": "heptad.data.stream"}[data]

    def loader(*given: Any, **options: Any) -> Any:
        pinned.append(options["pin_memory"])
        return DataLoader(*given, **{**options, "pin_memory": False})

    monkeypatch.setattr(f"{module}.DataLoader", loader)
    dataset_engine(Rows() if data == "samples" else Stream(), num_workers=1).run()
    assert pinned == [True]
    monkeypatch.undo()
    monkeypatch.setattr(f"{module}.DataLoader", loader)
    dataset_engine(Rows() if data == "samples" else Stream(), num_workers=1).run()
    assert pinned == [True, False]


# -- the CPU


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_where_there_are_no_streams_nothing_is_read_ahead(name: str):
    """The run has the feed, the handlers and the calls of one that never heard of `prefetch`."""
    assert streams_of(torch.device(name)) is None
    engine = dataset_engine(Rows(), prefetch=5)
    runtime = engine.current._runtime
    assert (type(runtime.feed), type(runtime.place), runtime.places) == (SizedFeed, Placement, False)


def test_a_stand_in_for_torchs_module_is_asked_as_torch_is():
    """Streams and events of the module, for this device."""
    asked: list[Any] = []
    stream = SimpleNamespace(record_event=lambda: asked.append("record") or "event", wait_event=asked.append)
    module = SimpleNamespace(
        Stream=lambda device: asked.append(device) or stream,
        current_stream=lambda device: asked.append(("current", device)) or stream,
        stream=lambda stream: asked.append("on"),
    )
    device = torch.device("cpu")
    streams = TorchStreams(device, module)
    side = streams.new()
    streams.wait(streams.current(), streams.record(side))
    streams.on(side)
    assert asked == [device, ("current", device), "record", "event", "on"]
    slope = torch.ones(2, requires_grad=True)
    assert streams.pin(slope) is slope
    assert torch.equal(streams.copy(torch.ones(2)), torch.ones(2))


# -- data on the device


@pytest.mark.parametrize("data", ["rows", "subset"])
@pytest.mark.parametrize("config", [{}, {"accumulation": 4}, {"drop_last": False, "batch_size": 3}], ids=str)
def test_data_on_the_device_give_the_same_bits(data: str, config: dict[str, Any]):
    config = {"epochs": 2, **config}
    here, there = DATA[data](**config).run(), DATA[data](data_on_device=True, **config).run()
    assert equal(weights(there.network), weights(here.network))


@pytest.mark.parametrize("dataset", [
    torch.arange(10.0), TensorDataset(*rows(10)), Subset(TensorDataset(*rows(12)), [3, 4, 5, 6, 7, 8, 9, 10, 11, -1]),
], ids=["tensor", "dataset", "subset"])  # fmt: skip
def test_rows_are_kept_and_gathered_there(dataset: Any):
    """On a device that computes nothing: a batch has its shape, and lies there; the order was moved once."""
    config = small_config(batch_size=4, data_on_device=True, drop_last=False)
    meta = torch.device("meta")
    feed = build_feed(small_components(dataset=dataset), config, place=Placement(meta))
    feed.seed = 0
    feed.open(0, 0)
    batch = feed.take()
    parts = batch if isinstance(batch, list) else [batch]
    assert {part.device for part in parts} == {meta}
    assert [len(part) for part in parts] == [4] * len(parts)
    assert feed._cursor._jobs.job(0)[0].device == meta  # type: ignore[attr-defined]


def test_a_tensor_is_moved_once_and_again_when_it_was_written_to(monkeypatch: pytest.MonkeyPatch):
    """A pass begins with the dataset as it is then."""
    dataset, resident = TensorDataset(*rows(4)), ResidentRows(torch.device("meta"))
    kept: list[list[torch.Tensor]] = []
    for written in (False, False, True):
        if written:
            dataset.tensors[0].zero_()
        resident(build_fetch(dataset, None))
        kept.append([there for _, _, there in resident._kept.values()])
    assert [one is other for one, other in zip(kept[0], kept[1], strict=True)] == [True, True]
    assert [one is other for one, other in zip(kept[1], kept[2], strict=True)] == [False, True]


@pytest.mark.parametrize(("build", "says"), [
    (lambda: dataset_engine(Rows(), data_on_device=True), "keeps a dataset of tensors .* Components.dataset is a Rows"),
    (lambda: dataset_engine(Stream(), data_on_device=True), "Components.dataset is a Stream"),
    (lambda: dataset_engine(TensorDataset(*rows(4)), collate_fn=list, data_on_device=True), "without a collate_fn"),
    (lambda: small_engine(2, data_on_device=True), "data_on_device goes with Components.dataset; the loader decides"),
    (lambda: RunConfig(epochs=1, data_on_device=True, num_workers=1), "which workers cannot; leave out one"),
    (lambda: RunConfig(epochs=1, data_on_device=1), "data_on_device must be True or False, got 1"),
    (lambda: RunConfig(epochs=1, prefetch=-1), "prefetch must be at least 0, got -1"),
    (lambda: RunConfig(epochs=1, prefetch=True), "prefetch must be a whole number, got True"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(build: Any, says: str):
    with pytest.raises(ConfigError, match=says):
        build()


def test_a_run_may_be_resumed_with_other_ways_to_the_device(tmp_path: Path):
    """They change no bits: no part of its identity."""

    def engine(**config: Any) -> Engine:
        plugins = [Checkpoint(tmp_path, at="after_step")]
        return dataset_engine(TensorDataset(*rows(10)), plugins, epochs=2, **config)

    first = engine()
    first.run(until=lambda run: run.step == 3)
    first.close()
    second = engine(prefetch=0, data_on_device=True).run(resume=tmp_path)
    assert equal(weights(second.network), weights(dataset_engine(TensorDataset(*rows(10)), epochs=2).run().network))


def test_the_device_catches_a_computation_that_does_not_wait(monkeypatch: pytest.MonkeyPatch):
    """What the tests above rest on."""
    device = far_device(monkeypatch)
    monkeypatch.setattr(device, "wait", lambda stream, event: None)
    with pytest.raises((IndexError, RuntimeError)):
        dataset_engine(TensorDataset(*rows(6))).run()
    device = far_device(monkeypatch)
    monkeypatch.setattr(device, "use", lambda tensor, stream: None)
    engine = dataset_engine(TensorDataset(*rows(6)))
    engine.run()
    assert set(device.offences) == {"freed while the computation may use it"}
    assert isinstance(engine.current._runtime.place, Transfer)
    assert isinstance(engine.current._runtime.feed, AheadFeed)
