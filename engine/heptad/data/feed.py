"""`Feed`: where a run takes its batches from, one pass after another. It owns a cursor, the place in the pass.

Built by the engine; opened, asked and closed by the bodies. There are two: `SizedFeed`, which knows how many batches a
pass has, and `StreamFeed`, for data of which nobody can know it, which reads one batch ahead when it is asked for more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from heptad.data.cursor import NOTHING, Cursor, PassKey
from heptad.data.transfer import Copy, Transfer
from heptad.errors import SecondInterrupt


class Feed(Protocol):
    """Where batches come from. One pass is open at a time.

    Attributes:
        batches: Batches in a pass, `None` where that cannot be known.
        varies: Whether a pass had another number of batches than the one before it.
        reads_early: Whether `read_ahead` does anything.
        seed: The root of the data's order; set in `before_loop`.
        idle: Whether the batch taken last only keeps the other ranks company: this one had none of its own.
        taken_early: Whether the open pass may be empty: another rank's steps have taken its batches.
        remarks: What the log is to say of how several ranks share the data, once.
    """

    reads_early: bool

    @property
    def batches(self) -> int | None:
        """See above."""
        ...

    @property
    def varies(self) -> bool:
        """See above."""
        ...

    seed: int

    @property
    def idle(self) -> bool:
        """See above."""
        ...

    @property
    def taken_early(self) -> bool:
        """See above."""
        ...

    @property
    def remarks(self) -> Sequence[str]:
        """See above."""
        ...

    def steps_in(self, epochs: range) -> int:
        """Return how many steps these epochs make before they are extended, where the length is known."""
        ...

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        """Begin a pass, of which at most `limit` batches will be taken."""
        ...

    @property
    def take(self) -> Callable[[], Any]:
        """Return the next batch, or `NOTHING` where a pass of unknown length is over; what the data raise is raised."""
        ...

    def more(self) -> bool:
        """Return whether a batch follows. For a pass of unknown length this reads it."""
        ...

    def read_ahead(self, most: int) -> None:
        """Read up to `most` batches before they are taken, where that changes none, and begin to copy them."""
        ...

    def end(self) -> None:
        """End the pass."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a place in the data to mean the same, as plain data."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the place in the data, between two batches, as plain data and tensors."""
        ...

    def restore(self, state: Mapping[str, Any]) -> str | None:
        """Return to a place that `state` gave, in place of `open`; return what is to be said of it."""
        ...

    def doubt(self) -> str:
        """Return what may keep a run that is resumed in a later pass from the same data, or nothing."""
        ...

    def rest(self) -> None:
        """End worker processes in the middle of a pass, if `take` can start them anew without loss."""
        ...

    def close(self) -> None:
        """Drop iterators and end worker processes; `open` makes them anew."""
        ...


class SizedFeed:
    """Batches of a pass whose length is known: nothing is read ahead.

    Attributes:
        take: The cursor's own `take`, so that a step pays for one call and not for two.
    """

    reads_early = False

    def __init__(self, cursor: Cursor, remarks: Sequence[str] = ()) -> None:
        self.seed = 0
        self.take = cursor.take
        self.remarks = remarks
        self._cursor = cursor

    @property
    def batches(self) -> int | None:
        """Batches in a pass."""
        return self._cursor.batches

    @property
    def varies(self) -> bool:
        """Whether that number has changed."""
        return self._cursor.varies

    @property
    def idle(self) -> bool:
        """What the cursor says."""
        return self._cursor.idle

    @property
    def taken_early(self) -> bool:
        """What the cursor says."""
        return self._cursor.taken_early

    def steps_in(self, epochs: range) -> int:
        """Return what the cursor says."""
        return self._cursor.steps_in(epochs)

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        """Begin a pass."""
        self._cursor.begin(PassKey(self.seed, epoch, pass_index), limit)

    def more(self) -> bool:
        """Return whether a batch follows."""
        return self._cursor.taken < (self.batches or 0)

    def read_ahead(self, most: int) -> None:
        """Read nothing."""

    def end(self) -> None:
        """End the pass."""
        self._cursor.end()

    def identity(self) -> dict[str, Any]:
        """Return what the cursor says."""
        return self._cursor.identity()

    def state(self) -> dict[str, Any]:
        """Return the cursor's place."""
        return self._cursor.state()

    def restore(self, state: Mapping[str, Any]) -> str | None:
        """Return to a place."""
        return self._cursor.restore(state, PassKey(self.seed, 0, 0))

    def doubt(self) -> str:
        """Return what the cursor says."""
        return self._cursor.doubt()

    def rest(self) -> None:
        """End worker processes that can be started anew."""
        self._cursor.rest()

    def close(self) -> None:
        """Drop iterators and worker processes."""
        self._cursor.close()


class StreamFeed:
    """Batches of a pass of unknown length.

    What the data raise when a batch is read ahead is kept and raised by `take`, where a plain loop has it. It counts as
    a batch that follows, and is dropped with the pass if that ends first.
    """

    batches: int | None = None
    varies = True
    idle = taken_early = False
    remarks: Sequence[str] = ()

    def __init__(self, cursor: Cursor, *, seeded: bool, transfer: Transfer | None = None) -> None:
        self.seed = 0
        self._cursor = cursor
        self._seeded = seeded  # a batch that is read once more is the same
        self._transfer = transfer  # where a batch may be read before it must, to be copied
        self.reads_early = transfer is not None
        self._copy: Copy | None = None
        self._key = PassKey(0, 0, 0)
        self._taken = 0
        self._ahead: Any = NOTHING
        self._error: BaseException | None = None

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        """Begin a pass."""
        self._ahead, self._error, self._copy, self._taken = NOTHING, None, None, 0
        self._key = PassKey(self.seed, epoch, pass_index)
        self._cursor.begin(self._key, limit)

    def steps_in(self, epochs: range) -> int:
        """Raise: nobody knows."""
        raise NotImplementedError

    def more(self) -> bool:
        """Return whether a batch follows; read it, if it was not read yet."""
        if self._ahead is NOTHING and self._error is None:
            try:
                self._ahead = self._cursor.take()
            except SecondInterrupt:
                raise
            except BaseException as error:  # everything: it is raised again by take()
                self._error = error
        return self._ahead is not NOTHING or self._error is not None

    def take(self) -> Any:
        """Return the batch that was read ahead, or read it now; `NOTHING` where the pass is over."""
        if not self.more():
            return NOTHING
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # break the traceback's reference cycle
        batch, self._ahead = self._ahead, NOTHING
        self._taken += 1
        if self._transfer is not None:
            self._transfer.expect(self._copy)
            self._copy = None
        return batch

    def read_ahead(self, most: int) -> None:
        """Read the batch that follows, unless only the path may decide when it is read."""
        transfer = self._transfer
        if transfer is not None and most and self._ahead is NOTHING and self.more() and self._ahead is not NOTHING:
            self._copy = transfer.begin(self._ahead)

    def end(self) -> None:
        """End the pass."""
        self._cursor.end()
        self._ahead, self._error, self._copy = NOTHING, None, None

    def identity(self) -> dict[str, Any]:
        """Return that the length is unknown."""
        return {"batches": None}

    def state(self) -> dict[str, Any]:
        """Return the place; the batch that was read ahead is part of it, if there is one."""
        waits = self._ahead is not NOTHING
        return {
            "key": list(self._key),
            "taken": self._taken,
            "walk": self._cursor.state(),
            "waits": waits,
            "ahead": [self._ahead] if waits else [],
            "failed": self._error is not None,
        }

    def restore(self, state: Mapping[str, Any]) -> str | None:
        """Return to a place; a batch that was read ahead and could not be stored is read once more."""
        self._key, self._taken = PassKey(*state["key"]), state["taken"]
        self._ahead, self._error, self._copy = NOTHING, None, None
        again = state["waits"] and not state["ahead"]
        remarks = self._cursor.restore({**state["walk"], "taken": state["walk"]["taken"] - again}, self._key)
        if again or state["failed"]:
            self.more()
            if again and not self._seeded:
                lost = "the batch read ahead could not be stored and was read once more; what it draws is drawn anew"
                remarks = "; ".join(filter(None, (remarks, lost)))
        elif state["waits"]:
            (self._ahead,) = state["ahead"]
        return remarks

    def doubt(self) -> str:
        """Return what the cursor says."""
        return self._cursor.doubt()

    def rest(self) -> None:
        """Keep the iterator: what it has drawn could not be drawn again."""

    def close(self) -> None:
        """Drop the iterator and what was read ahead."""
        self.end()
