"""What `LRSchedule` does where a resumed run has another schedule: notice it, and bring the new one to its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, MultiplicativeLR

Groups = Sequence[dict[str, Any]]
"""The parameter groups of an optimizer: these themselves, not copies."""

MOVING = frozenset(
    (
        *("last_epoch", "_step_count", "_last_lr", "base_lrs", "T_cur", "T_i", "best", "num_bad_epochs"),
        *("cooldown_counter", "_is_initial", "_get_lr_called_within_step"),
    )
)
"""What torch's schedulers change as they move, or take from the optimizer."""

WRITTEN = frozenset(("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"))
"""Options that torch's schedulers add to a parameter group."""


class TrialOptimizer(Optimizer):
    """An optimizer of the same options and parameters, to build a schedule on and throw it away.

    Args:
        groups: The parameter groups of the optimizer that it is like.
        defaults: Its defaults.
    """

    def __init__(self, groups: Groups, defaults: Mapping[str, Any]) -> None:
        given = [{**options_of(group), "params": list(group["params"])} for group in groups]
        for group in given:
            group.pop("param_names", None)
        super().__init__(given, dict(defaults))

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - torch overloads it
        """Do nothing."""


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter group's options; a rate that is a tensor is written in place, so it is copied."""
    options = {name: value for name, value in group.items() if name != "params"}
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in options.items()}


def facts_of(kind: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a scheduler is built from, and how far it has moved: the plain values in its state by dotted name.

    Args:
        kind: The name of its class.
        state: Its `state_dict`.
    """
    return {"class": kind, **dict(_leaves(state))}


def other_facts(first: Mapping[str, Any], moved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return in what the scheduler that is built here differs from the one of a checkpoint, in words.

    Args:
        first: The facts of the one of the checkpoint when it was built.
        moved: Its facts when the checkpoint was taken: those that have changed by then are no options.
        here: The facts of the one that is built here.
    """
    return [
        f"{name} was {first.get(name, 'not there')} and is {here.get(name, 'not there')} here"
        for name in dict.fromkeys((*first, *here))
        if not MOVING.intersection(name.split("."))
        and _equal(first.get(name), moved.get(name, first.get(name)))
        and not _equal(first.get(name), here.get(name))
    ]


def shows_all(scheduler: LRScheduler) -> bool:
    """Return whether the state of a scheduler holds all that its rates depend on: no function, no code of a user's."""
    inner = cast("Sequence[LRScheduler]", getattr(scheduler, "_schedulers", ()))
    plain = type(scheduler).__module__ == "torch.optim.lr_scheduler"
    return plain and not isinstance(scheduler, LambdaLR | MultiplicativeLR | CyclicLR) and all(map(shows_all, inner))


def replay(
    groups: Groups, built: Sequence[Mapping[str, Any]], build: Callable[[], LRScheduler], moves: int
) -> LRScheduler:
    """Build a scheduler as at the beginning of the run and move it, as if it had been there from the first update on.

    Of the options of the parameter groups those stay that the scheduler never writes.

    Args:
        groups: The parameter groups of its optimizer, with the options of the checkpoint.
        built: The options that the groups were built with.
        build: Builds the scheduler on it.
        moves: How often it had moved when the checkpoint was taken.
    """
    kept = [options_of(group) for group in groups]
    for group, options in zip(groups, built, strict=False):  # groups that were added during the run are behind these
        params = group["params"]
        group.clear()
        group.update(options_of(options), params=params)
    began = [options_of(group) for group in groups]
    scheduler = build()
    scheduler.optimizer.__dict__["_opt_called"] = True  # torch warns if a scheduler steps before its optimizer
    written = [{"lr"} for _ in kept]
    for move in range(moves + 1):
        if move:
            scheduler.step()
        for names, group, options in zip(written, groups, began, strict=True):
            names |= {name for name, value in options_of(group).items() if not _equal(value, options.get(name))}
    for names, group, options in zip(written, groups, kept, strict=True):
        group.update({name: value for name, value in options.items() if name not in names and name not in WRITTEN})
    return scheduler


def include(
    groups: Groups, built: Sequence[Mapping[str, Any]], build: Callable[[], LRScheduler], moves: int, known: int
) -> LRScheduler:
    """Build a scheduler again for groups that have joined its optimizer, and move it to its place.

    The groups that it knew keep their options; the others get those that they would have, had they been there from the
    first update on.

    Args:
        groups: The parameter groups of its optimizer.
        built: The options that each was built with, or joined with.
        build: Builds the scheduler on it.
        moves: How often it has moved.
        known: How many of the groups it knew.
    """
    kept = [options_of(group) for group in groups[:known]]
    scheduler = replay(groups, built, build, moves)
    for group, options in zip(groups, kept, strict=False):
        group.update(options)
    return scheduler


def as_joined(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group that no scheduler has written to."""
    return {name: value for name, value in options_of(group).items() if name not in (*WRITTEN, "param_names")}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple):
        inner = cast("Mapping[Any, Any] | Sequence[Any]", value)
        items = inner.items() if isinstance(inner, Mapping) else enumerate(inner)
        for key, item in items:
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Tensor) and value.numel() == 1:
        yield name, value.item()
    elif isinstance(value, bool | int | float | str | None):
        yield name, value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other or (one != one and other != other))  # noqa: PLR0124 - NaN
