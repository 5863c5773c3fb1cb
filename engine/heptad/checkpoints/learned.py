"""What a run has learned: modules, optimizers and the gradients of the open window, taken down and put back.

Everything is told by name. A parameter's name is that of its module and its own (`network.layer.weight`); one that an
optimizer holds and no module of the run does is `held.<number>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heptad.errors import CheckpointError, kind
from heptad.run.run import Run

_BASE_EXTRA = nn.Module.get_extra_state


def capture(run: Run) -> dict[str, Any]:
    """Returns the sections of what was learned."""
    names = parameter_names(run)
    built = [len(options["groups"]) for options in run.buffer.facts.get("optimizers", ())]
    return {
        **{name: _capture_module(module) for name, module in modules_of(run).items()},
        "optimizers": {
            "states": run.runtime.optimizers.state(names, built),
            "held": held_parameters(run),
            "gradients": _capture_gradients(run),
        },
    }


def restore(run: Run, sections: Mapping[str, Any]) -> None:
    """Puts back what was learned, into the tensors that are there; everything was checked."""
    for name, module in modules_of(run).items():
        _restore_module(module, sections[name], run.runtime.device)
    parameters, stored = dict(_parameters(run)), sections["optimizers"]
    with torch.no_grad():
        for name, tensor in stored["held"].items():
            parameters[name].copy_(tensor)
    run.runtime.optimizers.restore(stored["states"], parameters)
    gradients = stored["gradients"]
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].to(parameter.device) if name in gradients else None


def modules_of(run: Run) -> dict[str, nn.Module]:
    """Returns the modules that have state: the network, and a loss that is a module."""
    parts = run.runtime.components
    found: dict[str, object] = {
        "network": parts.network,
        "criterion": parts.criterion,
        "compute_loss": parts.compute_loss,
    }
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns all parameters and buffers by name, those too that a state_dict leaves out; tied ones under each name.

    Raises:
        CheckpointError: If some have no shape yet.
    """
    lazy = [name for name, tensor in _tensors(module) if is_lazy(tensor)]
    if lazy:
        raise CheckpointError(
            f"this {kind(module)} has no memory yet for {', '.join(lazy)}; run one batch through a lazy module before "
            "the Engine is built, where a run begins and where it is resumed"
        )
    return {name: tensor.detach() for name, tensor in _tensors(module)}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))


def described(module: nn.Module) -> dict[str, Any]:
    """Returns what a module is before a run begins: its parts, and the buffers that it has no tensors for yet."""
    parts = {name: told(part) for name, part in parts_of(module).items()}
    return {"parts": parts, "awaited": sorted(_awaited(module))}


def _awaited(module: nn.Module) -> dict[str, nn.Module]:
    """Returns the buffers that are registered as None, by name, with the part that each is of."""
    return {
        f"{prefix}.{name}" if prefix else name: part
        for prefix, part in cast("Iterable[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=False))
        for name, buffer in part._buffers.items()  # pyright: ignore[reportPrivateUsage] - torch tells them nowhere else
        if buffer is None
    }


def parameter_names(run: Run) -> dict[int, str]:
    """Returns the name of each parameter, by its id."""
    return {id(parameter): name for name, parameter in _parameters(run)}


def held_parameters(run: Run) -> dict[str, Tensor]:
    """Returns the parameters that the optimizers hold and no module of the run does."""
    return {name: parameter.detach() for name, parameter in _parameters(run) if name.startswith("held.")}


def shape_differences(what: str, stored: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> list[str]:
    """Returns in words how named tensors differ in name, shape and dtype; nothing where they do not."""
    found: list[str] = []
    for name in dict.fromkeys((*stored, *here)):
        one, other = (_told(tensors[name]) if name in tensors else "none" for tensors in (stored, here))
        if one != other:
            found.append(f"{what}.{name}: {one} in the checkpoint, {other} here")
    return found


def _told(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _parameters(run: Run) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields every parameter once: of the modules by name, then what else the optimizers hold."""
    seen: set[int] = set()
    for prefix, module in modules_of(run).items():
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}", parameter
    others = (parameter for parameter in run.runtime.optimizers.held() if id(parameter) not in seen)
    yield from ((f"held.{number}", parameter) for number, parameter in enumerate(others))


def _capture_module(module: nn.Module) -> dict[str, Any]:
    parts = parts_of(module)
    return {
        "tensors": tensors_of(module),
        "not_persistent": _not_persistent(parts),
        "parts": {name: told(part) for name, part in parts.items()},
        "training": {name: part.training for name, part in parts.items()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "extra": {name: part.get_extra_state() for name, part in parts.items() if _has_extra(part)},
    }


def _not_persistent(parts: Mapping[str, nn.Module]) -> list[str]:
    """Returns the names of the buffers that a state_dict leaves out; torch tells them nowhere but here."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, part in parts.items()
        for name in sorted(part._non_persistent_buffers_set)  # pyright: ignore[reportPrivateUsage] - see above
    ]


def _restore_module(module: nn.Module, stored: Mapping[str, Any], device: torch.device) -> None:
    here, awaited = dict(_tensors(module)), _awaited(module)
    with torch.no_grad():
        for name, tensor in stored["tensors"].items():
            if name in here:
                _fill(here[name], tensor)
            else:  # a buffer that the first forward made
                setattr(awaited[name], name.rpartition(".")[2], tensor.to(device, copy=True))
    parts = parts_of(module)
    for name, training in stored["training"].items():
        parts[name].training = training
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(stored["requires_grad"][name])
    for name, state in stored["extra"].items():
        parts[name].set_extra_state(state)


def _fill(tensor: Tensor, stored: Tensor) -> None:
    """Gives a tensor its elements. One that is expanded shares memory among them, which cannot be written through."""
    one = stored
    for place, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        one = one.narrow(place, 0, 1) if size > 1 and not stride else one
    if one is stored:
        tensor.copy_(stored)
    elif torch.equal(one.expand_as(stored), stored):
        tensor.data = one.to(tensor.device, copy=True).expand_as(stored)
    else:
        tensor.data = stored.to(tensor.device, copy=True)


def parts_of(module: nn.Module) -> dict[str, nn.Module]:
    """Returns a module and all that is in it, by name."""
    return dict(cast("Iterable[tuple[str, nn.Module]]", module.named_modules()))


def told(module: nn.Module) -> str:
    """Returns a module's class and options, as its repr tells them, without what is in it."""
    return f"{kind(module)}({module.extra_repr()})"


def _has_extra(module: nn.Module) -> bool:
    return type(module).get_extra_state is not _BASE_EXTRA


def _capture_gradients(run: Run) -> dict[str, Tensor]:
    """Returns the gradients that are there and matter: none and zeros are not the same to an optimizer.

    Where no window is open, those of an update that was made are still there. The next step drops them unseen where
    the optimizer has torch's own `zero_grad`, so they need no place in a checkpoint. What another `zero_grad` makes of
    them cannot be known, and those of a parameter that no optimizer holds are added to, window after window.
    """
    dropped: set[int] = set() if run.position.window.steps else run.runtime.optimizers.cleared()
    named = ((name, parameter) for name, parameter in _parameters(run) if id(parameter) not in dropped)
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}
