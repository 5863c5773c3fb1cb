"""Regions of tensors: how the bytes of a piece, in the order in which a file has them, come into a part of the whole.

Whoever reads a checkpoint uses it; it knows nothing of files. A region that is cut on the first dimension, as ranks cut
tensors, is one run of bytes in each piece, and is read into its place. Of others some rows are read at a time, and
copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from heptad.checkpoints.tensors import bytes_of

_MOST_ROWS = 1 << 24
"""Bytes of rows that are read at a time, where they are copied; one row at least."""


class Region(NamedTuple):
    """A box of a tensor's elements.

    Attributes:
        offset: Where it begins, by dimension.
        size: Its shape.
    """

    offset: tuple[int, ...]
    size: tuple[int, ...]

    def common(self, other: Region) -> Region:
        """Return what two regions have in common; without elements if that is nothing."""
        spans = zip(self.offset, self.size, other.offset, other.size, strict=True)
        cut = [(max(a, b), min(a + m, b + n)) for a, m, b, n in spans]
        return Region(tuple(start for start, _ in cut), tuple(max(end - start, 0) for start, end in cut))

    def meets(self, other: Region) -> bool:
        """Return whether two regions have elements in common."""
        return 0 not in self.common(other).size

    def slices(self, within: Region) -> tuple[slice, ...]:
        """Return the indices of this region in a tensor that holds another one, of which it is a part."""
        places = zip(self.offset, within.offset, self.size, strict=True)
        return tuple(slice(start - first, start - first + size) for start, first, size in places)

    def is_run(self, within: Region) -> bool:
        """Return whether its elements follow one another where those of another one do, of which it is a part."""
        cut = [place for place, size in enumerate(self.size) if size != within.size[place]]
        return not cut or all(size == 1 for size in self.size[: cut[-1]])


def all_of(shape: tuple[int, ...]) -> Region:
    """Return the region that is all of a tensor."""
    return Region((0,) * len(shape), shape)


def targets(piece: Region, wanted: Region, tensor: Tensor) -> Iterator[memoryview | int]:
    """Yield where the bytes of a piece belong, in their order: memory to be filled, or how many are passed over.

    Args:
        piece: What the bytes are of.
        wanted: What the tensor is of; the two have elements in common.
        tensor: Contiguous and on the CPU. It holds the elements once what was yielded last is filled and the next is
            asked for.
    """
    width = tensor.element_size()
    size = math.prod(piece.size) * width
    part = piece.common(wanted)
    if part.is_run(piece) and part.is_run(wanted):
        length = math.prod(part.size) * width
        before, at = (_index_of(part, within) * width for within in (piece, wanted))
        yield before
        yield bytes_of(tensor)[at : at + length]
        yield size - before - length
    else:
        yield from _by_rows(piece, part, wanted, tensor)


def _index_of(part: Region, within: Region) -> int:
    """Return the index of a region's first element among those of another one."""
    index = 0
    for start, first, size in zip(part.offset, within.offset, within.size, strict=True):
        index = index * size + start - first
    return index


def _by_rows(piece: Region, part: Region, wanted: Region, tensor: Tensor) -> Iterator[memoryview | int]:
    """Yield as `targets` does, by rows of the piece that are copied."""
    of_row = math.prod(piece.size[1:]) * tensor.element_size()
    first, last = (part.offset[0] - piece.offset[0] + row for row in (0, part.size[0]))
    step = max(_MOST_ROWS // of_row, 1)
    yield first * of_row
    for row in range(first, last, step):
        count = min(step, last - row)
        read = Region((piece.offset[0] + row, *piece.offset[1:]), (count, *piece.size[1:]))
        held = torch.empty(read.size, dtype=tensor.dtype)
        yield bytes_of(held)
        both = read.common(part)
        tensor[both.slices(wanted)] = held[both.slices(read)]
    yield (piece.size[0] - last) * of_row
