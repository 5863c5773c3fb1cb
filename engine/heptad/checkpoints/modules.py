"""Modules in a checkpoint: capture their tensors, modes and extra state, restore them, describe what they are.

A tensor has the name that it has in its module. A submodule is described by its class and options.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heptad.checkpoints.form import StoredBeginning, StoredModule
from heptad.errors import CheckpointError, in_a_line, kind
from heptad.run.run import Run
from heptad.run.shards import Shards, alike

_BASE_EXTRA = nn.Module.get_extra_state


def modules_of(run: Run) -> dict[str, nn.Module]:
    """Return the modules that have state: the network, and a loss that is a module."""
    components = run._runtime.components
    found: dict[str, object] = {
        "network": components.network,
        "criterion": components.criterion,
        "compute_loss": components.compute_loss,
    }
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def capture_module(module: nn.Module, first: StoredBeginning | None) -> StoredModule:
    """Return the state of a module; its tensors are not copied.

    Args:
        module: The module.
        first: What it was before the first turn.
    """
    parts = parts_of(module)
    return StoredModule(
        tensors=tensors_of(module),
        not_persistent=_not_persistent_buffers(parts),
        parts={name: describe_part(part) for name, part in parts.items()},
        training={name: part.training for name, part in parts.items()},
        requires_grad={name: parameter.requires_grad for name, parameter in module.named_parameters()},
        extra={name: part.get_extra_state() for name, part in parts.items() if has_extra_state(part)},
        first=first,
        classes={name: kind(part) for name, part in parts.items()},
    )


def restore_module(module: nn.Module, stored: StoredModule, device: torch.device, shards: Shards) -> None:
    """Restore a module into the tensors that it has; it was compared with what is stored."""
    here, awaited = dict(_named_tensors(module)), _awaited_buffers(module)
    with torch.no_grad():
        for name, tensor in stored.tensors.items():
            if name in here:
                copy_into(here[name], alike(tensor, here[name], shards))
            else:  # a buffer that the first forward made
                setattr(awaited[name], name.rpartition(".")[2], tensor.to(device, copy=True))
    parts = parts_of(module)
    for name, training in stored.training.items():
        parts[name].training = training
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(stored.requires_grad[name])
    for name, state in stored.extra.items():
        parts[name].set_extra_state(state)


def rehearse_extra_states(name: str, module: nn.Module, stored: StoredModule) -> None:
    """Find out whether submodules take their extra states; they are as they were afterwards.

    Raises:
        CheckpointError: If one does not, with its name.
    """
    parts = parts_of(module)
    for part, state in stored.extra.items():
        own = parts[part].get_extra_state()
        with suppress(Exception):  # what cannot be copied is put back as it is
            own = deepcopy(own)
        try:
            parts[part].set_extra_state(deepcopy(state))
        except Exception as error:
            raise CheckpointError(
                f"{'.'.join(filter(None, (name, part)))} does not take its extra state: {in_a_line(error)}"
            ) from error
        finally:
            with suppress(Exception):  # one that refuses its own state could be left no better
                parts[part].set_extra_state(own)


def tied_names(module: nn.Module) -> list[list[str]]:
    """Return the names of each tensor that has several."""
    shared: dict[int, list[str]] = {}
    for name, tensor in _named_tensors(module):
        shared.setdefault(id(tensor), []).append(name)
    return [names for names in shared.values() if len(names) > 1]


def equal_in_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal in shape, dtype and bits, NaN included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if {one.layout, other.layout} != {torch.strided}:
        return False  # a sparse tensor from a stranger may be of any size
    flat = (tensor.clone(memory_format=torch.contiguous_format).reshape(-1) for tensor in (one, other))
    first, second = (tensor.view(torch.uint8) for tensor in flat)
    return torch.equal(first, second)


def describe_module(module: nn.Module) -> StoredBeginning:
    """Return what a module is before a run begins: its parts, and the buffers that have no tensor yet."""
    parts = {name: describe_part(part) for name, part in parts_of(module).items()}
    return StoredBeginning(parts=parts, awaited=sorted(_awaited_buffers(module)))


def describe_part(part: nn.Module) -> str:
    """Return a module's class and options as its repr has them, without its submodules."""
    return f"{kind(part)}({part.extra_repr()})"


def parts_of(module: nn.Module) -> dict[str, nn.Module]:
    """Return a module and all of its submodules by name."""
    return dict(cast("Iterable[tuple[str, nn.Module]]", module.named_modules()))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, detached: tied ones under each name, and not persistent ones too.

    Raises:
        CheckpointError: If some have no shape yet.
    """
    lazy = [name for name, tensor in _named_tensors(module) if is_lazy(tensor)]
    if lazy:
        raise CheckpointError(
            f"this {kind(module)} has no memory yet for {', '.join(lazy)}; run one batch through a lazy module before "
            "the Engine is built, where a run begins and where it is resumed"
        )
    return {name: tensor.detach() for name, tensor in _named_tensors(module)}


def tensor_differences(what: str, stored: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> list[str]:
    """Return in words how named tensors differ in name, shape and dtype."""
    found: list[str] = []
    for name in dict.fromkeys((*stored, *here)):
        one, other = (describe_tensor(tensors[name]) if name in tensors else "none" for tensors in (stored, here))
        if one != other:
            found.append(f"{what}.{name}: {one} in the checkpoint, {other} here")
    return found


def describe_tensor(tensor: Tensor) -> str:
    """Return a tensor's dtype and shape, such as `float32 (3, 4)`."""
    layout = "" if tensor.layout is torch.strided else f", {str(tensor.layout).removeprefix('torch.')}"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}{layout}"


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))


def _awaited_buffers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the buffers that are registered as None, by name, each with its submodule."""
    return {
        f"{prefix}.{name}" if prefix else name: part
        for prefix, part in cast("Iterable[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=False))
        for name, buffer in part._buffers.items()  # pyright: ignore[reportPrivateUsage] - named_buffers leaves these out
        if buffer is None
    }


def _not_persistent_buffers(parts: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the buffers that a state_dict leaves out."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, part in parts.items()
        for name in sorted(part._non_persistent_buffers_set)  # pyright: ignore[reportPrivateUsage] - torch has no other list
    ]


def has_extra_state(part: nn.Module) -> bool:
    """Return whether a module's class keeps a state beside its tensors."""
    return type(part).get_extra_state is not _BASE_EXTRA


def copy_into(tensor: Tensor, stored: Tensor) -> None:
    """Copy elements into a tensor. The elements of an expanded one share memory, so `copy_` would raise there.

    It is expanded again if what is stored is equal along those dimensions; else it gets memory of its own.
    """
    if type(tensor) is type(stored) is not Tensor and type(tensor) is not nn.Parameter:  # shared by ranks, and dense
        tensor.copy_(stored)
        return
    one = stored
    for place, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        one = one.narrow(place, 0, 1) if size > 1 and not stride else one
    if one is stored:
        tensor.copy_(stored)
    elif torch.equal(one.expand_as(stored), stored):
        tensor.data = one.to(tensor.device, copy=True).expand_as(stored)
    else:
        tensor.data = stored.to(tensor.device, copy=True)
