"""`encode`: nested values as JSON and tensors. What `decode` returns has the types and the bits of what was encoded.

JSON holds None, bools, text, lists, finite floats and integers of 64 bits as they are. All else is an object with one
key that names its kind, dicts too (`{"dict": {…}}`), so that no dict of a user is mistaken for another kind. Tensors
are kept apart, each under the path to it, joined by dots.
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
from heptad.errors import CheckpointError, a_kind
from heptad.run.shards import NoShards, Part, Shards

Path = tuple[Any, ...]
"""The keys that lead to a value."""

MOST_DEPTH = 100
"""How deep values may be nested."""

ALL_WHOLE: Shards = NoShards()
"""Nothing is shared."""

_UNPREFIXED = "tensors"
"""A value that is a dict with this key, of tensors by name, stores them under those names, without the prefix."""

_INT64 = 1 << 63
_KEYS = (str, int, bool, type(None), float, bytes)
NUMPY_ARRAYS = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64"),
    )
}
NUMPY_SCALARS = {**NUMPY_ARRAYS, "complex128": np.dtype("complex128")}
_KINDS_HELD = (
    "a checkpoint holds None, bool, int, float, str, bytes, list, tuple, dict, Counter, OrderedDict, tensors, and "
    "numbers and arrays of numpy"
)


def encode(value: Any, where: str) -> tuple[Any, dict[str, Tensor]]:
    """Return a value as JSON, and the tensors in it by name: those of the value itself, detached, not copied.

    Not kept: that two places hold the same object, `requires_grad`, and the device of a tensor. A tensor that
    is not dense (expanded, or every other row) comes back dense.

    Args:
        value: Nested plain data and tensors; nothing in it is changed.
        where: Names the value in an error, such as `plugins`.

    Raises:
        CheckpointError: If something in it cannot be stored; the message names the place.
    """
    encoder = ValueEncoder(value, where)
    return encoder.encode(value, ()), encoder.tensors


class ValueEncoder:
    """Encodes one value, and collects its tensors, whose names begin with a prefix.

    Attributes:
        tensors: Those that this process holds whole, by name.
        parts: What it holds of those that ranks share, by name. They are encoded as if they were whole and contiguous.
    """

    def __init__(self, value: Any, where: str, prefix: str = "", shards: Shards = ALL_WHOLE) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.parts: dict[str, Part] = {}
        self._where = where
        self._shards = shards
        self._prefix = prefix
        self._unprefixed = _unprefixed(value)
        self._taken = {RESERVED} | {name for name in self._unprefixed if name != RESERVED}

    def encode(self, value: Any, path: Path) -> Any:
        """Return a value as JSON; the path leads to it."""
        if _is_json(value):
            return value
        self._checked(path)
        encoder = self._kinds.get(cast("type[Any]", type(value)))
        if encoder is not None:
            return encoder(self, value, path)
        if isinstance(value, np.generic):
            return self._numpy(cast("np.generic[Any]", value), path)
        if isinstance(value, Tensor) and (part := self._part_of(value, path)) is not None:
            return self._part(part, path)
        advice = "return plain data from state_dict, or leave it out"
        raise self._refusal(path, f"is {a_kind(value)}, which a checkpoint cannot hold; {_KINDS_HELD}: {advice}")

    def _checked(self, path: Path) -> Path:
        if len(path) > MOST_DEPTH:
            raise self._refusal(path, f"is nested deeper than {MOST_DEPTH}; does it hold itself?")
        return path

    def _refusal(self, path: Path, what: str) -> CheckpointError:
        return CheckpointError(f"{location(self._where, path)} {what}")

    def _str(self, value: str, path: Path, what: str = "is the text") -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._refusal(path, f"{what} {value!a}, which is not valid Unicode (half a surrogate pair)") from None
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
                path, f"has the key {_key_text(key, repr)}, {a_kind(key)}; a checkpoint keeps keys that are {known}"
            )
        return self.encode(key, path)

    def _dtype(self, value: torch.dtype, path: Path) -> Any:
        return {"dtype": str(value).removeprefix("torch.")}

    def _device(self, value: torch.device, path: Path) -> Any:
        return {"device": str(value)}

    def _numpy(self, value: np.generic, path: Path) -> Any:
        name = value.dtype.name
        if name not in NUMPY_SCALARS:
            raise self._refusal(path, f"is a number of numpy's dtype {name}, which a checkpoint cannot hold")
        return {"numpy": [name, value.tobytes().hex()]}

    def _array(self, value: np.ndarray[Any, Any], path: Path) -> Any:
        name = value.dtype.name
        if name not in NUMPY_ARRAYS or not value.dtype.isnative:
            raise self._refusal(path, f"is an array of dtype {value.dtype}, which a checkpoint cannot hold")
        if not value.flags.writeable or any(stride < 0 for stride in value.strides):
            value = value.copy(order="K")  # torch refuses both
        return {"array": self._tensor(torch.from_numpy(value), path)}

    def _part_of(self, value: Tensor, path: Path) -> Part | None:
        try:
            return self._shards.part(value)
        except CheckpointError as error:
            raise self._refusal(path, f"is a tensor that a checkpoint cannot hold: {error}") from error

    def _part(self, part: Part, path: Path) -> Any:
        if odd := refused_tensor(part.local):
            raise self._refusal(path, f"is a tensor that a checkpoint cannot hold: {odd}")
        name = self._name(path)
        self.parts[name] = Part(part.local.detach(), part.offset, part.shape)
        return {"tensor": name}

    def _tensor(self, value: Tensor, path: Path) -> Any:
        if value.layout is torch.sparse_coo and not value.is_meta:
            indices, values = value.detach()._indices(), value.detach()._values()
            parts = [self._tensor(indices, (*path, "indices")), self._tensor(values, (*path, "values"))]
            return {"sparse": [*parts, list(value.shape), value.is_coalesced()]}
        if odd := refused_tensor(value):
            raise self._refusal(path, f"is a tensor that a checkpoint cannot hold: {odd}")
        name = self._name(path)
        self.tensors[name] = value.detach()
        stride = value.stride()
        if stride == _contiguous_strides(value.shape):
            return {"tensor": name}
        return {"strided": [name, list(torch.empty_like(value, device="meta").stride())]}

    def _name(self, path: Path) -> str:
        if len(path) == 2 and path[0] == _UNPREFIXED and path[1] in self._unprefixed and path[1] != RESERVED:
            return path[1]
        name = base = self._prefix + (".".join(_key_text(key, str) for key in path) or "value")
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
    """Return whether JSON holds this value as it is: no list, and of text only ASCII, which is certainly valid."""
    exact = cast("type[Any]", type(value))
    if exact is int:
        return -_INT64 <= value < _INT64
    if exact is float:
        return math.isfinite(value)
    return value.isascii() if exact is str else value is None or exact is bool


def _unprefixed(value: Any) -> dict[str, Tensor]:
    """Return the tensors that are stored without a prefix, by name."""
    if type(value) is not dict:
        return {}
    flat = cast("dict[Any, Any]", value).get(_UNPREFIXED)
    if type(flat) is not dict:
        return {}
    items = cast("dict[Any, Any]", flat)
    plain = all(type(key) is str and isinstance(item, Tensor) for key, item in items.items())
    return {key: item for key, item in items.items() if item.layout is torch.strided} if plain else {}


def refused_tensor(tensor: Tensor) -> str:
    """Return why the format cannot hold a tensor, or nothing."""
    if tensor.is_meta:
        return "it is on the meta device and has no elements"
    if tensor.is_nested:
        return "it is nested"
    if tensor.layout is not torch.strided:
        return f"its layout is {str(tensor.layout).removeprefix('torch.')}"
    if tensor.dtype not in DTYPES:
        return f"the safetensors format has no dtype {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _contiguous_strides(shape: Iterable[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, as torch makes them."""
    strides: list[int] = []
    step = 1
    for size in reversed(tuple(shape)):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def location(where: str, path: Path) -> str:
    """Return the place of a value as Python writes it, such as `plugins['EMA']['state']`."""
    return where + "".join(f"[{_key_text(key, repr)}]" for key in path)


def _key_text(key: Any, form: Callable[[Any], str]) -> str:
    try:
        return form(key)
    except ValueError:  # an int of more digits than the interpreter converts
        return "…"
