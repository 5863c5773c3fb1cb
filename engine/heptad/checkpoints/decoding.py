"""`decode`: the value that `encode` was given, from JSON and tensors. Nothing is executed on the way."""

from __future__ import annotations

import base64
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from heptad.checkpoints.encoding import MOST_DEPTH, NUMPY_SCALARS, Path, location
from heptad.errors import CheckpointError


def decode(plain: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """Return the value that `encode` was given.

    Args:
        plain: The JSON.
        tensors: By name; taken out as they are put into the value.
        where: Names it in an error.

    Raises:
        CheckpointError: If `encode` never returns this.
    """
    return ValueDecoder(tensors, where).decode(plain, ())


class ValueDecoder:
    """Decodes one value.

    Args:
        tensors: By name; taken out as they are put into the value, so that none is held in two forms for long.
        where: Names the value in an error.
    """

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self._tensors = tensors
        self._where = where

    def decode(self, plain: Any, path: Path) -> Any:
        """Return the value of JSON; the path leads to it."""
        if isinstance(plain, list):
            return self._list(cast("list[Any]", plain), path)
        if not isinstance(plain, dict):
            return self._text(plain, path) if type(plain) is str else plain
        if len(path) > 2 * MOST_DEPTH:  # a key is a level of its own here
            raise self._damage(path)
        items = cast("dict[str, Any]", plain)
        tag, given = next(iter(items.items()), ("", None))
        if len(items) != 1 or tag not in self._kinds:
            raise self._damage(path)
        try:
            return self._kinds[tag](self, given, path)
        except (
            TypeError,
            ValueError,
            KeyError,
            OverflowError,
            RuntimeError,
            AttributeError,
            struct.error,
            IndexError,
        ) as error:
            raise self._damage(path) from error

    def _damage(self, path: Path) -> CheckpointError:
        return CheckpointError(f"{location(self._where, path)} is not a value of this format")

    def _list(self, plain: Any, path: Path) -> list[Any]:
        if not isinstance(plain, list) or len(path) > 2 * MOST_DEPTH:
            raise self._damage(path)
        items = cast("list[Any]", plain)
        # numbers without a call: there may be millions of them
        return [
            item if type(item) in _NUMBERS else self.decode(item, (*path, place)) for place, item in enumerate(items)
        ]

    def _text(self, plain: str, path: Path) -> str:
        """Return a text: half a surrogate pair, which no file takes, was never stored."""
        if not plain.isascii():
            try:
                plain.encode()
            except UnicodeEncodeError:
                raise self._damage(path) from None
        return plain

    def _tuple(self, plain: Any, path: Path) -> tuple[Any, ...]:
        return tuple(self._list(plain, path))

    def _size(self, plain: Any, path: Path) -> torch.Size:
        return torch.Size(_check_sizes(plain))

    def _int(self, plain: Any, path: Path) -> int:
        return int(plain, 16)

    def _float(self, plain: Any, path: Path) -> float:
        return struct.unpack(">d", bytes.fromhex(plain))[0]

    def _bytes(self, plain: Any, path: Path) -> bytes:
        return base64.b64decode(plain, validate=True)

    def _dict(self, plain: Any, path: Path) -> dict[str, Any]:
        return {self._text(key, path): self.decode(item, (*path, key)) for key, item in plain.items()}

    def _items(self, plain: Any, path: Path) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for number, (name, item) in enumerate(plain):
            key = self.decode(name, (*path, number))
            found[key] = self.decode(item, (*path, key))
        return found

    def _counter(self, plain: Any, path: Path) -> Counter[Any]:
        return Counter(self._items(plain, path))

    def _ordered(self, plain: Any, path: Path) -> OrderedDict[Any, Any]:
        return OrderedDict(self._items(plain, path))

    def _dtype(self, plain: Any, path: Path) -> torch.dtype:
        found = getattr(torch, plain)
        if not isinstance(found, torch.dtype):
            raise self._damage(path)
        return found

    def _device(self, plain: Any, path: Path) -> torch.device:
        return torch.device(plain)

    def _numpy(self, plain: Any, path: Path) -> np.generic:
        name, content = plain
        (found,) = np.frombuffer(bytes.fromhex(content), dtype=NUMPY_SCALARS[name])
        return found

    def _array(self, plain: Any, path: Path) -> np.ndarray[Any, Any]:
        found = self.decode(plain, path)
        if type(found) is not Tensor:
            raise self._damage(path)
        return found.numpy()

    def _tensor(self, plain: Any, path: Path) -> Tensor:
        # taken out: two places that hold one tensor would change together; and copies would have no end
        return self._tensors.pop(plain)

    def _strided(self, plain: Any, path: Path) -> Tensor:
        name, strides = plain
        tensor = self._tensor(name, path)
        if not _is_packed(tensor.shape, _check_sizes(strides)):
            raise self._damage(path)
        if type(tensor) is not Tensor:  # ranks share it, and what each has is contiguous
            return tensor
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)

    def _sparse(self, plain: Any, path: Path) -> Tensor:
        indices, values, size, coalesced = plain
        parts = self.decode(indices, (*path, "indices")), self.decode(values, (*path, "values"))
        return torch.sparse_coo_tensor(*parts, _check_sizes(size), check_invariants=True, is_coalesced=bool(coalesced))

    _kinds: ClassVar[dict[str, Callable[[Any, Any, Path], Any]]] = {
        "int": _int,
        "float": _float,
        "bytes": _bytes,
        "tuple": _tuple,
        "size": _size,
        "dict": _dict,
        "items": _items,
        "Counter": _counter,
        "OrderedDict": _ordered,
        "dtype": _dtype,
        "device": _device,
        "numpy": _numpy,
        "array": _array,
        "tensor": _tensor,
        "strided": _strided,
        "sparse": _sparse,
    }


_NUMBERS = (int, float, bool, type(None))


def _check_sizes(plain: Any) -> list[int]:
    """Return a list of integers from 0 on."""
    if not isinstance(plain, list) or not all(type(item) is int and item >= 0 for item in cast("list[Any]", plain)):
        raise ValueError("a list of integers from 0 on is expected")
    return cast("list[int]", plain)


def _is_packed(shape: Iterable[int], strides: list[int]) -> bool:
    """Return whether these strides need no more memory than the elements do, in any order of dimensions."""
    sizes = tuple(shape)
    if len(strides) != len(sizes) or 0 in sizes:
        return len(strides) == len(sizes)
    step = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, sizes, strict=True) if size > 1):
        if stride != step:
            return False
        step *= size
    return True
