"""`Peers`: the other ranks of a run, as the rooms see them that exchange something beside gradients.

A strategy owns one and puts it into the run's `Runtime`. All ranks call its methods in the same order, or wait.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Peers(Protocol):
    """The ranks of a run.

    Attributes:
        rank: The number of this process, from 0 on.
        world: How many there are.
        failed: Whether a rank has failed for good: nothing more can be exchanged.
    """

    rank: int
    world: int
    failed: bool

    def gather(self, content: bytes) -> list[bytes]:
        """Return what each rank gave, by rank: one exchange on the control plane. The lengths may differ."""
        ...

    def fail_together(self, error: BaseException, where: str = "") -> None:
        """Give an error in place of what the others gather next: they raise a `RankFailed`, and all can go on."""
        ...

    def add(self, sums: torch.Tensor) -> torch.Tensor:
        """Return the sum of a float64 tensor over the ranks, added in their order, on the CPU: one exchange."""
        ...


class NoPeers:
    """A single process."""

    rank = 0
    world = 1
    failed = False

    def gather(self, content: bytes) -> list[bytes]:
        """Return what was given."""
        return [content]

    def fail_together(self, error: BaseException, where: str = "") -> None:
        """Do nothing: there is nobody to be told."""

    def add(self, sums: torch.Tensor) -> torch.Tensor:
        """Return what was given, on the CPU."""
        return sums.cpu()
