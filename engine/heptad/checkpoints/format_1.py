"""Checkpoints of format 1, written before a run had ranks: read as format 2, in one place.

The reader calls it, once for the manifest and once for the files when they are verified. Format 1 is format 2 of one
rank, but for three things: the manifest lists no tensors, a file of tensors has the name of its section alone, and what
is a rank's own stands with all else in `state.json`.
"""

from __future__ import annotations

from typing import Any

from heptad.checkpoints import tensors
from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.layout import SECTION, SUFFIX, part_name, rank_file
from heptad.checkpoints.pieces import format_facts, whole_facts

FILE_OF_FORMAT_1 = rf"{SECTION}\.safetensors"
"""The form of the name of a file of tensors."""

_FIELDS = {"format", "created_by", "summary", "files"}


def as_manifest_of_format_2(rest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the fields that came with format 2; the files keep their names.

    Raises:
        DamagedError: If it has fields that format 1 has not.
    """
    if odd := rest.keys() - _FIELDS:
        raise DamagedError(f"is not a manifest: {min(odd)}: format 1 has no such field")
    return {**rest, "world": 1, "tensors": {}}


def as_files_of_format_2(content: dict[str, bytes], where: str) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
    """Return the content of verified files by the names of format 2, and what its manifest lists.

    Raises:
        CheckpointError: If one is not a safetensors file.
    """
    files: dict[str, bytes] = {}
    listed: dict[str, dict[str, str]] = {}
    for name, held in content.items():
        file = as_file_of_format_2(name)
        files[file] = held
        if file != name:
            found = tensors.parse(held, f"{where}/{name}")
            of_file = file.removesuffix(SUFFIX)
            listed[name.removesuffix(SUFFIX)] = {
                key: format_facts(whole_facts(tensor, of_file)) for key, tensor in found.items()
            }
    return {**files, rank_file(0): b'{"own":[]}'}, listed


def as_file_of_format_2(name: str) -> str:
    """Return the name that a file has in format 2."""
    section = name.removesuffix(SUFFIX)
    return name if section == name else part_name(section, 0) + SUFFIX
