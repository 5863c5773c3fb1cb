"""Checkpoints of format 1, written before a run had ranks: read as format 2, in one place.

Format 1 is format 2 of one rank, but for three things: the manifest lists no tensors, so that the headers of the files
say which there are; a file of tensors has the name of its section alone; and what is a rank's own stands with all else
in `state.json`.
"""

from __future__ import annotations

from typing import Any

from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.layout import SECTION

FILE_OF_FORMAT_1 = rf"{SECTION}\.safetensors"
"""The form of the name of a file of tensors."""

OWN_OF_FORMAT_1 = b'{"own":[]}'
"""What the file of rank 0 would hold that is not a tensor."""

_FIELDS = {"format", "created_by", "summary", "files"}


def as_manifest_of_format_2(rest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the fields that came with format 2; the files keep their names.

    Raises:
        DamagedError: If it has fields that format 1 has not.
    """
    if odd := rest.keys() - _FIELDS:
        raise DamagedError(f"is not a manifest: {min(odd)}: format 1 has no such field")
    return {**rest, "world": 1, "tensors": {}}
