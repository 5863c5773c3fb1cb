"""`Memento`: remember what objects are made of, and put it back into the same objects."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from heptad.config import is_optimizer
from heptad.data.fetch import is_a
from heptad.data.generators import Generator, generator_state, set_generator_state
from heptad.plugin.contract import Plugin
from heptad.plugin.filter import Filter

DEPTH = 6
"""How deep attributes of data are followed: a loader, its dataset, that of a subset, its transform, parts of that."""

MANY = 10_000
"""Containers with more than this hold samples, which are not looked at one by one."""

Found = tuple[Any, bool, int]
"""A value that was reached, whether its tensors are copied, and how many attributes deep in data it lies."""


class Memento:
    """What objects hold, to be put back: attributes, contents of containers, tensors, generators.

    Modules, optimizers and plugins are remembered whole, wherever they are reached from, in the closure of a loss too,
    and so is an object that is called or whose method is, such as one with `compute_loss`. Of data, and of what they
    call, the attributes and the generators are, since a copy of the samples could fill the memory. Other objects, and
    what else functions keep in closures, are left alone.

    Args:
        roots: What is remembered, with all that is reached from it.
        data: The same for data.
    """

    def __init__(self, roots: Iterable[object], data: Iterable[object]) -> None:
        self._undo = ExitStack()
        self._seen: dict[tuple[int, bool], tuple[int, object]] = {}
        """How deep an object was reached at least, and the object, so that its id stays its own."""
        self._holders: set[int] = set()
        """The ids of objects that are called: what they hold is remembered, whatever they are."""
        front: list[Found] = [(root, False, 0) for root in roots]
        self._holders |= {id(root) for root, _, _ in front if callable(root) and not isinstance(root, type)}
        front += [(root, False, 1) for root in data]
        while front:
            value, copied, depth = front.pop()
            key = id(value), copied  # one that is reached both ways is restored both ways
            if key not in self._seen or depth < self._seen[key][0]:  # from where it is less deep more is followed
                self._seen[key] = depth, value
                front += self._remember(value, copied, depth)

    def restore(self) -> None:
        """Put everything back, also where a part of it fails.

        Raises:
            Exception: What a part raised.
        """
        self._undo.close()

    def _remember(self, value: Any, copied: bool, depth: int) -> Iterator[Found]:
        """Remember one object; yield what is reached from it."""
        match value:
            case _ if isinstance(value, Tensor | np.ndarray | Filter | Generator):
                self._remember_value(value, copied)
            case dict() | list() | set() | deque():
                yield from self._remember_container(cast("Any", value), copied, depth)
            case tuple() | types.MethodType() | functools.partial() | types.FunctionType():
                if isinstance(value, types.MethodType):
                    self._holders.add(id(value.__self__))
                yield from ((part, copied, depth) for part in _held_by(cast("Any", value)))
            case nn.Module() | Optimizer() | Plugin():
                yield from self._remember_attributes(value, True, 0)
            case LRScheduler():
                yield from self._remember_attributes(value, copied, 0)
            case _ if _has_attributes(value) and (is_optimizer(value) or id(value) in self._holders):
                yield from self._remember_attributes(value, True, 0)
            case _ if _is_data(value) and depth < DEPTH:
                yield from self._remember_attributes(value, False, depth + 1)
            case _:
                pass

    def _remember_value(self, value: Any, copied: bool) -> None:
        """Remember what has no parts: numbers if they are to be copied, and where a generator or a filter is."""
        match value:
            case Tensor():
                if copied:
                    self._undo.callback(_tensor_restorer(value))
            case np.ndarray():
                if copied:
                    array = cast("Any", value)
                    self._undo.callback(np.copyto, array, deepcopy(array))
            case Filter():
                self._undo.callback(value.restore, *value.state())
            case _:
                self._undo.callback(set_generator_state, value, generator_state(value))

    def _remember_container(self, container: Any, copied: bool, depth: int) -> Iterator[Found]:
        kept = container.copy()
        self._undo.callback(_refill, container, kept)
        if len(kept) > MANY and not copied:
            return
        whole = copied or not depth  # else it is data: parts of a dataset or of a transform, but no samples
        for value in cast("Iterable[Any]", _contents(kept)):
            if whole or isinstance(value, Generator) or _is_data(value):
                yield value, copied, depth

    def _remember_attributes(self, value: Any, copied: bool, depth: int) -> Iterator[Found]:
        attributes: dict[str, Any] = value.__dict__
        kept = dict(attributes)
        self._undo.callback(_refill, attributes, kept)
        yield from ((part, copied, depth) for part in kept.values())


def _held_by(value: Any) -> Iterator[Any]:
    """Yield what a tuple or a function holds; of a function only what a smoke run is to put back in any case."""
    match value:
        case tuple():
            yield from cast("tuple[Any, ...]", value)
        case types.MethodType():
            yield value.__self__
        case functools.partial():
            yield from (value.func, *value.args, *value.keywords.values())
        case _:
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            named = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
            known = (nn.Module, Optimizer, LRScheduler, Generator, types.FunctionType)
            yield from (held for held in (*cells, *named) if isinstance(held, known))


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises for a variable that has no value yet
    except ValueError:
        return False
    return True


def _has_attributes(value: Any) -> bool:
    return not isinstance(value, type | types.ModuleType) and isinstance(getattr(value, "__dict__", None), dict)


def _is_data(value: Any) -> bool:
    """Return whether this is a dataset, a sampler, a loader, or a user's object that is iterated, indexed or called."""
    if isinstance(value, str | bytes) or not _has_attributes(value):
        return False
    made_for_it: Any = (DataLoader, Dataset, Sampler)
    return is_a(value, made_for_it) or any(hasattr(value, name) for name in ("__iter__", "__getitem__", "__call__"))


def _contents(container: Any) -> Any:
    return cast("Mapping[Any, Any]", container).values() if isinstance(container, Mapping) else container


def _refill(container: Any, kept: Any) -> None:
    """Give a container the contents that it had."""
    container.clear()
    if isinstance(kept, Mapping | set):
        container.update(kept)
    else:
        container.extend(kept)


def _tensor_restorer(tensor: Tensor) -> Callable[[], None]:
    """Return what restores a tensor: its memory and what is in that, its gradient, and whether it takes one."""
    # detached, not cloned: the memory itself, which other tensors may share and which placing may have replaced
    memory, values = tensor.detach(), tensor.detach().clone()
    gradient = tensor.grad if tensor.is_leaf else None
    slope = None if gradient is None else gradient.detach().clone()
    takes = tensor.requires_grad

    def restore() -> None:
        with torch.no_grad():
            memory.copy_(values)
            if tensor.data_ptr() != memory.data_ptr() or tensor.device != memory.device:
                tensor.data = memory
            if gradient is not None and slope is not None:
                gradient.copy_(slope)
        if tensor.is_leaf:
            tensor.requires_grad_(takes)
            tensor.grad = gradient

    return restore
