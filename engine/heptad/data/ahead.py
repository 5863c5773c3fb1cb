"""`AheadFeed`: reads batches of a pass before they are taken, so that they are copied while the device computes.

Built in place of a plain feed only where a device copies beside its computation, over data that do not change by being
read earlier: a dataset that the engine indexes, and loaders whose workers read ahead in any case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heptad.data.feed import SizedFeed
from heptad.data.feed_around import FeedAround
from heptad.data.transfer import Copy, Transfer
from heptad.errors import SecondInterrupt


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A batch that was read and not taken.

    Attributes:
        before: The place in the data before it was read: what a checkpoint holds.
        batch: The batch, on the host.
        copy: Its copy, as far as it could be begun.
        error: What reading it raised, in place of it.
    """

    before: Mapping[str, Any]
    batch: Any = None
    copy: Copy | None = None
    error: BaseException | None = None


class AheadFeed(FeedAround):
    """A feed that reads ahead when it is asked to. What is read and not taken is not consumed.

    Its place is that before the first batch that waits, which a run that is resumed reads again. What the data raise is
    kept and raised by `take`, where a plain loop has it; it is dropped with the pass if that ends first.

    Args:
        feed: The feed of known length that is read.
        transfer: What copies the batches.
    """

    reads_early = True

    def __init__(self, feed: SizedFeed, transfer: Transfer) -> None:
        super().__init__(feed)
        self._transfer = transfer
        self._waiting: deque[_Waiting] = deque()

    @property
    def idle(self) -> bool:
        """What the feed says of the newest batch: only the last one of a pass can be idle, and nothing waits then."""
        return not self._waiting and self._feed.idle

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        """Begin a pass."""
        self._waiting.clear()
        self._feed.seed = self.seed
        self._feed.open(epoch, pass_index, limit)

    def read_ahead(self, most: int) -> None:
        """Read until so many batches wait, or as many as are copied ahead, and begin to copy each."""
        waiting = self._waiting
        while len(waiting) < min(most, self._transfer.ahead) and not (waiting and waiting[-1].error):
            before = self._feed.state()
            try:
                batch = self._feed.take()
            except SecondInterrupt:
                raise
            except BaseException as error:  # everything: it is raised again by take()
                waiting.append(_Waiting(before, error=error))
            else:
                waiting.append(_Waiting(before, batch, self._transfer.begin(batch)))

    def take(self) -> Any:
        """Return the batch that was read first, or read one now."""
        if not self._waiting:
            return self._feed.take()
        next_one = self._waiting.popleft()
        if next_one.error is not None:
            try:
                raise next_one.error
            finally:
                del next_one  # break the traceback's reference cycle
        self._transfer.expect(next_one.copy)
        return next_one.batch

    def more(self) -> bool:
        """Return whether a batch follows."""
        return bool(self._waiting) or self._feed.more()

    def end(self) -> None:
        """End the pass."""
        self._waiting.clear()
        self._feed.end()

    def state(self) -> dict[str, Any]:
        """Return the place before the first batch that waits."""
        return dict(self._waiting[0].before) if self._waiting else super().state()

    def restore(self, state: Mapping[str, Any]) -> str | None:
        """Return to a place."""
        self._waiting.clear()
        return super().restore(state)

    def close(self) -> None:
        """Drop iterators, worker processes and what waits."""
        self._waiting.clear()
        super().close()
