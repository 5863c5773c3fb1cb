"""`OwnFeed`: of data that every rank reads whole, the batches of one rank; `own_part` and `own_sampler` beside it.

Built by `build_reading_feed` for evaluations and predictions of several ranks. Rank r of w takes the batches r, w + r,
2 w + r, … of the one pass: none is repeated or left out, so ranks may take unequal numbers of them, or none. Where all
must take as many, as their forward passes wait for each other, it is an `EvenFeed`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from heptad.data.cursor import NOTHING, PassKey
from heptad.data.dealing import Deal
from heptad.data.feed import Feed
from heptad.data.feed_around import FeedAround
from heptad.data.generators import preserved, seed_cpu
from heptad.data.order import batch_seed
from heptad.errors import DataError, a_kind, counted


def own_part(batches: int, rank: int, world: int) -> int:
    """Return how many of so many batches are those of a rank."""
    return max(0, -(-(batches - rank) // world))


@dataclass(frozen=True, slots=True)
class OwnDeal(Deal):
    """How the batches of a dataset that is indexed are dealt out to ranks that evaluate on it."""

    remainder: str = "flush"

    def steps(self, key: PassKey, batches: int) -> int:
        """Return how many of so many batches are this rank's."""
        del key
        return own_part(batches, self.rank, self.world)


def own_sampler(loader: Any, rank: int, world: int, field: str) -> bool:
    """Return whether a loader's sampler deals the samples to the ranks already, as a `DistributedSampler` does.

    Raises:
        DataError: If it is of another rank, or repeats or leaves out samples.
    """
    batches = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        replicas = getattr(sampler, "num_replicas", None)
        if not isinstance(replicas, int) or replicas == 1:
            continue
        if (at := (getattr(sampler, "rank", rank), replicas)) != (rank, world):
            raise DataError(
                f"the sampler of {field} ({a_kind(sampler)}) is of rank {at[0]} of {at[1]}, this process is rank "
                f"{rank} of {world}; leave the sampler out: each rank evaluates its own batches of any loader"
            )
        _refuse_unequal_samples(sampler, field)
        return True
    return False


def _refuse_unequal_samples(sampler: Any, field: str) -> None:
    total = getattr(sampler, "total_size", None)
    if not isinstance(total, int) or not hasattr(sampler, "dataset"):
        return
    if more := total - len(sampler.dataset):
        what = f"repeats {counted(more, 'sample')}" if more > 0 else f"leaves out {counted(-more, 'sample')}"
        raise DataError(
            f"the sampler of {field} ({a_kind(sampler)}) {what}, so that all ranks have as many, and the means would "
            "not be those of the data; leave the sampler out: each rank evaluates its own batches of any loader"
        )


class OwnFeed(FeedAround):
    """The batches of a rank, out of a feed over all of them.

    The global generators of the ranks differ, and a loader may draw its order from them. So they are seeded alike for
    each batch while it is read, and restored.

    Args:
        feed: Over all batches.
        rank: The number of this process.
        world: How many there are.

    Attributes:
        seed: As that of any feed.
    """

    reads_early = False

    def __init__(self, feed: Feed, rank: int, world: int) -> None:
        super().__init__(feed)
        self._rank = rank
        self._world = world
        self._read = 0  # batches taken from the feed
        self._taken = 0
        self._limited = False
        self._key = PassKey(0, 0, 0)

    @property
    def batches(self) -> int | None:
        """Batches of this rank in a pass."""
        whole = self._feed.batches
        return None if whole is None else own_part(whole, self._rank, self._world)

    @property
    def read(self) -> int:
        """Batches read in this pass, of any rank."""
        return self._read

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        """Begin a pass, of which at most `limit` own batches will be taken."""
        self._read = self._taken = 0
        self._limited = limit is not None
        self._key = PassKey(self.seed, epoch, pass_index)
        with self._seeded():
            self._feed.open(epoch, pass_index)

    def more(self) -> bool:
        """Return whether a batch to take follows; in a pass of unknown length those before it are read."""
        return self._skip() and self._follows()

    def take(self) -> Any:
        """Return the next own batch, or `NOTHING` where a pass of unknown length is over."""
        if not self._skip():
            return NOTHING
        self._taken += 1
        return self._take()

    def _skip(self) -> bool:
        """Read up to the next own batch; return False where the pass ends before it."""
        target = self._taken * self._world + self._rank
        while self._read < target:
            if not self._follows():
                return False
            self._take()
        return True

    def _follows(self) -> bool:
        with self._seeded():
            return self._feed.more()

    @contextmanager
    def _seeded(self) -> Generator[None]:
        with preserved():
            seed_cpu(batch_seed(*self._key, self._read))
            yield

    def _take(self) -> Any:
        with self._seeded():
            batch = self._feed.take()
        self._read += batch is not NOTHING
        return batch

    def steps_in(self, epochs: range) -> int:
        """Return how many own batches these epochs have."""
        return len(epochs) * (self.batches or 0)

    def read_ahead(self, most: int) -> None:
        """Read nothing."""

    def end(self) -> None:
        """End the pass. One that is not limited is read to its end, so that generators move alike on all ranks."""
        while not self._limited and self._feed.batches is not None and self._feed.more():
            self._take()
        with self._seeded():
            self._feed.end()


class EvenFeed(OwnFeed):
    """Equally many batches for each rank, out of a feed over all of them.

    A rank takes one in each round of `world` batches. Where a round, the last one, has none of its own, it is `idle`,
    and gets the one before again; one of another rank, if it had none.
    """

    def __init__(self, feed: Feed, rank: int, world: int) -> None:
        super().__init__(feed, rank, world)
        self._limit: int | None = None
        self._newest: Any = NOTHING
        self._idle = False

    @property
    def batches(self) -> int | None:
        """Rounds in a pass."""
        whole = self._feed.batches
        return None if whole is None else own_part(whole, 0, self._world)

    @property
    def idle(self) -> bool:
        """Whether the batch taken last was not this rank's."""
        return self._idle

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        """Begin a pass, of which at most `limit` batches will be read, by all ranks together."""
        self._limit, self._newest, self._idle = limit, NOTHING, False
        super().open(epoch, pass_index, limit)

    def more(self) -> bool:
        """Return whether a round follows; in a pass of unknown length its first batch is read."""
        return self._read != self._limit and self._follows()

    def take(self) -> Any:
        """Return the batch of the next round, or `NOTHING` where a pass of unknown length is over."""
        own = last = NOTHING
        for rank in range(self._world):
            if not self.more():
                break
            last = self._take()
            if rank == self._rank:
                own = last
        if last is NOTHING:
            return NOTHING
        self._idle = own is NOTHING
        if not self._idle:
            self._newest = own
        return last if self._newest is NOTHING else self._newest

    def end(self) -> None:
        """End the pass."""
        self._newest = NOTHING
        super().end()
