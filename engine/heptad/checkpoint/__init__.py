"""Checkpoints on disk: what they may hold (`codec`, `tensors`), how they are written and read (`store`)."""

from heptad.checkpoint.files import Files
from heptad.checkpoint.snapshot import Snapshot
from heptad.checkpoint.store import Entry, Store

__all__ = ["Entry", "Files", "Snapshot", "Store"]
