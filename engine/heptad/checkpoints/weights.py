"""`load_weights`: the weights of a checkpoint, for prediction and fine-tuning, without the run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heptad.checkpoints.form import Stored
from heptad.checkpoints.layout import is_checkpoint, named_path
from heptad.checkpoints.modules import copy_into, describe_tensor, equal_in_bits
from heptad.checkpoints.store import Store
from heptad.checkpoints.stored_types import shown
from heptad.errors import CheckpointError, kind
from heptad.run.snapshot import Snapshot

WHICH = ("newest", "best", "ema")

_MOST_NAMED = 20


def load_weights(
    directory: str | Path,
    network: nn.Module,
    which: Literal["newest", "best", "ema"] = "newest",
    *,
    average: bool = False,
) -> Path:
    """Load the weights of a checkpoint into a network: parameters and buffers, not persistent ones too.

    All or nothing: names, shapes and dtypes are compared before anything is changed, and must be equal; a tensor that
    has several names (tied weights) may stand under one of them or all. The tensors of the network stay where they are
    and on their device; modes are left alone (`network.eval()` before predicting). Of a buffer that is not persistent,
    on either side, the name may be missing on the other: it is no part of the weights, and one that the checkpoint
    lacks keeps what the network's constructor gave it.

    Args:
        directory: Of checkpoints, or one checkpoint.
        network: Of the kind that was trained; either may be one that `torch.compile` made.
        which: `"newest"`; `"best"`, by the value that `Checkpoint(monitor=…)` watched, of equals the first; or `"ema"`,
            the average in the newest. Where one checkpoint is given, `"best"` is that one.
        average: Load the average that the plugin `EMA` kept in place of the weights that were trained: what its
            evaluations measured.

    Returns:
        The path of the checkpoint. Damaged ones are passed over with a warning.

    Raises:
        CheckpointError: If there is no such checkpoint, or it does not fit the network, with all the differences.
    """
    _check_arguments(directory, network)
    if which not in WHICH:
        raise CheckpointError(f"load_weights(which=…) is one of {', '.join(map(repr, WHICH))}, got {which!r}")
    average = average or which == "ema"
    path, snapshot = _chosen(named_path(directory), which, average=average)
    held = _weights_in(path, snapshot.sections.get("network"), "weights of a network")
    given = _ema_tensors(path, snapshot, network, held.tensors) if average else held.tensors
    _fill_network(path, network, given, held.not_persistent)
    return path


class _Weights(Stored):
    """What is needed of a section; `Any` but for these, so that weights can be taken from what cannot be resumed."""

    tensors: dict[str, Tensor]
    not_persistent: list[str] = Field(default_factory=list[str])


def _weights_in(path: Path, section: Any, what: str) -> _Weights:
    try:
        return _Weights.model_validate(section)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"])) or "the whole"
        raise CheckpointError(
            f"{path} holds no {what}: {place:.200}: {found['msg']}, got {shown(found['input'])}"
        ) from error


def _check_arguments(directory: object, network: object) -> None:
    """Refuse arguments of other kinds."""
    call = "load_weights(directory, network)"
    if isinstance(directory, nn.Module) and isinstance(network, str | os.PathLike):
        raise CheckpointError(f"{call} takes the directory first, then the network; here they are swapped")
    if not isinstance(directory, str | os.PathLike):
        raise CheckpointError(f"{call} takes a directory of checkpoints as a str or a Path, got {kind(directory)}")
    if isinstance(network, type):
        raise CheckpointError(f"{call} takes a network, got the class {network.__name__}; make one of it")
    found = kind(network)
    if isinstance(network, Mapping):
        raise CheckpointError(f"{call} takes the network itself and not its state_dict(), got {found}")
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{call} takes a network, an nn.Module, got {found}")
    path = named_path(cast("str", directory))
    if path.is_file():
        if is_checkpoint(path.parent):
            raise CheckpointError(f"{path} is a file of a checkpoint; name the checkpoint: {path.parent}")
        raise CheckpointError(
            f"{path} is a file; load_weights takes a directory of checkpoints, or one of them, as the plugin "
            "Checkpoint writes them. What torch.save wrote is read by network.load_state_dict(torch.load(path))"
        )


def _chosen(path: Path, which: str, *, average: bool) -> tuple[Path, Snapshot]:
    sections = ("network", "plugins") if average else ("network",)
    if is_checkpoint(path):
        return path, Store(path.parent).load(path, sections)
    store = Store(path)
    entry, snapshot, damage = (store.best_sound if which == "best" else store.newest_sound)(sections)
    if damage:
        text = "; ".join(damage)
        warnings.warn(f"{entry.path} is loaded, because what comes before it is damaged: {text}", stacklevel=3)
    return entry.path, snapshot


def _ema_tensors(
    path: Path, snapshot: Snapshot, network: nn.Module, weights: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return the averages, in the dtypes of the weights; those that the network has in its own stay as they are."""
    found: Any = snapshot.sections.get("plugins", {})
    plugins = cast("Mapping[Any, Any]", found if isinstance(found, Mapping) else {})
    if "EMA" not in plugins:
        there = ", ".join(sorted(map(str, plugins))) or "none"
        raise CheckpointError(f"{path} holds no average: the run had no plugin named EMA (its plugins: {there:.200})")
    plugin: Any = plugins["EMA"]
    state: Any = cast("Mapping[Any, Any]", plugin).get("state") if isinstance(plugin, Mapping) else None
    if not isinstance(state, Mapping) or "tensors" not in state:
        raise CheckpointError(f"{path} holds no average yet: it was written before EMA saw the network")
    averages = _weights_in(path, cast("Any", state), "average of a network").tensors
    own = _tensors_by_name(network)
    return {
        name: tensor
        if name not in weights
        or tensor.is_complex() != weights[name].is_complex()
        or ((there := own.get(_unwrapped(name))) is not None and there.dtype == tensor.dtype)
        else tensor.to(weights[name].dtype)
        for name, tensor in averages.items()
    }


def _fill_network(path: Path, network: nn.Module, held: Mapping[str, Tensor], optional: Iterable[str]) -> None:
    given = {_unwrapped(name): tensor for name, tensor in held.items()}
    if len(given) < len(held):
        raise CheckpointError(f"{path} holds several tensors under one name, with and without what torch.compile adds")
    own = _tensors_by_name(network)
    lazy = [name for name, tensor in own.items() if is_lazy(tensor) or tensor.is_meta]
    if lazy:
        raise CheckpointError(
            f"this {kind(network)} has no memory yet for {_list_names(lazy)}; run one batch through a lazy network, or "
            "network.to_empty(device=…) for one on the meta device, and load then"
        )
    shared: dict[int, list[str]] = {}  # tied weights: the names of each tensor, of which the checkpoint may hold one
    for name, tensor in own.items():
        shared.setdefault(id(tensor), []).append(name)
    both = [[name for name in names if name in given] for names in shared.values()]
    absent = {name for names, found in zip(shared.values(), both, strict=True) if not found for name in names}
    missing = absent - _left_out_of_state_dict(network)
    unexpected = given.keys() - own.keys() - {_unwrapped(name) for name in optional}
    other = [
        f"{name} is {describe_tensor(given[name])} in the checkpoint, {describe_tensor(own[name])} in the network"
        for name in own
        if name in given and describe_tensor(given[name]) != describe_tensor(own[name])
    ]
    other += [
        f"{first} and {name} are one tensor in the network, and two that differ in the checkpoint"
        for first, *rest in filter(None, both)
        for name in rest
        if not equal_in_bits(given[first], given[name])
    ]
    lines = [f"the checkpoint lacks {_list_names(sorted(missing))}"] if missing else []
    lines += [f"the network lacks {_list_names(sorted(unexpected))}"] if unexpected else []
    lines += other[:_MOST_NAMED] + ([f"and {len(other) - _MOST_NAMED} more"] if len(other) > _MOST_NAMED else [])
    if lines:
        text = "".join(f"\n  {line}" for line in lines)
        raise CheckpointError(f"{path} does not fit this {kind(network)}, and nothing was loaded:{text}")
    frozen = [name for name, tensor in own.items() if tensor.is_inference()]
    if frozen and not torch.is_inference_mode_enabled():
        raise CheckpointError(
            f"{_list_names(frozen)} of this {kind(network)} was made under torch.inference_mode and cannot be changed "
            "outside of it, so nothing was loaded; make the network outside of it"
        )
    with torch.no_grad():
        for first, *_ in filter(None, both):
            copy_into(own[first], given[first])


def _left_out_of_state_dict(network: nn.Module) -> set[str]:
    """Return the names of the buffers that `state_dict` leaves out."""
    left_out = {name for name, _ in network.named_buffers(remove_duplicate=False)} - network.state_dict().keys()
    return {_unwrapped(name) for name in left_out}


def _tensors_by_name(network: nn.Module) -> dict[str, Tensor]:
    parameters, buffers = network.named_parameters, network.named_buffers
    named = chain(parameters(remove_duplicate=False), buffers(remove_duplicate=False))
    return {_unwrapped(name): tensor for name, tensor in named}


def _unwrapped(name: str) -> str:
    """Return the name of a tensor without the wrappers of `torch.compile`, around a network or a part of one."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
