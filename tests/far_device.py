"""A device with streams, made of the CPU: a copy on a side stream is done only when an event is waited for.

Until then the copy holds garbage, so that a run which uses a batch too early computes other bits; and a copy whose
memory the computation was never said to use is an offence when it is dropped.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

GARBAGE = -12345


class Stream:
    """A queue of work; that of the computation does its work at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.work: list[Callable[[], object]] = []
        self.done = 0

    def catch_up(self, length: int) -> None:
        """Do what was queued up to there."""
        for work in self.work[self.done : length]:
            work()
        self.done = max(self.done, length)


class FarDevice:
    """The seam of `heptad.data.streams`; `log` says in which order it was asked what."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.log: list[str] = []
        self.offences: list[str] = []
        self.stack = [Stream("main")]
        self.streams = 0
        self._pinned: dict[int, Any] = {}
        self._used: set[int] = set()
        self._arrived: set[int] = set()

    def new(self) -> Stream:
        self.streams += 1
        return Stream("side")

    def current(self) -> Stream:
        return self.stack[-1]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        self.stack.append(stream)
        try:
            yield
        finally:
            self.stack.pop()

    def record(self, stream: Stream) -> tuple[Stream, int]:
        self.log.append(f"record {stream.name}")
        return stream, len(stream.work)

    def wait(self, stream: Stream, event: tuple[Stream, int]) -> None:
        self.log.append(f"{stream.name} waits")
        event[0].catch_up(event[1])

    def use(self, tensor: torch.Tensor, stream: Stream) -> None:
        assert stream.name == "main"
        self._used.add(id(tensor))

    def empty_pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self._keep(torch.empty(tuple(shape), dtype=dtype))

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.is_pinned(tensor):
            return tensor
        self.log.append("pin")
        return self._keep(tensor.clone())

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        stream = self.current()
        self.log.append(f"copy on {stream.name}")
        if not self.is_pinned(tensor):
            self.offences.append("copied from memory that is not pinned")
        if stream.name == "main":
            return tensor.clone()
        there = torch.empty_like(tensor).fill_(GARBAGE if tensor.dtype != torch.bool else 0)
        number = id(there)
        weakref.finalize(there, self._freed, number)
        stream.work.append(partial(self._arrive, weakref.ref(there), tensor))
        return there

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        known = self._pinned.get(id(tensor))
        return known is not None and known() is tensor

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned[id(tensor)] = weakref.ref(tensor)
        return tensor

    def _arrive(self, found: Callable[[], torch.Tensor | None], tensor: torch.Tensor) -> None:
        if (there := found()) is not None:
            self._arrived.add(id(there))
            with torch.no_grad():
                there.copy_(tensor)

    def _freed(self, number: int) -> None:
        if number in self._arrived - self._used:
            self.offences.append("freed while the computation may use it")
        self._arrived.discard(number)
        self._used.discard(number)


def far_device(monkeypatch: pytest.MonkeyPatch) -> FarDevice:
    """Return a device with streams, which every run is placed on from now on."""
    device = FarDevice()
    monkeypatch.setattr("heptad.data.transfer.streams_of", lambda _: device)
    return device
