"""`Cursor`: a place in one pass over the data, and the way back to it. Feeds own cursors, nobody else sees them.

There are two: `IndexCursor` for samples that the engine orders by index, where any place is found at once, and
`IteratorCursor` for anything that is iterated, where a place may have to be walked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

NOTHING: Any = object()
"""What a pass of unknown length gives in place of a batch when it is over."""


class PassKey(NamedTuple):
    """Which pass this is; its order and its randomness are functions of these."""

    seed: int
    epoch: int
    pass_index: int


class Cursor(Protocol):
    """A place in a pass. One pass is open at a time.

    Attributes:
        batches: Batches in a pass, `None` where that cannot be known.
        varies: Whether a pass had another number of batches than the one before it.
        taken: Batches taken from the open pass.
        idle: Whether the newest batch only keeps the other ranks company: this one had none of its own.
        taken_early: Whether the open pass may be empty: steps of the one before it have taken batches of it.
    """

    @property
    def varies(self) -> bool:
        """See above."""
        ...

    @property
    def batches(self) -> int | None:
        """See above."""
        ...

    @property
    def idle(self) -> bool:
        """See above."""
        ...

    @property
    def taken_early(self) -> bool:
        """See above."""
        ...

    def steps_in(self, epochs: range) -> int:
        """Return how many steps these epochs make before they are extended, if each pass has as many batches as now."""
        ...

    @property
    def taken(self) -> int:
        """See above."""
        ...

    def begin(self, key: PassKey, limit: int | None) -> None:
        """Begin a pass, of which at most `limit` batches will be taken."""
        ...

    def take(self) -> Any:
        """Return the next batch, or `NOTHING` where a pass of unknown length is over.

        Raises:
            DataError: If the pass should have had another one.
            BaseException: What the data raise, unchanged.
        """
        ...

    def end(self) -> None:
        """End the pass."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a place to mean the same, as plain data."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the place, between two batches, as plain data and tensors."""
        ...

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Return to a place that `state` gave, in the pass of that key.

        Returns:
            What may differ from the run that is resumed, or took reading; `None` for nothing.

        Raises:
            DataError: If the data end before that place.
        """
        ...

    def doubt(self) -> str:
        """Return what may keep a run that is resumed in a later pass from the same data, or nothing."""
        ...

    def rest(self) -> None:
        """End worker processes in the middle of a pass, if `take` can start them anew without loss."""
        ...

    def close(self) -> None:
        """Drop iterators and end worker processes; `begin` makes them anew."""
        ...
