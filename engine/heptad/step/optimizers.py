"""`Optimizers`: all optimizers of a run as one object. Nothing else walks their parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heptad.config import Components, is_optimizer, listed, refusal
from heptad.errors import CheckpointError, ConfigError, a_kind, add_note, counted, diagnose, kind, summarize
from heptad.ranks.strategy import Strategy
from heptad.run.runtime import OptimizerSet, Runtime
from heptad.run.shards import Shards

PLAIN_ZERO_GRAD = Optimizer.zero_grad

_MAIN = "Components.optimizer"


class Optimizers(tuple[Optimizer, ...]):
    """The optimizers, in the order in which they step. A tuple, so that the update loops over it without a call.

    Attributes:
        side: Those that plugins step, by name.
        where: What messages call each.
    """

    side: Mapping[str, Optimizer]
    where: Sequence[str]

    def __new__(
        cls,
        optimizers: Iterable[Optimizer] = (),
        side: Mapping[str, Optimizer] | None = None,
        where: Sequence[str] | None = None,
    ) -> Optimizers:
        """Make the tuple. A single optimizer with a `zero_grad` of its own is cleared by that, less a call."""
        made = super().__new__(cls, optimizers)
        made.side = side or {}
        made.where = where or [f"optimizers[{number}]" for number in range(len(made))]
        if not made.side and len(made) == 1 and not _clears_plainly(made[0]):
            vars(made)["clear"] = made[0].zero_grad
        return made

    def beside(self) -> Optimizers:
        """Return the side optimizers as a set of their own."""
        return Optimizers(self.side.values(), where=[f"side/{name}" for name in self.side])

    def clear(self) -> None:
        """Drop the gradients of all that the optimizers and the side optimizers hold: what opens a window."""
        for optimizer in (*self, *self.side.values()) if self.side else self:
            if _clears_plainly(optimizer):
                # what zero_grad() does, less its profiler record, which costs more than this whole loop
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
            else:
                optimizer.zero_grad()

    def drop(self, network: nn.Module) -> None:
        """Drop the gradients of the network and of all that the optimizers and the side optimizers hold."""
        network.zero_grad()
        for optimizer in (*self, *self.side.values()):
            optimizer.zero_grad()

    def held(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizers hold, each once, in the order of their groups."""
        return list(
            {id(p): p for optimizer in self for group in optimizer.param_groups for p in group["params"]}.values()
        )

    def parameters(self, network: nn.Module) -> list[nn.Parameter]:
        """Return the network's parameters in its order, then the others that the optimizers hold, each once.

        Those that only side optimizers hold are left out.
        """
        own = self.held()
        left = {id(p) for p in self.beside().held()} - {id(p) for p in own} if self.side else set[int]()
        return list({id(p): p for p in (*network.parameters(), *own) if id(p) not in left}.values())

    def cleared(self) -> set[int]:
        """Return the ids of the parameters whose gradients `clear` certainly drops.

        What a `zero_grad` of the user's own does to the others cannot be known.
        """
        plain = (one for one in (*self, *self.side.values()) if _clears_plainly(one))
        return {id(p) for optimizer in plain for group in optimizer.param_groups for p in group["params"]}

    def groups(self, of: Optimizer | None = None) -> list[dict[str, Any]]:
        """Return the parameter groups, of all or of one of the optimizers; not copied."""
        return [group for optimizer in (self if of is None else (of,)) for group in optimizer.param_groups]

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
            {"class": kind(optimizer), "groups": [_plain_options(group) for group in optimizer.param_groups]}
            for optimizer in self
        ]

    def facts(self) -> dict[str, Any]:
        """Return what the log says of all of them."""
        side = {"side_optimizers": dict(zip(self.side, self.beside().describe(), strict=True))} if self.side else {}
        return {"optimizers": self.describe(), **side}

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

    def rehearse(self, states: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter]) -> None:
        """Load what `state` returned, and put back what was there.

        Raises:
            CheckpointError: If an optimizer cannot load its state.
        """
        for where, optimizer, stored in zip(self.where, self, states, strict=True):
            own, built = optimizer.state_dict(), len(optimizer.param_groups)
            try:
                _add_groups(optimizer, stored, parameters)
                _restore_state(optimizer, stored["state"])
            except Exception as error:
                raise CheckpointError(diagnose("unfit_state", where, optimizer, stored["state"], own, error)) from error
            finally:
                if len(optimizer.param_groups) > built:
                    del optimizer.param_groups[built:]
                _restore_state(optimizer, own)

    def restore(self, states: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter]) -> None:
        """Restore what `state` returned; groups that were added during the run are added first."""
        for optimizer, stored in zip(self, states, strict=True):
            _add_groups(optimizer, stored, parameters)
            _restore_state(optimizer, stored["state"])


def _plain_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group that are numbers, text or tuples of these."""
    options = {name: _plain_option(value) for name, value in group.items() if name not in ("params", "param_names")}
    return {name: value for name, value in options.items() if value is not ...}


def _plain_option(value: Any) -> Any:
    """Return an option as plain data, `...` where it is none."""
    if isinstance(value, Tensor):  # a rate that is a tensor: one device sync, before the first step
        return ... if value.dim() else value.item()
    if isinstance(value, list | tuple):
        parts = tuple(map(_plain_option, cast("Sequence[Any]", value)))
        return ... if ... in parts else parts
    return value if isinstance(value, str | int | float | None) else ...


def _number_of(rate: Any) -> float | Tensor | None:
    """Return a rate as a number or a 0-dim tensor, copied; `None` for one that is neither."""
    if isinstance(rate, Tensor):  # torch takes a tensor of one element, whatever its shape
        return rate.detach().clone().reshape(()) if rate.numel() == 1 else None
    plain = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    return float(cast("float", rate)) if plain else None


def _clears_plainly(optimizer: object) -> bool:
    """Return whether this optimizer's `zero_grad` is torch's own, so that what it does can be done without it."""
    return getattr(type(optimizer), "zero_grad", None) is PLAIN_ZERO_GRAD


def build_optimizers(runtime: Runtime, strategy: Strategy) -> Optimizers:
    """Return the optimizers, calling the functions among them with the network; after the network was placed.

    What takes no gradient now is kept as `runtime.frozen`: a resumed run builds them alike.

    Raises:
        ConfigError: If a function returns something else; if an optimizer holds none of the network's parameters, is
            there twice, or has a `step` that needs an argument; if it cannot step what is shared by ranks.
    """
    components, network = runtime.components, runtime.network
    runtime.frozen = [name for name, one in network.named_parameters() if not one.requires_grad]
    # a list and not a generator, which would turn a StopIteration of the user's into another error
    made = [_make(part, network, _MAIN) for part in listed(components.optimizer)]
    side = {name: _make(part, network, _side_name(name)) for name, part in components.side_optimizers.items()}
    mistakes = [*optimizer_mistakes(made, network), *side_mistakes(side, made)]
    if strategy.shares and not mistakes:
        replaced = strategy.replaced()
        mistakes = [text for each in _by_field(made, side) if (text := _sharing_mistake(*each, replaced))]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    optimizers = Optimizers(made, side)
    if strategy.shares:
        _step_one_by_one([*optimizers.groups(), *optimizers.beside().groups()], runtime.shards)
    return optimizers


def _by_field(optimizers: Iterable[Any], side: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [*((_MAIN, one) for one in optimizers), *((_side_name(name), one) for name, one in side.items())]


def _sharing_mistake(field: str, optimizer: Any, replaced: Collection[int]) -> str | None:
    """Return why an optimizer cannot train what the ranks share.

    Args:
        field: Where it comes from.
        optimizer: One that was built.
        replaced: The ids of what the network held before it was placed.
    """
    held = Optimizers([optimizer]).held()
    if old := sum(id(one) in replaced for one in held):
        return diagnose("replaced_parameters", optimizer, old, len(held), field)
    if isinstance(optimizer, torch.optim.Adafactor | torch.optim.Rprop):
        return diagnose("unshared_step", optimizer, field)
    return diagnose("shared_closure", optimizer, field) if needs_closure(optimizer) else None


def _step_one_by_one(groups: Iterable[dict[str, Any]], shards: Shards) -> None:
    """Have torch step parameters one by one where it would take a list of shared and whole ones, which it refuses.

    Raises:
        ConfigError: If a group asks for lists.
    """
    for group in groups:
        # a scalar is taken beside shared ones
        kinds = {shards.part(one) is None for one in group["params"] if one.dim()}
        asked = [name for name in ("foreach", "fused") if group.get(name)]
        if len(kinds) > 1 and asked:
            raise ConfigError(diagnose("mixed_list", asked[0]))
        if len(kinds) > 1 and "foreach" in group:
            group["foreach"] = False


def given_optimizers(components: Components) -> list[Any]:
    """Return the optimizers that are given ready-made."""
    return [part for part in listed(components.optimizer) if is_optimizer(part)]


def given_mistakes(components: Components, precision: str, strategy: Strategy) -> list[str]:
    """Return what is wrong with the optimizers that are given ready-made."""
    network = components.network
    given = given_optimizers(components)
    side = {name: part for name, part in components.side_optimizers.items() if is_optimizer(part)}
    mistakes = [*optimizer_mistakes(given, network), *side_mistakes(side, given)]
    if not mistakes and strategy.replaces(network):
        own = {id(parameter) for parameter in network.parameters()}
        mistakes = [
            diagnose("ready_made", optimizer, field)
            for field, optimizer in _by_field(given, side)
            if any(id(parameter) in own for parameter in Optimizers([optimizer]).held())
        ]
    return mistakes or precision_mistakes(given, precision)


def _make(given: Any, network: nn.Module, field: str) -> Any:
    if is_optimizer(given):
        return given
    try:
        return given(network)
    except Exception as error:
        add_note(error, diagnose("optimizer_factory", error, network, field))
        raise


def _side_name(name: str) -> str:
    return f"Components.side_optimizers[{name!r}]"


def side_mistakes(side: Mapping[str, Any], optimizers: Sequence[Any]) -> list[str]:
    """Return what is wrong with side optimizers, each alone and beside the others."""
    mistakes: list[str] = []
    seen = {id(optimizer): _MAIN for optimizer in optimizers}
    for name, optimizer in side.items():
        field = _side_name(name)
        if not is_optimizer(optimizer):
            mistakes.append(diagnose("no_optimizer", optimizer, field))
        elif id(optimizer) in seen:
            mistakes.append(
                f"{field} is the same {kind(optimizer)} as {seen[id(optimizer)]}; a plugin steps a side optimizer, and "
                "nobody else: give each an optimizer of its own"
            )
        seen.setdefault(id(optimizer), field)
    return mistakes


def optimizer_mistakes(optimizers: Sequence[Any], network: nn.Module) -> list[str]:
    """Return what is wrong with optimizers: with each, and between them."""
    mistakes = [text for optimizer in optimizers if (text := optimizer_mistake(optimizer, network, "built"))]
    for number, optimizer in enumerate(optimizers):
        if any(optimizer is other for other in optimizers[:number]):
            mistakes.append(
                f"Components.optimizer holds the same {kind(optimizer)} twice: it would update twice; pass it once"
            )
    return mistakes


def precision_mistakes(optimizers: Iterable[Any], precision: str) -> list[str]:
    """Return what is wrong with optimizers beside a `RunConfig.precision`: torch's GradScaler refuses the same."""
    if precision != "fp16-mixed":
        return []
    given = Optimizers(optimizers)
    mistakes = [
        f"RunConfig.precision is 'fp16-mixed', and the step of {kind(optimizer)} needs a closure: what gradients that "
        "computes would be neither un-scaled nor checked; use 'bf16-mixed' or 'fp32', or another optimizer"
        for optimizer in given
        if needs_closure(optimizer)
    ]
    held = given.held()
    if halves := sum(parameter.dtype is torch.float16 for parameter in held):
        mistakes.append(
            f"RunConfig.precision is 'fp16-mixed', and {halves} of the {len(held)} parameters of the optimizers are "
            "float16; autocast makes the halves of float32: leave out network.half()"
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
    if mistake := _foreign(optimizer, network, when, _MAIN):
        return mistake
    if (why := _step_refusal(optimizer)) and not needs_closure(optimizer):
        return diagnose("odd_step", optimizer, why)
    return None


def _foreign(optimizer: Any, network: nn.Module, when: str, field: str) -> str | None:
    own = {id(parameter) for parameter in network.parameters()}
    held = Optimizers([optimizer]).held()
    if any(id(parameter) in own for parameter in held):
        return None
    return diagnose("foreign_parameters", optimizer, len(held), len(own), when, field)


def apply_init_weights(
    network: nn.Module, init_weights: Callable[[nn.Module], object], optimizers: OptimizerSet
) -> None:
    """Initialise the weights; an optimizer that holds parameters of the network must still hold some afterwards.

    Raises:
        ConfigError: If one does not, because `init_weights` has replaced them.
    """
    side = {_side_name(name): optimizer for name, optimizer in optimizers.side.items()}
    attached = {field: one for field, one in side.items() if _foreign(one, network, "built", field) is None}
    init_weights(network)
    mistakes = [_foreign(optimizer, network, "initialised", _MAIN) for optimizer in optimizers]
    mistakes += [_foreign(optimizer, network, "initialised", field) for field, optimizer in attached.items()]
    if found := [mistake for mistake in mistakes if mistake]:
        raise ConfigError("\n".join(found))


def needs_closure(optimizer: Any) -> bool:
    """Return whether the `step` of an optimizer needs a closure, as that of L-BFGS does."""
    return _step_refusal(optimizer) is not None and _step_refusal(optimizer, "closure") is None


def _step_refusal(optimizer: Any, *given: object) -> str | None:
    """Return why `step` cannot be called with these."""
    step = optimizer.step
    why = refusal(step, *given)
    # a scheduler of torch replaces `step` by a function that claims the signature of the class's own: with self
    in_place = not inspect.ismethod(step) and hasattr(step, "__wrapped__")
    return None if in_place and refusal(step, optimizer, *given) is None else why


def _state_of(optimizer: Any, built: int, parameters: list[list[str]]) -> dict[str, Any]:
    """Return what a checkpoint holds of an optimizer."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("state_dict", "load_state_dict")):
        raise CheckpointError(
            f"the optimizer ({a_kind(optimizer)}) has no state_dict and load_state_dict, so its state cannot be stored"
        )
    nameless = [name for group in parameters[built:] for name in group if name.startswith("held.")]
    if len(parameters) < built or nameless:
        what = f"{counted(len(nameless), 'parameter')} that no module of the run holds" if nameless else "fewer of them"
        raise CheckpointError(
            f"the optimizer ({a_kind(optimizer)}) was built with {counted(built, 'parameter group')} and has "
            f"{len(parameters)} now, with {what}, so a resumed run could not restore it; give it all its groups when "
            "it is built, of parameters that the network holds"
        )
    state = optimizer.state_dict()
    if not isinstance(state, dict):
        raise CheckpointError(
            f"the state_dict of the optimizer ({a_kind(optimizer)}) returned {summarize(state)}, not a dict"
        )
    return {"class": kind(optimizer), "parameters": parameters, "state": cast("dict[str, Any]", state)}


def _add_groups(optimizer: Any, stored: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
    """Add the parameter groups that were added during the run; their state and options are loaded afterwards.

    An optimizer whose state has a form of its own says nothing of groups: it gets them with the default options.
    """
    built = len(optimizer.param_groups)
    for number, names in enumerate(stored["parameters"][built:], built):
        groups: Sequence[dict[str, Any]] = stored["state"].get("param_groups", ())
        options = dict(groups[number]) if number < len(groups) else {}
        held = [parameters[name] for name in names]
        own = options.pop("param_names", None)  # torch takes them with the parameters
        optimizer.add_param_group({**options, "params": held if own is None else list(zip(own, held, strict=True))})


def _restore_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load a state. torch rounds it to the dtypes of the parameters, so what was rounded is put back afterwards."""
    optimizer.load_state_dict(state)
    if not isinstance(optimizer, Optimizer) or not isinstance(state.get("state"), dict):
        return  # what has a form of its own is loaded in a way of its own
    held = [p for group in optimizer.param_groups for p in cast("list[nn.Parameter]", group["params"])]
    live = cast("Mapping[Tensor, dict[str, Any]]", optimizer.state)
    for number, values in cast("dict[Any, dict[str, Any]]", state["state"]).items():
        for name, value in values.items() if isinstance(number, int) else ():
            if number < len(held) and name in live[held[number]]:
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
