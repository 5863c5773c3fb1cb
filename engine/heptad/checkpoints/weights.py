"""`load_weights`: the weights of a checkpoint, for prediction and fine-tuning, without the run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heptad.checkpoints.entry import WHICH
from heptad.checkpoints.held_weights import HeldWeights, read_weights, refuse_file, without_wrapper
from heptad.checkpoints.layout import named_path
from heptad.checkpoints.modules import copy_into, describe_tensor, equal_in_bits
from heptad.errors import CheckpointError, kind

_MOST_NAMED = 20


def load_weights(
    directory: str | Path,
    network: nn.Module,
    which: Literal["newest", "best", "ema"] = "newest",
    *,
    average: bool | str = False,
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
        average: Load the average that the plugin `EMA` or `SWA` kept in place of the weights that were trained: what
            its evaluations measured. Of several averages name the plugin, such as `"SWA"`.

    Returns:
        The path of the checkpoint. Damaged ones are passed over with a warning. Another warning says that `SWA` had not
        yet computed the statistics of BatchNorm for its average.

    Raises:
        CheckpointError: If there is no such checkpoint, or it does not fit the network, with all the differences.
    """
    _check_arguments(directory, network)
    if which not in WHICH:
        raise CheckpointError(f"load_weights(which=…) is one of {', '.join(map(repr, WHICH))}, got {which!r}")
    dtypes = {name: tensor.dtype for name, tensor in _tensors_by_name(network).items()}
    held = read_weights(directory, which, average=average, dtypes=dtypes)
    if held.stale:
        warnings.warn(held.stale, stacklevel=2)
    if held.damage:
        text = "; ".join(held.damage)
        warnings.warn(f"{held.path} is loaded, because what comes before it is damaged: {text}", stacklevel=2)
    _fill_network(held, network)
    return held.path


def _check_arguments(directory: object, network: object) -> None:
    """Refuse arguments of other kinds."""
    call = "load_weights(directory, network)"
    if isinstance(directory, nn.Module) and isinstance(network, str | os.PathLike):
        raise CheckpointError(f"{call} takes the directory first, then the network; here they are swapped")
    if not isinstance(directory, str | os.PathLike):
        hint = "; pass its path" if hasattr(type(directory), "path") else ""  # a RunFolder
        expected = "a directory of checkpoints as a str or a Path"
        raise CheckpointError(f"{call} takes {expected}, got {kind(directory)}{hint}")
    if isinstance(network, type):
        raise CheckpointError(f"{call} takes a network, got the class {network.__name__}; make one of it")
    found = kind(network)
    if isinstance(network, Mapping):
        raise CheckpointError(f"{call} takes the network itself and not its state_dict(), got {found}")
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{call} takes a network, an nn.Module, got {found}")
    path = named_path(cast("str", directory))
    refuse_file(path, "load_weights")


def _fill_network(held: HeldWeights, network: nn.Module) -> None:
    path, given = held.path, held.tensors
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
    unexpected = given.keys() - own.keys() - held.not_persistent
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
    return {without_wrapper(name) for name in left_out}


def _tensors_by_name(network: nn.Module) -> dict[str, Tensor]:
    parameters, buffers = network.named_parameters, network.named_buffers
    named = chain(parameters(remove_duplicate=False), buffers(remove_duplicate=False))
    return {without_wrapper(name): tensor for name, tensor in named}


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
