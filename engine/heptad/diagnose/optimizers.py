"""What is likely wrong with an optimizer, or with a function that should return one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from heptad.config import short
from heptad.errors import a_kind, counted, in_a_line, kind, summarize


def optimizer_factory(error: Exception, network: nn.Module, field: str) -> str:
    """Say what was called when a function for an optimizer raised."""
    # what a partial of a class or a forgotten .parameters() leads to
    hint = "; an optimizer of torch takes network.parameters()" if isinstance(error, TypeError) else ""
    return f"while {field} was called with the network ({a_kind(network)}){hint}"


def no_optimizer(value: Any, field: str = "Components.optimizer") -> str:
    """Describe what a function returned in place of an optimizer."""
    return f"{field}: the function must return a torch optimizer, got {short(value)}"


def foreign_parameters(optimizer: Any, held: int, own: int, when: str, field: str) -> str:
    """Describe an optimizer that holds other parameters than the network's."""
    advice = {
        "built": "build it from the parameters of the network that is passed",
        "initialised": "init_weights put others in their place: change them in place, as torch.nn.init does",
    }[when]
    return (
        f"{field}: this {kind(optimizer)} holds none of the network's parameters "
        f"({held} held, {own} in the network); {advice}"
    )


def ready_made(optimizer: Any, field: str) -> str:
    """Describe an optimizer that is given ready-made, of parameters that others will take the place of."""
    name = kind(optimizer)
    return (
        f"{field}: this {name} was built before strategy='fsdp' shards the network, whose parameters are other objects "
        f"then: it would train nothing; pass a function that builds it, such as lambda network: {name}("
        "network.parameters(), …)"
    )


def replaced_parameters(optimizer: Any, old: int, held: int, field: str) -> str:
    """Describe an optimizer that a function has built of what the network held before it was sharded."""
    return (
        f"{field}: {old} of the {counted(held, 'parameter')} of this {kind(optimizer)} are those that the network had "
        "before strategy='fsdp' sharded it, and training them changes nothing; build it of the network that the "
        "function is called with, and of nothing that was taken from it before"
    )


def shared_closure(optimizer: Any, field: str) -> str:
    """Describe an optimizer whose step needs a closure, where each rank holds a part of the parameters."""
    return (
        f"{field}: the step of {kind(optimizer)} needs a closure, and goes by numbers that it computes of all "
        "parameters, of which each rank holds a part with strategy='fsdp'; use strategy='ddp', or another optimizer"
    )


def unshared_step(optimizer: Any, field: str) -> str:
    """Describe an optimizer of torch whose step has operations that torch does not have for DTensors."""
    return (
        f"{field}: the step of {kind(optimizer)} has operations that torch does not have for what ranks share with "
        "strategy='fsdp'; use strategy='ddp', or another optimizer, such as AdamW"
    )


def mixed_list(option: str) -> str:
    """Describe a parameter group that is to be stepped as a list which torch refuses."""
    return (
        f"Components.optimizer: {option}=True is for parameters of one kind, and with strategy='fsdp' a group holds "
        "some that ranks share and some that each has whole (those of another dtype than the rest, those that several "
        f"blocks have in common, those beside the network); leave {option}=True out, or put them into groups of their "
        "own"
    )


def odd_step(optimizer: Any, why: str) -> str:
    """Describe an optimizer whose step can be called neither without an argument nor with a closure."""
    return (
        f"Components.optimizer: the step of this {kind(optimizer)} is called as step(), or as step(closure), but "
        f"{why}; use an optimizer whose step takes nothing else"
    )


def lost_parameters(new: Sequence[str], loose: Sequence[str], gone: Sequence[str], nothing: bool) -> str:
    """Describe parameters that updates do not reach any more.

    Args:
        new: Those that were put into the network and that no optimizer holds.
        loose: Those of the network that an optimizer held, and does not hold now.
        gone: Those that an optimizer holds, and that are not in the network now.
        nothing: Whether the updates change nothing of the network.
    """
    parts = (
        (new, "no optimizer holds what was put into the network: "),
        (loose, "no optimizer holds these parameters of the network any more: "),
        (gone, "an optimizer holds what is not in the network any more: "),
    )
    said = "; ".join(text + _few(names) for names, text in parts if names)
    begin = (
        "updates change no parameter of the network any more" if nothing else "updates do not train all that they did"
    )
    return (
        f"{begin}{': ' if said else ''}{said}; change parameters in place (under torch.no_grad, with copy_), or hand "
        "new ones to the optimizer with run.optimizer.add_param_group"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def unfit_state(where: str, optimizer: Any, stored: Any, own: Any, error: Exception) -> str:
    """Describe a state in a checkpoint that an optimizer cannot load."""
    return (
        f"{where} ({a_kind(optimizer)}) cannot load its state in the checkpoint: {in_a_line(error)}; "
        f"found {_keys(stored)}, expected {_keys(own)}; nothing was changed. Build the optimizer with the version of "
        "its class that wrote it, or begin a new run from the weights with load_weights"
    )


def _keys(state: Any) -> str:
    """Return the form of a state: its keys, where it is a dict."""
    if not isinstance(state, dict):
        return summarize(state)
    return f"a dict of {', '.join(map(repr, cast('dict[Any, Any]', state))) or 'nothing'}"
