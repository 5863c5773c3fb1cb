"""Calls of handlers and how long each took: kept only where `RunConfig(trace_handlers=True)` asks for it."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from heptad.record.chunk import Call

_FIELDS = 4  # seq, which handler, when, how long


class Calls:
    """All calls of the transitions that are kept: 32 bytes each.

    Written by the thread that drives the run, one `extend` a call, so that another thread reads whole calls.
    """

    def __init__(self) -> None:
        self._handlers: list[tuple[str, str, str]] = []
        self._kept: tuple[int, array[int]] = 0, array("q")
        """How many calls were let go of, and those after them."""

    def __len__(self) -> int:
        gone, rows = self._kept
        return gone + len(rows) // _FIELDS

    def handler(self, who: str, moment: str, state: str) -> int:
        """Return a number for a handler on a moment."""
        self._handlers.append((who, moment, state))
        return len(self._handlers) - 1

    def add(self, seq: int, handler: int, began_ns: int, duration_ns: int) -> None:
        """Add a call; times on the monotonic clock."""
        self._kept[1].extend((seq, handler, began_ns, duration_ns))

    def between(self, first: int, end: int, offset: int) -> list[Call]:
        """Return the calls in the turns of the transitions from `first` to before `end`, in order.

        Args:
            first: The first transition.
            end: The one after the last.
            offset: What makes Unix nanoseconds of monotonic ones.
        """
        rows = self._kept[1]
        begin = _place(rows, first)
        return self._told(rows, begin, _place(rows, end, begin), offset)

    def since(self, number: int, offset: int) -> list[Call]:
        """Return the calls from the one of that number on, of those that are kept, in the order in which they ended.

        Args:
            number: How many calls of the run to leave out.
            offset: As above.
        """
        gone, rows = self._kept
        return self._told(rows, max(number - gone, 0), len(rows) // _FIELDS, offset)

    def let_go(self, before: int) -> None:
        """Drop the calls of transitions before that number."""
        gone, rows = self._kept
        if rows and rows[0] < before:
            place = _place(rows, before)
            self._kept = gone + place, rows[_FIELDS * place :]

    def _told(self, rows: array[int], begin: int, end: int, offset: int) -> list[Call]:
        return [
            Call(rows[at], *self._handlers[rows[at + 1]], rows[at + 2] + offset, rows[at + 3])
            for at in range(_FIELDS * begin, _FIELDS * end, _FIELDS)
        ]


def _place(rows: array[int], seq: int, since: int = 0) -> int:
    """Return the place of the first call in the turn of a transition from `seq` on."""
    places = range(since, len(rows) // _FIELDS)
    return since + bisect_left(places, seq, key=lambda place: rows[_FIELDS * place])
