"""Reading small tensors out of the memory of this process: a number, integers, an array. This room knows no torch.

No operation of torch reads it, so nothing here can wait for a device. That a tensor lies on the host (`is_cpu`) is for
the callers to know: rooms that weigh, count and record.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS: dict[str, Any] = {
    "torch.float32": ctypes.c_float,
    "torch.float64": ctypes.c_double,
    "torch.int64": ctypes.c_int64,
    "torch.int32": ctypes.c_int32,
}
"""What lies in memory, by dtype."""


@cache
def _kind_in_memory(cls: type, dtype: object) -> Any:
    """Return what the numbers of a plain tensor are in memory; `None` of a subclass, whose memory is its own affair."""
    return _KINDS.get(str(dtype)) if (cls.__module__, cls.__name__) == ("torch", "Tensor") else None


@cache
def _bytes_at(size: int) -> Callable[[int], Any]:
    """Return what takes an address for that many bytes; kept, since to make the type takes longer than to read."""
    return (ctypes.c_char * size).from_address


def host_number(tensor: Any) -> float:
    """Return the number in a 0-dim tensor on the host."""
    kind = _kind_in_memory(tensor.__class__, tensor.dtype)
    if kind is None and tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4:
        tensor = tensor.float()  # halves, for which ctypes has no name
        kind = _kind_in_memory(tensor.__class__, tensor.dtype)
    if kind is None or tensor.is_neg():  # an imaginary part may be negated only when it is read
        return tensor.item()
    return kind.from_address(tensor.data_ptr()).value


def host_bytes(tensor: Any) -> bytes:
    """Return a copy of the memory of a contiguous int64 tensor on the host."""
    return _bytes_at(8 * tensor.numel())(tensor.data_ptr()).raw


def host_integers(memory: bytes) -> list[int]:
    """Return the numbers in what `host_bytes` returned."""
    return memoryview(memory).cast("q").tolist()


def host_array(tensor: Any) -> NDArray[np.int64]:
    """Return a contiguous int64 tensor on the host as a flat array on its memory, which it must not outlive."""
    return np.frombuffer(_bytes_at(8 * tensor.numel())(tensor.data_ptr()), np.int64)
