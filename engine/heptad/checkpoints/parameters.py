"""Parameters in a checkpoint: their names, their gradients, and the state that optimizers keep for them.

The name of a parameter is that of its module and its own (`network.layer.weight`); one that only an optimizer holds is
`held.<number>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from heptad.checkpoints.damage import AnotherRunError
from heptad.checkpoints.form import StoredOptimizer, StoredOptimizers
from heptad.checkpoints.modules import modules_of
from heptad.errors import CheckpointError
from heptad.run.run import Run
from heptad.run.runtime import OptimizerSet
from heptad.run.shards import Shards, alike


def capture_optimizers(run: Run) -> StoredOptimizers:
    """Return the state of the optimizers, the parameters that only they hold, and the gradients of the open window."""
    optimizers, facts, names = run._runtime.optimizers, run._buffer.facts, parameter_names(run)
    states = _states_of(optimizers, names, facts.get("optimizers", ()))
    side = _states_of(optimizers.beside(), names, facts.get("side_optimizers", {}).values())
    return StoredOptimizers(
        states=states,
        side=dict(zip(optimizers.side, side, strict=True)),
        held=held_parameters(run),
        gradients=_gradients(run),
    )


def _states_of(
    optimizers: OptimizerSet, names: Mapping[int, str], built: Iterable[Mapping[str, Any]]
) -> list[StoredOptimizer]:
    states = optimizers.state(names, [len(options["groups"]) for options in built])
    return [StoredOptimizer.model_validate(state) for state in states]


def rehearse_optimizers(run: Run, stored: StoredOptimizers) -> None:
    """Find out whether the optimizers can load what is stored; they are as they were afterwards.

    Raises:
        AnotherRunError: If one cannot: its class is of another version.
    """
    parameters, optimizers = dict(named_parameters(run)), run._runtime.optimizers
    try:
        optimizers.rehearse(_states_for(run, stored.states, parameters), parameters)
        optimizers.beside().rehearse(_side_states(run, stored, parameters), parameters)
    except CheckpointError as error:
        raise AnotherRunError(str(error)) from error.__cause__


def restore_optimizers(run: Run, stored: StoredOptimizers) -> None:
    """Restore optimizers and gradients; the optimizers were built, and compared with what is stored."""
    parameters = dict(named_parameters(run))
    with torch.no_grad():
        for name, tensor in stored.held.items():
            parameters[name].copy_(tensor)
    run._runtime.optimizers.restore(_states_for(run, stored.states, parameters), parameters)
    run._runtime.optimizers.beside().restore(_side_states(run, stored, parameters), parameters)
    shards = run._runtime.shards
    for name, parameter in parameters.items():
        gradient = stored.gradients.get(name)
        parameter.grad = None if gradient is None else alike(gradient, parameter, shards).to(parameter.device)


def _side_states(run: Run, stored: StoredOptimizers, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Return the stored states of the side optimizers in the order of those that are here."""
    return _states_for(run, [stored.side[name] for name in run._runtime.optimizers.side], parameters)


def _states_for(
    run: Run, stored: Iterable[StoredOptimizer], parameters: Mapping[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """Return stored states with the form that parameters have here: where these are shared by ranks, a part of each."""
    return [_shared_state(one, parameters, run._runtime.shards) for one in stored]


def _shared_state(stored: StoredOptimizer, parameters: Mapping[str, nn.Parameter], shards: Shards) -> dict[str, Any]:
    whole, state = stored.plain(), stored.state.get("state")
    if not shards.any or not isinstance(state, dict):
        return whole
    names = [name for group in stored.parameters for name in group]
    rows = cast("dict[Any, Any]", state)
    shared = dict(rows)
    for number, values in rows.items():
        if isinstance(number, int) and number < len(names) and names[number] in parameters and isinstance(values, dict):
            like, held = parameters[names[number]], cast("dict[Any, Any]", values)
            shared[number] = {key: _shared_value(value, like, shards) for key, value in held.items()}
    return {**whole, "state": {**stored.state, "state": shared}}


def _shared_value(value: Any, parameter: nn.Parameter, shards: Shards) -> Any:
    return alike(value, parameter, shards) if isinstance(value, Tensor) else value


def parameter_names(run: Run) -> dict[int, str]:
    """Return the name of each parameter by its id."""
    return {id(parameter): name for name, parameter in named_parameters(run)}


def held_parameters(run: Run) -> dict[str, Tensor]:
    """Return the parameters that only the optimizers hold."""
    return {name: parameter.detach() for name, parameter in named_parameters(run) if name.startswith("held.")}


def named_parameters(run: Run) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter once: those of the modules, then what else the optimizers hold."""
    seen: set[int] = set()
    for prefix, module in modules_of(run).items():
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}", parameter
    optimizers = run._runtime.optimizers
    held = {id(one): one for one in (*optimizers.held(), *optimizers.beside().held())}
    others = (parameter for parameter in held.values() if id(parameter) not in seen)
    yield from ((f"held.{number}", parameter) for number, parameter in enumerate(others))


def _gradients(run: Run) -> dict[str, Tensor]:
    """Return the gradients that matter; to an optimizer no gradient and a gradient of zeros are not the same.

    If no window is open, the gradients of the update before are still there. Opening a window drops them if the
    optimizer has torch's own `zero_grad`, so they are left out. What another `zero_grad` does with them is unknown, and
    those of a parameter that no optimizer holds are never cleared, so both are kept.
    """
    dropped: set[int] = set() if run._position.window.steps else run._runtime.optimizers.cleared()
    named = ((name, parameter) for name, parameter in named_parameters(run) if id(parameter) not in dropped)
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}
