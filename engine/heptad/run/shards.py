"""`Shards`: tensors of which each rank holds a part, as checkpoints and the run see them.

The strategy that shards puts its own into the run's `Runtime`; all others leave `NoShards` there. Nothing here
communicates.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Part(NamedTuple):
    """What one rank holds of a tensor that several share.

    Attributes:
        local: The part, a plain tensor; it may have no elements.
        offset: Where it begins, by dimension.
        shape: That of the whole.
    """

    local: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]


class Shards(Protocol):
    """Which tensors the ranks of a run share, and how.

    Attributes:
        any: Whether there are such tensors at all.
    """

    any: bool

    def lacking(self) -> int:
        """Return how many averaged gradients there are that this rank has added nothing to."""
        ...

    def part(self, tensor: Tensor) -> Part | None:
        """Return what this rank holds of a tensor; `None` of one that it holds whole. Not copied."""
        ...

    def span(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return offset and size of what this rank holds of a tensor of a shape that the ranks share."""
        ...

    def join(self, part: Part) -> Tensor:
        """Return the tensor of which this is what this rank holds, the counterpart of `part`."""
        ...

    def expects(self, section: str, name: str, shape: tuple[int, ...]) -> bool | None:
        """Return whether a stored tensor is one that the ranks share in this run, `None` where nobody knows.

        Asked before anything is restored: the network may still be whole.
        """
        ...


class NoShards:
    """All tensors are whole."""

    any = False

    def lacking(self) -> int:
        """Return 0."""
        return 0

    def part(self, tensor: Tensor) -> Part | None:
        """Return nothing."""
        return None

    def span(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the whole."""
        return (0,) * len(shape), shape

    def join(self, part: Part) -> Tensor:
        """Return the part, which is the whole."""
        return part.local

    def expects(self, section: str, name: str, shape: tuple[int, ...]) -> bool:
        """Return False."""
        return False


def alike(stored: Tensor, live: Tensor, shards: Shards) -> Tensor:
    """Return a stored tensor in the form of a live one: where that is shared and this is whole, as this rank's part."""
    held = shards.part(live)
    if held is None or shards.part(stored) is not None or tuple(stored.shape) != held.shape:
        return stored
    spans = zip(held.offset, held.local.shape, strict=True)
    local = stored[tuple(slice(start, start + size) for start, size in spans)]
    return shards.join(Part(local, held.offset, held.shape))
