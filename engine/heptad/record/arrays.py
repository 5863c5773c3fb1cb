"""Arrays as text: in NumPy's `.npy` format, deflated, as base64."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from io import BytesIO
from typing import Any, cast

import numpy as np

from heptad.errors import EngineError, is_tensor_class, kind


def pack_array(name: str, value: Any) -> str:
    """Return an array, or a tensor (waits for its device), as text.

    Args:
        name: What it is recorded under, for the message.
        value: The array.

    Raises:
        EngineError: If it is no array of numbers.
    """
    array = value
    if is_tensor_class(value.__class__):
        tensor = value.detach().cpu()
        # numpy knows no bfloat16; float32 holds both kinds of halves exactly
        array = (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        raise EngineError(f"record_array({name!r}, …) takes an array or a tensor of numbers, got a {kind(value)}")
    file = BytesIO()
    np.save(file, cast("np.ndarray[Any, Any]", array), allow_pickle=False)
    return b64encode(zlib.compress(file.getvalue(), level=1)).decode("ascii")


def unpack_array(text: str) -> np.ndarray[Any, Any]:
    """Return the array that `pack_array` was given.

    Raises:
        ValueError: If the text is not that of an array.
    """
    try:
        return np.load(BytesIO(zlib.decompress(b64decode(text, validate=True))), allow_pickle=False)
    except zlib.error as error:
        raise ValueError(f"the text of an array is damaged: {error}") from None
