"""Which recorders a process has, so that in a forked child none waits for the thread that stayed with the parent."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class ForkedError(Exception):
    """In a forked child: the file belongs to the parent."""

    def __init__(self) -> None:
        super().__init__(
            f"belongs to the process {os.getppid()}, which writes on; this one ({os.getpid()}) is a fork of it: "
            "end it in the handler that forks it, with os._exit(), or start processes with the method spawn"
        )


class _Disowns(Protocol):
    def disown(self) -> None: ...


_RECORDERS: WeakSet[_Disowns] = WeakSet()
_REGISTERED: list[bool] = []


def know_forks(recorder: _Disowns) -> None:
    """Have `disown` of a recorder called in forked children."""
    _RECORDERS.add(recorder)
    if not _REGISTERED and hasattr(os, "register_at_fork"):
        _REGISTERED.append(True)
        os.register_at_fork(after_in_child=_disown_all)


def _disown_all() -> None:
    for recorder in tuple(_RECORDERS):
        recorder.disown()
    _RECORDERS.clear()
