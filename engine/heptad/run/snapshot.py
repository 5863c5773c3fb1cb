"""`Snapshot`: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        summary: Plain data by name, for which no tensor need be read: numbers of the log, the run, the position, and
            the monitored value as `"monitor": {"name": …, "mode": "min" | "max", "value": …}`.
        sections: Nested plain data and tensors by name; `checkpoints.encoding` says which values are accepted. The
            tensors of a section are in a file of its name, under the keys that lead to them, joined by dots; if a
            section is a dict whose key `"tensors"` holds tensors by name, under just these names.
        own: The keys that lead to what is a rank's own, the section first; each rank stores these for itself, and all
            else is stored once.
        world: How many ranks the run had.
        taken: What is own of each further rank whose part this one takes over, where others resume than stored.
    """

    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    sections: dict[str, Any] = field(default_factory=dict[str, Any])
    own: Sequence[tuple[str, ...]] = ()
    world: int = 1
    taken: Sequence[Mapping[tuple[str, ...], Any]] = ()
