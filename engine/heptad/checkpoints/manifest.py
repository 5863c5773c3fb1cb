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

from heptad.checkpoints.damage import DamagedError, NewerFormatError
from heptad.checkpoints.layout import FORMAT, SECTION, STATE
from heptad.checkpoints.strict_json import read_json

MOST_MANIFEST = 1 << 20
"""Bytes: a longer manifest is not read."""


class FileFacts(BaseModel):
    """What a file holds.

    Attributes:
        size: Bytes.
        sha256: The digest of its content, in hexadecimal.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The manifest, without its own digest.

    Attributes:
        format: See `FORMAT`.
        created_by: The versions of what wrote it.
        summary: Plain data by name, encoded.
        files: By name, which has a fixed form, so that none leads out of the directory.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Annotated[int, Field(ge=1)]
    created_by: dict[str, str]
    summary: dict[str, Any]
    files: dict[Annotated[str, StringConstraints(pattern=rf"^(state\.json|{SECTION}\.safetensors)$")], FileFacts]


def write_manifest(summary: dict[str, Any], written: dict[str, FileFacts]) -> bytes:
    """Return the content of the file."""
    manifest = Manifest(format=FORMAT, created_by=_versions(), summary=summary, files=written)
    rest = manifest.model_dump()
    return _canonical({**rest, "digest": _digest(rest)})


def summary_size(summary: dict[str, Any]) -> int:
    """Return how many bytes a summary takes in a manifest."""
    return len(_canonical(summary))


def read_manifest(content: bytes) -> Manifest:
    """Return the manifest that a file holds.

    Raises:
        DamagedError: If it is not, byte for byte, what was written.
        NewerFormatError: If a later version wrote it. The digest is made in the same way in every version.
    """
    found = read_json(content)
    if not isinstance(found, dict):
        raise DamagedError("is not a JSON object")
    rest = cast("dict[str, Any]", found)
    if _canonical(rest) != content:
        raise DamagedError("is not in the form in which it was written")
    digest = rest.pop("digest", None)
    if digest != _digest(rest):
        raise DamagedError(f"says that its digest is {digest!s:.80}, but it is {_digest(rest)}")
    if type(rest.get("format")) is int and rest["format"] > FORMAT:
        raise NewerFormatError(
            f"is of format {rest['format']}, written by {rest.get('created_by')!s:.200}; this version of Heptad reads "
            f"formats up to {FORMAT}: install a newer one"
        )
    try:
        manifest = Manifest.model_validate(rest)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"]))
        raise DamagedError(f"is not a manifest: {place}: {found['msg']}, got {found['input']!r:.100}") from error
    if STATE not in manifest.files:
        raise DamagedError(f"is not a manifest: it lists no {STATE}")
    return manifest


def _canonical(value: dict[str, Any]) -> bytes:
    """Return the one form of a manifest: ASCII, one value a line, keys in the order in which they are given."""
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
