"""Tensors on disk, in the safetensors format: what is written of them, and what the header of a file says.

The library neither streams through `Files` nor hashes nor syncs, and its reader holds a file twice; tests hold writer
and reader against it. The format: 8 bytes with the length of the header, the header (JSON: dtype, shape and place of
each tensor, by name, padded with blanks), the bytes of all tensors one after the other, little-endian.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from heptad.checkpoints.damage import DamagedError
from heptad.checkpoints.strict_json import excess, read_json
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

DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}

RESERVED = "__metadata__"
"""A name that means something else in the header, so that no tensor can have it."""

_MOST_HEADER = 100_000_000
"""Bytes: the library reads no longer header."""

MOST_DIMENSIONS = 64
"""Those that a tensor of torch can have."""

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
    if too_much := excess(text):
        raise CheckpointError(f"{where}: the names of its tensors are too much: {too_much}; give them shorter names")
    head = len(text).to_bytes(8, "little") + text
    return len(head) + end, _join_small(head, (tensor for _, tensor in ordered))


def _join_small(head: bytes, tensors: Iterator[Tensor]) -> Iterator[memoryview]:
    """Yield large tensors as they are, and small ones joined, so that a thousand biases are one system call."""
    waiting, size = [memoryview(head)], len(head)
    for tensor in tensors:
        view = bytes_of(tensor)
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


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's elements in the order of its indices (a device sync, if it is not on the CPU)."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat = plain.as_strided(
        (plain.numel(),), (1,)
    )  # view() refuses the odd strides that a contiguous tensor of one element may have
    return memoryview(cast("Any", flat.view(torch.uint8).numpy()))


class Extent(NamedTuple):
    """What a header says of a tensor.

    Attributes:
        dtype: By the format's name.
        shape: Its shape.
        start: Where its bytes begin, behind the header.
        end: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_size(start: bytes, size: int, where: str) -> int:
    """Return the length of the header of a file of some size, from its first 8 bytes.

    Raises:
        CheckpointError: If there is no such file.
    """
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _MOST_HEADER):
        what = f"its header of {length:,} bytes is longer than {min(max(size - 8, 0), _MOST_HEADER):,}"
        raise _no_file(where, what if len(start) == 8 else f"it holds {len(start)} bytes")
    return length


def read_header(text: bytes, size: int, where: str) -> dict[str, Extent]:
    """Return what a header says, by name, in the order in which the tensors lie in the file.

    Args:
        text: The header.
        size: Bytes behind it.
        where: Names the file in an error.

    Raises:
        CheckpointError: If it is not one that the library reads, or has what no writer of checkpoints writes: a name or
            field twice, other fields, a dtype that is not in `DTYPES`.
    """
    if (found := text.count(b'"data_offsets"')) > MOST_TENSORS:
        raise CheckpointError(f"{where} holds {found:,} tensors, and at most {MOST_TENSORS:,} are read")
    try:
        if not text.startswith(b"{"):
            raise ValueError("its header does not begin with a brace")
        plain = cast("dict[str, Any]", read_json(text))
        _check_metadata(plain.pop(RESERVED, {}))
        held = sorted(((name, _extent(name, facts)) for name, facts in plain.items()), key=lambda one: one[1][2:])
        end = 0
        for name, one in held:
            if one.start != end:
                raise ValueError(f"{name!r:.100} begins at {one.start}, and what is before it ends at {end}")
            end = one.end
        if end != size:
            raise ValueError(f"its tensors end at {end}, and the file at {size}")
    except (DamagedError, ValueError) as error:
        raise _no_file(where, error) from error
    return dict(held)


def _check_metadata(found: Any) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{RESERVED} is not an object")
    for text in (*cast("dict[str, Any]", found), *cast("dict[str, Any]", found).values()):
        if type(text) is not str:
            raise ValueError(f"{RESERVED} holds something else than texts")
        text.encode()


def _extent(name: str, facts: Any) -> Extent:
    name.encode()  # half a surrogate pair is a ValueError
    match facts:
        case {"dtype": str(dtype), "shape": list(), "data_offsets": [int(start), int(end)]} if len(facts) == 3:
            sizes: list[Any] = facts["shape"]
        case _:
            raise ValueError(f"{name!r:.100} has other fields than dtype, shape and data_offsets")
    if dtype not in DTYPES_BY_NAME:
        raise ValueError(f"{name!r:.100} has the dtype {dtype!r:.100}, which is not known")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*sizes, start, end)):
        raise ValueError(f"{name!r:.100} has a size or an offset that is no whole number from 0 to 2^63 - 1")
    width = DTYPES_BY_NAME[dtype].itemsize
    if len(sizes) > MOST_DIMENSIONS or math.prod(max(size, 1) for size in sizes) * width >= 1 << 63:
        raise ValueError(f"{name!r:.100} has the shape {sizes!r:.100}, which no tensor has")
    if end - start != math.prod(sizes) * width:
        raise ValueError(f"{name!r:.100}, {dtype} {sizes!r:.100}, has {end - start} bytes")
    return Extent(dtype, tuple(sizes), start, end)


def _no_file(where: str, what: object) -> CheckpointError:
    return CheckpointError(f"{where} is not a safetensors file: {what}")


def parse(content: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors in the content of a file, by name, on the CPU and contiguous.

    Raises:
        CheckpointError: As `read_header`.
    """
    begin = 8 + header_size(content[:8], len(content), where)
    found: dict[str, Tensor] = {}
    for name, one in read_header(content[8:begin], len(content) - begin, where).items():
        found[name] = tensor = torch.empty(one.shape, dtype=DTYPES_BY_NAME[one.dtype])
        bytes_of(tensor)[:] = content[begin + one.start : begin + one.end]
    return found
