"""What a checkpoint costs: how long training stands still, and how long a load takes. One thread of torch.

The state is that of 100 MB of float32 parameters with AdamW, 300 MB: of 16 linear layers weights and biases, and two
averages of each.

- `Store.save`: what a `Checkpoint` does: safetensors files, hashed, synced, renamed, the rename synced;
- `torch.save`: the same state in one file, and fsync of it: no digest, no rename, no second file;
- `copy`: the bytes copied in memory, what it would cost to write in the background;
- `Store.load`: verified and parsed; `torch.load`: neither verified nor synced, from the page cache as well.

The rounds are interleaved, each in turn first; between two measurements everything is synced, so that none pays for
another. Printed are medians over the rounds and the median of the ratios within a round, with the lowest and the
highest. Disks of shared machines are noisy; run it with nothing beside it:

    python benchmarks/checkpoint.py

Measured on two shared virtual cores, Python 3.11.7 and torch 2.13.0: a save takes 205 ms, 0.71 times as long as
torch.save and fsync (263 ms), 4.6 times as long as the copy (40 ms); more than half of its processor time is SHA-256,
which a free core does beside the writing. Under a load of four it was 1.24 to 1.38 times as long as torch.save. Loading
takes 379 ms, six times torch.load, which verifies nothing.
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


def build_state(megabytes: int) -> dict[str, Any]:
    """Returns network and optimizer of that many megabytes of parameters, after one step."""
    width = int((megabytes * 1e6 / 4 / 16) ** 0.5)
    network = nn.Sequential(*[nn.Linear(width, width) for _ in range(16)])
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    return {"network": {"tensors": dict(network.state_dict())}, "optimizers": [optimizer.state_dict()]}


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Returns all tensors in nested values."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def save_by_torch(state: dict[str, Any], path: Path) -> None:
    """Writes the state as is usual, and waits until it is on the medium."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def timed(work: Callable[[], object]) -> float:
    """Returns the milliseconds of a call, begun when all that was written before is on the medium."""
    os.sync()
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def measure(rounds: int, megabytes: int, directory: Path) -> dict[str, list[float]]:
    """Returns the milliseconds of each in each round."""
    state = build_state(megabytes)
    held = tensors_of(state)
    store = Store(directory / "store")
    store.lock()
    path = directory / "state.pt"

    def remove() -> None:  # neither is to pay for removing, nor to write over what is there
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
    times: dict[str, list[float]] = {name: [] for name in (*works, *loads)}
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


def report(times: dict[str, list[float]], megabytes: int) -> str:
    """Returns the table."""
    pairs = [("Store.save", "torch.save"), ("Store.save", "copy"), ("Store.load", "torch.load")]
    lines = [
        f"{name:<12}{statistics.median(spent):>9.0f} ms {megabytes / statistics.median(spent):>8.2f} GB/s"
        for name, spent in times.items()
    ]
    for one, other in pairs:
        ratios = sorted(own / base for own, base in zip(times[one], times[other], strict=True))
        lines.append(f"{one} / {other}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="A checkpoint: Store.save, torch.save and fsync, a copy in memory.")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--megabytes", type=int, default=100, help="of parameters (default 100)")
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary one)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        times = measure(given.rounds, given.megabytes, Path(directory))
    print(f"{given.megabytes} MB of parameters with AdamW; {given.rounds} rounds, one thread")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}\n")
    print(report(times, given.megabytes * 3))


if __name__ == "__main__":
    main()
