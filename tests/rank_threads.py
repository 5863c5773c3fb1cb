"""Ranks as threads of this process: `Peers` that meet at a barrier, and a strategy of them, for what ranks exchange.

They take turns, since they share the global random generators: one runs until it waits for the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from heptad.errors import RankFailed, in_a_line
from heptad.ranks.strategy import Alone


class Meets:
    """What the threads have in common."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = threading.Barrier(world, timeout=20)
        self.turn = threading.Lock()
        self.held: dict[int, bytes] = {}
        self.exchanges = 0

    def gather(self, rank: int, content: bytes) -> list[bytes]:
        self.held[rank] = content
        self.wait()
        found = [self.held[other] for other in range(self.world)]
        self.exchanges += not rank
        self.wait()
        return found

    def wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


class ThreadPeers:
    """The ranks, as one of the threads sees them."""

    failed = False

    def __init__(self, meets: Meets, rank: int) -> None:
        self.rank, self.world, self._meets = rank, meets.world, meets

    def gather(self, content: bytes) -> list[bytes]:
        rows = self._meets.gather(self.rank, b"\0" + content)
        if failed := [row[1:].decode() for row in rows if row[:1] == b"\1"]:
            raise RankFailed("; ".join(failed))
        return [row[1:] for row in rows]

    def fail_together(self, error: BaseException, where: str = "") -> None:
        self._meets.gather(self.rank, f"\1rank {self.rank} failed {where}: {in_a_line(error)}".encode())

    def add(self, sums: torch.Tensor) -> torch.Tensor:
        rows = [torch.frombuffer(bytearray(one), dtype=torch.float64) for one in self.gather(sums.numpy().tobytes())]
        return sum(rows[1:], start=rows[0]).reshape(sums.shape)


class ThreadStrategy(Alone):
    """A strategy that evaluates over ranks; training is that of one process."""

    def __init__(self, peers: ThreadPeers) -> None:
        self.peers: Any = peers


def on_ranks(world: int, script: Callable[[ThreadPeers], Any]) -> tuple[list[Any], int]:
    """Return what a script returns, or the error that it raises, on each rank; and how often they have met."""
    meets = Meets(world)
    found: list[Any] = [None] * world

    def one(rank: int) -> None:
        torch.set_num_threads(1)
        try:
            with meets.turn:
                found[rank] = script(ThreadPeers(meets, rank))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, meets.exchanges
