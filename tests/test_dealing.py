"""Data over ranks: N ranks take in every window just the samples that one process with N times the window takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from builders import Unsized
from dealt import OneOf, Steps, numbered, on_ranks, together
from heptad import CheckpointError, Components, DataError, Plugin, RunConfig
from heptad.data.build import build_feed
from heptad.data.cursor import PassKey
from heptad.data.dealing import Deal, Sizes, Whole
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


FLUSH: dict[str, Any] = {"remainder": "flush", "batch_size": 4, "drop_last": False, "epochs": 1, "shuffle": False}


class Drawing(Dataset[float]):
    """Samples that are drawn when they are read."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, number: int) -> float:
        return torch.rand(()).item() + number


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


def feed_of(data: dict[str, Any], rank: int, world: int, gather: Any = None, **config: Any) -> Any:
    """Return the feed of a rank, seeded."""
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    parts = Components(network=network, optimizer=optimizer, criterion=nn.MSELoss(), **data)
    feed = build_feed(parts, RunConfig(**{"epochs": 2, **config}), (rank, world), gather=gather)
    feed.seed = 5
    return feed


class Table:
    """Where threads meet."""

    def __init__(self, seats: int) -> None:
        self.words = [b""] * seats
        self.barrier = Barrier(seats)


class Seat:
    """The peers of one thread."""

    def __init__(self, table: Table, rank: int) -> None:
        self.table, self.rank, self.world = table, rank, len(table.words)

    def gather(self, content: bytes) -> list[bytes]:
        self.table.words[self.rank] = content
        self.table.barrier.wait(20)
        words = list(self.table.words)
        self.table.barrier.wait(20)
        return words

    def add(self, sums: torch.Tensor) -> torch.Tensor:
        return sums


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases(24, 1), ids=str)
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
def test_a_rank_goes_on_in_the_middle_of_a_pass_as_it_would_have(kind: str, remainder: str, tmp_path: Path) -> None:
    """Nine batches on two ranks: in windows of two steps an epoch ends inside of one, and inside of a group."""

    def steps(*plugins: Plugin) -> Steps:
        config = {"remainder": remainder, "epochs": 2, "seed": 3, "accumulation": 2}
        config |= {"batch_size": 2, "drop_last": False} if kind in ("dataset", "stream") else {}
        torch.manual_seed(0)
        return Steps(OneOf(1, 2), KINDS[kind](17, 2), config, plugins=plugins)

    whole = steps().drive().seen
    for step in range(1, len(whole), 2):
        directory = tmp_path / str(step)
        first = steps(Checkpoint(directory, at="after_step", every=step))
        first.drive(until=lambda run, step=step: run.step == step and run.state == "before_step")
        then = steps(Checkpoint(directory, at="after_step", every=1000))
        then.drive(resume=directory)
        assert [*first.seen, *then.seen] == whole


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(5, ([3], [2])), (3, ([2], [1])), (1, ([1], [])), (8, ([4], [4])), (9, ([4, 1], [4])), (13, ([4, 3], [4, 2]))],
)
def test_flush_cuts_the_last_group_into_nearly_equal_slices(samples: int, sizes: tuple[list[int], ...]) -> None:
    ranks = on_ranks(2, lambda rank: {"dataset": numbered(samples)}, **FLUSH)
    assert tuple([len(batch) for batch in rank.seen] for rank in ranks) == sizes
    assert sorted(sample for rank in ranks for batch in rank.seen for sample in batch) == list(range(samples))


@pytest.mark.parametrize(("samples", "sizes"), [(5, ([3], [2])), (3, ([3], []))])
def test_batch_norm_gets_no_slice_of_one_sample(samples: int, sizes: tuple[list[int], ...]) -> None:
    ranks = on_ranks(2, lambda rank: {"dataset": numbered(samples)}, nn.BatchNorm1d(1).eval(), **FLUSH)
    assert tuple([len(batch) for batch in rank.seen] for rank in ranks) == sizes


def test_a_bare_loss_is_of_whole_batches() -> None:
    """A slice would count like a whole batch: nobody says what it weighs."""

    def data(rank: int) -> dict[str, Any]:
        def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor:
            return network(batch[0]).mean()

        return {"dataset": numbered(5), "criterion": None, "compute_loss": compute_loss}

    ranks = on_ranks(2, data, **FLUSH)
    assert [[len(batch) for batch in rank.seen] for rank in ranks] == [[4], [1]]


def test_an_idle_step_leaves_all_but_the_path_alone() -> None:
    """No handler but those of the update, no sample, no buffer, no number drawn; filters count on."""
    network = nn.Sequential(nn.Linear(1, 2), nn.Dropout(), nn.BatchNorm1d(2), nn.Linear(2, 1))
    idle = Steps(OneOf(1, 2), {"dataset": numbered(3)}, {**FLUSH, "epochs": 2}, network)
    before: list[Any] = []
    called: list[str] = []

    def held() -> list[torch.Tensor]:
        return [torch.get_rng_state(), *(buffer.clone() for buffer in network.buffers())]

    idle.engine.on_enter("before_step", once=True)(lambda run: before.append(held()))
    for state in ("process_batch", "after_step"):
        idle.engine.on_enter(state)(lambda run: called.append("step"))
        idle.engine.on_exit(state)(lambda run: called.append("step"))
    idle.engine.on_enter("optimizer_update")(lambda run: called.append("update"))
    run = idle.drive().run
    torch.testing.assert_close(held(), before[0], rtol=0, atol=0)
    assert (called, idle.idle) == (["update"] * 2, [0, 1])
    assert (run.step, run.update, run.samples) == (2, 2, 0)


@pytest.mark.parametrize("kind", ["list", "unsized"])
def test_a_rank_without_a_batch_repeats_its_last_whole_one(kind: str) -> None:
    """Or that of another rank, where it had none."""
    taken: list[list[int]] = []
    for batches in (3, 1):
        feed = feed_of({"loader": KINDS[kind](batches * 2, 2)["loader"]}, 1, 2, remainder="flush")
        feed.open(0, 0)
        for _ in range(-(-batches // 2)):
            batch = feed.take()
        taken.append([*batch[0].flatten().int().tolist(), feed.idle])
    assert taken == [[2, 3, True], [0, 1, True]]


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_closes_a_window_is_announced(kind: str, remainder: str) -> None:
    config: dict[str, Any] = {"remainder": remainder, "epochs": 2, "seed": 3, "accumulation": 3}
    config |= {"batch_size": 2, "drop_last": False} if kind in ("dataset", "stream") else {}
    steps = Steps(OneOf(1, 2), KINDS[kind](19, 2), config).drive()
    closes = iter(steps.strategy.closes)  # type: ignore[union-attr]
    for row in steps.run.log:
        if (row.source, row.dest) == ("after_step", "optimizer_update"):
            assert next(closes)
        elif row.source == "after_step":
            assert not next(closes)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("remainder", ["extend", "carry"])
def test_what_a_transform_draws_follows_from_the_batch_and_not_from_the_rank(remainder: str, workers: int) -> None:
    """Also over the border of a pass, and by workers, which are ahead of the step."""

    def drawn(rank: int, world: int) -> list[float]:
        feed = feed_of(
            {"dataset": Drawing(7)}, rank, world, remainder=remainder, batch_size=2, num_workers=workers,
            drop_last=False, accumulation=6 // world, epochs=3,
        )  # fmt: skip
        found: list[float] = []
        for epoch in range(3):
            feed.open(epoch, 0)
            steps = feed.batches or 0
            found += [feed.take()[0].item() for _ in range(steps)]
            if remainder == "extend":
                feed.end()
                feed.open(epoch, 1, 6 // world - steps)
                found += [feed.take()[0].item() for _ in range(6 // world - steps)]
            feed.end()
        feed.close()
        return found

    ranks = [drawn(rank, 3) for rank in range(3)]
    alone = drawn(0, 1)
    assert [number for group in zip(*ranks, strict=True) for number in group] == alone


@pytest.mark.parametrize("world", [8, 64, 1024])
@pytest.mark.parametrize("batches", [1, 7, 64, 1000, 10_001])
@pytest.mark.parametrize("remainder", REMAINDERS)
def test_large_worlds_take_each_batch_once(world: int, batches: int, remainder: str) -> None:
    """Over two epochs: but for what `drop` leaves out and an extension repeats, and in the order of one process."""
    deals = [Deal(rank, world, remainder, epochs=2) for rank in range(world)]
    sizes = Sizes(batches, batches * 4, 4)
    found = []
    for epoch in (0, 1):
        key = PassKey(0, epoch, 0)
        for place in range(deals[0].steps(key, batches)):
            found += [deal.part(place, sizes, key) for deal in deals]
    each = [(epoch, 0, number) for epoch in (0, 1) for number in range(batches)]
    taken = [(part.key.epoch, part.key.pass_index, part.number) for part in found if isinstance(part, Whole)]
    if remainder == "extend":
        taken = [part for part in taken if not part[1]]
    if remainder == "drop":
        each = [part for part in each if part[2] < batches // world * world]
    assert taken == each


def test_fewer_batches_than_ranks_are_refused_under_drop() -> None:
    with pytest.raises(
        DataError, match="a pass has 2 batches, fewer than the 3 ranks, and remainder='drop' leaves out"
    ):
        feed_of({"dataset": numbered(4)}, 0, 3, remainder="drop", batch_size=2)


@pytest.mark.parametrize(("samples", "more"), [(8, ""), (7, "repeats 1 sample in each pass")])
def test_a_distributed_sampler_is_trusted(samples: int, more: str) -> None:
    def data(rank: int) -> dict[str, Any]:
        dataset = numbered(samples)
        return {"loader": DataLoader(dataset, 2, sampler=DistributedSampler(dataset, 2, rank, shuffle=False))}

    ranks = on_ranks(2, data, remainder="flush", epochs=1)
    assert [rank.seen for rank in ranks] == [[[0, 2], [4, 6]], [[1, 3], [5, 7 if samples == 8 else 0]]]
    notes = [note.text for note in ranks[0].run.log.notes("note")]
    assert len(notes) == bool(more)
    assert all(more in note for note in notes)


def test_a_sampler_of_another_rank_is_refused() -> None:
    loader = DataLoader(numbered(8), 2, sampler=DistributedSampler(numbered(8), 2, 0))
    with pytest.raises(DataError, match="is of rank 0 of 2, this process is rank 1 of 2; make it with num_replicas=2"):
        feed_of({"loader": loader}, 1, 2)


def test_a_note_says_that_each_rank_reads_all_of_a_loader() -> None:
    (rank, _) = on_ranks(2, lambda rank: KINDS["list"](8, 2), remainder="extend", epochs=2)
    (note,) = rank.run.log.notes("note")
    assert note.text.startswith("each of the 2 ranks reads all batches of the loader (a list) and keeps every 2nd")


@pytest.mark.parametrize("kind", ["dataset", "list", "stream"])
@pytest.mark.parametrize("worlds", [(2, 1), (2, 4), (4, 2), (1, 2), (2, 6), (3, 2)])
def test_another_number_of_ranks_goes_on_with_the_next_batch(kind: str, worlds: tuple[int, int]) -> None:
    """At a closed window of twelve batches, of which a pass has thirty."""
    before, after = worlds

    def feed(rank: int, world: int) -> Any:
        given = {"batch_size": 2} if kind != "list" else {}
        return feed_of(KINDS[kind](60, 2), rank, world, remainder="extend", **given)

    old, rest = feed(0, before), feed(0, 1)
    for one, steps in ((old, 12 // before), (rest, 12)):
        one.open(1, 0)
        for _ in range(steps):
            one.take()
    ranks = [feed(rank, after) for rank in range(after)]
    found: list[Any] = []
    for rank in ranks:
        rank.restore(old.state())
    for _ in range(18 // after):
        found += [rank.take()[0].flatten().tolist() for rank in ranks]
    assert found == [rest.take()[0].flatten().tolist() for _ in found]


def test_a_place_inside_of_a_group_is_refused() -> None:
    old, new = (feed_of({"dataset": numbered(60)}, 0, world, batch_size=2) for world in (3, 2))
    old.open(0, 0)
    old.take()
    with pytest.raises(CheckpointError, match="the 3 ranks of the checkpoint had taken 3 batches, where no step of 2"):
        new.restore(old.state())


class Parts(Stream):
    """A stream that gives each rank a part: the first more than the second."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(sum(lengths))
        self.lengths = lengths

    def share(self, rank: int, world: int) -> Any:
        start = sum(self.lengths[:rank])
        return [self.dataset[number] for number in range(start, start + self.lengths[rank])]


@pytest.mark.parametrize(
    ("remainder", "seen"),
    [
        ("extend", [[[0, 1], [2, 3], [4]] * 2, [[5, 6], [7], [5, 6]] * 2]),
        ("drop", [[[0, 1], [2, 3]] * 2, [[5, 6], [7]] * 2]),
        ("flush", [[[0, 1], [2, 3], [4]] * 2, [[5, 6], [7]] * 2]),
        ("carry", [[[0, 1], [2, 3], [4]] * 2, [[5, 6], [7], [5, 6], [7]]]),
    ],
)
def test_ranks_tell_each_other_whether_their_parts_go_on(remainder: str, seen: list[Any]) -> None:
    table = Table(2)

    def drive(rank: int) -> list[list[int]]:
        strategy = OneOf(rank, 2)
        strategy.peers = Seat(table, rank)  # type: ignore[assignment]
        config = {"remainder": remainder, "epochs": 2, "batch_size": 2, "drop_last": False, "seed": 0}
        return Steps(strategy, {"dataset": Parts((5, 3))}, config).drive().seen

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(drive, range(2))) == seen


def test_a_part_is_walked_to_its_place_and_refused_on_another_world() -> None:
    def feed(world: int) -> Any:
        given = {"batch_size": 2, "drop_last": False, "remainder": "extend"}
        return feed_of({"dataset": Parts((5, 3, 1))}, 1, world, gather=lambda word: [b"+", word], **given)

    old, new = feed(2), feed(2)
    old.open(0, 0)
    for _ in range(3):
        old.take()
    new.restore(old.state())
    torch.testing.assert_close(new.take(), old.take(), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="the checkpoint is of 2 ranks; resume on as many, here are 3"):
        feed(3).restore(old.state())
