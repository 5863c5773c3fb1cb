"""Which parts of a network are its blocks. Asked by what compiles, recomputes or shards them one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from torch import nn

from heptad.errors import ConfigError, a_kind

Chooser = Callable[[nn.Module], Iterable[nn.Module]]


def find_blocks(network: nn.Module, choose: Chooser | None) -> dict[str, nn.Module]:
    """Return the blocks of a network, each once, by its name in the network: `""` is the network itself.

    Args:
        network: The network.
        choose: `Components.blocks`. By default the members of each longest `ModuleList`, where all of them can be
            called; else the network alone.

    Raises:
        ConfigError: If what `choose` returns are no modules of the network that can be called, or one holds another.
    """
    names = {id(module): name for name, module in _named_modules(network)}
    chosen = _longest_lists(network) if choose is None else _checked(choose(network), names, network)
    found = {names[id(block)]: block for block in chosen}
    inside = {id(part): name for name, block in found.items() for part in block.modules() if part is not block}
    nested = {name: inside[id(block)] for name, block in found.items() if id(block) in inside}
    if choose is None:  # of two lists of one length the outer one
        return {name: block for name, block in found.items() if name not in nested} or {"": network}
    for name, outer in nested.items():
        holder = repr(outer) if outer else "the network"
        raise ConfigError(f"Components.blocks gives {name!r} and {holder}, which holds it; give one of them")
    return found


def _longest_lists(network: nn.Module) -> Iterator[nn.Module]:
    lists = [
        members
        for _, module in _named_modules(network)
        if isinstance(module, nn.ModuleList)
        if (members := [*module.children()]) and all(map(_can_be_called, members))
    ]
    longest = max(map(len, lists), default=0)
    return (member for members in lists if len(members) == longest for member in members)


def _checked(given: object, names: dict[int, str], network: nn.Module) -> list[nn.Module]:
    """Return what a user's function returned as a list, if it can be used."""
    if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList | nn.Sequential):
        raise ConfigError(f"Components.blocks must return several modules, got {a_kind(given)}; return [module]")
    if not isinstance(given, Iterable):
        raise ConfigError(f"Components.blocks must return modules of the network, got {a_kind(given)}")
    blocks = list(cast("Iterable[Any]", given))
    for block in blocks:
        if not isinstance(block, nn.Module):
            raise ConfigError(f"Components.blocks must return modules of the network, {a_kind(block)} is among them")
        if id(block) not in names:
            raise ConfigError(
                f"Components.blocks returns {a_kind(block)} that is no module of the network ({a_kind(network)}); "
                "take it from the network that the function is given"
            )
        if not _can_be_called(block):
            raise ConfigError(
                f"Components.blocks returns {names[id(block)]!r}, {a_kind(block)}, which cannot be called; return its "
                "members"
            )
    if not blocks:
        raise ConfigError("Components.blocks returns no module; leave it out, or return the network itself")
    return blocks


def _can_be_called(module: nn.Module) -> bool:
    """Return whether a module has a forward of its own: a `ModuleList` or a `ModuleDict` has none."""
    return "forward" in vars(module) or type(module).forward is not nn.ModuleList.forward


def _named_modules(network: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return cast("Iterable[tuple[str, nn.Module]]", network.named_modules())
