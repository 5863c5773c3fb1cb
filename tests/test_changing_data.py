"""A dataset that changes between passes: each begins with it as it is then, with workers too, and resumes exactly."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from builders import FEATURES, dataset_engine, small_engine
from heptad import CheckpointError, ConfigError, DataError, Engine, Plugin, Run
from heptad_plugins import Checkpoint
from scenario import outcome

torch.set_num_threads(1)


class Sized(Dataset[Any]):
    """As many samples as it is told; each knows the size at which it was read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> Any:
        if place >= self.size:
            raise IndexError(place)
        return torch.full((FEATURES,), float(self.size)), place % 3


class Grows(Plugin):
    """Sets the size of a dataset for each epoch, also where the run continues in one."""

    def __init__(self, dataset: Sized, sizes: list[int]) -> None:
        self.dataset, self.sizes = dataset, sizes

    def open(self, run: Run) -> None:
        if run.epoch_open:
            self.on_enter_before_epoch(run)

    def on_enter_before_epoch(self, run: Run) -> None:
        self.dataset.size = self.sizes[run.epoch]


class Sees(Plugin):
    """Keeps what each batch says of the size, the number of steps and the prediction at the end of each epoch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.steps: list[int] = []
        self.totals: list[int | None] = []

    def on_enter_process_batch(self, run: Run) -> None:
        self.sizes += run.batch[0][:, 0].int().tolist()

    def on_exit_after_epoch(self, run: Run) -> None:
        self.steps.append(run.batch_index)
        self.totals.append(run.total_updates)


GROWN, SHRUNK = [4, 8, 12], [12, 8, 4]


def growing(sizes: list[int], *more: Plugin, as_loader: bool = False, **config: Any) -> tuple[Engine, Sees]:
    """Return an engine over a dataset of these sizes by epoch, in batches of two, and what sees its batches."""
    dataset, sees = Sized(sizes[0]), Sees()
    plugins = [Grows(dataset, sizes), sees, *more]
    config = {"epochs": len(sizes), **config}
    if as_loader:
        loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=config.pop("num_workers", 0))
        return small_engine(loader, plugins, **config), sees
    return dataset_engine(dataset, plugins, **config), sees


@pytest.mark.parametrize("as_loader", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("sizes", [GROWN, SHRUNK])
def test_each_pass_takes_the_dataset_as_it_is_then(sizes, workers, as_loader):
    """Its length and its content, in worker processes too."""
    engine, sees = growing(sizes, as_loader=as_loader, num_workers=workers)
    engine.run()
    assert sees.sizes == [size for size in sizes for _ in range(size)]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_appends_is_read_whole(workers):
    """16, 32 and 48 samples, appended by a handler."""
    data, seen = [(torch.ones(FEATURES), 0)] * 16, []
    engine = dataset_engine(data, epochs=3, batch_size=16, num_workers=workers)

    @engine.on_exit("after_epoch")
    def append(run: Run) -> None:
        seen.append(run.batch_index * 16)
        data.extend([(torch.ones(FEATURES), 0)] * 16)

    engine.run()
    assert seen == [16, 32, 48]


def tensors() -> TensorDataset:
    """Return six samples as tensors."""
    return TensorDataset(torch.zeros(6, FEATURES), torch.zeros(6, dtype=torch.int64))


def more_rows(dataset: Any) -> None:
    """Give a dataset of tensors other ones, ten samples."""
    dataset.tensors = (torch.ones(10, FEATURES), torch.zeros(10, dtype=torch.int64))


def more_indices(dataset: Any) -> None:
    """Give a subset more of the dataset."""
    dataset.indices = [*range(6), *range(4)]


@pytest.mark.parametrize(
    ("dataset", "change", "seen"),
    [(tensors, more_rows, 10.0 * FEATURES), (lambda: Subset(tensors(), range(4)), more_indices, 0.0)],
    ids=["tensors", "subset"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_rows_are_gathered_from_the_tensors_that_the_dataset_holds_then(dataset, change, seen, workers):
    """Others, and more of them, in the second epoch."""
    data = dataset()
    engine = dataset_engine(data, epochs=2, num_workers=workers)
    found: list[float] = []
    engine.on_enter("process_batch")(lambda run: found.append(run.batch[0].sum().item()))
    engine.on_exit("after_epoch", once=True)(lambda run: change(data))
    assert engine.run().samples == (6 if seen else 4) + 10
    assert sum(found) == seen


class Pids(Dataset[Any]):
    """Four samples that say in which process they were read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> Any:
        return torch.full((FEATURES,), float(os.getpid())), 0


@pytest.mark.parametrize(("persistent", "processes"), [(False, 3), (True, 1)])
def test_workers_are_kept_from_pass_to_pass_if_that_is_asked_for(persistent, processes):
    """By default each pass has new ones, which copy the dataset as it is."""
    found: set[float] = set()
    engine = dataset_engine(Pids(), epochs=3, num_workers=1, persistent_workers=persistent)
    engine.on_enter("process_batch")(lambda run: found.add(run.batch[0][0, 0].item()))
    engine.run()
    assert len(found) == processes
    assert multiprocessing.active_children() == []


def test_persistent_workers_are_made_anew_for_a_dataset_of_another_length():
    """Their copies lack the samples that were added."""
    engine, sees = growing([4, 4, 8], num_workers=1, persistent_workers=True)
    engine.run()
    assert sees.sizes == [4] * 8 + [8] * 8


def test_persistent_workers_need_workers_and_an_indexed_dataset():
    """Each mistake says what to do."""
    with pytest.raises(ConfigError, match="persistent_workers=True needs num_workers of at least 1"):
        dataset_engine(Pids(), persistent_workers=True)
    with pytest.raises(ConfigError, match=r"persistent_workers goes with Components\.dataset"):
        small_engine(3, persistent_workers=True, num_workers=1)
    stream = type("Stream", (torch.utils.data.IterableDataset,), {"__iter__": lambda self: iter(())})()
    with pytest.raises(ConfigError, match="persistent_workers goes with a dataset that is indexed"):
        dataset_engine(stream, persistent_workers=True, num_workers=1)


@pytest.mark.parametrize("as_loader", [False, True])
def test_total_updates_is_known_while_the_length_was_the_same_and_in_the_last_epoch(as_loader):
    """Once it has changed it may do so again."""
    engine, sees = growing([4, 4, 8, 8], as_loader=as_loader)
    assert (engine.current.total_updates, sees.totals) == (8, [])
    engine.run()
    assert sees.totals == [8, 8, None, 12]


def test_total_updates_is_known_in_the_middle_of_the_last_epoch():
    """No further pass can change it."""
    engine, _ = growing([4, 8])
    run = engine.run(until=lambda run: run.update == 4)
    assert (run.update, run.total_updates) == (4, 6)
    assert engine.run().update == 6


@pytest.mark.parametrize("remainder", ["extend", "flush", "drop"])
def test_windows_follow_the_length_of_the_pass(remainder):
    """Epochs of 2, 4 and 6 batches, three to an update."""
    engine, sees = growing(GROWN, accumulation=3, remainder=remainder)
    run = engine.run()
    assert sees.steps == {"extend": [3, 6, 6], "flush": [2, 4, 6], "drop": [0, 3, 6]}[remainder]
    assert run.update == {"extend": 5, "flush": 5, "drop": 3}[remainder]


RESUMED: dict[str, dict[str, Any]] = {
    "dataset": {},
    "workers": {"num_workers": 1},
    "loader": {"as_loader": True},
}


@pytest.mark.parametrize("kind", RESUMED)
@pytest.mark.parametrize("sizes", [GROWN, SHRUNK])
def test_a_run_over_it_resumes_exactly_anywhere(sizes, kind, tmp_path: Path):
    """In the middle of a pass of another length than the dataset has when the engine is built, and between passes."""
    straight, _ = growing(sizes, Checkpoint(tmp_path / "straight"), **RESUMED[kind])
    straight.run()
    for stop in (3, 6, 8):
        folder = tmp_path / f"{stop}"
        first, _ = growing(sizes, Checkpoint(folder, at=("after_step", "after_epoch")), **RESUMED[kind])
        first.on_exit("optimizer_update")(lambda run, stop=stop: run.update == stop and run.pause("here"))
        first.run()
        first.close()
        second, _ = growing(sizes, Checkpoint(folder, at=("after_step", "after_epoch")), **RESUMED[kind])
        run = second.run(resume="auto")
        assert outcome(second) == outcome(straight), f"resumed after update {stop}"
        assert run.total_updates == straight.current.total_updates == 12


@pytest.mark.parametrize("as_loader", [False, True])
def test_a_dataset_that_nobody_has_grown_again_is_an_error_on_resume(as_loader, tmp_path: Path):
    """With both numbers, and what to do."""
    engine, _ = growing(GROWN, Checkpoint(tmp_path, at="after_step"), as_loader=as_loader)
    engine.run(until=lambda run: run.update == 4)
    engine.close()
    resumed, _ = growing(GROWN, Checkpoint(tmp_path, at="after_step"), as_loader=as_loader)
    resumed._manager.plugins[0].open = lambda run: None
    with pytest.raises(DataError, match=r"(4 samples, and had 8|2 batches, and had 4).*open\(run\) too"):
        resumed.run(resume="auto")


@pytest.mark.parametrize("as_loader", [False, True])
def test_another_dataset_is_refused_on_resume_as_before(as_loader, tmp_path: Path):
    """It is that of neither the beginning nor the checkpoint."""
    engine, _ = growing(GROWN, Checkpoint(tmp_path, at="after_step"), as_loader=as_loader)
    engine.run(until=lambda run: run.update == 4)
    engine.close()
    resumed, _ = growing([6, 8, 12], Checkpoint(tmp_path, at="after_step"), as_loader=as_loader)
    with pytest.raises(CheckpointError, match="data: batches 2 in the checkpoint, 3 here"):
        resumed.run(resume="auto")


def test_a_dataset_may_be_there_as_it_was_when_the_checkpoint_was_taken(tmp_path: Path):
    """A file that the run has appended to is longer when the next process opens it."""

    def build(sizes: list[int]) -> Engine:
        return growing(sizes, Checkpoint(tmp_path, at="after_step"))[0]

    engine = build(GROWN)
    engine.run(until=lambda run: run.update == 4)
    engine.close()
    resumed = build([8, 8, 12])
    assert resumed.run(resume="auto").update == 12
