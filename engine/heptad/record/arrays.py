"""Arrays as text: in NumPy's `.npy` format, deflated, as base64."""

from __future__ import annotations

import math
import zlib
from base64 import b64decode, b64encode
from io import BytesIO
from typing import Any, cast

import numpy as np

from heptad.errors import EngineError, is_tensor_class, kind

MOST_BYTES = 1 << 26
"""Of an array in a log: deflated text can stand for a thousand times as many."""

_KINDS = "biufc"
"""Of numbers: booleans, integers, floating-point and complex ones."""


def pack_array(name: str, value: Any) -> str:
    """Return an array, or a tensor (waits for its device), as text.

    Args:
        name: What it is recorded under, for the message.
        value: The array.

    Raises:
        EngineError: If it is no array of numbers, or too large for a log.
    """
    array = value
    if is_tensor_class(value.__class__):
        tensor = value.detach().cpu()
        # numpy knows no bfloat16; float32 holds both kinds of halves exactly
        array = (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        raise EngineError(f"record_array({name!r}, …) takes an array or a tensor of numbers, got a {kind(value)}")
    if array.nbytes > MOST_BYTES - 128:  # the header
        raise EngineError(f"record_array({name!r}, …) takes at most {MOST_BYTES:,} bytes, got {array.nbytes:,}")
    file = BytesIO()
    np.save(file, cast("np.ndarray[Any, Any]", array), allow_pickle=False)
    return b64encode(zlib.compress(file.getvalue(), level=1)).decode("ascii")


def unpack_array(text: str) -> np.ndarray[Any, Any]:
    """Return the array that `pack_array` was given.

    Raises:
        ValueError: If the text is not that of an array.
    """
    try:
        packed = b64decode(text, validate=True)
        content = zlib.decompressobj().decompress(packed, MOST_BYTES + 1)
        file = BytesIO(content)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if math.prod(shape) * dtype.itemsize != len(content) - file.tell() or dtype.kind not in _KINDS:
            raise ValueError(f"the text of an array of shape {shape} holds {len(content)} bytes")
        return np.load(BytesIO(content), allow_pickle=False)
    except (zlib.error, EOFError, TypeError) as error:
        raise ValueError(f"the text of an array is damaged: {error}") from None
