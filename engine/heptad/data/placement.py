"""Placing batches on a device, and counting the samples in one."""

from __future__ import annotations

import dataclasses
import inspect
from collections import UserDict, deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from copy import copy
from functools import cache
from types import SimpleNamespace
from typing import Any, Protocol, cast

import torch
from torch.utils import _pytree as pytree  # torch has no public name for it

from heptad.errors import ConfigError, DataError, a_kind, add_note


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device of that name; `"auto"` is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: If this machine has no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    device = torch.device(name)
    if not _is_here(device):
        raise ConfigError(
            f"RunConfig.device is '{name}', but torch sees {_accelerators()} here; use 'auto' or 'cpu'"
            + (", or one of these" if torch.accelerator.is_available() else "")
        )
    return device


def _is_here(device: torch.device) -> bool:
    try:
        module: Any = torch.get_device_module(device.type)
    except RuntimeError:
        module = None
    if device.type != "cpu" and hasattr(module, "device_count"):
        return (device.index or 0) < module.device_count()  # only counted: to open a context would take memory
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):  # torch raises any of these for a device that is absent
        return False
    return True


def _accelerators() -> str:
    """Return the names of the accelerators of this machine."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return "no accelerator"
    return ", ".join(f"'{found.type}:{index}'" for index in range(torch.accelerator.device_count()))


class Movement(Protocol):
    """What becomes of the tensors of a batch, and of objects in it that move themselves.

    Attributes:
        device: Where they go, for messages.
    """

    device: torch.device

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor that takes the place of one."""
        ...

    def ask(self, value: Any) -> Any:
        """Return what takes the place of an object that has a method `to`."""
        ...


class Placement:
    """Places batches on a device, on its current stream; copies from pinned memory need no device sync."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, batch: Any) -> Any:
        """Return the batch on the device."""
        return rebuild(batch, self)

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor on the device."""
        return tensor.to(self.device, non_blocking=True)

    def ask(self, value: Any) -> Any:
        """Let an object move itself; one that can is asked not to wait."""
        return value.to(self.device, **_options_of_to(cast("Any", type(value))))  # pyright: ignore[reportUnknownArgumentType] - the type of a user's own


def place(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor in it on `device`; containers keep their kind, all else stays as it is.

    An object that has a method `to` is asked to move itself, but for dicts and those of Hugging Face (`BatchEncoding`),
    whose own moves what lies deeper not at all. Of a dataclass, or an object of attrs or pydantic, the fields are
    moved, in a copy; a class that is registered with torch's pytree is taken apart and put together by that.

    Raises:
        DataError: For an object that holds tensors and cannot be moved.
        Exception: What moving a part raised, unchanged but for a note that names the part.
    """
    return rebuild(batch, Placement(device))


Path = tuple["Path", str] | None
"""Where in a batch a part lies: the path of what it is in, and the last step; put into words only for a message."""

_PLAIN = frozenset((type(None), str, bytes, int, float, bool, complex))
"""What holds no tensors, and is the most of what a batch holds beside them."""


def rebuild(batch: Any, movement: Movement, path: Path = None) -> Any:
    """Return a batch with its tensors replaced, in new containers of the same kind; see `place`."""
    if isinstance(batch, torch.Tensor):
        return _moved(movement.move, batch, movement, path)
    if batch.__class__ in _PLAIN or isinstance(batch, type):
        return batch
    if isinstance(batch, dict | UserDict):  # before asking: the `to` of BatchEncoding changes it, and moves no lists
        return _with_values(cast("MutableMapping[Any, Any]", batch), movement, path)
    if batch.__class__ not in (list, tuple) and callable(getattr(batch, "to", None)):
        return _moved(movement.ask, batch, movement, path)
    if isinstance(batch, MutableMapping):
        return _with_values(cast("MutableMapping[Any, Any]", batch), movement, path)
    cls = cast("Any", type(batch))  # pyright: ignore[reportUnknownArgumentType] - the type of a user's own
    if isinstance(batch, Mapping):
        items = cast("Mapping[Any, Any]", batch).items()
        return cls({key: rebuild(value, movement, (path, f"[{key!r}]")) for key, value in items})
    if isinstance(batch, list | tuple | deque | set | frozenset):
        parts = enumerate(cast("Sequence[Any]", batch))
        moved = [rebuild(value, movement, (path, f"[{number}]")) for number, value in parts]
        if isinstance(batch, deque):
            return cls(moved, cast("deque[Any]", batch).maxlen)
        return cls(*moved) if hasattr(cls, "_fields") else cls(moved)  # a named tuple
    if names := field_names(batch):
        # copied, and set past what freezes it: the constructor may take more than the fields, or other things
        clone = copy(batch)
        for name in names:
            object.__setattr__(clone, name, rebuild(getattr(clone, name), movement, (path, f".{name}")))
        return clone
    if cls in pytree.SUPPORTED_NODES:
        leaves, shape = pytree.tree_flatten(batch, is_leaf=lambda part: part is not batch)
        moved = [rebuild(leaf, movement, (path, f" part {number}")) for number, leaf in enumerate(leaves)]
        return pytree.tree_unflatten(moved, shape)
    _refuse_hidden_tensors(batch, movement, path)
    return batch


def _with_values(batch: MutableMapping[Any, Any], movement: Movement, path: Path) -> MutableMapping[Any, Any]:
    # copied, not built: the constructor of a user's class may take more than items
    clone = copy(batch)
    for key, value in clone.items():
        clone[key] = rebuild(value, movement, (path, f"[{key!r}]"))
    return clone


def _moved(move: Callable[[Any], Any], part: Any, movement: Movement, path: Path) -> Any:
    try:
        return move(part)
    except Exception as error:
        add_note(error, f"while {_in_words(path)} ({a_kind(part)}) was moved to {movement.device}")
        raise


def _refuse_hidden_tensors(value: Any, movement: Movement, path: Path) -> None:
    """Raise a `DataError` for an object whose tensors would stay elsewhere."""
    held = {} if callable(value) else cast("dict[str, Any]", getattr(value, "__dict__", {}))
    names = [name for name, part in held.items() if _holds_tensor(part, movement.device)]
    if names:
        raise DataError(
            f"{_in_words(path)} ({a_kind(value)}) cannot be moved to {movement.device}: it holds tensors "
            f"({', '.join(names)}), is no dataclass, and has no method to(device); give it one that returns it there "
            "(or itself, if compute_loss moves it), or make batches of tuples, dicts or dataclasses"
        )


def _holds_tensor(value: Any, device: torch.device) -> bool:
    """Return whether a value is or holds a tensor elsewhere than on a type of device."""
    if isinstance(value, Mapping):
        value = cast("Mapping[Any, Any]", value).values()
    elif not isinstance(value, list | tuple):
        value = (value,)
    return any(isinstance(one, torch.Tensor) and one.device.type != device.type for one in cast("Iterable[Any]", value))


def _in_words(path: Path) -> str:
    """Return a path as a user would write it, such as `batch['image'][0]`."""
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(step)
    return "batch" + "".join(reversed(steps))


@cache
def _options_of_to(cls: type[Any]) -> Mapping[str, bool]:
    """Return what asks the `to` of a class not to wait, as far as it takes that."""
    try:
        signature = inspect.signature(cls.to)
    except (ValueError, TypeError, AttributeError):
        return {}
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    takes = "non_blocking" in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds
    return {"non_blocking": True} if takes else {}


def field_names(batch: Any) -> list[str]:
    """Return the names of the attributes that a dataclass, or an object of attrs or pydantic, holds; else none."""
    cls = cast("Any", type(batch))
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    elif hasattr(cls, "__attrs_attrs__"):
        names = [field.name for field in cls.__attrs_attrs__]
    elif hasattr(cls, "__pydantic_fields__"):
        names = list(cls.__pydantic_fields__)
    elif cls is SimpleNamespace:
        names = []
    else:
        return []
    # what it has computed and kept, such as a cached property, goes with the fields; one with slots has no __dict__
    names += getattr(batch, "__dict__", {})
    return [name for name in dict.fromkeys(names) if hasattr(batch, name)]


def read_numbers(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Return the numbers in 0-dim tensors of one device: one device sync for all of them."""
    return cast("list[float]", torch.stack([tensor.double() for tensor in tensors]).tolist())


def count_samples(batch: Any) -> int:
    """Return how many samples a batch holds: the length of the first tensor in it, outer ones before inner ones.

    Two lists of one length, one of them without tensors, hold one sample an item: images and the dicts that describe
    them. A list without a tensor counts its items; what has no length counts as one sample.
    """
    return 1 if (found := _samples_in(batch)) is None else found


def _samples_in(batch: Any) -> int | None:
    """Return how many samples there are in a part of a batch; `None` where it does not say."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.dim() else None
    if isinstance(batch, Mapping):
        return _samples_of(list(cast("Mapping[Any, Any]", batch).values()))
    if not isinstance(batch, list | tuple):
        return _samples_of([getattr(batch, name) for name in field_names(batch)])
    parts = list(cast("Sequence[Any]", batch))
    found = _samples_of(parts)
    return max(1, len(parts)) if found is None else found


def _samples_of(parts: list[Any]) -> int | None:
    for part in parts:
        if isinstance(part, torch.Tensor) and part.dim():
            return part.shape[0]
    lists = [cast("Sequence[Any]", part) for part in parts if isinstance(part, list | tuple) and part]
    for number, one in enumerate(lists):
        same = any(len(one) == len(other) for place, other in enumerate(lists) if place != number)
        if same and not any(isinstance(item, torch.Tensor | list | tuple) for item in one):
            return len(one)
    return next((found for part in parts if (found := _nested(part)) is not None), None)


def _nested(part: Any) -> int | None:
    """Return what a container in a batch says; nothing where it is empty."""
    held = part if isinstance(part, Mapping | list | tuple) else field_names(part)  # pyright: ignore[reportUnknownVariableType] - only whether it is empty
    return _samples_in(part) if held else None
