"""What plugins ask of a device, behind one seam: a test puts a module of its own in the place of torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def module_of(device: torch.device) -> Any:
    """Return torch's module for a kind of device, such as `torch.cuda`; `torch.cpu` knows nothing of what follows."""
    return torch.get_device_module(device)


def memory_of(device: torch.device) -> dict[str, int] | None:
    """Return the bytes `allocated` and `reserved` by torch on a device, and the `peak` of the first (no device sync).

    They are counts that the allocator keeps on the host. `None` where the device has none; `peak` may be missing.
    """
    module = module_of(device)
    if hasattr(module, "memory_stats"):
        stats = module.memory_stats(device)
        keys = {"allocated": "allocated_bytes.all.current", "reserved": "reserved_bytes.all.current"}
        return {name: stats.get(key, 0) for name, key in {**keys, "peak": "allocated_bytes.all.peak"}.items()}
    if hasattr(module, "current_allocated_memory"):  # mps
        return {"allocated": module.current_allocated_memory(), "reserved": module.driver_allocated_memory()}
    return None


def card_of(device: torch.device) -> str:
    """Return the name of a card; empty where the device has none."""
    module = module_of(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else ""


def load_of(device: torch.device) -> Callable[[torch.device], int] | None:
    """Return what tells how many of a hundred moments a device was busy; `None` where torch's module cannot."""
    return getattr(module_of(device), "utilization", None)


class AllocationHistory:
    """What the allocator of a device did last, for https://pytorch.org/memory_viz; it records from the beginning on.

    Args:
        memory: Torch's memory module of the device.
        entries: How many allocations are remembered, each with the lines of Python that asked for it.
    """

    def __init__(self, memory: Any, entries: int) -> None:
        self._memory = memory
        memory._record_memory_history(stacks="python", max_entries=entries)

    def store(self, path: Path) -> None:
        """Write it to a file."""
        memory = self._memory
        memory._dump_snapshot(str(path))

    def end(self) -> None:
        """Record no more."""
        memory = self._memory
        memory._record_memory_history(enabled=None)


def history_of(device: torch.device, entries: int) -> AllocationHistory | None:
    """Return the history of a device whose allocator can record one, from now on, else `None`."""
    memory = getattr(module_of(device), "memory", None)
    return AllocationHistory(memory, entries) if hasattr(memory, "_record_memory_history") else None
