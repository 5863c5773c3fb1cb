"""Ranks as threads of one process: what they gather, and a store of each on one directory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from disk import snapshot

from heptad.checkpoints.encoding import ALL_WHOLE
from heptad.checkpoints.files import Files
from heptad.checkpoints.store import Store
from heptad.run.peers import Peers
from heptad.run.run import Run
from heptad.run.shards import Shards
from heptad.run.snapshot import Snapshot


class Hall:
    """Where the threads meet; a rank that dies breaks it for all."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.given: list[bytes] = [b""] * world
        self.barrier = threading.Barrier(world, timeout=20)
        self.exchanges = 0


class ThreadPeers:
    """`Peers` of one thread.

    Attributes:
        exchanges: How many it has made.
    """

    failed = False

    def __init__(self, hall: Hall, rank: int) -> None:
        self.rank = rank
        self.world = hall.world
        self.exchanges = 0
        self._hall = hall

    def gather(self, content: bytes) -> list[bytes]:
        """Return what each rank gave."""
        self.exchanges += 1
        self._hall.given[self.rank] = content
        self._hall.barrier.wait()
        found = list(self._hall.given)
        if not self.rank:
            self._hall.exchanges += 1
        self._hall.barrier.wait()
        return found

    def add(self, sums: torch.Tensor) -> torch.Tensor:
        """Add nothing: no checkpoint needs it."""
        raise NotImplementedError


class Died(BaseException):
    """The process of a rank was killed: it runs no more code, and tells nobody."""


def on_ranks(world: int, work: Callable[[Peers], Any]) -> list[Any]:
    """Call a function on every rank, in threads; return what each returned or raised."""
    hall = Hall(world)
    results: list[Any] = [None] * world

    def called(rank: int) -> None:
        try:
            results[rank] = work(ThreadPeers(hall, rank))
        except BaseException as error:
            results[rank] = error
            if isinstance(error, Died):
                hall.barrier.abort()  # as a connection that is lost

    threads = [threading.Thread(target=called, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a rank waits for ever"
    return results


def run_of(peers: Peers, shards: Shards = ALL_WHOLE) -> Run:
    """Return as much of a run as a store asks for."""
    return cast("Run", SimpleNamespace(_runtime=SimpleNamespace(peers=peers, shards=shards)))


def store_of(directory: Path, peers: Peers, files: Files | None = None, shards: Shards = ALL_WHOLE) -> Store:
    """Return the store of a rank."""
    store = Store(directory, files)
    store.join(run_of(peers, shards))
    return store


def snapshot_of(number: int, peers: Peers) -> Snapshot:
    """Return the snapshot of a rank: of the numbered one, `random` and a tensor are its own."""
    found = snapshot(number)
    found.sections["own"] = {"tensor": torch.full((3,), number + peers.rank / 10), "rank": peers.rank}
    found.own = [("own", "tensor"), ("own", "rank")]
    found.world = peers.world
    return found
