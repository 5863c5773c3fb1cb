"""`Optimizers`: all optimizers of a run as one object. Nothing else walks their parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from heptad.config import Components, is_optimizer, listed, refusal
from heptad.errors import CheckpointError, ConfigError, add_note, diagnose, kind

PLAIN_ZERO_GRAD = Optimizer.zero_grad


class Optimizers(tuple[Optimizer, ...]):
    """The optimizers, in the order in which they step. A tuple, so that the update loops over it without a call."""

    def __new__(cls, optimizers: Iterable[Optimizer] = ()) -> Optimizers:
        """Make the tuple. A single optimizer with a `zero_grad` of its own is cleared by that, less a call."""
        made = super().__new__(cls, optimizers)
        if len(made) == 1 and not _clears_plainly(made[0]):
            vars(made)["clear"] = made[0].zero_grad
        return made

    def clear(self) -> None:
        """Drop the gradients of the optimizers' parameters: what opens a window."""
        for optimizer in self:
            if _clears_plainly(optimizer):
                # what zero_grad() does, less its profiler record, which costs more than this whole loop
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
            else:
                optimizer.zero_grad()

    def drop(self, network: nn.Module) -> None:
        """Drop the gradients of the network and of all that the optimizers hold."""
        network.zero_grad()
        for optimizer in self:
            optimizer.zero_grad()

    def held(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizers hold, each once, in the order of their groups."""
        return list(
            {id(p): p for optimizer in self for group in optimizer.param_groups for p in group["params"]}.values()
        )

    def parameters(self, network: nn.Module) -> list[nn.Parameter]:
        """Return the network's parameters in its order, then the others that the optimizers hold, each once."""
        return list({id(p): p for p in (*network.parameters(), *self.held())}.values())

    def cleared(self) -> set[int]:
        """Return the ids of the parameters whose gradients `clear` certainly drops.

        What a `zero_grad` of the user's own does to the others cannot be known.
        """
        plain = (one for one in self if _clears_plainly(one))
        return {id(p) for optimizer in plain for group in optimizer.param_groups for p in group["params"]}

    def groups(self, of: Optimizer | None = None) -> list[dict[str, Any]]:
        """Return the parameter groups, of all or of one of the optimizers; not copied."""
        return [group for optimizer in self if of is None or optimizer is of for group in optimizer.param_groups]

    def learning_rates(self, of: Optimizer | None = None) -> dict[str, float | Tensor]:
        """Return the learning rate as `lr`; where there are several groups, as `lr/0`, `lr/1` and so on.

        A rate that is a tensor is copied, since a schedule may write into it. One that is no number is left out: an
        optimizer that finds its own, such as Adafactor, may hold `None`.

        Args:
            of: Leave out the groups of all other optimizers; the numbers stay.
        """
        rates: dict[str, float | Tensor] = {}  # by loops: a comprehension is a call, and loggers ask at every update
        several = len(self) > 1 or (len(self) == 1 and len(self[0].param_groups) > 1)
        number = 0
        for optimizer in self:
            for group in optimizer.param_groups:
                if "lr" in group and (of is None or optimizer is of):
                    rate = group["lr"]
                    if type(rate) is float or (rate := _number_of(rate)) is not None:
                        rates[f"lr/{number}" if several else "lr"] = rate
                number += 1
        return rates

    def describe(self) -> list[dict[str, Any]]:
        """Return the class of each and the plain options of its parameter groups."""
        return [
            {
                "class": kind(optimizer),
                "groups": [
                    {name: value for name, value in group.items() if isinstance(value, str | int | float | None)}
                    for group in optimizer.param_groups
                ],
            }
            for optimizer in self
        ]

    # -- checkpoints

    def names(self, names: Mapping[int, str]) -> list[list[list[str]]]:
        """Return the names of the parameters, by optimizer and group.

        Args:
            names: The name of each parameter by its id.
        """
        return [
            [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
            for optimizer in self
        ]

    def state(self, names: Mapping[int, str], built: Sequence[int]) -> list[dict[str, Any]]:
        """Return the state of each, with the names of its parameters by group.

        Args:
            names: The name of each parameter by its id; one that no module of the run holds is named `held.<number>`.
            built: How many parameter groups each was built with.

        Raises:
            CheckpointError: If an optimizer cannot give its state, or a resumed run could not get its groups.
        """
        return [_state_of(*each) for each in zip(self, built, self.names(names), strict=True)]

    def restore(self, states: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter]) -> None:
        """Restore what `state` returned; groups that were added during the run are added first."""
        for optimizer, stored in zip(self, states, strict=True):
            _add_groups(optimizer, stored, parameters)
            _restore_state(optimizer, stored["state"])


def _number_of(rate: Any) -> float | Tensor | None:
    """Return a rate as a number or a 0-dim tensor, copied; `None` for one that is neither."""
    if isinstance(rate, Tensor):  # torch takes a tensor of one element, whatever its shape
        return rate.detach().clone().reshape(()) if rate.numel() == 1 else None
    plain = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    return float(cast("float", rate)) if plain else None


def _clears_plainly(optimizer: object) -> bool:
    """Return whether this optimizer's `zero_grad` is torch's own, so that what it does can be done without it."""
    return getattr(type(optimizer), "zero_grad", None) is PLAIN_ZERO_GRAD


def build_optimizers(components: Components) -> Optimizers:
    """Return the optimizers, calling the functions among them with the network; after the network was placed.

    Raises:
        ConfigError: If a function returns something else; if an optimizer holds none of the network's parameters, is
            there twice, or has a `step` that needs an argument.
    """
    network = components.network
    # a list and not a generator, which would turn a StopIteration of the user's into another error
    made = [part if is_optimizer(part) else _make(part, network) for part in listed(components.optimizer)]
    if mistakes := optimizer_mistakes(made, network):
        raise ConfigError("\n".join(mistakes))
    return Optimizers(made)


def _make(function: Callable[[nn.Module], Any], network: nn.Module) -> Any:
    try:
        return function(network)
    except Exception as error:
        add_note(error, diagnose("optimizer_factory", error, network))
        raise


def optimizer_mistakes(optimizers: Sequence[Any], network: nn.Module) -> list[str]:
    """Return what is wrong with optimizers: with each, and between them."""
    mistakes = [text for optimizer in optimizers if (text := optimizer_mistake(optimizer, network, "built"))]
    for number, optimizer in enumerate(optimizers):
        if any(optimizer is other for other in optimizers[:number]):
            mistakes.append(
                f"Components.optimizer holds the same {kind(optimizer)} twice: it would update twice; pass it once"
            )
    return mistakes


def optimizer_mistake(optimizer: Any, network: nn.Module, when: str) -> str | None:
    """Return why an optimizer cannot train a network, `None` where it can.

    Args:
        optimizer: What was given, or made.
        network: The network that it is to train.
        when: `"built"`, or `"initialised"` after `init_weights` may have replaced the parameters.
    """
    if not is_optimizer(optimizer):
        return diagnose("no_optimizer", optimizer)
    own = {id(parameter) for parameter in network.parameters()}
    held = Optimizers([optimizer]).held()
    if not any(id(parameter) in own for parameter in held):
        return diagnose("foreign_parameters", optimizer, len(held), len(own), when)
    step = optimizer.step
    # a scheduler of torch replaces `step` by a function that claims the signature of the class's own: with self
    in_place = not inspect.ismethod(step) and hasattr(step, "__wrapped__")
    if (why := refusal(step)) and not (in_place and refusal(step, optimizer) is None):
        return diagnose("needs_closure", optimizer, why)
    return None


def _state_of(optimizer: Any, built: int, parameters: list[list[str]]) -> dict[str, Any]:
    if not all(callable(getattr(optimizer, name, None)) for name in ("state_dict", "load_state_dict")):
        raise CheckpointError(
            f"the optimizer (a {kind(optimizer)}) has no state_dict and load_state_dict, so its state cannot be stored"
        )
    nameless = [name for group in parameters[built:] for name in group if name.startswith("held.")]
    if len(parameters) < built or nameless:
        what = f"{len(nameless)} parameters that no module of the run holds" if nameless else "fewer of them"
        raise CheckpointError(
            f"the optimizer (a {kind(optimizer)}) was built with {built} parameter groups and has {len(parameters)} "
            f"now, with {what}, so a resumed run could not restore it; give it all its groups when it is built, of "
            "parameters that the network holds"
        )
    return {"class": kind(optimizer), "parameters": parameters, "state": optimizer.state_dict()}


def _add_groups(optimizer: Any, stored: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
    """Add the parameter groups that were added during the run; their state and options are loaded afterwards."""
    built = len(optimizer.param_groups)
    for number, names in enumerate(stored["parameters"][built:], built):
        options = dict(stored["state"]["param_groups"][number])
        held = [parameters[name] for name in names]
        own = options.pop("param_names", None)  # torch takes them with the parameters
        optimizer.add_param_group({**options, "params": held if own is None else list(zip(own, held, strict=True))})


def _restore_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load a state. torch rounds it to the dtypes of the parameters, so what was rounded is put back afterwards."""
    optimizer.load_state_dict(state)
    if not isinstance(optimizer, Optimizer):
        return
    held = [p for group in optimizer.param_groups for p in cast("list[nn.Parameter]", group["params"])]
    live = cast("Mapping[Tensor, dict[str, Any]]", optimizer.state)
    for number, values in cast("dict[Any, dict[str, Any]]", state["state"]).items():
        for name, value in values.items() if isinstance(number, int) else ():
            if name in live[held[number]]:
                live[held[number]][name] = _unrounded(live[held[number]][name], value)


def _unrounded(loaded: Any, stored: Any) -> Any:
    """Return what an optimizer loaded, with the dtypes of what was stored, and its texts, which torch takes apart."""
    if isinstance(stored, Tensor) and isinstance(loaded, Tensor):
        return loaded if loaded.dtype == stored.dtype else stored.to(loaded.device)
    if isinstance(stored, dict) and isinstance(loaded, dict):
        parts, there = cast("dict[Any, Any]", loaded), cast("dict[Any, Any]", stored)
        made = cast("Callable[[dict[Any, Any]], Any]", type(cast("object", stored)))
        return made({name: _unrounded(part, there.get(name)) for name, part in parts.items()})
    if isinstance(stored, list | tuple) and isinstance(loaded, list | tuple):
        rows, kept = cast("Sequence[Any]", loaded), cast("Sequence[Any]", stored)
        return (
            cast("Any", type(cast("object", stored)))(map(_unrounded, rows, kept)) if len(rows) == len(kept) else rows
        )
    return stored if isinstance(stored, str) else loaded
