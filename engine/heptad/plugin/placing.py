"""`Placing`: a plugin that chooses the folder of a run, in which others write; `OutputPath`: a path in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from heptad.errors import EngineError, PluginError
from heptad.plugin.contract import Plugin


class Placing(Plugin):
    """A plugin that others take in place of a path: it chooses a folder for each run.

    The engine calls `place` once for each run, on the first rank, before a checkpoint is looked for and before any
    `on_begin`; all ranks have the same `path` from then on. A plugin that takes one keeps an `OutputPath` as an
    attribute, and asks it in `on_begin` or later.
    """

    _chosen: Path | None = None

    @property
    def path(self) -> Path:
        """The folder of the run that was begun last.

        Raises:
            EngineError: If none has begun yet.
        """
        if self._chosen is None:
            raise EngineError(
                f"{self.name}.path is known when a run begins; ask for it in a handler, or when run() has returned"
            )
        return self._chosen

    @property
    def is_placed(self) -> bool:
        """Whether a run has begun, so that `path` is known."""
        return self._chosen is not None

    def place(self, source: str | os.PathLike[str] | None) -> Path:
        """Return the folder of a run that is about to begin, or to resume from `source`; make it where it is new."""
        raise NotImplementedError

    def take(self, path: Path) -> None:
        """Take what `place` returned on the first rank: the engine calls this on all of them, at each start too."""
        self._chosen = path


@dataclass(frozen=True)
class OutputPath:
    """Where a plugin writes: a path, or a name in the folder that a `Placing` plugin chooses.

    Attributes:
        name: The path; with `place` relative to its folder.
        place: The plugin that chooses the folder.
    """

    name: Path
    place: Placing | None = None

    @property
    def path(self) -> Path:
        """The path; as long as no folder is chosen, only its name."""
        return self.place.path / self.name if self.place is not None and self.place.is_placed else self.name


def places_written_by(plugin: Plugin) -> list[Placing]:
    """Return the plugins that choose a folder which this one writes to."""
    held = cast("dict[str, object]", getattr(plugin, "__dict__", {})).values()
    return [one.place for one in held if isinstance(one, OutputPath) and one.place is not None]


def verify_places(plugins: Sequence[Plugin]) -> None:
    """Check that each folder which a plugin was given stands in the list too.

    Raises:
        PluginError: If one does not: nobody would choose it.
    """
    for plugin in plugins:
        for place in places_written_by(plugin):
            if all(place is not other for other in plugins):
                raise PluginError(
                    f"{plugin.name} writes to a {place.name} that is not in the list of plugins; put it there as well: "
                    f"plugins=[folder, {plugin.name}(folder), …]"
                )
