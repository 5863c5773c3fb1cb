"""`Transfer`: batches on their way to a device that has streams: pinned, and copied while the device computes.

A run has one, made with the engine; feeds begin a copy when they have read a batch ahead, and `before_step` takes it.
On the CPU, and on a device without streams, a run has a `Placement` in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from heptad.config import RunConfig
from heptad.data.placement import Placement, rebuild
from heptad.data.streams import DeviceStreams, streams_of


@dataclass(frozen=True, slots=True)
class Copy:
    """A batch whose copy was queued on the side stream.

    Attributes:
        batch: The batch on the host.
        placed: The copy.
        tensors: The tensors in it that lie in memory of the side stream.
        event: Happens when they are there.
    """

    batch: Any
    placed: Any
    tensors: list[torch.Tensor]
    event: Any


class Transfer:
    """Places batches on a device by way of pinned memory, and on a stream of its own where it reads ahead.

    The computation never waits on the host: its stream waits for the event of the copy. The memory of a copy belongs to
    the side stream, and is marked as used by the stream of the computation, or the next copy could overwrite it.

    Args:
        streams: Those of the device.
        ahead: Batches that are copied before they are taken; 0 for copies on the stream of the computation.

    Attributes:
        device: The device.
        streams: See above; so is `ahead`.
        ahead: See above.
    """

    def __init__(self, streams: DeviceStreams, ahead: int) -> None:
        self.device = streams.device
        self.streams = streams
        self.ahead = ahead
        self._side: Any = None  # made by the first copy: a stream opens the device's context
        self._beside = ahead > 0
        self._expected: Copy | None = None

    def begin(self, batch: Any) -> Copy | None:
        """Queue the copy of a batch that will be taken later.

        Returns:
            The copy. `None` if the batch can be moved only where it is used, or not at all: placing it raises that.
        """
        if not self._beside:
            return None
        streams = self.streams
        if self._side is None:
            self._side = streams.new()
        movement = _Pinned(streams)
        try:
            with streams.on(self._side):
                placed = rebuild(batch, movement)
                return Copy(batch, placed, movement.copied, streams.record(self._side))
        except _OnlyWhereItIsUsedError:  # other batches will be like it
            self._beside = False
            return None
        except Exception:  # memory may be free when the batch is taken; what is wrong with it is raised there
            return None

    def expect(self, copy: Copy | None) -> None:
        """Take note that the batch of this copy is placed next."""
        self._expected = copy

    def __call__(self, batch: Any) -> Any:
        """Return a batch on the device, ready for what is queued on the current stream from now on."""
        copy, self._expected = self._expected, None
        if copy is None or copy.batch is not batch:
            copy = self.begin(batch)
        if copy is None:
            return rebuild(batch, _PinnedHere(self.streams))
        current = self.streams.current()
        self.streams.wait(current, copy.event)
        for tensor in copy.tensors:
            self.streams.use(tensor, current)
        return copy.placed


class _Pinned:
    """Copies a batch on the side stream: tensors of the host only, since nothing else is ready or seen there.

    A tensor of another device may still be computed there, and an object that moves itself does not show its tensors.
    """

    def __init__(self, streams: DeviceStreams) -> None:
        self.device = streams.device
        self.copied: list[torch.Tensor] = []
        self._streams = streams

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue the copy of a tensor of the host; leave one that is on the device."""
        if not tensor.is_cpu and _lies_on(tensor, self.device):
            return tensor
        if not tensor.is_cpu or tensor.requires_grad:
            raise _OnlyWhereItIsUsedError
        copied = self._streams.copy(self._streams.pin(tensor))
        self.copied.append(copied)
        return copied

    def ask(self, value: Any) -> Any:
        """Refuse: see above."""
        raise _OnlyWhereItIsUsedError


class _PinnedHere(Placement):
    """Copies a batch on the current stream, by way of pinned memory."""

    def __init__(self, streams: DeviceStreams) -> None:
        super().__init__(streams.device)
        self._streams = streams

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue the copy of a tensor."""
        return self._streams.copy(self._streams.pin(tensor)) if tensor.is_cpu else super().move(tensor)


class _OnlyWhereItIsUsedError(Exception):
    """A part of a batch is to be moved on the stream of the computation."""


def _lies_on(tensor: torch.Tensor, device: torch.device) -> bool:
    """Return whether a tensor of an accelerator is on this device; one without a number is the current one."""
    there = tensor.device
    if there.type != device.type:
        return False
    number: Any = device.index  # None if it has no number; torch's types say int
    return there.index == (torch.accelerator.current_device_index() if number is None else number)


def build_transfer(device: torch.device, config: RunConfig) -> Transfer | Placement:
    """Return what places the batches of a run."""
    streams = streams_of(device)
    return Placement(device) if streams is None else Transfer(streams, config.prefetch)
