"""What the file of a W&B run holds, which a process before this one has written.

The client writes each run to a file, online too. It is a log as LevelDB has it: a head of 7 bytes, then blocks of 32
KiB with parts of records, each with a checksum, its length and its place in the record.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

_HEAD, _BLOCK, _PART = 7, 32 * 1024, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4


def rows_in(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of values in a file, each with its step, without W&B's own values, whose names begin with `_`."""
    from wandb.proto import wandb_internal_pb2

    message: Any = cast("Any", wandb_internal_pb2).Record
    for content in records_in(path.read_bytes()):
        record = message()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            named = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            values = {name: json.loads(text) for name, text in named.items() if not name.startswith("_")}
            yield int(record.history.step.num), values


def records_in(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file, up to one that a killed process has not finished."""
    at, record = _HEAD, b""
    while at + _PART <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < _PART:  # what is left of a block is empty
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        part = content[at + _PART : at + _PART + length]
        if not kind or len(part) < length:
            return
        at += _PART + length
        record = part if kind in (_WHOLE, _FIRST) else record + part
        if kind in (_WHOLE, _LAST):
            yield record
