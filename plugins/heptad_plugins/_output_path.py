"""Where a plugin writes: the path that it was given, or its usual name in a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from heptad.plugin import OutputPath, Placing


def output_of(
    plugin: str, option: str, value: object, name: str, check: Callable[[str, str, object], Path]
) -> OutputPath:
    """Return where a plugin writes.

    Args:
        plugin: Its name, for messages.
        option: The option's name.
        value: What was given: a path, or a run folder.
        name: What the file, or the folder, is called in a run folder.
        check: Checks a path and makes it absolute.

    Raises:
        PluginError: For what is neither.
    """
    if isinstance(value, Placing):
        return OutputPath(Path(name), value)
    return OutputPath(check(plugin, option, value))
