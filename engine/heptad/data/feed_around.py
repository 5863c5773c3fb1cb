"""`FeedAround`: a feed around another one. Its subclasses replace what they do otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heptad.data.feed import Feed


class FeedAround:
    """Says what another feed says; see the protocol.

    Args:
        feed: That one.
    """

    def __init__(self, feed: Feed) -> None:
        self.seed = 0
        self._feed = feed

    @property
    def batches(self) -> int | None:
        """Batches in a pass."""
        return self._feed.batches

    @property
    def varies(self) -> bool:
        """Whether that number has changed."""
        return self._feed.varies

    @property
    def idle(self) -> bool:
        """Whether the batch taken last only keeps the other ranks company."""
        return self._feed.idle

    @property
    def taken_early(self) -> bool:
        """Whether the open pass may be empty."""
        return self._feed.taken_early

    @property
    def remarks(self) -> Sequence[str]:
        """What the log is to say."""
        return self._feed.remarks

    def steps_in(self, epochs: range) -> int:
        """Return how many steps these epochs make."""
        return self._feed.steps_in(epochs)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal."""
        return self._feed.identity()

    def state(self) -> dict[str, Any]:
        """Return the place in the data."""
        return self._feed.state()

    def restore(self, state: Mapping[str, Any]) -> str | None:
        """Return to a place."""
        self._feed.seed = self.seed
        return self._feed.restore(state)

    def doubt(self) -> str:
        """Return what may keep a resumed run from the same data."""
        return self._feed.doubt()

    def rest(self) -> None:
        """End worker processes that can be started anew."""
        self._feed.rest()

    def close(self) -> None:
        """Drop iterators and end worker processes."""
        self._feed.close()
