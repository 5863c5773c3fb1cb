"""Calls of handlers and how long each took: kept only where `RunConfig(trace_handlers=True)` asks for it."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from heptad.log.chunk import Call

_FIELDS = 4  # seq, which handler, when, how long


class Calls:
    """All calls of the transitions that are kept: 32 bytes each.

    Written by the thread that drives the run, one `extend` a call, so that another thread reads whole calls.
    """

    def __init__(self) -> None:
        self._handlers: list[tuple[str, str, str]] = []
        self._rows = array("q")

    def handler(self, who: str, edge: str, state: str) -> int:
        """Returns a number for a handler on an edge."""
        self._handlers.append((who, edge, state))
        return len(self._handlers) - 1

    def add(self, seq: int, handler: int, began_ns: int, duration_ns: int) -> None:
        """Adds a call; times on the monotonic clock."""
        self._rows.extend((seq, handler, began_ns, duration_ns))

    def between(self, first: int, end: int, offset: int) -> list[Call]:
        """Returns the calls in the turns of the transitions from `first` to before `end`, in order.

        Args:
            first: The first transition.
            end: The one after the last.
            offset: What makes Unix nanoseconds of monotonic ones.
        """
        rows = self._rows[: len(self._rows) // _FIELDS * _FIELDS]
        seqs = rows[::_FIELDS]
        found = range(bisect_left(seqs, first), bisect_left(seqs, end))
        return [
            Call(rows[at], *self._handlers[rows[at + 1]], rows[at + 2] + offset, rows[at + 3])
            for at in (_FIELDS * row for row in found)
        ]

    def let_go(self, before: int) -> None:
        """Drops the calls of transitions before that number."""
        if self._rows and self._rows[0] < before:
            self._rows = self._rows[_FIELDS * bisect_left(self._rows[::_FIELDS], before) :]
