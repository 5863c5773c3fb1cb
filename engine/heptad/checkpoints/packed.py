"""`PackedSnapshot`: a snapshot in the form in which it is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from torch import Tensor

from heptad.checkpoints import tensors
from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.decoding import ValueDecoder, decode
from heptad.checkpoints.encoding import ValueEncoder, encode
from heptad.checkpoints.layout import MANIFEST, RANK, SECTION, STATE, SUFFIX, part_name, rank_file
from heptad.checkpoints.manifest import Manifest, summary_size
from heptad.checkpoints.pieces import format_facts, join_pieces, parse_facts, whole_facts
from heptad.checkpoints.strict_json import excess, read_json, write_json
from heptad.errors import CheckpointError
from heptad.run.snapshot import Snapshot

MOST_SUMMARY = 1 << 19
"""Bytes: a longer summary is not written."""

MOST_STATE = 1 << 28
"""Bytes: longer state is neither written nor read."""

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
        tensors: By section, or by `rank-00000` and so on for what is the rank's own, and name; not copied.
    """

    summary: dict[str, Any]
    rank: int
    files: dict[str, bytes]
    tensors: dict[str, dict[str, Tensor]]

    @property
    def size(self) -> int:
        """Bytes that it needs on disk, without headers and manifest."""
        held = [tensor for section in self.tensors.values() for tensor in section.values()]
        return sum(map(len, self.files.values())) + sum(tensor.numel() * tensor.element_size() for tensor in held)

    def listing(self) -> Listing:
        """Return what the manifest says of the tensors."""
        files = {group: tensor_file(group) for group in self.tensors}
        return {
            group: {name: format_facts(whole_facts(tensor, files[group])) for name, tensor in held.items()}
            for group, held in self.tensors.items()
        }


def tensor_file(group: str) -> str:
    """Return the name of the file, without its suffix, in which one process stores the tensors of a section or rank."""
    return group if _is_rank(group) else part_name(group, 0)


def _is_rank(group: str) -> bool:
    return "-" in group


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


def pack_snapshot(snapshot: Snapshot, rank: int = 0) -> PackedSnapshot:
    """Return what a rank writes of a snapshot; nothing is copied.

    Raises:
        CheckpointError: If something in it cannot be stored, with its place.
    """
    summary = _pack_summary(snapshot.summary)
    found: dict[str, dict[str, Tensor]] = {}
    files: dict[str, bytes] = {}
    sections, own = _without_own(snapshot, rank)
    if not rank:
        plain: dict[str, Any] = {}
        for name, value in sections.items():
            if not re.fullmatch(SECTION, name) or name == RANK:
                raise CheckpointError(
                    f"{name!r} names no section: a name is a small letter, then small letters, digits and _; not {RANK}"
                )
            plain[name], held = encode(value, name)
            if held:
                found[name] = held
        files[STATE] = _pack_json({"sections": plain})
    parts, held = _encode_own(own)
    files[rank_file(rank)] = _pack_json({"own": parts})
    if held:
        found[part_name(RANK, rank)] = held
    return PackedSnapshot(summary, rank, files, found)


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


def _encode_own(own: Sequence[tuple[tuple[str, ...], Any]]) -> tuple[list[Any], dict[str, Tensor]]:
    encoders = {path[0]: ValueEncoder(None, path[0], f"{path[0]}.") for path, _ in own}
    parts = [[list(path), encoders[path[0]].encode(value, path[1:])] for path, value in own]
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
    wanted: Collection[str] | None,
    rank: int = 0,
    taken: Iterable[int] = (),
) -> Snapshot:
    """Return the snapshot that verified files hold.

    Args:
        path: The checkpoint's directory, for messages.
        manifest: Its manifest.
        content: Of the files by name; taken out as it is parsed, so that memory is not needed twice.
        wanted: The sections to return, those that there are; all if `None`.
        rank: Whose part of them.
        taken: Further ranks whose part is taken over.

    Raises:
        CheckpointError: If they hold none. That is not damage: the files are what was written.
    """
    state = _read_model(path / STATE, content.pop(STATE), _StateFile)
    own = {one: _read_model(path / rank_file(one), content.pop(rank_file(one)), _RankFile) for one in (rank, *taken)}
    _check_groups(path, manifest, state.sections.keys())
    reader = _TensorReader(path, manifest, content)
    sections: dict[str, Any] = {}
    for name, plain in state.sections.items():
        if wanted is None or name in wanted:
            sections[name] = reader.decode(plain, name, path / STATE, name)
    decoded = {
        one: _decode_own(reader, part.pairs(), path, one)
        for one, part in own.items()
        if wanted is None or any(keys[0] in wanted for keys, _ in part.pairs())
    }
    for keys, value in decoded.get(rank, {}).items():
        if wanted is None or keys[0] in wanted:
            _put_back(path / rank_file(rank), sections, keys, value)
    if reader.unnamed:
        raise CheckpointError(min(reader.unnamed))
    listed = tuple(keys for keys, _ in own[rank].pairs())
    others = [decoded[one] for one in own if one != rank]
    return Snapshot(unpack_summary(path, manifest), sections, listed, manifest.world, others)


def _decode_own(reader: _TensorReader, pairs: Sequence[tuple[tuple[str, ...], Any]], path: Path, rank: int) -> Own:
    """Return what is a rank's own by the keys that lead to it."""
    encoded = [value for _, value in pairs]
    values = reader.decode(encoded, part_name(RANK, rank), path / rank_file(rank), "own")
    return {keys: value for (keys, _), value in zip(pairs, values, strict=True)}


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
        if name != file and name not in ranks and name.rpartition("-")[0] not in sections:
            raise CheckpointError(f"{path / file} belongs to no section of {STATE}")
    if stray := manifest.tensors.keys() - ranks - set(sections):
        raise CheckpointError(f"{path / MANIFEST} lists tensors of {min(stray)!r:.100}, which is no section of {STATE}")


class _TensorReader:
    """Decodes values whose tensors are in the files of a checkpoint.

    Args:
        path: The checkpoint, for messages.
        manifest: Its manifest.
        content: Of the files by name; taken out as it is parsed.

    Attributes:
        unnamed: What is wrong with tensors that stand in no value.
    """

    def __init__(self, path: Path, manifest: Manifest, content: dict[str, bytes]) -> None:
        self.unnamed: list[str] = []
        self._path = path
        self._manifest = manifest
        self._content = content

    def decode(self, plain: Any, group: str, file: Path, where: str) -> Any:
        """Return a value with the tensors of a section or a rank.

        Args:
            plain: The value, encoded.
            group: The section or rank.
            file: Where the value stands, for messages.
            where: Names it.

        Raises:
            CheckpointError: If it is not what `encode` returns, or its tensors are not those of the manifest.
        """
        held = self._tensors(group)
        decoder = ValueDecoder(held, f"{file}: {where}")
        value = decoder.decode(plain, ())
        self.unnamed += (
            f"{self._path / tensor_file(group)}{SUFFIX} holds {left!r:.100}, of which {file.name} does not speak"
            for left in held.keys() - decoder.taken
        )
        return value

    def _tensors(self, group: str) -> Mapping[str, Tensor]:
        """Return the tensors of a section or a rank, by name, joined from their pieces."""
        listed = {name: self._facts(group, name, line) for name, line in self._manifest.tensors.get(group, {}).items()}
        expected: dict[str, set[str]] = {
            file.removesuffix(SUFFIX): set()
            for file in self._content
            if file.endswith(SUFFIX) and group in (file.removesuffix(SUFFIX), file.rpartition("-")[0])
        }
        for name, facts in listed.items():
            for piece in facts.pieces:
                if piece.file not in expected:
                    raise CheckpointError(
                        f"{self._path / MANIFEST} has {name!r:.100} of {group} in {piece.file}, which is no file of it"
                    )
                expected[piece.file].add(name)
        held: dict[str, dict[str, Tensor]] = {}
        for file, names in expected.items():
            where = self._path / f"{file}{SUFFIX}"
            held[file] = tensors.parse(self._content.pop(where.name), str(where))
            if stray := held[file].keys() - names:
                raise CheckpointError(f"{where} holds {min(stray)!r:.100}, which {MANIFEST} does not list")
        try:
            return {name: join_pieces(name, facts, held) for name, facts in listed.items()}
        except CheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from None

    def _facts(self, group: str, name: str, line: str) -> Any:
        try:
            return parse_facts(line)
        except ValueError as error:
            raise CheckpointError(
                f"{self._path / MANIFEST}: tensors.{group}.{name:.100}: {error}, got {line!r:.100}"
            ) from error


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
