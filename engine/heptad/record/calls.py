"""`Calls`: calls of handlers and how long each took, kept with `RunConfig(trace_handlers=True)`."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from heptad.record.chunk import Call

_FIELDS = 4  # a row: seq, number of the handler, monotonic nanoseconds of its call, nanoseconds that it took


class Calls:
    """All calls of the transitions that are kept: four int64 each, row after row in one array.

    The thread that drives the run writes a row with one `extend`, which is atomic: other threads read whole rows.
    """

    def __init__(self) -> None:
        self._handlers: list[tuple[str, str, str]] = []
        self._kept: tuple[int, array[int]] = 0, array("q")
        """How many calls were dropped, and the rows after them; replaced together."""

    def __len__(self) -> int:
        gone, rows = self._kept
        return gone + len(rows) // _FIELDS

    def handler(self, who: str, moment: str, state: str) -> int:
        """Return a number for a handler on a moment."""
        self._handlers.append((who, moment, state))
        return len(self._handlers) - 1

    def add(self, seq: int, handler: int, began_ns: int, duration_ns: int) -> None:
        """Add a call; times are those of the monotonic clock."""
        self._kept[1].extend((seq, handler, began_ns, duration_ns))

    def between(self, first: int, end: int, offset: int) -> list[Call]:
        """Return the calls in the turns of the transitions from `first` to before `end`, in order.

        Args:
            first: The first transition.
            end: The one after the last.
            offset: Nanoseconds between the monotonic clock and the Unix epoch.
        """
        rows = self._kept[1]
        begin = _row_from(rows, first)
        return self._calls(rows, begin, _row_from(rows, end, begin), offset)

    def since(self, number: int, offset: int) -> list[Call]:
        """Return the calls that are kept, in the order in which they ended.

        Args:
            number: How many calls of the run to leave out, from its first.
            offset: As above.
        """
        gone, rows = self._kept
        return self._calls(rows, max(number - gone, 0), len(rows) // _FIELDS, offset)

    def drop(self, before: int) -> None:
        """Drop the calls of transitions before that number."""
        gone, rows = self._kept
        if rows and rows[0] < before:
            place = _row_from(rows, before)
            self._kept = gone + place, rows[_FIELDS * place :]

    def _calls(self, rows: array[int], begin: int, end: int, offset: int) -> list[Call]:
        return [
            Call(rows[at], *self._handlers[rows[at + 1]], rows[at + 2] + offset, rows[at + 3])
            for at in range(_FIELDS * begin, _FIELDS * end, _FIELDS)
        ]


def _row_from(rows: array[int], seq: int, since: int = 0) -> int:
    """Return the row of the first call in the turn of `seq` or a later one: calls are in the order of their turns."""
    places = range(since, len(rows) // _FIELDS)
    return since + bisect_left(places, seq, key=lambda place: rows[_FIELDS * place])
