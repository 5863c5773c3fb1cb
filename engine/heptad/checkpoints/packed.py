"""`Snapshot`: what a checkpoint holds, and the form in which it is written."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from torch import Tensor

from heptad.checkpoints import codec, tensors
from heptad.checkpoints.manifest import (
    MANIFEST,
    MOST_STATE,
    MOST_SUMMARY,
    SECTION,
    STATE,
    SUFFIX,
    DamagedError,
    Manifest,
    read_json,
    summary_size,
    write_json,
)
from heptad.errors import CheckpointError
from heptad.run.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Packed:
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
        """Bytes that it needs on disk, but for headers and manifest."""
        held = [tensor for section in self.tensors.values() for tensor in section.values()]
        return len(self.state) + sum(tensor.numel() * tensor.element_size() for tensor in held)


class _State(BaseModel):
    """`state.json`: all that is no tensor, by section, as the codec writes it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    sections: dict[Annotated[str, StringConstraints(pattern=f"^{SECTION}$")], Any]


def pack(snapshot: Snapshot) -> Packed:
    """Returns the form in which a snapshot is written; nothing is copied.

    Raises:
        CheckpointError: If something in it cannot be stored, with its place.
    """
    summary, held = codec.encode(snapshot.summary, "summary")
    plain = cast("dict[str, Any] | None", summary.get("dict"))
    if plain is None:
        raise CheckpointError("a summary is a dict whose keys are str")
    if held:
        raise CheckpointError(f"the summary holds a tensor, {min(held)}; it is plain data, and tensors go in sections")
    if summary_size(plain) > MOST_SUMMARY:
        raise CheckpointError(
            f"the summary comes to {summary_size(plain):,} bytes of JSON, and {MOST_SUMMARY:,} are stored at most; "
            "put what is long in a section"
        )
    sections: dict[str, Any] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in snapshot.sections.items():
        if not re.fullmatch(SECTION, name):
            raise CheckpointError(
                f"{name!r} names no section: that is a small letter, then small letters, digits and _"
            )
        sections[name], held = codec.encode(value, name)
        if held:
            found[name] = held
    state = write_json({"sections": sections})
    if len(state) > MOST_STATE:
        raise CheckpointError(
            f"what is no tensor comes to {len(state):,} bytes of JSON, and {MOST_STATE:,} are stored at most; "
            "long lists of numbers are better kept as tensors"
        )
    return Packed(plain, state, found)


def unpack(path: Path, manifest: Manifest, content: dict[str, bytes], wanted: Collection[str] | None) -> Snapshot:
    """Returns the snapshot that files, verified before, stand for.

    Args:
        path: The checkpoint's directory, for messages.
        manifest: Its manifest.
        content: Of the files by name; taken out as they are read, so that memory is not needed twice.
        wanted: The sections to return, those that there are; all if `None`.

    Raises:
        CheckpointError: If they stand for none. That is no damage, for the files are what was written.
    """
    try:
        state = _State.model_validate(read_json(content.pop(STATE)))
    except (DamagedError, ValidationError) as error:
        raise CheckpointError(f"{path / STATE} is not what a checkpoint of this format holds: {error}") from error
    stray = manifest.files.keys() - {STATE} - {f"{name}{SUFFIX}" for name in state.sections}
    if stray:
        raise CheckpointError(f"{path / min(stray)} belongs to no section of {STATE}")
    sections: dict[str, Any] = {}
    for name, plain in state.sections.items():
        if wanted is None or name in wanted:
            file = f"{name}{SUFFIX}"
            held = tensors.parse(content.pop(file), str(path / file)) if file in content else {}
            sections[name] = codec.decode(plain, held, f"{path / STATE}: {name}")
    return Snapshot(read_summary(path, manifest), sections)


def read_summary(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Returns the summary that a manifest holds."""
    return codec.decode({"dict": manifest.summary}, {}, f"{path / MANIFEST}: summary")
