"""A strategy of one process that says it is a rank of several: for what a rank does without hearing of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from heptad import Engine, Run
from heptad.ranks.strategy import Alone


class Echoes:
    """Ranks that all give what this one gives."""

    failed = False

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def gather(self, content: bytes) -> list[bytes]:
        return [content] * self.world

    def add(self, sums: torch.Tensor) -> torch.Tensor:
        return sums.cpu() * self.world


def as_rank(rank: int, world: int = 2, agree: Callable[[Run], object] | None = None) -> type[Engine]:
    """Return an engine class whose run is that rank, and trains on all the data.

    Args:
        rank: Which.
        world: Of how many.
        agree: What is done last on exit of `optimizer_update`, where ranks agree.
    """

    class Ranked(Alone):
        peers: Any = Echoes(rank, world)

        def last_handlers(self, run: Run) -> Any:
            return [] if agree is None else [("optimizer_update", agree)]

    class RankedEngine(Engine):
        strategy_class = staticmethod(lambda config: Ranked())

    return RankedEngine
