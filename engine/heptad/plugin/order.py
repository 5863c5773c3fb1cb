"""The order in which plugins are called: that of the list, bent by `runs_after` and `runs_before`."""

from __future__ import annotations

from collections.abc import Sequence

from heptad.errors import PluginError
from heptad.plugin.contract import Plugin


def ordered(plugins: Sequence[Plugin]) -> tuple[Plugin, ...]:
    """Return the plugins in list order, each moved behind those that must come before it, and no further.

    Of two that ask to come before all plugins, the list decides.

    Raises:
        PluginError: If what they ask for is a cycle, which is named.
    """
    # by name, which is unique: two plugins may compare equal, and are two all the same
    before: dict[str, list[str]] = {plugin.name: [] for plugin in plugins}
    for plugin in plugins:
        for other in plugins:
            if other is not plugin and _is_meant(other, plugin.runs_after):
                before[plugin.name].append(other.name)
            both_first = Plugin in plugin.runs_before and Plugin in other.runs_before
            if other is not plugin and not both_first and _is_meant(other, plugin.runs_before):
                before[other.name].append(plugin.name)
    done: dict[str, Plugin] = {}
    left = {plugin.name: plugin for plugin in plugins}
    while left:
        # the first of the list whose predecessors are all done, so that nobody moves further than asked
        ready = next((name for name in left if all(other in done for other in before[name])), None)
        if ready is None:
            raise PluginError(
                f"the order of the plugins is a cycle: {_cycle(list(left), before)}; see runs_after and runs_before"
            )
        done[ready] = left.pop(ready)
    return tuple(done.values())


def _is_meant(plugin: Plugin, references: Sequence[type[Plugin] | str]) -> bool:
    """Return whether a plugin is referred to: by its name, or by a class of it or that class's name."""
    classes = type(plugin).__mro__
    return any(
        reference == plugin.name or any(reference in (cls, cls.__name__) for cls in classes) for reference in references
    )


def _cycle(left: Sequence[str], before: dict[str, list[str]]) -> str:
    """Return a cycle among the plugins that are left, in words."""
    walked = [left[0]]
    while walked.count(walked[-1]) < 2:
        walked.append(next(other for other in before[walked[-1]] if other in left))
    first = walked.index(walked[-1])
    return " before ".join(reversed(walked[first:]))
