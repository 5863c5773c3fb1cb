"""The tensors that a manifest lists: dtype and shape of each, and the pieces that it is made of, as one line of text.

Whoever writes or reads a manifest uses it. `F32[6,4] network-00000[0:3,0:4] network-00001[3:6,0:4]` says that a tensor
of float32 and shape (6, 4) has its first three rows in the file `network-00000.safetensors`, under its name, and the
others in `network-00001.safetensors`. There may be many thousands, and lists in JSON would cost ten times as much.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from heptad.checkpoints.regions import Region, all_of
from heptad.checkpoints.tensors import DTYPES, MOST_DIMENSIONS
from heptad.errors import CheckpointError

_NUMBER = r"(?:0|[1-9][0-9]{0,18})"
_SPAN = f"{_NUMBER}:{_NUMBER}"
_PIECE = rf"([a-z][a-z0-9_]{{0,63}}-[0-9]{{5}})\[((?:{_SPAN}(?:,{_SPAN})*)?)\]"
_LINE = re.compile(rf"([A-Z0-9_]+)\[((?:{_NUMBER}(?:,{_NUMBER})*)?)\]((?: {_PIECE})+)")
_ONE = re.compile(_PIECE)


class Piece(NamedTuple):
    """A part of a tensor, in a file under the tensor's name.

    Attributes:
        file: Without its suffix.
        offset: Where it begins, by dimension.
        size: Its shape.
    """

    file: str
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def region(self) -> Region:
        """Which part it is."""
        return Region(self.offset, self.size)

    def span(self, dimension: int) -> tuple[int, int]:
        """Return where it begins and ends in a dimension."""
        return self.offset[dimension], self.offset[dimension] + self.size[dimension]


class TensorFacts(NamedTuple):
    """What a manifest says of a tensor: dtype, by the name it has in the safetensors format, shape and pieces."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def whole_facts(tensor: Tensor, file: str) -> TensorFacts:
    """Return what a manifest says of a tensor that is stored whole."""
    shape = tuple(tensor.shape)
    return TensorFacts(DTYPES[tensor.dtype], shape, (Piece(file, *all_of(shape)),))


def format_facts(facts: TensorFacts) -> str:
    """Return the line of a tensor."""
    pieces = " ".join(f"{piece.file}[{_spans(piece)}]" for piece in facts.pieces)
    return f"{facts.dtype}[{','.join(map(str, facts.shape))}] {pieces}"


def _spans(piece: Piece) -> str:
    return ",".join(f"{start}:{start + size}" for start, size in zip(piece.offset, piece.size, strict=True))


def parse_facts(line: str) -> TensorFacts:
    """Return what `format_facts` was given.

    Raises:
        ValueError: If it is not such a line, or the pieces do not cover the tensor, each element once.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("expected a line such as F32[2,3] network-00000[0:2,0:3]")
    shape = tuple(map(int, match[2].split(","))) if match[2] else ()
    pieces: list[Piece] = []
    for file, spans in _ONE.findall(match[3]):
        ends = [tuple(map(int, span.split(":"))) for span in spans.split(",")] if spans else []
        offset, size = tuple(start for start, _ in ends), tuple(end - start for start, end in ends)
        pieces.append(Piece(file, offset, size))
    _check_cover(shape, pieces)
    return TensorFacts(match[1], shape, tuple(pieces))


def _check_cover(shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
    """Check that pieces cover a tensor, each element once; of one without elements there is one piece."""
    if len(shape) > MOST_DIMENSIONS or any(len(piece.offset) != len(shape) for piece in pieces):
        raise ValueError("a piece has other dimensions than the tensor")
    if len(pieces) == 1 or 0 in shape:
        if len(pieces) != 1 or pieces[0][1:] != ((0,) * len(shape), shape):
            raise ValueError("the piece is not the whole tensor")
        return
    if any(size < 1 for piece in pieces for size in piece.size):
        raise ValueError("a piece is empty")
    if list(pieces) != sorted(pieces, key=lambda piece: piece.offset):
        raise ValueError("the pieces are not in the order of their places")
    _check_dimension(shape, pieces, 0)


def _check_dimension(shape: tuple[int, ...], pieces: Sequence[Piece], dimension: int) -> None:
    """Check that the spans of pieces follow one another in a dimension, and that those of each span cover the rest."""
    if dimension == len(shape):
        if len(pieces) > 1:
            raise ValueError("two pieces cover the same elements")
        return
    end = 0
    for (start, stop), group in groupby(
        sorted(pieces, key=lambda one: one.span(dimension)), lambda one: one.span(dimension)
    ):
        if start != end:
            what = "overlap" if start < end else "leave a gap"
            raise ValueError(f"the pieces {what} at {min(start, end)} of dimension {dimension}")
        end = stop
        _check_dimension(shape, list(group), dimension + 1)
    if end != shape[dimension]:
        raise ValueError(f"the pieces end at {end} of dimension {dimension}, and the tensor at {shape[dimension]}")


def merge_lines(where: str, lines: Sequence[str]) -> str:
    """Return the line of a tensor of which several ranks have written pieces, each with a line of its own.

    Raises:
        CheckpointError: If they disagree on the tensor, or the pieces do not cover it.
    """
    wholes, parts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    if odd := next((one for one in wholes if one != wholes[0]), None):
        raise CheckpointError(
            f"the ranks do not store one tensor as {where}: it is {wholes[0]} on one, {odd} on another"
        )
    pieces = sorted(" ".join(parts).split(" "), key=_offset_of)
    line = f"{wholes[0]} {' '.join(pieces)}"
    try:
        parse_facts(line)
    except ValueError as error:
        raise CheckpointError(
            f"what the ranks store of {where} is not all of it: {error}; got {line!r:.200}"
        ) from error
    return line


def _offset_of(piece: str) -> tuple[int, ...]:
    """Return where a piece begins, from its text."""
    return tuple(int(span.partition(":")[0]) for span in piece.partition("[")[2][:-1].split(",") if span)
