"""`manifest.json`: which files a checkpoint is made of, with their sizes and digests, its tensors, and a summary.

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
from heptad.checkpoints.format_1 import FILE_OF_FORMAT_1, as_manifest_of_format_2
from heptad.checkpoints.layout import FORMAT, RANK, SECTION, STATE, rank_file
from heptad.checkpoints.strict_json import read_json
from heptad.errors import CheckpointError

MOST_MANIFEST = 1 << 25
"""Bytes: a longer manifest is neither written nor read. A tensor takes about 100 of them: this is room for 300,000."""

_FILE = rf"^(state\.json|{RANK}-[0-9]{{5}}\.json|{SECTION}-[0-9]{{5}}\.safetensors|{FILE_OF_FORMAT_1})$"


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
        world: How many ranks wrote it.
        summary: Plain data by name, encoded.
        files: By name, which has a fixed form, so that none leads out of the directory.
        tensors: By section, or by rank for what is a rank's own, and name; a line of text for each, see `pieces`.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Annotated[int, Field(ge=1)]
    created_by: dict[str, str]
    world: Annotated[int, Field(ge=1, lt=100_000)]
    summary: dict[str, Any]
    files: dict[Annotated[str, StringConstraints(pattern=_FILE)], FileFacts]
    tensors: dict[str, dict[str, str]]


def write_manifest(
    world: int, summary: dict[str, Any], files: dict[str, FileFacts], tensors: dict[str, dict[str, str]]
) -> bytes:
    """Return the content of the file; the arguments are the fields of `Manifest`.

    Raises:
        CheckpointError: If it would be longer than is read.
    """
    rest = {
        "format": FORMAT,
        "created_by": _versions(),
        "world": world,
        "summary": summary,
        "files": {name: facts.model_dump() for name, facts in files.items()},
        "tensors": tensors,
    }
    content = _sign(_canonical(rest))
    if len(content) > MOST_MANIFEST:
        number = sum(map(len, tensors.values()))
        raise CheckpointError(
            f"the manifest of {number:,} tensors comes to {len(content):,} bytes, and {MOST_MANIFEST:,} are stored at "
            "most; join tensors, or give them shorter names"
        )
    return content


def summary_size(summary: dict[str, Any]) -> int:
    """Return how many bytes a summary takes in a manifest."""
    return len(_canonical(summary))


def read_manifest(content: bytes) -> Manifest:
    """Return the manifest that a file holds; one of format 1 in the form of format 2.

    Raises:
        DamagedError: If it is not, byte for byte, what was written.
        NewerFormatError: If a later version wrote it. The digest is made in the same way in every version.
    """
    found = read_json(content)
    if not isinstance(found, dict):
        raise DamagedError("is not a JSON object")
    rest = cast("dict[str, Any]", found)
    digest = rest.pop("digest", None)
    plain = _canonical(rest)
    own = hashlib.sha256(plain).hexdigest()
    if digest != own:
        raise DamagedError(f"says that its digest is {digest!s:.80}, but it is {own}")
    if _sign(plain) != content:
        raise DamagedError("is not in the form in which it was written")
    if type(rest.get("format")) is int and rest["format"] > FORMAT:
        raise NewerFormatError(
            f"is of format {rest['format']}, written by {rest.get('created_by')!s:.200}; this version of Heptad reads "
            f"formats up to {FORMAT}: install a newer one"
        )
    try:
        manifest = Manifest.model_validate(as_manifest_of_format_2(rest) if rest.get("format") == 1 else rest)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"]))
        raise DamagedError(f"is not a manifest: {place}: {found['msg']}, got {found['input']!r:.100}") from error
    _check_files(manifest)
    return manifest


def _check_files(manifest: Manifest) -> None:
    """Check that the manifest lists the files without which there is no checkpoint, and those of its format alone."""
    if STATE not in manifest.files:
        raise DamagedError(f"is not a manifest: it lists no {STATE}")
    if manifest.format == 1:
        return
    of_ranks = [name for name in manifest.files if name != STATE and name.endswith(".json")]
    if len(of_ranks) != manifest.world or any(rank_file(rank) not in of_ranks for rank in range(manifest.world)):
        raise DamagedError(
            f"is not a manifest: {manifest.world} ranks wrote it, and it lists {len(of_ranks)} of their files"
        )
    if odd := [name for name in manifest.files if "-" not in name and name != STATE]:
        raise DamagedError(f"is not a manifest: it lists {odd[0]}, a name of format 1")


def _canonical(value: dict[str, Any]) -> bytes:
    """Return the one form of a manifest: ASCII, one value a line, keys in the order in which they are given."""
    return json.dumps(value, indent=1).encode() + b"\n"


def _sign(content: bytes) -> bytes:
    """Return a manifest in its one form with its digest as the last field, which it was written without."""
    return b'%s,\n "digest": "%s"\n}\n' % (content.removesuffix(b"\n}\n"), hashlib.sha256(content).hexdigest().encode())


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
