"""Snapshots to write, a state of values that distinguishes them, and files whose operations fail or kill."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heptad.checkpoints.files import Files
from heptad.checkpoints.store import Store
from heptad.run.snapshot import Snapshot

OPERATIONS = [name for name, value in vars(Files).items() if not name.startswith("_") and callable(value)]


def snapshot(number: int) -> Snapshot:
    """Return a snapshot that differs from those of other numbers in every section."""
    generator = torch.Generator().manual_seed(number)
    weights = {"first.weight": torch.randn(3, 4, generator=generator), "first.bias": torch.full((3,), float(number))}
    return Snapshot(
        summary={"seq": number, "state": "after_step", "monitor": {"name": "loss", "mode": "min", "value": 1 / number}},
        sections={
            "network": {"tensors": weights, "modes": {"": True, "first": True}},
            "optimizers": [
                {"state": {0: {"step": torch.tensor(float(number)), "exp_avg": weights["first.weight"] * 2}}}
            ],
            "random": {"python": (3, tuple(range(number, number + 20)), None)},
        },
    )


def number_of(found: Snapshot) -> int:
    """Return the number of a snapshot, once all of its sections agree on it."""
    number = found.summary["seq"]
    expected = snapshot(number)
    assert found.summary == expected.summary
    assert same(found.sections, expected.sections)
    return number


def same(one: Any, other: Any) -> bool:
    """Return whether two nested values have the same types, the same bits and, if tensors, the same strides."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else one == other


def stored(directory: Path, count: int) -> Store:
    """Return a store with this many checkpoints, of the snapshots 1, 2, 3 …"""
    store = Store(directory)
    for number in range(1, count + 1):
        store.save(snapshot(number))
    return store


class CountedFiles(Files):
    """Files that count their operations and, before the n-th, call a function that may raise or kill.

    Attributes:
        calls: The operations so far: name and arguments.
        place: The number, from 1 on, of the operation before which `strike` is called; 0 for none.
        strike: See above; it gets the operation's name.
        ever: Whether it is called before all that follow too.
    """

    def __init__(self, place: int = 0, strike: Callable[[str], object] = str, ever: bool = False) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.place = place
        self.ever = ever
        self.strike = strike

    @property
    def struck(self) -> bool:
        """Whether that operation has been reached."""
        return len(self.calls) >= self.place > 0

    def _counted(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        if len(self.calls) == self.place or (self.ever and self.struck):
            if name == "close":  # which releases the descriptor even where it fails
                Files.close(self, *arguments)
            self.strike(name)
        return getattr(Files, name)(self, *arguments)


def _counting(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._counted(name, *arguments)


for _name in OPERATIONS:
    setattr(CountedFiles, _name, _counting(_name))


class Holder(Files):
    """Files that stop before the first one of a checkpoint is made, until they are let go.

    Attributes:
        reached: Set when a writer has come there.
        gate: To be set by the test.
        error: The number of the error that is raised then, once; 0 for none.
    """

    def __init__(self, error: int = 0) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()
        self.error = error

    def create(self, path: Path) -> int:
        self.reached.set()
        assert self.gate.wait(20), "nobody has opened the gate"
        error, self.error = self.error, 0
        if error:
            raise OSError(error, os.strerror(error))
        return super().create(path)


def refusing(number: int) -> Callable[[str], object]:
    """Return a function that raises the error of that number."""

    def strike(name: str) -> None:
        raise OSError(number, os.strerror(number))

    return strike


def in_child(work: Callable[[], object]) -> int:
    """Call a function in a forked child; return 0, 1 if it raised, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(name: str) -> None:
    """Kill this process as a power failure would: nothing is flushed and nothing cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
