"""Measure what memory and time a checkpoint takes of a network that one process has, or that two ranks share.

The network is 400 MB of float32: 16 matrices. Two ranks have half of the rows of each. They are processes with a pipe
between them and a stand-in for the strategy, so that nothing is measured but the store.

- *save* and *load*: the most resident memory of a process while `Store.save` or `Store.load` works, beyond what it had
  before; of two ranks that of the one that needs more. What is loaded is part of it: 400 MB, and 200 MB a rank.
- the ratio: `Store.save` to `torch.save` with fsync of the same bytes, each rank its own at the same time, into a file
  of its own; what counts is the slower rank. Rounds are interleaved, each is first in turn, and everything is synced
  between two measurements. The median, lowest and highest of the ratios within a round are shown.

    python benchmarks/checkpoint_memory.py
    python benchmarks/checkpoint_memory.py --rounds 3 --megabytes 100     # short

Measured on two shared virtual cores, Python 3.11.7 and torch 2.13.0: a save needs 2 MB beside the network. A load needs
what it loads: 392 MB of one process, 197 MB of each of two ranks. With nothing beside it, 7 rounds, the ratio was 0.72
(0.15 – 0.88) for one process and 1.16 (1.09 – 2.06) for two ranks. Of processor time, 100 MB take 46 ms to hash and 20
ms to write, and 38 ms by torch.save: where both ranks have a core and no more, hashing is not hidden.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from heptad.checkpoints.store import Store
from heptad.run.peers import NoPeers
from heptad.run.shards import NoShards, Part
from heptad.run.snapshot import Snapshot

MATRICES = 16
GOAL_MEMORY, GOAL_TIME = 64, 1.2
"""Megabytes beside what is stored or loaded once, and the ratio to torch.save of a checkpoint of two ranks."""


class Shared(Tensor):
    """A tensor of which this process has a part: a shape, and what it has."""

    held: Part

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # the store takes the part and computes nothing of the whole: an operation would be a fault of the measurement
        raise AssertionError(f"{func} of a tensor of which this process has a part")


class Halves:
    """What each of two ranks has of tensors: half of the rows."""

    any = True

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def part(self, tensor: Tensor) -> Part | None:
        return tensor.held if isinstance(tensor, Shared) else None

    def span(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        half = -(-shape[0] // 2)
        start, end = (0, half) if not self._rank else (half, shape[0])
        return (start, *(0 for _ in shape[1:])), (end - start, *shape[1:])

    def join(self, part: Part) -> Tensor:
        found: Any = Tensor._make_wrapper_subclass(Shared, part.shape, dtype=part.local.dtype)  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportAttributeAccessIssue] - how torch makes one
        found.held = part
        return found

    def expects(self, section: str, name: str, shape: tuple[int, ...]) -> bool:
        return section == "network"


class Pair:
    """Two ranks, with a pipe between them."""

    world = 2

    def __init__(self, rank: int, other: Connection) -> None:
        self.rank, self._other = rank, other

    def gather(self, content: bytes) -> list[bytes]:
        self._other.send_bytes(content)
        found = self._other.recv_bytes()
        return [content, found] if not self.rank else [found, content]


def resident(which: str) -> float:
    """Return the megabytes of memory that this process has ("VmRSS"), or had at most ("VmHWM")."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0]) / 1e3


def extra(work: Callable[[], object]) -> float:
    """Return how many megabytes more than before a call takes at most."""
    Path("/proc/self/clear_refs").write_text("5")  # what it had at most is forgotten
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def timed(work: Callable[[], object], meet: Callable[[], object]) -> float:
    """Return the milliseconds of a call that all ranks begin together."""
    os.sync()
    meet()
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def save_by_torch(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors with `torch.save`, and sync the file."""
    with path.open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())


def measure(rank: int, other: Connection | None, answer: Connection, directory: Path, rounds: int, megabytes: int):
    """Measure in a process of its own, and send what was found."""
    torch.set_num_threads(1)
    peers: Any = NoPeers() if other is None else Pair(rank, other)
    shards: Any = NoShards() if other is None else Halves(rank)
    width = int((megabytes * 1e6 / 4 / MATRICES) ** 0.5)
    rows = shards.span((width, width))[1][0]
    held = {f"layer{number}": torch.rand(rows, width) for number in range(MATRICES)}
    offset = shards.span((width, width))[0]
    live = {name: shards.join(Part(tensor, offset, (width, width))) for name, tensor in held.items()}
    store = Store(directory / "store")
    store.join(cast("Any", SimpleNamespace(_runtime=SimpleNamespace(peers=peers, shards=shards))))
    store.lock()
    file = directory / f"state-{rank}.pt"

    def save() -> None:
        store.save(Snapshot({}, {"network": {"tensors": live}}, world=peers.world))

    works = {"store": save, "torch": lambda: save_by_torch(held, file)}
    saving = extra(save)
    loaded: list[Snapshot] = []
    loading = extra(lambda: loaded.append(store.load_shared(store.entries()[-1].path)))
    loaded.clear()
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):  # the first is a warm-up
        for name in list(works)[:: 1 if number % 2 else -1]:
            times[name].append(timed(works[name], lambda: peers.gather(b"")))
        peers.gather(b"")
        if not rank:
            for entry in store.entries():
                shutil.rmtree(entry.path)
        file.unlink()
    stored = sum(tensor.numel() * 4 for tensor in held.values()) / 1e6
    answer.send((stored, saving, loading, {name: spent[1:] for name, spent in times.items()}))


def on_ranks(world: int, rounds: int, megabytes: int, directory: Path | None) -> list[Any]:
    """Return what each of one or two processes has measured."""
    context = multiprocessing.get_context("spawn")
    pipe = context.Pipe() if world == 2 else (None, None)
    answers = [context.Pipe() for _ in range(world)]
    with tempfile.TemporaryDirectory(dir=directory) as place:
        ranks = [
            context.Process(target=measure, args=(rank, pipe[rank], answers[rank][1], Path(place), rounds, megabytes))
            for rank in range(world)
        ]
        for one in ranks:
            one.start()
        for end in (*pipe, *(answer for _, answer in answers)):  # so that one that fails is not waited for
            if end is not None:
                end.close()
        found = [answers[rank][0].recv() for rank in range(world)]
        for one in ranks:
            one.join()
    return found


def report(found: list[Any]) -> str:
    """Return the lines of one or two processes."""
    world = len(found)
    stored, saving, loading = (max(one[place] for one in found) for place in range(3))
    times = {name: [max(both) for both in zip(*(one[3][name] for one in found), strict=True)] for name in found[0][3]}
    ratios = sorted(own / base for own, base in zip(times["store"], times["torch"], strict=True))
    own, base = (statistics.median(times[name]) for name in ("store", "torch"))
    return (
        f"{'one process' if world == 1 else f'{world} ranks'}: {stored:.0f} MB each\n"
        f"  save needs {saving:.0f} MB more, goal at most {stored + GOAL_MEMORY:.0f}\n"
        f"  load needs {loading:.0f} MB more, {loading - stored:.0f} beside what it loads; goal {GOAL_MEMORY}\n"
        f"  save takes {own:.0f} ms, torch.save and fsync {base:.0f} ms; "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f}), goal {GOAL_TIME}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--megabytes", type=int, default=400, help="of the network (default 400)")
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary one)")
    given = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}; {given.rounds} rounds, one thread\n")
    for world in (1, 2):
        print(report(on_ranks(world, given.rounds, given.megabytes, given.directory)), flush=True)


if __name__ == "__main__":
    main()
