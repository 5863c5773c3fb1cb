"""Measure what a pass over data in memory costs, and what it costs to resume in the middle of one. One thread.

The first part compares the engine's feed, torch's default loader and the limit: one pass each over 60,000 samples of
28x28 float32 with integer labels in a `TensorDataset`, shuffled, in batches of 128:

- `DataLoader`: `DataLoader(dataset, 128, shuffle=True)`, which fetches samples one by one and stacks them;
- `feed`: the source of the engine's batches in `before_step`, including the order of the pass;
- `limit`: rows gathered from memory with `index_select`, with the indices of each batch prepared.

The second part resumes a run over 10 million samples, up to the end of the first turn: from a checkpoint after the
first step of an epoch, and from one in its middle. The order is a function of (seed, epoch, pass), so nothing is
replayed, and the two should take the same time.

Rounds are interleaved, and each measurement is first in turn. The table shows medians over the rounds, and the median,
lowest and highest of the ratios within a round. Run it on an idle machine:

    python benchmarks/data.py

Measured on two shared virtual cores, Python 3.11.7 and torch 2.13.0: DataLoader 259 ms, feed 41 ms (6.6 times as fast;
5.0 to 8.2 over the rounds), limit 37 ms (7.3 times). A resume takes 333 ms at the start of the epoch, 302 ms in its
middle.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from heptad import Components, Engine, RunConfig
from heptad.checkpoints.store import Store
from heptad.data.build import build_feed
from heptad.data.feed import Feed

SAMPLES, BATCH = 60_000, 128


def build_dataset() -> TensorDataset:
    """Return the samples."""
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(SAMPLES, 28, 28, generator=generator)
    return TensorDataset(data, torch.randint(0, 10, (SAMPLES,), generator=generator))


def build_engine_feed(dataset: TensorDataset) -> Feed:
    """Return the feed that an engine builds."""
    components = Components(
        network=nn.Identity(),
        dataset=dataset,
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.1),
    )
    return build_feed(components, RunConfig(epochs=1, batch_size=BATCH, drop_last=False))


def walk_loader(dataset: TensorDataset) -> int:
    """Iterate over a default loader once; return the number of samples."""
    return sum(len(target) for _, target in DataLoader(dataset, BATCH, shuffle=True))


def walk_feed(feed: Feed) -> int:
    """Take all batches of one pass of the feed; return the number of samples."""
    feed.open(0, 0)
    return sum(len(feed.take()[1]) for _ in range(feed.batches or 0))


def walk_rows(dataset: TensorDataset, batches: tuple[torch.Tensor, ...]) -> int:
    """Gather the rows of every batch; return the number of samples."""
    data, target = dataset.tensors
    samples = 0
    for indices in batches:
        data.index_select(0, indices)
        samples += len(target.index_select(0, indices))
    return samples


def timed(walk: Callable[[], int]) -> float:
    """Return the milliseconds of one pass; fail if it is not complete."""
    start = time.perf_counter()
    samples = walk()
    spent = (time.perf_counter() - start) * 1e3
    assert samples == SAMPLES
    return spent


def measure(rounds: int) -> dict[str, list[float]]:
    """Return, for each kind of pass, the milliseconds in each round."""
    dataset = build_dataset()
    feed = build_engine_feed(dataset)
    batches = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0)).split(BATCH)
    walks: dict[str, Callable[[], int]] = {
        "DataLoader": lambda: walk_loader(dataset),
        "feed": lambda: walk_feed(feed),
        "limit": lambda: walk_rows(dataset, batches),
    }
    for walk in walks.values():
        walk()
    times: dict[str, list[float]] = {name: [] for name in walks}
    names = list(walks)
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            times[name].append(timed(walks[name]))
    return times


def report(times: dict[str, list[float]]) -> str:
    """Return the table."""
    lines = [f"{'one pass':<12}{'median ms':>10}{'µs a batch':>12}   times as fast as DataLoader (lowest – highest)"]
    batches = -(-SAMPLES // BATCH)
    for name, spent in times.items():
        ratios = sorted(base / own for base, own in zip(times["DataLoader"], spent, strict=True))
        median = statistics.median(spent)
        lines.append(
            f"{name:<12}{median:>10.1f}{median / batches * 1e3:>12.1f}   "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})"
        )
    return "\n".join(lines)


MANY, LARGE = 10_000_000, 1000


def build_large(data: torch.Tensor) -> Engine:
    """Return an engine over ten million samples whose steps do almost nothing."""
    network = nn.Linear(1, 1)
    components = Components(
        network=network,
        dataset=data,
        compute_loss=lambda network, batch: network(batch[:1]).mean(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
    )
    return Engine(components, RunConfig(epochs=1, batch_size=LARGE))


def resume_times(rounds: int) -> dict[str, list[float]]:
    """Return, for both checkpoints, the milliseconds that a resume takes in each round."""
    data = torch.zeros(MANY, 1)
    places = {"start": 1, "middle": MANY // LARGE // 2}
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[str, Path] = {}
        for name, step in places.items():
            run = build_large(data).run(until=lambda run, step=step: run.step == step and run.state == "before_step")
            paths[name] = Store(Path(folder) / name).save(run.snapshot()).path
        times: dict[str, list[float]] = {name: [] for name in places}
        for number in range(rounds + 1):
            for name in list(places)[:: 1 if number % 2 else -1]:
                engine = build_large(data)
                start = time.perf_counter()
                engine.run(resume=paths[name], until=lambda run: True)
                if number:  # the first round warms up
                    times[name].append((time.perf_counter() - start) * 1e3)
    return times


def report_resumes(times: dict[str, list[float]]) -> str:
    """Return the line on resuming."""
    start, middle = (statistics.median(spent) for spent in times.values())
    ratios = sorted(one / other for one, other in zip(times["middle"], times["start"], strict=True))
    return (
        f"resuming an epoch of {MANY:,} samples: {start:.0f} ms at its start, {middle:.0f} ms in its middle, "
        f"{statistics.median(ratios):.3f} ({ratios[0]:.2f} – {ratios[-1]:.2f}) times as long"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="A pass over data in memory: feed, DataLoader, limit.")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds, at least 7 (default 9)")
    rounds = max(7, parser.parse_args().rounds)
    torch.set_num_threads(1)
    print(f"{SAMPLES:,} samples of 28x28 float32, batch {BATCH}, shuffled; {rounds} rounds, one thread")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}\n")
    print(report(measure(rounds)))
    print()
    print(report_resumes(resume_times(rounds)))


if __name__ == "__main__":
    main()
