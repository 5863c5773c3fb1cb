"""Nested values as JSON and tensors, and back, exactly: what comes back has the types and the bits of what went in.

JSON holds None, truth values, text, lists, finite floats and whole numbers of 64 bits as they are. All else is an
object with one key that says what it is, dicts too (`{"dict": {…}}`), so that no dict of a user is taken for another
thing. Tensors are left aside under names that are the path to them, joined by dots.
"""

from __future__ import annotations

import base64
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from heptad.checkpoints.tensors import DTYPES, RESERVED
from heptad.errors import CheckpointError, kind

Path = tuple[Any, ...]
"""The keys that lead to a value."""

MOST_DEPTH = 100
"""How deep values may be nested."""

_BARE = "tensors"
"""A value that is a dict with this key, of tensors by name, stores them under those names, without the prefix."""

_LARGEST = 1 << 63
_KEYS = (str, int, bool, type(None), float, bytes)
_ARRAYS = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64"),
    )
}
_SCALARS = {**_ARRAYS, "complex128": np.dtype("complex128")}
_HOLDS = (
    "a checkpoint holds None, bool, int, float, str, bytes, list, tuple, dict, Counter, OrderedDict, tensors, and "
    "numbers and arrays of numpy"
)


def encode(value: Any, where: str) -> tuple[Any, dict[str, Tensor]]:
    """Returns a value as JSON, and the tensors in it by name: those of the value itself, detached, not copied.

    What is not kept: that two places hold the same object, `requires_grad`, and the device of a tensor. A tensor that
    is not dense (expanded, or every other row) comes back dense.

    Args:
        value: Nested plain data and tensors; nothing in it is changed.
        where: Names the value in an error, such as `plugins`.

    Raises:
        CheckpointError: If something in it cannot be stored; the message names the place.
    """
    encoder = _Encoder(value, where)
    return encoder.encode(value, ()), encoder.tensors


def decode(plain: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """Returns the value that `encode` was given.

    Args:
        plain: The JSON.
        tensors: By name.
        where: Names it in an error.

    Raises:
        CheckpointError: If this is nothing that `encode` returns.
    """
    return _Decoder(tensors, where).decode(plain, ())


class _Encoder:
    def __init__(self, value: Any, where: str) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._where = where
        self._bare = _bare(value)
        self._taken = {RESERVED} | {name for name in self._bare if name != RESERVED}

    def encode(self, value: Any, path: Path) -> Any:
        if _is_json(value):
            return value
        self._checked(path)
        encoder = self._kinds.get(cast("type[Any]", type(value)))
        if encoder is not None:
            return encoder(self, value, path)
        if isinstance(value, np.generic):
            return self._numpy(cast("np.generic[Any]", value), path)
        advice = "return plain data from state_dict, or leave it out"
        raise self._refusal(path, f"is a {kind(value)}, which a checkpoint cannot hold; {_HOLDS}: {advice}")

    def _checked(self, path: Path) -> Path:
        if len(path) > MOST_DEPTH:
            raise self._refusal(path, f"is nested deeper than {MOST_DEPTH}; does it hold itself?")
        return path

    def _refusal(self, path: Path, what: str) -> CheckpointError:
        return CheckpointError(f"{_where(self._where, path)} {what}")

    def _str(self, value: str, path: Path, what: str = "is the text") -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._refusal(path, f"{what} {value!a}, which is no valid Unicode (half a pair)") from None
        return value

    def _int(self, value: int, path: Path) -> Any:
        return {"int": hex(value)}

    def _float(self, value: float, path: Path) -> Any:
        return {"float": struct.pack(">d", value).hex()}

    def _bytes(self, value: bytes, path: Path) -> Any:
        return {"bytes": base64.b64encode(value).decode()}

    def _list(self, value: Iterable[Any], path: Path) -> list[Any]:
        return [item if _is_json(item) else self.encode(item, (*path, place)) for place, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], path: Path) -> Any:
        return {"tuple": self._list(value, path)}

    def _size(self, value: torch.Size, path: Path) -> Any:
        return {"size": list(value)}

    def _dict(self, value: dict[Any, Any], path: Path) -> Any:
        if all(type(key) is str for key in value):
            parts = ((self._str(key, path, "has the key"), item) for key, item in value.items())
            return {"dict": {key: self.encode(item, (*path, key)) for key, item in parts}}
        return {"items": self._items(value, path)}

    def _counter(self, value: Counter[Any], path: Path) -> Any:
        return {"Counter": self._items(value, path)}

    def _ordered(self, value: OrderedDict[Any, Any], path: Path) -> Any:
        return {"OrderedDict": self._items(value, path)}

    def _items(self, value: Mapping[Any, Any], path: Path) -> list[list[Any]]:
        return [[self._key(key, path), self.encode(item, (*path, key))] for key, item in value.items()]

    def _key(self, key: Any, path: Path) -> Any:
        if type(key) is tuple:
            inner = self._checked((*path, cast("Any", key)))
            return {"tuple": [self._key(part, inner) for part in cast("tuple[Any, ...]", key)]}
        if type(key) not in _KEYS:
            known = "str, int, bool, None, float, bytes or a tuple of these"
            raise self._refusal(
                path, f"has the key {_shown(key, repr)}, a {kind(key)}; a checkpoint keeps keys that are {known}"
            )
        return self.encode(key, path)

    def _dtype(self, value: torch.dtype, path: Path) -> Any:
        return {"dtype": str(value).removeprefix("torch.")}

    def _device(self, value: torch.device, path: Path) -> Any:
        return {"device": str(value)}

    def _numpy(self, value: np.generic, path: Path) -> Any:
        name = value.dtype.name
        if name not in _SCALARS:
            raise self._refusal(path, f"is a number of numpy's dtype {name}, which a checkpoint cannot hold")
        return {"numpy": [name, value.tobytes().hex()]}

    def _array(self, value: np.ndarray[Any, Any], path: Path) -> Any:
        name = value.dtype.name
        if name not in _ARRAYS or not value.dtype.isnative:
            raise self._refusal(path, f"is an array of dtype {value.dtype}, which a checkpoint cannot hold")
        if not value.flags.writeable or any(stride < 0 for stride in value.strides):
            value = value.copy(order="K")  # torch takes neither
        return {"array": self._tensor(torch.from_numpy(value), path)}

    def _tensor(self, value: Tensor, path: Path) -> Any:
        if value.layout is torch.sparse_coo and not value.is_meta:
            indices, values = value.detach()._indices(), value.detach()._values()
            parts = [self._tensor(indices, (*path, "indices")), self._tensor(values, (*path, "values"))]
            return {"sparse": [*parts, list(value.shape), value.is_coalesced()]}
        if odd := _odd(value):
            raise self._refusal(path, f"is a tensor that a checkpoint cannot hold: {odd}")
        name = self._name(path)
        self.tensors[name] = value.detach()
        stride = value.stride()
        if stride == _contiguous(value.shape):
            return {"tensor": name}
        return {"strided": [name, list(torch.empty_like(value, device="meta").stride())]}

    def _name(self, path: Path) -> str:
        if len(path) == 2 and path[0] == _BARE and path[1] in self._bare and path[1] != RESERVED:
            return path[1]
        name = base = ".".join(_shown(key, str) for key in path) or "value"
        number = 2
        while name in self._taken:
            name = f"{base}#{number}"
            number += 1
        self._taken.add(name)
        return name

    _kinds: ClassVar[dict[type[Any], Callable[[Any, Any, Path], Any]]] = {
        str: _str,
        int: _int,
        float: _float,
        bytes: _bytes,
        list: _list,
        tuple: _tuple,
        torch.Size: _size,
        dict: _dict,
        Counter: _counter,
        OrderedDict: _ordered,
        torch.dtype: _dtype,
        torch.device: _device,
        np.ndarray: _array,
        Tensor: _tensor,
        nn.Parameter: _tensor,
    }
    """By exact type: a subclass (a namedtuple, a defaultdict, an enum) would come back as another thing."""


def _is_json(value: Any) -> bool:
    """Tells whether JSON holds this value as it is; without lists, and text only where it is plainly valid."""
    exact = cast("type[Any]", type(value))
    if exact is int:
        return -_LARGEST <= value < _LARGEST
    if exact is float:
        return math.isfinite(value)
    return value.isascii() if exact is str else value is None or exact is bool


def _bare(value: Any) -> dict[str, Tensor]:
    """Returns the tensors that are stored without a prefix, by name."""
    if type(value) is not dict:
        return {}
    flat = cast("dict[Any, Any]", value).get(_BARE)
    if type(flat) is not dict:
        return {}
    items = cast("dict[Any, Any]", flat)
    plain = all(type(key) is str and isinstance(item, Tensor) for key, item in items.items())
    return {key: item for key, item in items.items() if item.layout is torch.strided} if plain else {}


def _odd(tensor: Tensor) -> str:
    """Returns why the format cannot hold a tensor, or nothing."""
    if tensor.is_meta:
        return "it is on the meta device and has no elements"
    if tensor.is_nested:
        return "it is nested"
    if tensor.layout is not torch.strided:
        return f"its layout is {str(tensor.layout).removeprefix('torch.')}"
    if tensor.dtype not in DTYPES:
        return f"the safetensors format has no dtype {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _contiguous(shape: Iterable[int]) -> tuple[int, ...]:
    """Returns the strides of a contiguous tensor, as torch makes them."""
    strides: list[int] = []
    step = 1
    for size in reversed(tuple(shape)):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _where(where: str, path: Path) -> str:
    return where + "".join(f"[{_shown(key, repr)}]" for key in path)


def _shown(key: Any, form: Callable[[Any], str]) -> str:
    try:
        return form(key)
    except ValueError:  # a whole number of more digits than the interpreter writes out
        return "…"


class _Decoder:
    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self._tensors = tensors
        self._where = where

    def decode(self, plain: Any, path: Path) -> Any:
        if isinstance(plain, list):
            return self._list(cast("list[Any]", plain), path)
        if not isinstance(plain, dict):
            return plain
        if len(path) > 2 * MOST_DEPTH:  # a key is a level here
            raise self._damage(path)
        items = cast("dict[str, Any]", plain)
        tag, given = next(iter(items.items()), ("", None))
        if len(items) != 1 or tag not in self._kinds:
            raise self._damage(path)
        try:
            return self._kinds[tag](self, given, path)
        except (TypeError, ValueError, KeyError, OverflowError, RuntimeError, AttributeError, struct.error) as error:
            raise self._damage(path) from error

    def _damage(self, path: Path) -> CheckpointError:
        return CheckpointError(f"{_where(self._where, path)} is nothing that a checkpoint of this format holds")

    def _list(self, plain: Any, path: Path) -> list[Any]:
        if not isinstance(plain, list) or len(path) > 2 * MOST_DEPTH:
            raise self._damage(path)
        items = cast("list[Any]", plain)
        return [self.decode(item, (*path, place)) for place, item in enumerate(items)]

    def _tuple(self, plain: Any, path: Path) -> tuple[Any, ...]:
        return tuple(self._list(plain, path))

    def _size(self, plain: Any, path: Path) -> torch.Size:
        return torch.Size(_whole(plain))

    def _int(self, plain: Any, path: Path) -> int:
        return int(plain, 16)

    def _float(self, plain: Any, path: Path) -> float:
        return struct.unpack(">d", bytes.fromhex(plain))[0]

    def _bytes(self, plain: Any, path: Path) -> bytes:
        return base64.b64decode(plain, validate=True)

    def _dict(self, plain: Any, path: Path) -> dict[str, Any]:
        return {key: self.decode(item, (*path, key)) for key, item in plain.items()}

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
        (found,) = np.frombuffer(bytes.fromhex(content), dtype=_SCALARS[name])
        return found

    def _array(self, plain: Any, path: Path) -> np.ndarray[Any, Any]:
        return self.decode(plain, path).numpy()

    def _tensor(self, plain: Any, path: Path) -> Tensor:
        return self._tensors[plain]

    def _strided(self, plain: Any, path: Path) -> Tensor:
        name, strides = plain
        tensor = self._tensors[name]
        if not _is_dense(tensor.shape, _whole(strides)):
            raise self._damage(path)
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)

    def _sparse(self, plain: Any, path: Path) -> Tensor:
        indices, values, size, coalesced = plain
        parts = self.decode(indices, (*path, "indices")), self.decode(values, (*path, "values"))
        return torch.sparse_coo_tensor(*parts, _whole(size), check_invariants=True, is_coalesced=bool(coalesced))

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


def _whole(plain: Any) -> list[int]:
    """Returns a list of whole numbers from 0 on."""
    if not isinstance(plain, list) or not all(type(item) is int and item >= 0 for item in cast("list[Any]", plain)):
        raise ValueError("a list of whole numbers is expected")
    return cast("list[int]", plain)


def _is_dense(shape: Iterable[int], strides: list[int]) -> bool:
    """Tells whether these strides need no more memory than the elements do, whatever their order."""
    sizes = tuple(shape)
    if len(strides) != len(sizes) or 0 in sizes:
        return len(strides) == len(sizes)
    step = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, sizes, strict=True) if size > 1):
        if stride != step:
            return False
        step *= size
    return True
