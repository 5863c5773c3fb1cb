"""A stand-in for a strategy that shards: tensors of which each rank holds a part, and what cuts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from heptad.run.shards import Part

Cut = Callable[[tuple[int, ...], int, int], tuple[tuple[int, ...], tuple[int, ...]]]
"""Returns offset and size of what a rank of so many holds of a tensor of a shape."""


def rows(shape: tuple[int, ...], rank: int, world: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut the first dimension as torch.chunk does."""
    step = -(-shape[0] // world) if shape[0] else 0
    start, end = (min(place * step, shape[0]) for place in (rank, rank + 1))
    return (start, *(0 for _ in shape[1:])), (end - start, *shape[1:])


def columns(shape: tuple[int, ...], rank: int, world: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut the last dimension so."""
    (start, *_), (size, *_) = rows(shape[-1:], rank, world)
    return (*(0 for _ in shape[1:]), start), (*shape[:-1], size)


def blocks(shape: tuple[int, ...], rank: int, world: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut the first two dimensions, of four ranks into two each; the last of the second is one element shorter."""
    (top, *_), (high, *_) = rows(shape[:1], rank // 2, 2)
    left = 0 if rank % 2 == 0 else shape[1] - 1
    wide = shape[1] - 1 if rank % 2 == 0 else 1
    return (top, left, *(0 for _ in shape[2:])), (high, wide, *shape[2:])


class Shared(Tensor):
    """A tensor that ranks share: it has dtype and shape of the whole, and computes nothing."""

    held: Part

    @staticmethod
    def of(part: Part) -> Shared:
        found: Any = Tensor._make_wrapper_subclass(Shared, part.shape, dtype=part.local.dtype)  # pyright: ignore
        found.held = part
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called on a tensor of which there is a part only")


class Shards:
    """Which tensors the ranks share, as one of them sees them."""

    any = True

    def __init__(self, rank: int, world: int, cut: Cut = rows) -> None:
        self._rank, self._world, self._cut = rank, world, cut

    def part(self, tensor: Tensor) -> Part | None:
        return tensor.held if isinstance(tensor, Shared) else None

    def span(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._cut(shape, self._rank, self._world)

    def join(self, part: Part) -> Tensor:
        assert part.local.is_contiguous()
        return Shared.of(part)

    def expects(self, section: str, name: str, shape: tuple[int, ...]) -> bool | None:
        return None

    def share(self, whole: Tensor) -> Tensor:
        """Return a whole tensor as one that the ranks share; its part has the order of dimensions of the whole."""
        offset, size = self.span(tuple(whole.shape))
        local = whole[tuple(slice(start, start + length) for start, length in zip(offset, size, strict=True))]
        return Shared.of(Part(local.clone(), offset, tuple(whole.shape)))
