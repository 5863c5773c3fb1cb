"""`find`: which checkpoint is meant by a directory of them, by one of them, or by `"auto"`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptad.checkpoints.form import StoredSections, StoredSummary, read_form
from heptad.checkpoints.layout import is_checkpoint, named_path
from heptad.checkpoints.store import Store
from heptad.checkpoints.together import Together, together
from heptad.config import short
from heptad.errors import CheckpointError, EngineError
from heptad.plugin.contract import Plugin
from heptad.run.run import Run


@dataclass(frozen=True)
class Found:
    """A sound checkpoint of a run.

    Attributes:
        path: Its directory.
        summary: What is known of it without its tensors.
        sections: All the rest.
        damage: What is wrong with each newer one, which was passed over; before that, where it was fetched from.
        taken: What is own of each further rank whose part this one takes over.
    """

    path: Path
    summary: StoredSummary
    sections: StoredSections
    damage: Sequence[str]
    taken: Sequence[Mapping[tuple[str, ...], Any]]


def stores_of(plugins: Iterable[Plugin]) -> list[Store]:
    """Return the stores of the plugins that keep checkpoints: their attribute `store`."""
    stores = (getattr(plugin, "store", None) for plugin in plugins)
    return [store for store in stores if isinstance(store, Store)]


def find(source: str | os.PathLike[str], own: Sequence[Store], run: Run) -> Found | None:
    """Return the checkpoint that all ranks resume from; `None` for `"auto"` before the first was stored.

    Rank 0 looks for it, and each rank reads it: where one finds it damaged, all take the one before.

    Args:
        source: A directory of checkpoints, one checkpoint, or `"auto"`.
        own: The stores of the run's own plugins.
        run: The run.

    Raises:
        CheckpointError: If there is no sound checkpoint, or the newest sound one is not that of a run; what was
            found is named.
        EngineError: For `"auto"` without a plugin that keeps checkpoints.
    """
    ranks = together(run._runtime.peers)
    if source == "auto":
        if not own:
            raise EngineError(
                "run(resume='auto') looks where the run's own Checkpoint plugin keeps its checkpoints, and this engine "
                "has none; add Checkpoint(directory) to its plugins, or name a directory"
            )
        fetched: list[list[str]] = ranks.first(lambda: [store.refill() for store in own])
        holds: list[bool] = ranks.first(lambda: [bool(store.entries()) for store in own])
        found = [
            _newest(store, run, ranks, remarks)
            for store, any_there, remarks in zip(own, holds, fetched, strict=True)
            if any_there
        ]
        return max(found, key=lambda one: one.summary.seq, default=None)
    if not isinstance(source, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
        raise EngineError(
            f"run(resume=…) takes a directory of checkpoints, one checkpoint, or 'auto'; got {short(source)}"
        )
    path = named_path(source)
    if ranks.first(lambda: _is_single(path)):
        store = Store(path.parent)
        store.join(run)
        snapshot = store.load_shared(path)
        return Found(path, *ranks.succeed(lambda: read_form(path, snapshot)), (), snapshot.taken)
    return _newest(Store(path), run, ranks)


def _is_single(path: Path) -> bool:
    """Return whether a path is that of one checkpoint.

    Raises:
        CheckpointError: If it is no directory.
    """
    if not path.is_dir():
        raise CheckpointError(f"run(resume=…): there is no directory {path}; name a directory of checkpoints, or one")
    return is_checkpoint(path)


def _newest(store: Store, run: Run, ranks: Together, remarks: Sequence[str] = ()) -> Found:
    store.join(run)
    entry, snapshot, damage = store.newest_sound()
    form = ranks.succeed(lambda: read_form(entry.path, snapshot))
    return Found(entry.path, *form, [*remarks, *damage], snapshot.taken)
