"""The tensors that a manifest lists: dtype and shape of each, and the pieces that it is made of, as one line of text.

Whoever writes or reads a manifest uses it. `F32[6,4] network-00000[0:3,0:4] network-00001[3:6,0:4]` says that a tensor
of float32 and shape (6, 4) has its first three rows in the file `network-00000.safetensors`, under its name, and the
others in `network-00001.safetensors`. There may be many thousands, and lists in JSON would cost ten times as much.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from heptad.checkpoints.tensors import DTYPES
from heptad.errors import CheckpointError

_NUMBER = r"(?:0|[1-9][0-9]{0,18})"
_SPAN = f"{_NUMBER}:{_NUMBER}"
_PIECE = rf"([a-z][a-z0-9_]{{0,63}}-[0-9]{{5}})\[((?:{_SPAN}(?:,{_SPAN})*)?)\]"
_LINE = re.compile(rf"([A-Z0-9_]+)\[((?:{_NUMBER}(?:,{_NUMBER})*)?)\]((?: {_PIECE})+)")
_ONE = re.compile(_PIECE)

_MOST_DIMENSIONS = 64
"""Those that a tensor of torch can have."""


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
    return TensorFacts(DTYPES[tensor.dtype], shape, (Piece(file, (0,) * len(shape), shape),))


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
    if len(shape) > _MOST_DIMENSIONS or any(len(piece.offset) != len(shape) for piece in pieces):
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


def join_pieces(name: str, facts: TensorFacts, held: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Return a tensor from its pieces.

    Args:
        name: Its name.
        facts: What the manifest says of it.
        held: The tensors of each file, by its name without the suffix.

    Raises:
        CheckpointError: If a file does not hold the piece that is said to be there.
    """
    for piece in facts.pieces:
        found = held.get(piece.file, {}).get(name)
        expected = (facts.dtype, piece.size)
        if found is None or (DTYPES[found.dtype], tuple(found.shape)) != expected:
            there = "nothing" if found is None else f"{DTYPES[found.dtype]} {tuple(found.shape)}"
            raise CheckpointError(
                f"{piece.file} holds {there} under the name {name!r:.100}, expected {facts.dtype} {piece.size}"
            )
    parts = [held[piece.file][name] for piece in facts.pieces]
    if len(parts) == 1:
        return parts[0]
    whole = torch.empty(facts.shape, dtype=parts[0].dtype)
    for piece, part in zip(facts.pieces, parts, strict=True):
        whole[tuple(slice(*piece.span(dimension)) for dimension in range(len(facts.shape)))] = part
    return whole
