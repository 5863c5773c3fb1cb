"""The optimizers of a checkpoint against those of the run: what must be equal, and the options that may change."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heptad.checkpoints.form import StoredOptimizer, StoredOptimizers, StoredOptions, StoredPosition
from heptad.checkpoints.identity import refuse
from heptad.checkpoints.modules import tensor_differences
from heptad.checkpoints.optimizer_fit import Group, one_like, state_misfits
from heptad.checkpoints.parameters import held_parameters, named_parameters, parameter_names
from heptad.data.generators import preserved
from heptad.errors import CheckpointError, a_kind, counted, in_a_line, kind, with_article
from heptad.record.checkpoint_events import OptionChange
from heptad.run.run import Run

ABSENT = "none"
"""Stands for an option that a group has not."""


@dataclass(frozen=True, slots=True)
class ChangedOption:
    """An option that an optimizer was given another value for than in the run of the checkpoint.

    Attributes:
        where: The optimizer, as messages name it.
        optimizer: The one that was built now.
        group: The number of its parameter group.
        option: The name of the option.
        before: What it was built with then.
        after: What it was built with now, plain.
        value: The same as it stood in the group.
        stored: The optimizer in the checkpoint.
    """

    where: str
    optimizer: Any
    group: int
    option: str
    before: Any
    after: Any
    value: Any
    stored: StoredOptimizer

    def __str__(self) -> str:
        return f"{self.where}, group {self.group}: {self.option} {self.before!r} in the checkpoint, {self.after!r} here"

    def prepare(self) -> None:
        """Put the value of now into the stored group: by some options (`fused`) torch decides how it loads a state."""
        if self.group < len(groups := _groups_of(self.stored.state)):
            groups[self.group][self.option] = self.value

    def apply(self, run: Run) -> None:
        """Put the value of now in place of the restored one. A schedule counts from the rate that is given now."""
        group = run.parameter_groups(self.optimizer)[self.group]
        group[self.option] = self.value
        if self.option == "lr" and "initial_lr" in group:
            group["initial_lr"] = self.value.clone() if isinstance(self.value, Tensor) else self.value

    def event(self) -> partial[OptionChange]:
        """Return what makes the event, given its transition and its time."""
        return partial(
            OptionChange,
            optimizer=self.where,
            group=self.group,
            option=self.option,
            before=repr(self.before),
            after=repr(self.after),
        )


@dataclass(frozen=True, slots=True)
class _Pair:
    """An optimizer of the run, and the one of the checkpoint that it is to continue."""

    where: str
    optimizer: Any
    stored: StoredOptimizer
    built: StoredOptions
    names: list[list[str]]
    groups: list[dict[str, Any]]
    options: list[dict[str, Any]]


def check_optimizers(
    run: Run, stored: StoredOptimizers, position: StoredPosition, *, may_change: bool, reshared: bool = False
) -> list[ChangedOption]:
    """Compare the optimizers that were built: classes, options, parameters in their order.

    Args:
        run: The run.
        stored: What the checkpoint holds of optimizers.
        position: It says which options they were built with, which a schedule may have changed since.
        may_change: Whether options may differ.
        reshared: Whether ranks share parameters now or then only: for that alone the engine sets `foreach`.

    Returns:
        The options that differ, and may.

    Raises:
        CheckpointError: With every difference, one a line; or if an optimizer cannot load its state, or cannot step
            from it with the options of now.
    """
    if len(stored.states) != len(run.optimizers):
        refuse([f"Components.optimizer: {len(stored.states)} in the checkpoint, {len(run.optimizers)} here"])
    if stored.side.keys() != run.side_optimizers.keys():
        then, here = (", ".join(sorted(names)) or "none" for names in (stored.side, run.side_optimizers))
        refuse([f"Components.side_optimizers: {then} in the checkpoint, {here} here"])
    known = dict(named_parameters(run))
    wrong = tensor_differences("held by the optimizers", stored.held, held_parameters(run))
    changed: list[ChangedOption] = []
    pairs = list(_pair_up(run, stored, position))
    for pair in pairs:
        if kind(pair.optimizer) != pair.stored.kind:
            wrong.append(
                f"{pair.where}: {with_article(pair.stored.kind)} in the checkpoint, {a_kind(pair.optimizer)} here"
            )
            continue
        wrong += _group_differences(pair, known.keys())
        if misfits := state_misfits(pair.where, pair.optimizer, pair.groups, pair.stored, known):
            wrong += misfits
        else:
            changed += _options_changed(pair, inferred=may_change)
    chosen = [one for one in changed if not (reshared and one.option == "foreach" and not (one.before or one.after))]
    if chosen and not may_change:
        wrong += [
            *map(str, chosen),
            'run(resume=…, allow_changes=("optimizer",)) continues with the options that are given here',
        ]
    refuse(wrong)
    for pair in pairs:
        _check_steps(pair)
    return changed


def _pair_up(run: Run, stored: StoredOptimizers, position: StoredPosition) -> Iterator[_Pair]:
    optimizers = run._runtime.optimizers
    side = [(stored.side[name], position.side_optimizers[name]) for name in optimizers.side]
    names = parameter_names(run)
    for each, then in (
        (optimizers, list(zip(stored.states, position.optimizers, strict=True))),
        (optimizers.beside(), side),
    ):
        rows = zip(each.where, each, then, each.names(names), each.describe(), strict=True)
        for where, optimizer, (state, built), groups, now in rows:
            yield _Pair(where, optimizer, state, built, groups, each.groups(optimizer), now["groups"])


def _group_differences(pair: _Pair, known: Collection[str]) -> list[str]:
    """Return how the names of an optimizer's parameters differ. Groups added during the run need not be here yet."""
    built, then, here = len(pair.built.groups), pair.stored.parameters, pair.names
    added = then[built:] if len(here) == built else []
    before = then[: len(then) - len(added)]
    wrong = [] if here == before else [f"{pair.where}: {_first_difference(then, here)}"]
    absent = {name for group in added for name in group if name not in known}
    if absent:
        wrong.append(f"{pair.where}: {', '.join(sorted(absent))} of a group added during the run is not here")
    return wrong


def _first_difference(stored: Sequence[Sequence[str]], here: Sequence[Sequence[str]]) -> str:
    if len(stored) != len(here):
        return f"{counted(len(stored), 'parameter group')} in the checkpoint, {len(here)} here"
    for number, (one, other) in enumerate(zip(stored, here, strict=True)):
        for place, (name, now) in enumerate(zip(one, other, strict=False)):
            if name != now:
                return f"parameter {place} of group {number} is {name} in the checkpoint, {now} here"
        if len(one) != len(other):
            return f"group {number} has {counted(len(one), 'parameter')} in the checkpoint, {len(other)} here"
    return "the parameters differ"


def _options_changed(pair: _Pair, *, inferred: bool) -> list[ChangedOption]:
    """Return the options that differ from those that the optimizer was built with.

    Checkpoints of older versions do not say which tuples (betas) and tensors an optimizer was built with.

    Args:
        pair: The optimizers.
        inferred: Take what the group held when the checkpoint was taken in their place; else they are not compared.
    """
    found: list[ChangedOption] = []
    live = _groups_of(pair.stored.state)
    for number, (then, now) in enumerate(zip(pair.built.groups, pair.options, strict=False)):
        held: Group = live[number] if number < len(live) else {}
        group = pair.groups[number]
        for name in dict.fromkeys((*then, *now)):
            before, after = then.get(name, ABSENT), now.get(name, ABSENT)
            if name not in then and isinstance(held.get(name), tuple | list | Tensor):
                before = _comparable(held[name]) if inferred else after
            if before != after:
                value = group.get(name)
                kept = value.clone() if isinstance(value, Tensor) else value
                found.append(ChangedOption(pair.where, pair.optimizer, number, name, before, after, kept, pair.stored))
    return found


def _comparable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return tuple(cast("Sequence[Any]", value)) if isinstance(value, list) else value


def _groups_of(state: Any) -> list[dict[str, Any]]:
    """Return the parameter groups in a state; none where it has another form than torch's."""
    groups: Any = cast("Mapping[str, Any]", state).get("param_groups") if isinstance(state, Mapping) else None
    return cast("list[dict[str, Any]]", groups) if isinstance(groups, list) else []


# -- a state that an optimizer could load, and not step from


def _check_steps(pair: _Pair) -> None:
    """Refuse a state that lacks what a step reads: of another version of the class, or without a changed option.

    Such a state is loaded without a word, and fails in the first update with a `KeyError`.

    Raises:
        CheckpointError: If a step from it fails.
    """
    if not isinstance(pair.optimizer, Optimizer) or not isinstance(pair.stored.state, Mapping):
        return
    states, groups = cast("Mapping[str, Any]", pair.stored.state).get("state"), _groups_of(pair.stored.state)
    if not isinstance(states, Mapping):
        return
    tried: set[tuple[Any, ...]] = set()
    for here, group in zip(pair.groups, groups, strict=False):
        for number, parameter in zip(group.get("params", ()), here["params"], strict=False):
            state = cast("Mapping[Any, Any]", states).get(number)
            if not isinstance(state, Mapping) or not state:
                continue
            keys = frozenset(cast("Mapping[Any, Any]", state))
            if (id(here), parameter.dim(), keys) not in tried:
                tried.add((id(here), parameter.dim(), keys))
                _check_step(pair, here, parameter.dim(), keys)


def _check_step(pair: _Pair, group: Group, dimensions: int, keys: frozenset[Any]) -> None:
    """Step one like it on a parameter of one element, with the keys that are stored for its own."""
    with preserved(), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        parameter = nn.Parameter(torch.ones((1,) * dimensions))
        try:
            trial = one_like(pair.optimizer, group, parameter)
            parameter.grad = torch.ones_like(parameter)
            trial.step()
        except Exception:  # a constructor or a step with needs of its own: the run itself will show it
            return
        state = trial.state[parameter]
        lacking = sorted(str(key) for key in state if key not in keys)
        if not lacking:
            return
        trial.state[parameter] = {key: state.get(key, torch.zeros(())) for key in keys}
        try:
            trial.step()
        except Exception as error:
            found, expected = (", ".join(sorted(map(str, names))) for names in (keys, state))
            raise CheckpointError(
                f"{pair.where} ({a_kind(pair.optimizer)}) cannot step from its state in the checkpoint: "
                f"{in_a_line(error)}; found {found} for a parameter, expected {expected}; nothing was changed. Build "
                "the optimizer with the options (such as amsgrad) and the version of its class that it had then, or "
                "begin a new run from the weights with load_weights"
            ) from error
