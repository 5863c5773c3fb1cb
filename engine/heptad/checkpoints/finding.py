"""Which checkpoint is meant: by a directory of them, by one of them, or by `"auto"`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heptad.checkpoints.form import check_form
from heptad.checkpoints.store import Store, is_checkpoint
from heptad.errors import CheckpointError, EngineError
from heptad.plugin.contract import Plugin
from heptad.run.snapshot import Snapshot


@dataclass(frozen=True)
class Found:
    """A sound checkpoint.

    Attributes:
        path: Where it is.
        snapshot: What it holds.
        damage: Which newer ones were passed over, and what is wrong with each.
    """

    path: Path
    snapshot: Snapshot
    damage: Sequence[str]


def stores_of(plugins: Iterable[Plugin]) -> list[Store]:
    """Returns where the plugins keep checkpoints: `Plugin.store` of those that do."""
    stores = (getattr(plugin, "store", None) for plugin in plugins)
    return [store for store in stores if isinstance(store, Store)]


def find(resume: str | os.PathLike[str], own: Sequence[Store]) -> Found | None:
    """Returns the checkpoint to go on from; nothing for `"auto"` where there is none yet.

    Args:
        resume: A directory of checkpoints, one checkpoint, or `"auto"`.
        own: The stores of the run's own plugins.

    Raises:
        CheckpointError: If there is none, or none that is sound, or the newest sound one is not one of a run; what was
            found is named.
        EngineError: For `"auto"` without a plugin that keeps checkpoints.
    """
    if resume == "auto":
        if not own:
            raise EngineError(
                "run(resume='auto') looks where the run's own Checkpoint plugin keeps its checkpoints, and this engine "
                "has none; add Checkpoint(directory) to its plugins, or name a directory"
            )
        held = [store for store in own if store.entries()]
        return max((_newest(store) for store in held), key=lambda found: found.snapshot.summary["seq"], default=None)
    path = Path(resume)
    if not path.is_dir():
        raise CheckpointError(f"run(resume=…): there is no directory {path}; name a directory of checkpoints, or one")
    if is_checkpoint(path):
        snapshot = Store(path.parent).load(path)
        check_form(path, snapshot)
        return Found(path, snapshot, ())
    return _newest(Store(path))


def _newest(store: Store) -> Found:
    entry, snapshot, damage = store.newest_sound()
    check_form(entry.path, snapshot)
    return Found(entry.path, snapshot, damage)
