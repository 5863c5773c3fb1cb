"""`PackedSnapshot`: a snapshot in the form in which it is written."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from torch import Tensor

from heptad.checkpoints import tensors
from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.decoding import ValueDecoder, decode
from heptad.checkpoints.encoding import encode
from heptad.checkpoints.layout import MANIFEST, SECTION, STATE, SUFFIX
from heptad.checkpoints.manifest import MOST_MANIFEST, Manifest, summary_size
from heptad.checkpoints.strict_json import excess, read_json, write_json
from heptad.errors import CheckpointError
from heptad.run.snapshot import Snapshot

_MOST_SUMMARY = MOST_MANIFEST // 2
"""Bytes: a longer summary is not written."""

MOST_STATE = 1 << 28
"""Bytes: longer state is neither written nor read."""


@dataclass(frozen=True, slots=True)
class PackedSnapshot:
    """A snapshot, ready to be written.

    Attributes:
        summary: As JSON.
        state: The content of `state.json`.
        tensors: By section and name; not copied.
    """

    summary: dict[str, Any]
    state: bytes
    tensors: dict[str, dict[str, Tensor]]

    @property
    def size(self) -> int:
        """Bytes that it needs on disk, without headers and manifest."""
        held = [tensor for section in self.tensors.values() for tensor in section.values()]
        return len(self.state) + sum(tensor.numel() * tensor.element_size() for tensor in held)


class _StateFile(BaseModel):
    """`state.json`: all that is not a tensor, by section, encoded."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    sections: dict[Annotated[str, StringConstraints(pattern=f"^{SECTION}$")], Any]


def pack_snapshot(snapshot: Snapshot) -> PackedSnapshot:
    """Return the form in which a snapshot is written; nothing is copied.

    Raises:
        CheckpointError: If something in it cannot be stored, with its place.
    """
    summary = _pack_summary(snapshot.summary)
    sections: dict[str, Any] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in snapshot.sections.items():
        if not re.fullmatch(SECTION, name):
            raise CheckpointError(
                f"{name!r} names no section: a name is a small letter, then small letters, digits and _"
            )
        sections[name], held = encode(value, name)
        if held:
            found[name] = held
    state = write_json({"sections": sections})
    if len(state) > MOST_STATE:
        raise CheckpointError(
            f"what is not a tensor comes to {len(state):,} bytes of JSON, and {MOST_STATE:,} are stored at most; "
            "store long lists of numbers as tensors"
        )
    if too_much := excess(state):
        raise CheckpointError(f"what is not a tensor is too much: {too_much}; store long lists of numbers as tensors")
    return PackedSnapshot(summary, state, found)


def _pack_summary(summary: dict[str, Any]) -> dict[str, Any]:
    encoded, held = encode(summary, "summary")
    plain = cast("dict[str, Any] | None", encoded.get("dict"))
    if plain is None:
        raise CheckpointError("a summary is a dict whose keys are str")
    if held:
        raise CheckpointError(f"the summary holds a tensor, {min(held)}; it is plain data, and tensors go in sections")
    if summary_size(plain) > _MOST_SUMMARY:
        raise CheckpointError(
            f"the summary comes to {summary_size(plain):,} bytes of JSON, and {_MOST_SUMMARY:,} are stored at most; "
            "put what is long in a section"
        )
    return plain


def unpack_snapshot(
    path: Path, manifest: Manifest, content: dict[str, bytes], wanted: Collection[str] | None
) -> Snapshot:
    """Return the snapshot that verified files hold.

    Args:
        path: The checkpoint's directory, for messages.
        manifest: Its manifest.
        content: Of the files by name; taken out as it is parsed, so that memory is not needed twice.
        wanted: The sections to return, those that there are; all if `None`.

    Raises:
        CheckpointError: If they hold none. That is not damage: the files are what was written.
    """
    try:
        state = _StateFile.model_validate(read_json(content.pop(STATE)))
    except (DamagedError, ValidationError) as error:
        what = error if isinstance(error, DamagedError) else error.errors(include_url=False)[0]["msg"]
        raise CheckpointError(f"{path / STATE} is not what a checkpoint of this format holds: {what}") from error
    stray = manifest.files.keys() - {STATE} - {f"{name}{SUFFIX}" for name in state.sections}
    if stray:
        raise CheckpointError(f"{path / min(stray)} belongs to no section of {STATE}")
    sections: dict[str, Any] = {}
    unnamed: list[str] = []
    for name, plain in state.sections.items():
        if wanted is None or name in wanted:
            file = f"{name}{SUFFIX}"
            held = tensors.parse(content.pop(file), str(path / file)) if file in content else {}
            decoder = ValueDecoder(held, f"{path / STATE}: {name}")
            sections[name] = decoder.decode(plain, ())
            unnamed += (f"{path / file} holds {left!r:.100}" for left in held.keys() - decoder.taken)
    if unnamed:
        raise CheckpointError(f"{min(unnamed)}, of which {STATE} does not speak")
    return Snapshot(unpack_summary(path, manifest), sections)


def unpack_summary(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the summary that a manifest holds."""
    return decode({"dict": manifest.summary}, {}, f"{path / MANIFEST}: summary")
