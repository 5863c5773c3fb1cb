"""Measure what the order of 100 million samples costs: to begin an epoch, and for each batch. One thread.

The first part begins an epoch of a run over 100 million samples, shuffled and not, up to its first batch: of a dataset
whose samples are made when they are read, and of a tensor whose rows are one row. Each is measured in a process of its
own, as the most memory that it has had is never less again. `randperm` is what a shuffled epoch began with before.

The second part takes batches in the order of 100 million samples, which is computed, beside what is done with it: rows
of 28x28 float32 are gathered with `index_select` at those indices (modulo the 60,000 rows that there are). `held` is a
batch of an order that is a tensor. Rounds are interleaved; the table shows medians over the rounds. Run it on an idle
machine:

    python benchmarks/order.py

Measured on two shared virtual cores under load, Python 3.11.7 and torch 2.13.0: an epoch begins in 0.6 to 10 ms and
2.1 MB at most, shuffled or not; `randperm` took 7.3 s and 801 MB. A computed batch of 32, 128 and 1,024 samples takes
3.8, 3.7 and 24 µs (held: 2.5, 1.4 and 1.8), where the gather takes 30, 101 and 885 µs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from resource import RUSAGE_SELF, getrusage

import torch
from torch import nn
from torch.utils.data import Dataset

from heptad import Components, Engine, RunConfig
from heptad.data.order import HeldOrder, Order, order

SAMPLES, ROWS = 100_000_000, 60_000
SIZES = (32, 128, 1024)


class Made(Dataset[torch.Tensor]):
    """So many samples that are made when they are read."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index)])


def begin_epoch(dataset: Dataset[torch.Tensor] | torch.Tensor, *, shuffle: bool) -> Callable[[], object]:
    """Return what runs an engine over a dataset up to its first batch."""
    components = Components(
        network=nn.Linear(1, 1),
        dataset=dataset,
        compute_loss=lambda network, batch: network(batch).mean(),
        optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.1),
    )
    engine = Engine(components, RunConfig(epochs=1, batch_size=128, seed=0, shuffle=shuffle))
    engine.run(until=lambda run: run.state == "before_epoch")
    return lambda: engine.run(until=lambda run: run.state == "process_batch")


EPOCHS: dict[str, Callable[[], Callable[[], object]]] = {
    "samples, shuffled": lambda: begin_epoch(Made(), shuffle=True),
    "samples in turn": lambda: begin_epoch(Made(), shuffle=False),
    "rows, shuffled": lambda: begin_epoch(torch.zeros(1).expand(SAMPLES, 1), shuffle=True),
    "rows in turn": lambda: begin_epoch(torch.zeros(1).expand(SAMPLES, 1), shuffle=False),
    "randperm": lambda: lambda: torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0)),
}


def peak() -> float:
    """Return the most memory that this process has had, in MB (Linux counts it in KiB, macOS in bytes)."""
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def begin(name: str) -> tuple[float, float]:
    """Begin an epoch in this process; return the milliseconds and the MB that it took."""
    epoch = EPOCHS[name]()
    before, start = peak(), time.perf_counter()
    epoch()
    return (time.perf_counter() - start) * 1e3, peak() - before


def report_epochs(rounds: int) -> str:
    """Return the table of beginnings, each in processes of its own."""
    lines = [f"{'an epoch begins':<20}{'median ms':>10}{'most ms':>10}{'most MB':>10}"]
    for name in EPOCHS:
        asked = [sys.executable, __file__, "--begin", name]
        times, sizes = zip(*(json.loads(subprocess.check_output(asked)) for _ in range(rounds)), strict=True)
        lines.append(f"{name:<20}{statistics.median(times):>10.1f}{max(times):>10.1f}{max(sizes):>10.1f}")
    return "\n".join(lines)


def timed(taken: Order, size: int, batches: int) -> float:
    """Return the microseconds that a batch of an order takes."""
    start = time.perf_counter()
    for number in range(batches):
        taken.part(number * size, number * size + size)
    return (time.perf_counter() - start) / batches * 1e6


def timed_gather(data: torch.Tensor, parts: list[torch.Tensor]) -> float:
    """Return the microseconds in which the rows of a batch are gathered."""
    start = time.perf_counter()
    for indices in parts:
        data.index_select(0, indices)
    return (time.perf_counter() - start) / len(parts) * 1e6


def report_batches(rounds: int) -> str:
    """Return the table of batches."""
    data = torch.rand(ROWS, 28, 28)
    held = HeldOrder(torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)))
    lines = [f"{'samples a batch':<20}{'computed µs':>12}{'held µs':>10}{'gather µs':>11}   computed of gather"]
    for size in SIZES:
        batches = ROWS // size
        taken = order(SAMPLES, 0, 0, 0, shuffle=True)
        parts = [taken.part(number * size, number * size + size) % ROWS for number in range(batches)]
        spent = [
            (
                timed(order(SAMPLES, 0, number, 0, shuffle=True), size, batches),
                timed(held, size, batches),
                timed_gather(data, parts),
            )
            for number in range(rounds)
        ]
        computed, view, gather = (statistics.median(column) for column in zip(*spent, strict=True))
        lines.append(f"{size:<20}{computed:>12.1f}{view:>10.1f}{gather:>11.1f}   {computed / gather:.1%}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the order of 100 million samples costs.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, at least 3 (default 7)")
    parser.add_argument("--begin", choices=EPOCHS, help="begin one epoch and print its milliseconds and MB, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.begin is not None:
        print(json.dumps(begin(given.begin)))
        return
    rounds = max(3, given.rounds)
    print(f"{SAMPLES:,} samples; {rounds} rounds, one thread")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}\n")
    print(report_epochs(rounds))
    print()
    print(report_batches(rounds))


if __name__ == "__main__":
    main()
