"""`DeviceStreams`: what copying beside a computation needs of a device: streams, events, pinned memory.

Only `Transfer` and the rows that are kept or gathered for a device call it; tests put a device of their own in its
place, so that the order of copies and events is held where there is no accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch


class DeviceStreams(Protocol):
    """The streams of one device, and copies to it.

    Attributes:
        device: The device.
    """

    device: torch.device

    def new(self) -> Any:
        """Return a new stream."""
        ...

    def current(self) -> Any:
        """Return the stream on which this thread computes."""
        ...

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Make this the current stream for the length of a block."""
        ...

    def record(self, stream: Any) -> Any:
        """Return an event that has happened when all that was queued on a stream so far is done."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Let what is queued on a stream from now on wait for an event (no device sync)."""
        ...

    def use(self, tensor: torch.Tensor, stream: Any) -> None:
        """Keep the memory of a tensor, once it is dropped, until what is queued on a stream by then is done."""
        ...

    def empty_pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return an empty tensor in pinned memory of the host."""
        ...

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the host in pinned memory: itself if it is there, or if it cannot be."""
        ...

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue a copy to the device on the current stream; no device sync if the tensor is pinned."""
        ...


class TorchStreams:
    """The streams of a device by torch's module for its type, such as `torch.cuda`."""

    def __init__(self, device: torch.device, module: Any) -> None:
        self.device = device
        self._module = module

    def new(self) -> Any:
        """Return a new stream; the first call opens the device's context."""
        return self._module.Stream(device=self.device)

    def current(self) -> Any:
        """Return the stream on which this thread computes."""
        return self._module.current_stream(self.device)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Make this the current stream for the length of a block."""
        return self._module.stream(stream)

    def record(self, stream: Any) -> Any:
        """Return an event that has happened when all that was queued on a stream so far is done."""
        return stream.record_event()

    def wait(self, stream: Any, event: Any) -> None:
        """Let what is queued on a stream from now on wait for an event (no device sync)."""
        stream.wait_event(event)

    def use(self, tensor: torch.Tensor, stream: Any) -> None:
        """Keep the memory of a tensor, once it is dropped, until what is queued on a stream by then is done."""
        tensor.record_stream(stream)

    def empty_pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return an empty tensor in pinned memory of the host."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the host in pinned memory: itself if it is there, or if it cannot be."""
        if tensor.requires_grad or type(tensor) is not torch.Tensor or tensor.is_pinned():
            return tensor  # pinning would lose the graph, or the class
        try:
            return tensor.pin_memory()
        except (RuntimeError, NotImplementedError):  # a layout that has no pinned form
            return tensor

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue a copy to the device on the current stream; no device sync if the tensor is pinned."""
        # pinned memory that is dropped before the copy is done waits for it: torch records that by itself
        return tensor.to(self.device, non_blocking=True)


def streams_of(device: torch.device) -> DeviceStreams | None:
    """Return the streams of a device, `None` where it has none: the CPU, whose stand-ins do nothing, and `mps`."""
    if device.type in ("cpu", "meta"):
        return None
    try:
        module: Any = torch.get_device_module(device.type)
    except RuntimeError:
        return None
    return TorchStreams(device, module) if hasattr(module, "Stream") else None
