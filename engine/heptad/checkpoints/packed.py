"""`PackedSnapshot`: a snapshot in the form in which it is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from torch import Tensor

from heptad.checkpoints.assembly import Assembly, group_of, is_rank
from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.decoding import decode
from heptad.checkpoints.encoding import ALL_WHOLE, ValueEncoder, encode
from heptad.checkpoints.layout import MANIFEST, RANK, SECTION, STATE, SUFFIX, part_name, rank_file
from heptad.checkpoints.manifest import Manifest, summary_size
from heptad.checkpoints.pieces import Piece, TensorFacts, format_facts, merge_lines, whole_facts
from heptad.checkpoints.strict_json import excess, read_json, write_json
from heptad.checkpoints.tensors import DTYPES
from heptad.errors import CheckpointError
from heptad.run.shards import Shards
from heptad.run.snapshot import Snapshot

MOST_SUMMARY = 1 << 19
"""Bytes: a longer summary is not written."""

MOST_STATE = 1 << 28
"""Bytes: longer state is neither written nor read."""

Places = dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]
"""Offset of what a rank holds, and shape of the whole, of the tensors that ranks share: by section and name."""

Own = dict[tuple[str, ...], Any]
"""What is a rank's own, by the keys that lead to it."""

Listing = dict[str, dict[str, str]]
"""The tensors of a manifest, by section or rank and name; a line of text for each, see `pieces`."""


@dataclass(frozen=True, slots=True)
class PackedSnapshot:
    """What a rank writes of a snapshot: all of it, but for what is other ranks' own.

    Attributes:
        summary: As JSON.
        rank: Whose it is.
        files: The content of the files that hold no tensors, by name: `state.json` of rank 0, and the rank's own.
        tensors: By section, or by `rank-00000` and so on for what is the rank's own, and name; not copied. Of a tensor
            that ranks share, what this one holds of it.
        shared: Their places.
    """

    summary: dict[str, Any]
    rank: int
    files: dict[str, bytes]
    tensors: dict[str, dict[str, Tensor]]
    shared: Places = field(default_factory=Places)

    @property
    def size(self) -> int:
        """Bytes that it needs on disk, without headers and manifest."""
        held = [tensor for section in self.tensors.values() for tensor in section.values()]
        return sum(map(len, self.files.values())) + sum(tensor.numel() * tensor.element_size() for tensor in held)

    def file_of(self, group: str) -> str:
        """Return the name of the file in which this rank stores tensors of a section or its own, without its suffix."""
        return group if is_rank(group) else part_name(group, self.rank)

    def listing(self) -> Listing:
        """Return what the manifest says of the tensors, with the pieces of this rank alone."""
        return {
            group: {name: format_facts(self._facts(group, name, tensor)) for name, tensor in held.items()}
            for group, held in self.tensors.items()
        }

    def _facts(self, group: str, name: str, tensor: Tensor) -> TensorFacts:
        place = self.shared.get(group, {}).get(name)
        if place is None:
            return whole_facts(tensor, self.file_of(group))
        offset, shape = place
        return TensorFacts(DTYPES[tensor.dtype], shape, (Piece(self.file_of(group), offset, tuple(tensor.shape)),))


def merge_listings(listings: Sequence[Listing], shared: bool) -> Listing:
    """Return what the manifest says of the tensors of all ranks, of which each has listed its pieces.

    Args:
        listings: By rank.
        shared: Whether they share tensors; if not, each is one rank's.

    Raises:
        CheckpointError: If ranks disagree on a tensor, or have not stored all of it.
    """
    if not shared:
        return {group: held for listing in listings for group, held in listing.items()}
    lines: dict[str, dict[str, list[str]]] = {}
    for listing in listings:
        for group, held in listing.items():
            found = lines.setdefault(group, {})
            for name, line in held.items():
                found.setdefault(name, []).append(line)
    return {
        group: {name: merge_lines(f"{group}.{name:.100}", each) for name, each in found.items()}
        for group, found in lines.items()
    }


class _StateFile(BaseModel):
    """`state.json`: all that is not a tensor and alike on all ranks, by section, encoded."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    sections: dict[Annotated[str, StringConstraints(pattern=f"^{SECTION}$")], Any]


class _RankFile(BaseModel):
    """`rank-00000.json`: what is a rank's own, as pairs of the keys that lead to it and the value, encoded."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    own: list[Any]

    def pairs(self) -> list[tuple[tuple[str, ...], Any]]:
        """Return the pairs.

        Raises:
            ValueError: If something else stands there.
        """
        found: list[tuple[tuple[str, ...], Any]] = []
        for pair in self.own:
            match pair:
                case [[str(), str(), *_] as keys, value] if all(type(key) is str for key in cast("list[Any]", keys)):
                    found.append((tuple(cast("list[str]", keys)), value))
                case _:
                    raise ValueError("expected pairs of at least two keys and a value")
        return found


def pack_snapshot(snapshot: Snapshot, rank: int = 0, shards: Shards = ALL_WHOLE) -> PackedSnapshot:
    """Return what a rank writes of a snapshot; nothing is copied.

    Args:
        snapshot: The snapshot.
        rank: Whose it is.
        shards: Which tensors in it ranks share. Each stores what it holds of them.

    Raises:
        CheckpointError: If something in it cannot be stored, with its place.
    """
    packed = PackedSnapshot(_pack_summary(snapshot.summary), rank, {}, {})
    sections, own = _without_own(snapshot, rank)
    plain: dict[str, Any] = {}
    for name, value in sections.items() if shards.any or not rank else ():
        if not re.fullmatch(SECTION, name) or name == RANK:
            raise CheckpointError(
                f"{name!r} names no section: a name is a small letter, then small letters, digits and _; not {RANK}"
            )
        encoder = ValueEncoder(value, name, shards=shards)
        plain[name] = encoder.encode(value, ())
        _pack_tensors(packed, name, encoder)
    if not rank:
        packed.files[STATE] = _pack_json({"sections": plain})
    parts, held = _encode_own(own, shards)
    packed.files[rank_file(rank)] = _pack_json({"own": parts})
    if held:
        packed.tensors[part_name(RANK, rank)] = held
    return packed


def _pack_tensors(packed: PackedSnapshot, section: str, encoder: ValueEncoder) -> None:
    """Add what this rank stores of the tensors of a section.

    What is whole, rank 0 does; of what ranks share each does what it holds, if that has elements. One that has none on
    any rank is whole.
    """
    held = {} if packed.rank else dict(encoder.tensors)
    for name, (local, offset, shape) in encoder.parts.items():
        if 0 not in local.shape:
            held[name] = local
            packed.shared.setdefault(section, {})[name] = offset, shape
        elif 0 in shape and not packed.rank:
            held[name] = local.new_empty(shape)
    if held:
        packed.tensors[section] = held


def _without_own(snapshot: Snapshot, rank: int) -> tuple[dict[str, Any], list[tuple[tuple[str, ...], Any]]]:
    """Return the sections without what is the rank's own, and that with the keys that lead to it."""
    copied: dict[tuple[str, ...], dict[str, Any]] = {(): dict(snapshot.sections)}
    own: list[tuple[tuple[str, ...], Any]] = []
    for path in snapshot.own:
        for depth in range(1, len(path)):
            start = path[:depth]
            if start not in copied:
                copied[start] = copied[start[:-1]][start[-1]] = dict(copied[start[:-1]][start[-1]])
        own.append((path, copied[path[:-1]].pop(path[-1])))
    return copied[()], own


def _encode_own(own: Sequence[tuple[tuple[str, ...], Any]], shards: Shards) -> tuple[list[Any], dict[str, Tensor]]:
    encoders = {path[0]: ValueEncoder(None, path[0], f"{path[0]}.", shards) for path, _ in own}
    parts = [[list(path), encoders[path[0]].encode(value, path[1:])] for path, value in own]
    if odd := [name for encoder in encoders.values() for name in encoder.parts]:
        raise CheckpointError(
            f"{odd[0]} is a tensor that ranks share, in a place that is each rank's own; a checkpoint stores it in "
            "neither way: keep what is of this rank alone there (local elements), or keep the tensor elsewhere"
        )
    return parts, dict(chain.from_iterable(encoder.tensors.items() for encoder in encoders.values()))


def _pack_json(value: Any) -> bytes:
    content = write_json(value)
    if len(content) > MOST_STATE:
        raise CheckpointError(
            f"what is not a tensor comes to {len(content):,} bytes of JSON, and {MOST_STATE:,} are stored at most; "
            "store long lists of numbers as tensors"
        )
    if too_much := excess(content):
        raise CheckpointError(f"what is not a tensor is too much: {too_much}; store long lists of numbers as tensors")
    return content


def _pack_summary(summary: dict[str, Any]) -> dict[str, Any]:
    encoded, held = encode(summary, "summary")
    plain = cast("dict[str, Any] | None", encoded.get("dict"))
    if plain is None:
        raise CheckpointError("a summary is a dict whose keys are str")
    if held:
        raise CheckpointError(f"the summary holds a tensor, {min(held)}; it is plain data, and tensors go in sections")
    if summary_size(plain) > MOST_SUMMARY:
        raise CheckpointError(
            f"the summary comes to {summary_size(plain):,} bytes of JSON, and {MOST_SUMMARY:,} are stored at most; "
            "put what is long in a section"
        )
    return plain


def unpack_snapshot(
    path: Path,
    manifest: Manifest,
    content: dict[str, bytes],
    assembly: Assembly,
    wanted: Collection[str] | None,
    rank: int = 0,
    taken: Iterable[int] = (),
) -> Snapshot:
    """Return the snapshot that verified files hold.

    Args:
        path: The checkpoint's directory, for messages.
        manifest: Its manifest.
        content: Of the files that hold no tensors, by name; taken out as it is parsed, so that memory is not needed
            twice.
        assembly: The tensors of these sections and ranks.
        wanted: The sections to return, those that there are; all if `None`.
        rank: Whose part of them.
        taken: Further ranks whose part is taken over.

    Raises:
        CheckpointError: If they hold none. That is not damage: the files are what was written.
    """
    state = _read_model(path / STATE, content.pop(STATE), _StateFile)
    own = {one: _read_model(path / rank_file(one), content.pop(rank_file(one)), _RankFile) for one in (rank, *taken)}
    _check_groups(path, manifest, state.sections.keys())
    reader = _Decoder(path, assembly)
    sections: dict[str, Any] = {}
    for name, plain in state.sections.items():
        if wanted is None or name in wanted:
            sections[name] = reader.decode(plain, name, path / STATE, name)
    decoded = {one: _decode_own(reader, part.pairs(), path, one, wanted) for one, part in own.items()}
    for keys, value in decoded[rank].items():
        if wanted is None or keys[0] in wanted:
            _put_back(path / rank_file(rank), sections, keys, value)
    if reader.unnamed:
        raise CheckpointError(min(reader.unnamed))
    listed = tuple(keys for keys, _ in own[rank].pairs())
    others = [decoded[one] for one in own if one != rank]
    return Snapshot(unpack_summary(path, manifest), sections, listed, manifest.world, others)


def _decode_own(
    reader: _Decoder,
    pairs: Sequence[tuple[tuple[str, ...], Any]],
    path: Path,
    rank: int,
    wanted: Collection[str] | None,
) -> Own:
    """Return what is a rank's own by the keys that lead to it: where its tensors were read, all of it."""
    group = part_name(RANK, rank)
    chosen = [one for one in pairs if wanted is None or one[0][0] in wanted or reader.has(group)]
    values = reader.decode([value for _, value in chosen], group, path / rank_file(rank), "own")
    return {keys: value for (keys, _), value in zip(chosen, values, strict=True)}


_Model = TypeVar("_Model", _StateFile, _RankFile)


def _read_model(path: Path, content: bytes, model: type[_Model]) -> _Model:
    try:
        found = model.model_validate(read_json(content))
        if isinstance(found, _RankFile):
            found.pairs()
    except (DamagedError, ValueError) as error:
        what = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{path} is not what a checkpoint of this format holds: {what}") from error
    return found


def _check_groups(path: Path, manifest: Manifest, sections: Collection[str]) -> None:
    """Check that each file of tensors, and each tensor of the manifest, is of a section or a rank that there is."""
    ranks = {part_name(RANK, rank) for rank in range(manifest.world)}
    for file in manifest.files:
        name = file.removesuffix(SUFFIX)
        if name != file and group_of(name) not in {*ranks, *sections}:
            raise CheckpointError(f"{path / file} belongs to no section of {STATE}")
    if stray := manifest.tensors.keys() - ranks - set(sections):
        raise CheckpointError(f"{path / MANIFEST} lists tensors of {min(stray)!r:.100}, which is no section of {STATE}")


class _Decoder:
    """Decodes values whose tensors are in the files of a checkpoint.

    Args:
        path: The checkpoint, for messages.
        assembly: The tensors.

    Attributes:
        unnamed: What is wrong with tensors that stand in no value.
    """

    def __init__(self, path: Path, assembly: Assembly) -> None:
        self.unnamed: list[str] = []
        self._path = path
        self._assembly = assembly

    def has(self, group: str) -> bool:
        """Return whether the tensors of a section or a rank were read."""
        return self._assembly.has(group)

    def decode(self, plain: Any, group: str, file: Path, where: str) -> Any:
        """Return a value with the tensors of a section or a rank.

        Args:
            plain: The value, encoded.
            group: The section or rank.
            file: Where the value stands, for messages.
            where: Names it.

        Raises:
            CheckpointError: If it is not what `encode` returns.
        """
        held = self._assembly.take(group)
        value = decode(plain, held, f"{file}: {where}")
        name = group if is_rank(group) else part_name(group, 0)
        self.unnamed += (
            f"{self._path / name}{SUFFIX} holds {left!r:.100}, which {file.name} does not mention" for left in held
        )
        return value


def _put_back(file: Path, sections: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Put a value that is a rank's own where it was taken out."""
    at: Any = sections
    for key in keys[:-1]:
        at = cast("dict[Any, Any]", at).get(key) if type(at) is dict else None
    if type(at) is not dict:
        raise CheckpointError(f"{file} speaks of {'.'.join(keys):.200}, which is no place in the sections of {STATE}")
    cast("dict[Any, Any]", at)[keys[-1]] = value


def unpack_summary(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the summary that a manifest holds."""
    return decode({"dict": manifest.summary}, {}, f"{path / MANIFEST}: summary")
