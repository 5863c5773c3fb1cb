"""`manifest.json`: which files a checkpoint is made of, with their sizes and digests, and a summary of the run.

It has one form, byte for byte, and holds the digest of the rest of itself, so that one flipped bit in it is found.
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, cast

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from heptad.checkpoints.files import Written
from heptad.errors import CheckpointError

FORMAT = 1
"""The version of what is on disk. A newer one is refused."""

MANIFEST = "manifest.json"
STATE = "state.json"
SUFFIX = ".safetensors"
SECTION = r"[a-z][a-z0-9_]{0,63}"

MOST_MANIFEST = 1 << 20
"""Bytes: a longer manifest is not read."""

MOST_SUMMARY = MOST_MANIFEST // 2
"""Bytes: a longer summary is not written."""

MOST_STATE = 1 << 28
"""Bytes: longer state is not written, and not read."""


class DamagedError(CheckpointError):
    """What a checkpoint holds is not what was written, or not all of it."""


class NewerFormatError(CheckpointError):
    """A sound checkpoint of a later version."""


class FileFacts(BaseModel):
    """What a file must come to."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The manifest, without its own digest.

    Attributes:
        format: See `FORMAT`.
        created_by: The versions of what wrote it.
        summary: Plain data by name, as the codec writes it.
        files: By name; a name is one of a fixed form, so that none leads out of the directory.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Annotated[int, Field(ge=1)]
    created_by: dict[str, str]
    summary: dict[str, Any]
    files: dict[Annotated[str, StringConstraints(pattern=rf"^(state\.json|{SECTION}\.safetensors)$")], FileFacts]


def write_manifest(summary: dict[str, Any], written: dict[str, Written]) -> bytes:
    """Returns the content of the file."""
    rest = {
        "format": FORMAT,
        "created_by": _versions(),
        "summary": summary,
        "files": {name: {"size": file.size, "sha256": file.sha256} for name, file in written.items()},
    }
    return _canonical({**rest, "digest": _digest(rest)})


def summary_size(summary: dict[str, Any]) -> int:
    """Returns how many bytes a summary takes in a manifest."""
    return len(_canonical(summary))


def read_manifest(content: bytes) -> Manifest:
    """Returns the manifest that a file holds.

    Raises:
        DamagedError: If it is not, byte for byte, what was written.
        NewerFormatError: If a later version wrote it. Its digest is made in the same way, in every version.
    """
    found = read_json(content)
    if not isinstance(found, dict):
        raise DamagedError("is no JSON object")
    rest = cast("dict[str, Any]", found)
    if _canonical(rest) != content:
        raise DamagedError("is not in the form in which it was written")
    digest = rest.pop("digest", None)
    if digest != _digest(rest):
        raise DamagedError(f"says that its digest is {digest}, but it is {_digest(rest)}")
    if type(rest.get("format")) is int and rest["format"] > FORMAT:
        raise NewerFormatError(
            f"is of format {rest['format']}, written by {rest.get('created_by')}; this version of Heptad reads formats "
            f"up to {FORMAT}: install a newer one"
        )
    try:
        manifest = Manifest.model_validate(rest)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"]))
        raise DamagedError(f"is no manifest: {place}: {found['msg']}, got {found['input']!r:.100}") from error
    if STATE not in manifest.files:
        raise DamagedError(f"is no manifest: it lists no {STATE}")
    return manifest


def write_json(value: Any) -> bytes:
    """Returns a value as JSON in ASCII; numbers that JSON has no form for are an error."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def read_json(content: bytes) -> Any:
    """Returns the value that JSON stands for.

    Raises:
        DamagedError: If it is none, holds a key twice or a number that JSON has no form for, or is nested too deep.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:  # text that is no UTF-8 is a ValueError too
        raise DamagedError(f"is no JSON that can be read: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _canonical(value: dict[str, Any]) -> bytes:
    """Returns the one form of a manifest: ASCII, one value a line, keys in the order in which they stand."""
    return json.dumps(value, indent=1).encode() + b"\n"


def _digest(rest: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(rest)).hexdigest()


def _versions() -> dict[str, str]:
    try:
        own = version("heptad")
    except PackageNotFoundError:  # run from its sources
        own = "unknown"
    return {
        "heptad": own,
        "torch": str(torch.__version__),
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
    }
