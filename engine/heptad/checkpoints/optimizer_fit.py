"""The state of an optimizer in a checkpoint against its parameters: what torch loads without a look.

`Optimizer.load_state_dict` compares the numbers of parameters and nothing else. What a step would then raise, turns
later, is found here: with an optimizer of the same class and small parameters, which steps once.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from heptad.checkpoints.form import StoredOptimizer
from heptad.checkpoints.modules import describe_tensor
from heptad.checkpoints.stored_types import shown
from heptad.data.generators import preserved
from heptad.errors import in_a_line

Group = Mapping[str, Any]

_SIZES = (2, 3, 5, 7, 11)
"""Of the dimensions of a trial's parameter: a state of the same shape has the shape of its parameter."""

_OF_SCHEDULES = frozenset(("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"))
"""Numbers that a schedule of torch adds to a group."""

_LISTS = ("old_dirs", "old_stps", "ro", "al")
"""What an L-BFGS keeps of its last steps."""

_MOST_TRIED = 1 << 20
"""Elements of a parameter up to which a step is tried from the very state that is stored."""


def state_misfits(
    where: str, optimizer: Any, live: Sequence[Group], stored: StoredOptimizer, parameters: Mapping[str, nn.Parameter]
) -> list[str]:
    """Return what is wrong with a stored state; nothing for one that has a form of its own.

    Args:
        where: The optimizer, as messages name it.
        optimizer: The one that was built, of the class that is stored.
        live: Its parameter groups.
        stored: What the checkpoint holds of it.
        parameters: All of the run, by name.
    """
    if not isinstance(optimizer, Optimizer) or type(optimizer).state_dict is not Optimizer.state_dict:
        return []
    groups, states = _parts_of(stored.state)
    if groups is None or states is None:
        return [f"{where}: its state in the checkpoint is {shown(stored.state)}, expected state and param_groups"]
    names = [name for group in stored.parameters for name in group]
    if wrong := _group_misfits(groups, stored.parameters):
        return [f"{where}: {text}" for text in wrong]
    if not all(name in parameters for name in names):
        return []  # said by the names
    held = [parameters[name] for name in names]
    fit = _Fit(optimizer, live, [len(group) for group in stored.parameters])
    wrong = [text for number, group in enumerate(groups) if (text := fit.option_misfit(number, group))]
    wrong += _key_misfits(optimizer, states, len(names))
    if not wrong:
        for number, state in states.items():
            if isinstance(number, int):
                wrong += [f"{names[number]}: {text}" for text in fit.misfits(number, held[number], state)]
    if not wrong and isinstance(optimizer, LBFGS):
        flat = torch.cat([torch.empty(0, dtype=parameter.dtype) for parameter in held])
        wrong += _lbfgs_misfits(groups[0], states, sum(parameter.numel() for parameter in held), flat.dtype)
    return [f"{where}: {text}" for text in wrong]


def _parts_of(state: Any) -> tuple[list[Any] | None, dict[Any, Any] | None]:
    whole = cast("dict[Any, Any]", state) if isinstance(state, dict) else {}
    groups, states = whole.get("param_groups"), whole.get("state")
    if not isinstance(groups, list) or not isinstance(states, dict):
        return None, None
    return cast("list[Any]", groups), cast("dict[Any, Any]", states)


def _group_misfits(groups: Sequence[Any], names: Sequence[Sequence[str]]) -> list[str]:
    """Return how the groups of a state differ from the names beside it."""
    if len(groups) != len(names):
        return [f"{len(names)} groups of names in the checkpoint, and {len(groups)} of options"]
    first = 0
    for number, (group, held) in enumerate(zip(groups, names, strict=True)):
        options = cast("dict[Any, Any]", group) if isinstance(group, dict) else {}
        if not options or not all(isinstance(name, str) for name in options):
            return [f"group {number} is {shown(group)}, expected options by name"]
        expected = list(range(first, first + len(held)))
        found = cast("Any", options.get("params"))
        right = isinstance(found, list) and all(type(one) is int for one in cast("list[Any]", found))
        if not right or found != expected:
            return [f"group {number} has the parameters {shown(found)}, expected {shown(expected)}"]
        first += len(held)
    return []


def _key_misfits(optimizer: Optimizer, states: Mapping[Any, Any], count: int) -> list[str]:
    for number, state in states.items():
        if type(number) is not int:
            if _is_torchs_own(optimizer):
                return [f"a state of {shown(number)}, which is no number of a parameter"]
        elif not 0 <= number < count:
            return [f"a state of the parameter {number}, of {count}"]
        elif not isinstance(state, dict):
            return [f"the state of parameter {number} is {shown(state)}, expected values by name"]
    return []


def _is_torchs_own(optimizer: Optimizer) -> bool:
    """Return whether a step is one of torch's: its state for a parameter follows from that parameter."""
    return str(getattr(type(optimizer).step, "__module__", "")).startswith("torch.optim")


class _Fit:
    """Steps optimizers like one that was built, to see what its states look like."""

    def __init__(self, optimizer: Optimizer, live: Sequence[Group], sizes: Sequence[int]) -> None:
        self._optimizer = optimizer
        self._live = live
        self._of = [number for number, size in enumerate(sizes) for _ in range(size)]
        self._made: dict[Any, dict[str, Any] | None] = {}
        self._tried: set[Any] = set()

    def option_misfit(self, number: int, stored: Group) -> str:
        """Return what a step with the stored options of a group raises, if one with those of now raises nothing."""
        live = self._live_group(number)
        if text := _other_kinds(live, stored):
            return f"group {number}: {text}"
        with _trial():
            parameter = _small_parameter(2, torch.get_default_dtype())
            try:
                trial = one_like(self._optimizer, live, parameter)
                _step(trial, parameter)
            except Exception:  # a constructor or a step with needs of its own: the run itself will show it
                return ""
            try:
                trial = one_like(self._optimizer, live, parameter)
                group = {name: value for name, value in stored.items() if name != "param_names"}
                trial.load_state_dict({"state": {}, "param_groups": [{**deepcopy(group), "params": [0]}]})
                _step(trial, parameter)
            except Exception as error:
                return f"group {number}: no step can be made with its options in the checkpoint: {in_a_line(error)}"
        return ""

    def misfits(self, number: int, parameter: Tensor, state: dict[Any, Any]) -> list[str]:
        """Return how the state of a parameter differs from what a step makes for one of its shape and dtype."""
        if isinstance(self._optimizer, LBFGS):
            return []  # its vectors are of all parameters together
        if _is_torchs_own(self._optimizer):
            made = self._state_made(self._of[number], parameter)
            return [] if made is None else _value_misfits(made, state, parameter)
        return self._step_misfits(self._of[number], parameter, state)

    def _live_group(self, number: int) -> Group:
        return self._live[min(number, len(self._live) - 1)]  # one that was added during the run is not here yet

    def _state_made(self, group: int, parameter: Tensor) -> dict[str, Any] | None:
        """Return the state after one step of a small parameter of that many dimensions; `None` if none can be made."""
        key = group, parameter.dim(), parameter.dtype
        if key not in self._made:
            self._made[key] = None
            with _trial():
                small = _small_parameter(parameter.dim(), parameter.dtype)
                try:
                    trial = one_like(self._optimizer, self._live_group(group), small)
                    _step(trial, small)
                    self._made[key] = dict(trial.state[small])
                except Exception:
                    return None
        return self._made[key]

    def _step_misfits(self, group: int, parameter: Tensor, state: dict[Any, Any]) -> list[str]:
        """Return what a step from a stored state raises, if one from no state raises nothing."""
        forms = tuple((str(name), shown(value)) for name, value in state.items() if isinstance(value, Tensor))
        key = group, tuple(parameter.shape), parameter.dtype, forms
        if key in self._tried or parameter.numel() > _MOST_TRIED or type(parameter) is not nn.Parameter:
            return []  # one of another type is shared by ranks, who would all have to step
        self._tried.add(key)
        with _trial():
            copy = nn.Parameter(torch.ones(parameter.shape, dtype=parameter.dtype))
            try:
                trial = one_like(self._optimizer, self._live_group(group), copy)
                _step(trial, copy)
                fresh = set(trial.state[copy])
            except Exception:
                return []
            if fresh != set(state):
                return []  # keys that differ are looked at elsewhere
            try:
                trial = one_like(self._optimizer, self._live_group(group), copy)
                trial.state[copy] = deepcopy(state)
                _step(trial, copy)
            except Exception as error:
                return [f"no step can be made from its state in the checkpoint: {in_a_line(error)}"]
        return []


def _other_kinds(live: Group, stored: Group) -> str:
    """Return which option is of another kind: a text for a number, a tensor of several numbers for a rate."""
    for name in live.keys() & stored.keys() - {"params", "param_names"}:
        value, other = live[name], stored[name]
        if isinstance(value, bool):
            right = isinstance(other, bool) or (name == "foreach" and other is None)  # torch chooses then
        elif isinstance(value, int | float):
            right = _is_number(other)
        elif isinstance(value, str):
            right = isinstance(other, str)
        elif numbers := _count_of_numbers(value):
            right = _count_of_numbers(other) == numbers
        else:
            right = True
        if not right:
            return f"{name} is {shown(other)} in the checkpoint, {shown(value)} here"
    for name in _OF_SCHEDULES & stored.keys() - live.keys():
        if stored[name] is not None and not _is_number(stored[name]):
            return f"{name} is {shown(stored[name])} in the checkpoint, expected a number"
    return ""


def _count_of_numbers(value: Any) -> int:
    """Return how many numbers a tuple holds; 0 for what is no tuple of numbers."""
    held = cast("Sequence[Any]", value) if isinstance(value, tuple | list) else ()
    return len(held) if all(map(_is_number, held)) else 0


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        counts = value.dtype in (torch.int64, torch.int32)
        return value.numel() == 1 and value.layout is torch.strided and (value.is_floating_point() or counts)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value_misfits(made: Mapping[str, Any], state: Mapping[Any, Any], parameter: Tensor) -> list[str]:
    wrong: list[str] = []
    for name, value in made.items():
        if name not in state:
            continue  # keys that are missing are looked at elsewhere
        other = state[name]
        if isinstance(value, Tensor) and value.dim():
            shape, dtype = _shape_for(value, parameter), value.dtype
            dense = isinstance(other, Tensor) and other.layout is value.layout
            if not dense or (tuple(other.shape), other.dtype) != (shape, dtype):
                found = describe_tensor(other) if isinstance(other, Tensor) else shown(other)
                expected = f"{str(dtype).removeprefix('torch.')} {shape}"
                wrong.append(f"{name} is {found} in the checkpoint, expected {expected}")
        elif isinstance(value, Tensor | int | float) and not (_is_number(other) and _same_kind(value, other)):
            wrong.append(f"{name} is {shown(other)} in the checkpoint, expected a number")
        elif name == "step" and not other >= 0:
            wrong.append(f"{name} is {float(other)} in the checkpoint, expected a number from 0 on")
    return wrong


def _same_kind(made: Any, other: Any) -> bool:
    """Return whether of two tensors both or none is floating-point, and their shape is one: they are added in place."""
    both = isinstance(made, Tensor) and isinstance(other, Tensor)
    return not both or (made.is_floating_point() == other.is_floating_point() and made.dim() == other.dim())


def _shape_for(made: Tensor, parameter: Tensor) -> tuple[int, ...]:
    """Return the shape that a state has for a parameter, from what it is for a small one."""
    if made.dim() != parameter.dim():
        return tuple(made.shape)
    return tuple(
        1 if size == 1 else whole for size, whole in zip(made.shape, parameter.shape, strict=True)
    )  # a sum over a dimension, as of Adafactor


def _lbfgs_misfits(group: Group, states: Mapping[Any, Any], count: int, dtype: torch.dtype) -> list[str]:
    """Return which vector of an L-BFGS is not as long as all of its parameters together, or of another dtype."""
    for state in states.values():
        held = cast("dict[Any, Any]", state) if isinstance(state, dict) else {}
        for name, value in held.items():
            if isinstance(value, list) is not (name in _LISTS):
                return [f"{name} is {shown(value)}, expected {'a list' if name in _LISTS else 'a number or a vector'}"]
            rows = cast("list[Any]", value) if isinstance(value, list) else [value]
            vectors = name in ("d", "prev_flat_grad", "old_dirs", "old_stps")
            for row in rows:
                dense = isinstance(row, Tensor) and row.layout is torch.strided
                right = dense and (tuple(row.shape), row.dtype) == ((count,), dtype)
                if vectors and not right:
                    kind = str(dtype).removeprefix("torch.")
                    return [f"{name} holds {shown(row)}, expected vectors of {count} numbers, {kind}"]
                if not vectors and not (_is_number(row) or (row is None and name == "al")):
                    return [f"{name} holds {shown(row)}, expected numbers"]
        steps, *others, sums = (len(held.get(name, ())) for name in _LISTS)
        if others != [steps, steps] or ("al" in held and sums < max(steps, group["history_size"])):
            return [f"{', '.join(_LISTS)} differ in length, or are shorter than its history"]
    return []


@contextmanager
def _trial() -> Generator[None]:
    """Leave the random generators, the gradient mode and the warnings of the run alone."""
    with preserved(), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        yield


def _small_parameter(dimensions: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.ones(_SIZES[:dimensions] + (1,) * (dimensions - len(_SIZES)), dtype=dtype))


def _step(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    parameter.grad = torch.ones_like(parameter)
    step = cast("Callable[..., object]", optimizer.step)
    if isinstance(optimizer, LBFGS):
        step(lambda: torch.ones(()))
    else:
        step()


def one_like(optimizer: Optimizer, group: Group, parameter: nn.Parameter) -> Optimizer:
    """Return an optimizer of the same class with the options of a group, for one parameter."""
    options = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    make: Any = type(optimizer)
    taken = inspect.signature(make).parameters
    arguments = {name: value for name, value in options.items() if name in taken}
    return make([{**options, "params": [parameter]}], **arguments)
