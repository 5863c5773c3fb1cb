"""`Saving`: a checkpoint between the phases of its writing. `Store.begin` makes it, `commit` takes it back."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptad.checkpoints.entry import Entry


@dataclass(frozen=True, slots=True)
class Saving:
    """A checkpoint that is being written; see `Store._save` for the phases.

    Attributes:
        entry: What it becomes.
        temporary: The directory that it is written in.
        summary: What its manifest says of it.
        size: Bytes that this rank writes.
        given_up: Set when nothing more is to be written.
    """

    entry: Entry
    temporary: Path
    summary: dict[str, Any]
    size: int
    given_up: threading.Event = field(default_factory=threading.Event)
