"""Which strategy a run has: by its configuration, and by what torchrun has told this process."""

from __future__ import annotations

import os

from heptad.config import RunConfig
from heptad.ranks.strategy import Alone, Strategy


def build_strategy(config: RunConfig) -> Strategy:
    """Return the strategy of a run. `torch.distributed` is imported only where there may be other ranks."""
    if config.strategy == "none" or (config.strategy == "auto" and not is_launched()):
        return Alone()
    if config.strategy == "fsdp":
        from heptad.ranks.fsdp import Fsdp  # noqa: PLC0415 - alone, nothing of it is imported

        return Fsdp()
    from heptad.ranks.ddp import Ddp  # noqa: PLC0415 - as above

    return Ddp()


def is_launched() -> bool:
    """Return whether torchrun, or what does as it does, has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
