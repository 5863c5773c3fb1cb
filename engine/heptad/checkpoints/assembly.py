"""`Assembly`: the tensors that a process wants of a checkpoint, put together from the pieces that files hold.

`read_checkpoint` owns one. It says of each file which bytes go where; it reads nothing itself, and what it has put
together is asked for when all files are verified.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from heptad.checkpoints.layout import MANIFEST, RANK, SUFFIX
from heptad.checkpoints.manifest import Manifest
from heptad.checkpoints.pieces import Piece, TensorFacts, parse_facts
from heptad.checkpoints.regions import Region, all_of, targets
from heptad.checkpoints.tensors import DTYPES_BY_NAME, Extent
from heptad.errors import CheckpointError
from heptad.run.shards import Part, Shards


class _Wanted(NamedTuple):
    """A tensor that is wanted: what the manifest says of it, which region, and whether ranks share it."""

    facts: TensorFacts
    region: Region
    shared: bool


class Assembly:
    """The tensors of some sections and ranks.

    Args:
        path: The checkpoint, for messages.
        manifest: Its manifest. One of format 1 lists no tensors: its files are believed.
        groups: Those sections, and ranks such as `rank-00000`.
        shards: Which tensors ranks share: of these what this rank is to hold is put together, and no more.

    Raises:
        CheckpointError: If the manifest does not say where they are.
    """

    def __init__(self, path: Path, manifest: Manifest, groups: Collection[str], shards: Shards) -> None:
        self._path = path
        self._shards = shards
        self._believed = manifest.format == 1
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self._wanted: dict[str, dict[str, _Wanted]] = {group: {} for group in groups}
        self._pieces: dict[str, dict[str, Piece]] = {
            name.removesuffix(SUFFIX): {}
            for name in manifest.files
            if name.endswith(SUFFIX) and group_of(name.removesuffix(SUFFIX)) in self._wanted
        }
        for group in groups:
            for name, line in manifest.tensors.get(group, {}).items():
                self._add(group, name, _facts_of(f"{path / MANIFEST}: tensors.{group}.{name:.100}", line))

    def _add(self, group: str, name: str, facts: TensorFacts) -> None:
        shared = self._is_shared(group, name, facts)
        region = Region(*self._shards.span(facts.shape)) if shared else all_of(facts.shape)
        self._wanted[group][name] = _Wanted(facts, region, shared)
        for piece in facts.pieces:
            if piece.file not in self._pieces or group_of(piece.file) != group:
                raise CheckpointError(
                    f"{self._path / MANIFEST} has {name!r:.100} of {group} in {piece.file}, which is no file of it"
                )
            if name in self._pieces[piece.file]:
                raise CheckpointError(f"{self._path / MANIFEST} has two pieces of {name!r:.100} in {piece.file}")
            self._pieces[piece.file][name] = piece

    def _is_shared(self, group: str, name: str, facts: TensorFacts) -> bool:
        """Return whether ranks share a tensor. What is a rank's own is whole."""
        if not self._shards.any or is_rank(group):
            return False
        expected = self._shards.expects(group, name, facts.shape)
        return len(facts.pieces) > 1 if expected is None else expected

    def knows(self, file: str) -> bool:
        """Return whether it can say what is in a file."""
        return file.removesuffix(SUFFIX) in self._pieces

    def needs(self, file: str) -> bool:
        """Return whether something in a file is wanted."""
        if self.needs_all(file) or not self.knows(file):
            return self.needs_all(file)
        name = file.removesuffix(SUFFIX)
        held = self._wanted[group_of(name)]
        return any(held[of].region.meets(piece.region) for of, piece in self._pieces[name].items())

    def needs_all(self, file: str) -> bool:
        """Return whether everything in a file is wanted."""
        return self.knows(file) and (self._believed or not self._shards.any)

    def has(self, group: str) -> bool:
        """Return whether the tensors of a section or a rank are put together."""
        return group in self._wanted

    def targets(self, file: str, header: Mapping[str, Extent]) -> Iterator[memoryview | int]:
        """Yield where the bytes of a file behind its header belong, see `regions.targets`.

        Raises:
            CheckpointError: If the file does not hold what the manifest says.
            MemoryError: If a tensor does not fit into memory.
        """
        name = file.removesuffix(SUFFIX)
        group = group_of(name)
        if self._believed:
            for of, extent in header.items():
                self._add(group, of, TensorFacts(extent.dtype, extent.shape, (Piece(name, *all_of(extent.shape)),)))
        self._check(name, header)
        for of, extent in header.items():
            wanted, piece = self._wanted[group][of].region, self._pieces[name][of].region
            if piece.meets(wanted):
                yield from targets(piece, wanted, self._tensor(group, of))
            else:
                yield extent.end - extent.start

    def _check(self, file: str, header: Mapping[str, Extent]) -> None:
        expected = self._pieces[file]
        if stray := header.keys() - expected.keys():
            raise CheckpointError(
                f"{self._path / file}{SUFFIX} holds {min(stray)!r:.100}, which {MANIFEST} does not list"
            )
        for name, piece in expected.items():
            dtype, found = self._wanted[group_of(file)][name].facts.dtype, header.get(name)
            if found is None or (found.dtype, found.shape) != (dtype, piece.size):
                there = "nothing" if found is None else f"{found.dtype} {found.shape}"
                raise CheckpointError(
                    f"{self._path}: {file} holds {there} under the name {name!r:.100}, expected {dtype} {piece.size}"
                )

    def _tensor(self, group: str, name: str) -> Tensor:
        """Return the memory of a tensor, contiguous and on the CPU."""
        key = group, name
        if key not in self._tensors:
            wanted = self._wanted[group][name]
            self._tensors[key] = empty(wanted.region.size, DTYPES_BY_NAME[wanted.facts.dtype])
        return self._tensors[key]

    def take(self, group: str) -> dict[str, Tensor]:
        """Return the tensors of a section or a rank by name, once; those that ranks share, as such."""
        found: dict[str, Tensor] = {}
        for name, (facts, region, shared) in self._wanted.get(group, {}).items():
            tensor = self._tensor(group, name)
            del self._tensors[group, name]
            found[name] = self._shards.join(Part(tensor, region.offset, facts.shape)) if shared else tensor
        return found


def group_of(file: str) -> str:
    """Return the section or rank whose tensors are in a file without its suffix."""
    return file if is_rank(file) else file.partition("-")[0]


def is_rank(group: str) -> bool:
    """Return whether tensors of this group are a rank's own, and not of a section."""
    return group.startswith(f"{RANK}-")


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor whose elements are to be filled.

    Raises:
        MemoryError: If it does not fit into memory.
    """
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:  # which torch raises where memory runs out
        raise MemoryError(f"{math.prod(shape) * dtype.itemsize:,} bytes") from error


def _facts_of(where: str, line: str) -> TensorFacts:
    try:
        facts = parse_facts(line)
        if facts.dtype not in DTYPES_BY_NAME:
            raise ValueError(f"{facts.dtype} is no dtype of a checkpoint")
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}, got {line!r:.100}") from error
    return facts
