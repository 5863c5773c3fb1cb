"""`GroupFeed`: batches of unknown length on one of several ranks. It reads a group ahead when it is asked for more.

What was read ahead is not part of its place, which is the same on all ranks: a run that is resumed reads it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heptad.data.cursor import NOTHING, PassKey
from heptad.data.group_cursor import GroupCursor
from heptad.data.part_cursor import PartCursor
from heptad.errors import SecondInterrupt


class GroupFeed:
    """Batches of unknown length, of which each step takes one on each rank.

    What the data raise when a batch is read ahead is kept and raised by `take`, where a plain loop has it. It counts as
    a batch that follows, and is dropped with the pass if that ends first.

    Args:
        cursor: Reads the groups.
        remarks: What the log is to say.
    """

    batches: int | None = None
    varies = True
    reads_early = False

    def __init__(self, cursor: GroupCursor | PartCursor, remarks: Sequence[str]) -> None:
        self.seed = 0
        self.remarks = remarks
        self.idle = False
        self._cursor = cursor
        self._key = PassKey(0, 0, 0)
        self._taken = 0
        self._begin()

    def _begin(self) -> None:
        self._before: Mapping[str, Any] | None = None  # the place before what was read ahead
        self._ahead: Any = NOTHING
        self._error: BaseException | None = None
        self._over = False

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        """Begin a pass."""
        self._begin()
        self._key, self._taken, self.idle = PassKey(self.seed, epoch, pass_index), 0, False
        self._cursor.begin(self._key, limit)

    @property
    def taken_early(self) -> bool:
        """What the cursor says."""
        return self._cursor.taken_early

    def steps_in(self, epochs: range) -> int:
        """Raise: nobody knows."""
        raise NotImplementedError

    def more(self) -> bool:
        """Return whether a batch follows; read it, if it was not read yet."""
        if self._before is None and not self._over:
            before = self._cursor.state()
            try:
                self._ahead = self._cursor.take()
            except SecondInterrupt:
                raise
            except BaseException as error:  # everything: it is raised again by take()
                self._error = error
            self._over = self._ahead is NOTHING and self._error is None
            self._before = None if self._over else before
        return self._before is not None

    def take(self) -> Any:
        """Return the batch that was read ahead, or read it now; `NOTHING` where the pass is over."""
        if not self.more():
            return NOTHING
        batch, error = self._ahead, self._error
        self._begin()
        if error is not None:
            try:
                raise error
            finally:
                del error  # break the traceback's reference cycle
        self._taken += 1
        self.idle = self._cursor.idle
        return batch

    def read_ahead(self, most: int) -> None:
        """Read nothing."""

    def end(self) -> None:
        """End the pass."""
        self._cursor.end()
        self._begin()
        self._over = True

    def identity(self) -> dict[str, Any]:
        """Return what the cursor says."""
        return self._cursor.identity()

    def state(self) -> dict[str, Any]:
        """Return the place, before what was read ahead."""
        walk = self._cursor.state() if self._before is None else dict(self._before)
        place = {"key": list(self._key), "taken": self._taken, "walk": walk}
        return {**place, "waits": False, "ahead": [], "failed": False}

    def restore(self, state: Mapping[str, Any]) -> str | None:
        """Return to a place."""
        self._begin()
        self._key, self._taken, self.idle = PassKey(*state["key"]), state["taken"], False
        remarks = self._cursor.restore(state["walk"], self._key)
        self._taken = self._cursor.taken
        return remarks

    def doubt(self) -> str:
        """Return what the cursor says."""
        return self._cursor.doubt()

    def rest(self) -> None:
        """Keep the iterator: what it has drawn could not be drawn again."""

    def close(self) -> None:
        """Drop the iterator and what was read ahead."""
        self._begin()
        self._cursor.close()
