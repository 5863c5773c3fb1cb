"""`copied`: a packed snapshot with tensors of its own, in the memory of the host, so that the run may change its own.

For writing in the background; it copies and knows nothing of files or threads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from heptad.checkpoints.packed import PackedSnapshot
from heptad.errors import CheckpointError, in_a_line

PINNED = ("cuda", "xpu")
"""The devices that copy into pinned memory faster than into other memory, and without a sync for each tensor."""


def copied(packed: PackedSnapshot) -> PackedSnapshot:
    """Return a packed snapshot that shares no memory with this one; its tensors are on the CPU, and contiguous.

    Waits once for each accelerator that holds some of them: what is returned is complete.

    Raises:
        CheckpointError: If there is not enough memory.
    """
    devices: set[torch.device] = set()
    try:
        tensors = {
            group: {name: _host_copy(tensor, devices) for name, tensor in held.items()}
            for group, held in packed.tensors.items()
        }
    except (RuntimeError, MemoryError) as error:  # torch raises the first of these, for pinned memory too
        raise CheckpointError(
            f"a checkpoint in the background needs a copy of {packed.size:,} bytes in the memory of the host, and it "
            f"could not be made ({in_a_line(error)}); Checkpoint(background=False) needs none"
        ) from error
    for device in devices:
        module: Any = torch.get_device_module(device)
        module.synchronize(device)
    return replace(packed, tensors=tensors)


def _host_copy(tensor: Tensor, devices: set[torch.device]) -> Tensor:
    """Return a copy in the memory of the host; the device of one that is still under way is added to a set."""
    if tensor.device.type == "cpu":
        return tensor.clone(memory_format=torch.contiguous_format)
    if tensor.device.type not in PINNED:
        return tensor.to("cpu", copy=True)
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    devices.add(tensor.device)
    return copy.copy_(tensor, non_blocking=True)
