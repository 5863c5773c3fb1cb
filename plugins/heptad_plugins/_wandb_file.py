"""What the files of a W&B run hold: which values were written to them, by processes before this one.

The client writes each run to a file, online too. It is a log as LevelDB has it: a head of 7 bytes, then blocks of 32
KiB with parts of records, each with a checksum, its length and its place in the record.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

AXIS = "update"
"""The name of the value that others are drawn over."""

_HEAD, _BLOCK, _PART = 7, 32 * 1024, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4


def written_rows(path: Path) -> tuple[Counter[tuple[str, int]], int]:
    """Return how many values of each name and update a file holds, and the number of the row after its last one."""
    from wandb.proto import wandb_internal_pb2

    message: Any = cast("Any", wandb_internal_pb2).Record
    there: Counter[tuple[str, int]] = Counter()
    end = 0
    for record in records_in(path.read_bytes()):
        made = message()
        made.ParseFromString(record)
        if made.WhichOneof("record_type") != "history":
            continue
        end = max(end, int(made.history.step.num) + 1)
        row: dict[str, str] = {item.key or item.nested_key[0]: item.value_json for item in made.history.item}
        if AXIS in row:
            update = int(json.loads(row[AXIS]))
            there.update((name, update) for name in row if name != AXIS and not name.startswith("_"))
    return there, end


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
