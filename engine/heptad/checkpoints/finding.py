"""`find`: which checkpoint is meant by a directory of them, by one of them, or by `"auto"`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heptad.checkpoints.form import StoredSections, StoredSummary, read_form
from heptad.checkpoints.layout import is_checkpoint, named_path
from heptad.checkpoints.store import Store
from heptad.config import short
from heptad.errors import CheckpointError, EngineError
from heptad.plugin.contract import Plugin


@dataclass(frozen=True)
class Found:
    """A sound checkpoint of a run.

    Attributes:
        path: Its directory.
        summary: What is known of it without its tensors.
        sections: All the rest.
        damage: What is wrong with each newer one, which was passed over.
    """

    path: Path
    summary: StoredSummary
    sections: StoredSections
    damage: Sequence[str]


def stores_of(plugins: Iterable[Plugin]) -> list[Store]:
    """Return the stores of the plugins that keep checkpoints: their attribute `store`."""
    stores = (getattr(plugin, "store", None) for plugin in plugins)
    return [store for store in stores if isinstance(store, Store)]


def find(source: str | os.PathLike[str], own: Sequence[Store]) -> Found | None:
    """Return the checkpoint to resume from; `None` for `"auto"` if there is none yet.

    Args:
        source: A directory of checkpoints, one checkpoint, or `"auto"`.
        own: The stores of the run's own plugins.

    Raises:
        CheckpointError: If there is no sound checkpoint, or the newest sound one is not that of a run; what was
            found is named.
        EngineError: For `"auto"` without a plugin that keeps checkpoints.
    """
    if source == "auto":
        if not own:
            raise EngineError(
                "run(resume='auto') looks where the run's own Checkpoint plugin keeps its checkpoints, and this engine "
                "has none; add Checkpoint(directory) to its plugins, or name a directory"
            )
        found = [_newest(store) for store in own if store.entries()]
        return max(found, key=lambda one: one.summary.seq, default=None)
    if not isinstance(source, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
        raise EngineError(
            f"run(resume=…) takes a directory of checkpoints, one checkpoint, or 'auto'; got {short(source)}"
        )
    path = named_path(source)
    if not path.is_dir():
        raise CheckpointError(f"run(resume=…): there is no directory {path}; name a directory of checkpoints, or one")
    if is_checkpoint(path):
        return Found(path, *read_form(path, Store(path.parent).load(path)), ())
    return _newest(Store(path))


def _newest(store: Store) -> Found:
    entry, snapshot, damage = store.newest_sound()
    return Found(entry.path, *read_form(entry.path, snapshot), damage)
