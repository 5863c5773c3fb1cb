"""Measure what a checkpoint costs: how long training stands still, and how long a load takes. One thread of torch.

The state is 300 MB: 100 MB of float32 parameters, the weights and biases of 16 linear layers, and two averages of each
by AdamW.

- `Store.save`: what `Checkpoint` calls; it writes safetensors files, hashes, syncs and renames them, and syncs the
  directory;
- `torch.save`: the same state in one file, with fsync; no digest, no rename, no second file;
- `copy`: a copy of the bytes in memory, the cost of writing in the background;
- `Store.load`: verify and parse; `torch.load`: no verification. Both read from the page cache.

Rounds are interleaved, and each measurement is first in turn. Everything is synced between two measurements, so that
none pays for another. The table shows medians over the rounds, and the median, lowest and highest of the ratios within
a round. Disks of shared machines are noisy; run it on an idle machine:

    python benchmarks/checkpoint.py

Measured on two shared virtual cores, Python 3.11.7 and torch 2.13.0: a save takes 205 ms, 0.71 times as long as
torch.save with fsync (263 ms), and 4.6 times as long as the copy (40 ms). More than half of its processor time is
SHA-256, which a free core computes during the writing. Under a load of four it took 1.24 to 1.38 times as long as
torch.save. A load takes 379 ms, six times as long as torch.load, which verifies nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heptad.checkpoints.store import Store
from heptad.run.snapshot import Snapshot

Times = dict[str, list[float]]
"""For each measurement the milliseconds in each round."""


def build_state(megabytes: int) -> dict[str, Any]:
    """Return the state of network and optimizer after one step, with that many megabytes of parameters."""
    width = int((megabytes * 1e6 / 4 / 16) ** 0.5)
    network = nn.Sequential(*[nn.Linear(width, width) for _ in range(16)])
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    return {"network": {"tensors": dict(network.state_dict())}, "optimizers": [optimizer.state_dict()]}


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return all tensors in nested values."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def save_by_torch(state: dict[str, Any], path: Path) -> None:
    """Write the state with `torch.save`, and sync the file."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def timed(work: Callable[[], object]) -> float:
    """Sync the file systems; return the milliseconds of a call."""
    os.sync()
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def measure(rounds: int, megabytes: int, directory: Path) -> Times:
    """Return, for each measurement, the milliseconds in each round."""
    state = build_state(megabytes)
    held = tensors_of(state)
    store = Store(directory / "store")
    store.lock()
    path = directory / "state.pt"

    def remove() -> None:  # outside the measurements, so that none pays for it
        path.unlink(missing_ok=True)
        for entry in store.entries():
            shutil.rmtree(entry.path)

    works: dict[str, Callable[[], object]] = {
        "Store.save": lambda: store.save(Snapshot({}, state)),
        "torch.save": lambda: save_by_torch(state, path),
        "copy": lambda: [tensor.clone() for tensor in held],
    }
    loads: dict[str, Callable[[], object]] = {
        "Store.load": store.newest_sound,
        "torch.load": lambda: torch.load(path, weights_only=True),
    }
    times: Times = {name: [] for name in (*works, *loads)}
    names = list(works)
    for number in range(rounds + 1):  # the first is a warm-up
        remove()
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            times[name].append(timed(works[name]))
        for name, work in loads.items():
            times[name].append(timed(work))
    remove()
    return {name: spent[1:] for name, spent in times.items()}


def report(times: Times, megabytes: int) -> str:
    """Return the table."""
    pairs = [("Store.save", "torch.save"), ("Store.save", "copy"), ("Store.load", "torch.load")]
    lines = [
        f"{name:<12}{statistics.median(spent):>9.0f} ms {megabytes / statistics.median(spent):>8.2f} GB/s"
        for name, spent in times.items()
    ]
    for one, other in pairs:
        ratios = sorted(own / base for own, base in zip(times[one], times[other], strict=True))
        lines.append(f"{one} / {other}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})")
    return "\n".join(lines)


def measured(what: str, measure: Callable[[int, int, Path], Times]) -> tuple[Times, int]:
    """Measure what the command line asks for, and say on what; return the times, and the megabytes of parameters."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--megabytes", type=int, default=100, help="of parameters (default 100)")
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary one)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        times = measure(given.rounds, given.megabytes, Path(directory))
    print(f"{given.megabytes} MB of parameters with AdamW; {given.rounds} rounds, one thread")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}\n")
    return times, given.megabytes


def main() -> None:
    """Measure and print."""
    times, megabytes = measured("A checkpoint: Store.save, torch.save and fsync, a copy in memory.", measure)
    print(report(times, megabytes * 3))


if __name__ == "__main__":
    main()
