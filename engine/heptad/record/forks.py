"""What is told in a forked child that it is one: recorders and runs, whose files and threads are the parent's."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class _Disowns(Protocol):
    def disown(self) -> None: ...


_KNOWN: WeakSet[_Disowns] = WeakSet()
_REGISTERED: list[bool] = []


def know_forks(owner: _Disowns) -> None:
    """Have `disown` of an object called in forked children, for as long as it lives; nothing is done at import."""
    _KNOWN.add(owner)
    if not _REGISTERED and hasattr(os, "register_at_fork"):
        _REGISTERED.append(True)
        os.register_at_fork(after_in_child=_disown_all)


def _disown_all() -> None:
    for owner in tuple(_KNOWN):
        owner.disown()
    _KNOWN.clear()
