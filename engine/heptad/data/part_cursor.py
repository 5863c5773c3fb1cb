"""`PartCursor`: a place in an iterable dataset that gives each rank a part of its own, by `share(rank, world)`.

It owns the `IteratorCursor` of this rank's part and stands in its place. How many batches the others' parts have nobody
knows, so the ranks tell each other in each read whether a batch follows: one exchange on the control plane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from heptad.data.cursor import NOTHING, PassKey
from heptad.data.dealing import Deal
from heptad.data.iterator_cursor import IteratorCursor
from heptad.errors import CheckpointError, DataError, counted

Gather = Callable[[bytes], list[bytes]]
"""Returns what each rank gave, by rank; all ranks call it in the same read."""


class PartCursor:
    """A place in a pass of steps, which lasts until no rank has a batch; with `remainder="drop"`, until one has none.

    A rank whose part ends before those of others begins its next pass, or repeats its last batch: by the remainder.
    The place is the number of steps, the same on all ranks: to return to it, a rank reads its part again.

    Args:
        cursor: Reads this rank's part.
        deal: Says what becomes of a group that is not full.
        gather: Asks the other ranks.

    Attributes:
        taken: Steps taken from the open pass.
        idle: Whether the newest batch was taken before, and only keeps the other ranks company.
    """

    batches: int | None = None
    varies = True
    taken_early = False

    def __init__(self, cursor: IteratorCursor, deal: Deal, gather: Gather) -> None:
        self._cursor = cursor
        self._deal = deal
        self._gather = gather
        self._key = PassKey(0, 0, 0)
        self._at = PassKey(0, -1, 0)  # the pass that is read: the open one, or one that was begun to fill its steps
        self._spent = False  # the part has no more batches of the open pass
        self._early = False  # the pass that is read is not the open one
        self._own: Any = NOTHING
        self._walked: list[list[int]] = []  # epoch, pass and steps of each pass of steps since one began afresh
        self.taken = 0
        self.idle = False

    def steps_in(self, epochs: range) -> int:
        """Raise: nobody knows."""
        raise NotImplementedError

    def begin(self, key: PassKey, limit: int | None) -> None:
        """Begin a pass of steps. It continues a pass over the data that the step before has begun."""
        del limit  # what is not taken is left
        if self._at.epoch < key.epoch:
            self._walked = []
            self._begin_pass(PassKey(key.seed, key.epoch, 0))
        elif not self._early:
            self._begin_pass(self._deal.after(self._at))
        self.taken, self.idle, self._spent, self._early = 0, False, False, False
        self._key = key
        self._walked.append([key.epoch, key.pass_index, 0])

    def take(self) -> Any:
        """Return the next batch, or `NOTHING` where the pass is over."""
        batch = self._read()
        have = self._gather(b"" if self._spent else b"+")
        if not any(have) or (self._deal.remainder == "drop" and not all(have)):
            return NOTHING
        return self._step(batch)

    def end(self) -> None:
        """Keep the iterator: a further pass of steps may begin in the same pass over the data."""
        self._own = NOTHING

    def identity(self) -> dict[str, Any]:
        """Return that the length is unknown."""
        return self._cursor.identity()

    def state(self) -> dict[str, Any]:
        """Return the place, the same on all ranks."""
        group = {
            "world": self._deal.world,
            "key": list(self._key),
            "taken": self.taken,
            "reads": list(self._at),
            "walked": [list(row) for row in self._walked],
        }
        return {"walks": len(self._walked), "taken": self.taken, "open": True, "batches": None, "group": group}

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Return to a place by reading this rank's part again.

        Raises:
            CheckpointError: If it was taken with another number of ranks, whose parts were others.
            DataError: If the part is not what it was.
        """
        group: Mapping[str, Any] = state.get("group") or {"world": 1, "walked": []}
        if group["world"] != self._deal.world:
            raise CheckpointError(
                f"the data give each rank a part by share(rank, world), and the checkpoint is of {group['world']} "
                f"ranks; resume on as many, here are {self._deal.world}"
            )
        self._at = PassKey(key.seed, -1, 0)
        steps = 0
        for epoch, pass_index, taken in group["walked"]:
            self.begin(PassKey(key.seed, epoch, pass_index), None)
            steps += taken
            for _ in range(taken):
                self._step(self._read())
        return f"the data were walked to their place, {counted(steps, 'batch')} on" if steps else None

    def doubt(self) -> str:
        """Return what the cursor says."""
        return self._cursor.doubt()

    def rest(self) -> None:
        """Keep the iterator."""

    def close(self) -> None:
        """Drop the iterator."""
        self._own = NOTHING
        self._cursor.close()

    def _read(self) -> Any:
        """Return the next batch of the open pass, or `NOTHING` at its end."""
        batch = NOTHING if self._spent else self._cursor.take()
        self._spent = batch is NOTHING
        return batch

    def _step(self, batch: Any) -> Any:
        """Count a step that all ranks make; return its batch, another one where the part has none."""
        if batch is NOTHING:
            batch = self._fill()
        self.idle = batch is NOTHING
        if batch is NOTHING:
            batch = self._own
            if batch is NOTHING:
                raise DataError(
                    f"share({self._deal.rank}, {self._deal.world}) of the dataset yields nothing in epoch "
                    f"{self._at.epoch}, so this rank has no batch that it could repeat; give each rank one at least"
                )
        elif self._deal.remainder in ("flush", "carry"):
            self._own = batch
        self.taken += 1
        self._walked[-1][2] += 1
        return batch

    def _fill(self) -> Any:
        """Return a batch of the next pass, which a step that the part cannot fill begins early."""
        batch = self._cursor.take() if self._early else NOTHING
        if batch is NOTHING and self._deal.goes_on(self._at):
            self._begin_pass(self._deal.after(self._at))
            self._early = True
            if (batch := self._cursor.take()) is NOTHING:
                raise DataError(f"pass {self._at.pass_index} of epoch {self._at.epoch} of this rank yields nothing")
        return batch

    def _begin_pass(self, key: PassKey) -> None:
        self._cursor.end()
        self._at = key
        self._cursor.begin(key, None)
