"""`Snapshot`: what a checkpoint holds."""

from __future__ import annotations

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
    """

    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    sections: dict[str, Any] = field(default_factory=dict[str, Any])
