"""`read_weights`: the weights of a checkpoint by name, joined from whatever pieces they are in, without a network.

`load_weights` and the command `heptad weights` call it. One process reads what any number of ranks wrote.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from heptad.checkpoints.form import Stored
from heptad.checkpoints.layout import is_checkpoint, named_path
from heptad.checkpoints.store import Store
from heptad.checkpoints.stored_types import shown
from heptad.errors import CheckpointError
from heptad.run.snapshot import Snapshot

AVERAGES = ("EMA", "SWA")
"""The plugins whose average is read where none is named."""


@dataclass(frozen=True)
class HeldWeights:
    """The weights in a checkpoint.

    Attributes:
        path: The checkpoint.
        tensors: By the name that they have in the network, on the CPU; tied ones under each name.
        not_persistent: The names of the buffers that a state_dict leaves out.
        extra: What `get_extra_state` returned, by submodule.
        damage: What is wrong with each checkpoint that was passed over.
        stale: What is not up to date in what was read, in words; empty if nothing.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    not_persistent: frozenset[str]
    extra: Mapping[str, Any]
    damage: Sequence[str]
    stale: str = ""


class _Section(Stored):
    """What is needed of a section; `Any` but for these, so that weights can be taken from what cannot be resumed."""

    tensors: dict[str, Tensor]
    not_persistent: list[str] = Field(default_factory=list[str])
    extra: Any = None


def read_weights(
    directory: str | os.PathLike[str],
    which: str,
    *,
    average: bool | str = False,
    dtypes: Mapping[str, torch.dtype] = {},
) -> HeldWeights:
    """Return the weights of a checkpoint: parameters and buffers, not persistent ones too.

    Args:
        directory: Of checkpoints, or one checkpoint.
        which: One of `entry.WHICH`, see `load_weights`.
        average: Whether an average is returned in place of the weights, see `load_weights`.
        dtypes: Those that the reader's tensors have. Averages are returned in the dtypes of the weights, but for those
            that are kept in the dtype that the reader has.

    Raises:
        CheckpointError: If there is no such checkpoint, or it holds no weights, or no average.
    """
    average = average or which == "ema"
    path, snapshot, damage = _chosen(named_path(directory), which, average=bool(average))
    held = _section_in(path, snapshot.sections.get("network"), "weights of a network")
    tensors = _without_wrappers(path, held.tensors)
    stale = ""
    if average:
        section, stale = _average_in(path, snapshot, (average,) if isinstance(average, str) else AVERAGES)
        averages = _without_wrappers(path, section.tensors)
        tensors = {name: _as_trained(one, tensors.get(name), dtypes.get(name)) for name, one in averages.items()}
    not_persistent = frozenset(map(without_wrapper, held.not_persistent))
    extra = cast("Mapping[Any, Any]", held.extra if isinstance(held.extra, Mapping) else {})
    states = {without_wrapper(str(name)): state for name, state in extra.items()}
    return HeldWeights(path, tensors, not_persistent, states, damage, stale)


def refuse_file(path: Path, who: str) -> None:
    """Refuse a file where a directory of checkpoints is expected.

    Raises:
        CheckpointError: If there is a file of this name.
    """
    if path.is_file():
        if is_checkpoint(path.parent):
            raise CheckpointError(f"{path} is a file of a checkpoint; name the checkpoint: {path.parent}")
        raise CheckpointError(
            f"{path} is a file; {who} takes a directory of checkpoints, or one of them, as the plugin "
            "Checkpoint writes them. What torch.save wrote is read by network.load_state_dict(torch.load(path))"
        )


def without_wrapper(name: str) -> str:
    """Return the name of a tensor without the wrappers of `torch.compile`, around a network or a part of one."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _without_wrappers(path: Path, held: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    found = {without_wrapper(name): tensor for name, tensor in held.items()}
    if len(found) < len(held):
        raise CheckpointError(f"{path} holds several tensors under one name, with and without what torch.compile adds")
    return found


def _chosen(path: Path, which: str, *, average: bool) -> tuple[Path, Snapshot, Sequence[str]]:
    sections = ("network", "plugins") if average else ("network",)
    if is_checkpoint(path):
        return path, Store(path.parent).load(path, sections), ()
    store = Store(path)
    entry, snapshot, damage = (store.best_sound if which == "best" else store.newest_sound)(sections)
    return entry.path, snapshot, damage


def _section_in(path: Path, section: Any, what: str) -> _Section:
    try:
        return _Section.model_validate(section)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"])) or "the whole"
        raise CheckpointError(
            f"{path} holds no {what}: {place:.200}: {found['msg']}, got {shown(found['input'])}"
        ) from error


def _average_in(path: Path, snapshot: Snapshot, names: Sequence[str]) -> tuple[_Section, str]:
    """Return the average that one of these plugins has kept, and what of it is not up to date."""
    found: Any = snapshot.sections.get("plugins", {})
    plugins = cast("Mapping[Any, Any]", found if isinstance(found, Mapping) else {})
    present = [name for name in names if name in plugins]
    if not present:
        there = ", ".join(sorted(map(str, plugins))) or "none"
        raise CheckpointError(
            f"{path} holds no average: the run had no plugin named {' or '.join(names)} (its plugins: {there:.200})"
        )
    states = {name: state for name in present if "tensors" in (state := _plugin_state_in(plugins[name]))}
    if not states:
        raise CheckpointError(f"{path} holds no average yet: it was written before {' or '.join(present)} had one")
    if len(states) > 1:
        raise CheckpointError(f"{path} holds averages of {' and '.join(states)}; name one: average={min(states)!r}")
    ((name, state),) = states.items()
    stale = ""
    if state.get("fresh") is False:  # as SWA says it
        stale = (
            f"{path} was written before {name} computed the statistics of BatchNorm for its average, so they are those "
            "of the trained weights; call torch.optim.swa_utils.update_bn(loader, network)"
        )
    return _section_in(path, state, "average of a network"), stale


def _plugin_state_in(plugin: object) -> Mapping[Any, Any]:
    """Return the state of a plugin in a checkpoint; nothing where that is no mapping."""
    state = cast("Mapping[Any, Any]", plugin).get("state") if isinstance(plugin, Mapping) else None
    return cast("Mapping[Any, Any]", state if isinstance(state, Mapping) else {})


def _as_trained(average: Tensor, trained: Tensor | None, read_as: torch.dtype | None) -> Tensor:
    """Return an average in the dtype of the weight; as it is where the reader's tensor has its dtype."""
    if trained is None or average.is_complex() != trained.is_complex() or read_as == average.dtype:
        return average
    return average.to(trained.dtype)
