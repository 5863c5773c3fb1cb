"""Deterministic algorithms of torch, for as long as a run is driven."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(asked: bool) -> Generator[None]:
    """Use torch's deterministic algorithms for the length of a block."""
    if not asked:
        yield
        return
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
