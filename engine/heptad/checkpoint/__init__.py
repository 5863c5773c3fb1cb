"""Checkpoints on disk: what they may hold (`codec`, `tensors`), how they are written and read (`store`)."""

from heptad.checkpoint.files import Files
from heptad.checkpoint.snapshot import Snapshot
from heptad.checkpoint.store import Entry, Store, is_checkpoint
from heptad.checkpoint.weights import load_weights

__all__ = ["Entry", "Files", "Snapshot", "Store", "is_checkpoint", "load_weights"]
