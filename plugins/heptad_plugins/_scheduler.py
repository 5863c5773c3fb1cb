"""What `LRSchedule` knows of torch's schedulers: how they are built, and how older checkpoints hold their state."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, cast

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from heptad import EngineError, PluginError

_PLACE = ("last_epoch", "_step_count")

_OF_OTHERS = ("_schedulers", "lr_lambdas", "_scale_fn_custom")
"""Schedules and functions within a schedule, which a move would change as well."""

LENGTHS = ("T_max", "total_steps", "total_iters", "total_updates", "max_updates", "max_steps", "num_training_steps")
"""What schedulers call the length of the run: parameters that `total_updates` may be given to."""


def takes_length(function: Callable[..., object]) -> bool:
    """Return whether a function takes (optimizer, total_updates), or the optimizer alone."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return True  # some callables of C have no signature; calling is the test then
    for arguments in ((None,), (None, 1)):  # the shorter one first: a second parameter with a default is the user's
        try:
            bound = signature.bind(*arguments)
        except TypeError:
            continue
        if len(arguments) == 2:
            _check_second(function, list(bound.arguments)[-1])
        return len(arguments) == 2
    raise PluginError(
        f"LRSchedule calls its function as (optimizer, total_updates), or with the optimizer alone; got {signature}"
    )


def _check_second(function: Callable[..., object], name: str) -> None:
    """Refuse the partial of a class that would take the length of the run for something else, such as its gamma."""
    if isinstance(function, partial) and isinstance(function.func, type) and name not in LENGTHS:
        made = function.func.__name__
        raise PluginError(
            f"LRSchedule would give total_updates to this partial of {made}, whose next parameter is {name}; pass a "
            f"function that says what is for what, LRSchedule(lambda optimizer: {made}(optimizer, {name}=…))"
        )


def check_monitor(scheduler: LRScheduler, monitor: str | None, error: type[EngineError]) -> None:
    """Check that a scheduler has a value to look at if, and only if, it looks at one."""
    if isinstance(scheduler, ReduceLROnPlateau) == (monitor is None):
        raise error(
            "LRSchedule(monitor=…) names the recorded value that ReduceLROnPlateau looks at, no other scheduler does: "
            f"got monitor={monitor!r} with {type(scheduler).__name__}"
        )


def scheduler_from_format_1(value: Any) -> Any:
    """Return a scheduler's state as it was; checkpoints of older versions hold tuples and dicts as tagged lists."""
    if isinstance(value, list):
        return [scheduler_from_format_1(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict) and len(tagged := cast("dict[str, list[Any]]", value)) == 1:
        ((tag, items),) = tagged.items()
        if tag == "tuple":
            return tuple(scheduler_from_format_1(item) for item in items)
        if tag in ("dict", "Counter"):
            pairs: dict[Any, Any] = {key: scheduler_from_format_1(item) for key, item in items}
            return Counter(pairs) if tag == "Counter" else pairs
    return cast("Any", value)


def is_rebased(state: Any, groups: Sequence[dict[str, Any]]) -> bool:
    """Return whether parameter groups were given other rates than those that a scheduler's state counts from."""
    bases = _held_first(state, "base_lrs") or ()
    return any(base != group.get("initial_lr", base) for base, group in zip(bases, groups, strict=False))


def rebase(
    build: Callable[[], LRScheduler], given: object, state: Any, groups: Sequence[dict[str, Any]]
) -> LRScheduler:
    """Return a scheduler moved to where a state says, from the rates that the groups were given.

    Its steps are made again, since torch's schedulers hold the first rates in their state, and the rates of most follow
    from those before.

    Args:
        build: Returns the scheduler.
        given: The scheduler, where it was built before the run; else anything.
        state: The state, from a checkpoint.
        groups: The parameter groups of its optimizer.
    """
    for place, group in enumerate(groups):
        if isinstance(given, LRScheduler):
            _set_rate(group, given.get_last_lr()[place])
        elif "initial_lr" in group:  # which a scheduler that is built would take in place of the rate
            _set_rate(group, group.pop("initial_lr"))
    scheduler = build()
    scheduler.optimizer.__dict__["_opt_called"] = True  # as where a state is loaded
    for _ in range(_held_first(state, "last_epoch") or 0):
        scheduler.step()
    return scheduler


def refuse_stuck(scheduler: LRScheduler, state: Mapping[str, Any], build: Callable[[], LRScheduler | None]) -> None:
    """Refuse a state from which no first move can be made, where a schedule that was just built makes one.

    Args:
        scheduler: One that was just built, on an optimizer of its own.
        state: The state, from a checkpoint.
        build: Builds another one.

    Raises:
        ValueError: With what the move raised.
    """
    place = {name: scheduler.state_dict()[name] for name in _PLACE if name in state}
    for name in place:
        if type(state[name]) is not int:
            raise ValueError(f"{name} is {state[name]!r:.60}, expected a whole number")
    if any(name in state for name in _OF_OTHERS):
        return
    stuck = _why_stuck(scheduler, {**state, **place})
    if stuck and (fresh := build()) is not None and not _why_stuck(fresh, {}):
        raise ValueError(f"the schedule in the checkpoint cannot move: {stuck}")


def _why_stuck(scheduler: LRScheduler, state: Mapping[str, Any]) -> str:
    """Return what a move raises from a state; nothing where it can be made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves before its optimizer has stepped
        try:
            if state:
                scheduler.load_state_dict(deepcopy(dict(state)))
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(0.0)
            else:
                scheduler.step()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def _held_first(state: Any, name: str) -> Any:
    """Return what a scheduler's state holds under a name; in one made of several, the first of them may hold it."""
    while name not in state and state.get("_schedulers"):
        state = state["_schedulers"][0]
    return state.get(name)


def _set_rate(group: dict[str, Any], rate: Any) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
