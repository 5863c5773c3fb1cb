"""Tensors on disk, in the safetensors format: written here, read by the safetensors library.

The library's own writer neither streams through `Files` nor hashes nor syncs; a test holds this one against its reader.
The format: 8 bytes with the length of the header, the header (JSON: dtype, shape and place of each tensor, by name,
padded with blanks), the bytes of all tensors one after the other, little-endian.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from safetensors.torch import load
from torch import Tensor

from heptad.errors import CheckpointError

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes that the format can hold and the library can read, with the format's names."""

RESERVED = "__metadata__"
"""A name that means something else in the header, so that no tensor can have it."""

_MOST_HEADER = 100_000_000
"""Bytes: the library reads no longer header."""

MOST_TENSORS = 1 << 18
"""Tensors in a file: an empty one takes 50 bytes there, and a kilobyte of memory."""

_ALIGNMENT = 64
"""Where the first tensor begins is a multiple of this; largest elements first keeps every tensor on its own size."""

_PIECE = 1 << 20
"""Bytes that are written at once at least: smaller tensors are joined."""


def pieces(
    tensors: Mapping[str, Tensor], where: str, metadata: Mapping[str, str] | None = None
) -> tuple[int, Iterator[memoryview]]:
    """Return the size of a file with these tensors, and its content piece by piece.

    A large tensor that is contiguous and on the CPU is not copied. Of others one copy is alive at a time, beside those
    that wait to be hashed.

    Args:
        tensors: By name; dense, each of a dtype in `DTYPES`.
        where: Names them in an error.
        metadata: What the header says of the whole file, for other readers.

    Raises:
        CheckpointError: If there are too many, their header is longer than the library reads, or this machine is not
            little-endian.
    """
    if sys.byteorder != "little":
        raise CheckpointError(f"{where}: this machine is {sys.byteorder}-endian, and checkpoints are not written on it")
    if len(tensors) > MOST_TENSORS:
        raise CheckpointError(
            f"{where} holds {len(tensors):,} tensors, and {MOST_TENSORS:,} are stored at most; join some"
        )
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, object] = {RESERVED: dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > _MOST_HEADER:
        raise CheckpointError(
            f"{where}: the names of {len(tensors):,} tensors come to {len(text):,} bytes, and the safetensors library "
            f"reads {_MOST_HEADER:,} at most; join tensors, or give them shorter names"
        )
    head = len(text).to_bytes(8, "little") + text
    return len(head) + end, _join_small(head, (tensor for _, tensor in ordered))


def _join_small(head: bytes, tensors: Iterator[Tensor]) -> Iterator[memoryview]:
    """Yield large tensors as they are, and small ones joined, so that a thousand biases are one system call."""
    waiting, size = [memoryview(head)], len(head)
    for tensor in tensors:
        view = _bytes_of(tensor)
        if len(view) < _PIECE:
            waiting.append(view)
            size += len(view)
        if waiting and (size >= _PIECE or len(view) >= _PIECE):
            yield memoryview(b"".join(waiting))
            waiting, size = [], 0
        if len(view) >= _PIECE:
            yield view
    if waiting:
        yield memoryview(b"".join(waiting))


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's elements in the order of its indices (a device sync, if it is not on the CPU)."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat = plain.as_strided(
        (plain.numel(),), (1,)
    )  # view() refuses the odd strides that a contiguous tensor of one element may have
    return memoryview(cast("Any", flat.view(torch.uint8).numpy()))


def parse(content: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors in the content of a file, by name, on the CPU and contiguous.

    Raises:
        CheckpointError: If it is not what the safetensors library reads.
    """
    found = content.count(b'"data_offsets"', 8, 8 + int.from_bytes(content[:8], "little"))
    if found > MOST_TENSORS:
        raise CheckpointError(f"{where} holds {found:,} tensors, and at most {MOST_TENSORS:,} are read")
    try:
        return load(content)
    except MemoryError:
        raise
    except Exception as error:  # the library raises errors of its own, KeyError, ValueError and RuntimeError
        raise CheckpointError(f"{where} is not a safetensors file: {error}") from error
