"""Patterns of the names of parameters, as `fnmatch` takes them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn

from heptad import PluginError


def patterns_of(plugin: str, patterns: Sequence[object]) -> tuple[str, ...]:
    """Return patterns, each a text.

    Raises:
        PluginError: If the list is empty, or one is empty or not a string.
    """
    if not patterns:
        raise PluginError(f"{plugin} takes patterns of names of parameters, such as 'backbone.*'; got none")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            apart = ", each an argument of its own" if isinstance(pattern, list | tuple) else ""
            raise PluginError(
                f"{plugin} takes patterns of names of parameters, such as 'backbone.*'{apart}; got {pattern!r}"
            )
    return cast("tuple[str, ...]", tuple(patterns))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns matches a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def matching_parameters(plugin: str, network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """Return the parameters that patterns match, each once; a tied one by any of its names.

    Raises:
        PluginError: If a pattern matches none.
    """
    every = dict(network.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise PluginError(
                f"{plugin}: no parameter of the network matches {pattern!r}; {_nearest_pattern(pattern, every)}"
            )
    meant = {id(one) for name, one in every.items() if matches(name, patterns)}
    return {name: one for name, one in network.named_parameters() if id(one) in meant}


def matching_statistics(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Return the layers whose running statistics patterns match, such as BatchNorm, by name."""
    modules = cast("Iterable[tuple[str, nn.Module]]", network.named_modules())
    return {
        name: layer
        for name, layer in modules
        if isinstance(getattr(layer, "running_mean", None), Tensor)
        and matches(f"{name}.running_mean" if name else "running_mean", patterns)
    }


def _nearest_pattern(pattern: str, names: Sequence[str] | dict[str, nn.Parameter]) -> str:
    """Return which pattern may be meant."""
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"the parameters of the module {pattern!r} are '{pattern}.*'"
    parts = {f"{name.rpartition('.')[0]}.*" for name in names if "." in name}
    parents = {f"{part.partition('.')[0]}.*" for part in parts}
    near = difflib.get_close_matches(pattern, [*names, *sorted(parts | parents)], n=1, cutoff=0.0)
    return f"the nearest is {near[0]!r}" if near else "it has none"
