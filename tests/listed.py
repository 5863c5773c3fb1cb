"""What a manifest says of the tensors of a file, worked out from its header by itself."""

from __future__ import annotations

import json


def group_of(name: str) -> str:
    """Return the section, or the rank, whose tensors are in a file."""
    file = name.removesuffix(".safetensors")
    return file if file.startswith("rank-") else file.rpartition("-")[0]


def listing(name: str, content: bytes) -> dict[str, str] | None:
    """Return the tensors of a file as the manifest lists them; `None` where it has none."""
    file = name.removesuffix(".safetensors")
    if file == name:
        return None
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return {
            key: f"{facts['dtype']}[{','.join(map(str, facts['shape']))}] "
            f"{file}[{','.join(f'0:{size}' for size in facts['shape'])}]"
            for key, facts in header.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
