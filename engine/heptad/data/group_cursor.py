"""`GroupCursor`: a place in data that are iterated, and that several ranks read whole, each to keep its own batches.

It owns an `IteratorCursor` and stands in its place. A step reads a group, one batch for each rank, so all ranks are at
the same place at each step and see the end of the data at the same batch number without a word to each other.

Ranks draw from the global generators each for itself, and a loader draws its order from them. So the data of all ranks
are read under states of these that are kept for it, and are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from heptad.data.cursor import NOTHING, PassKey
from heptad.data.dealing import Deal
from heptad.data.generators import check_states, cpu_states, preserved, restore_states, seed_cpu, stored_state_of
from heptad.data.iterator_cursor import IteratorCursor
from heptad.errors import CheckpointError, DataError, counted

_BEFORE = PassKey(0, -1, 0)
"""The pass before the first one."""


class GroupCursor:
    """A place in a pass of steps.

    Args:
        cursor: Reads all batches.
        deal: Says which of them are this rank's.
        draws: Whether reading may draw from the global generators.

    Attributes:
        taken: Steps taken from the open pass.
        idle: Whether the newest batch was taken before, and only keeps the other ranks company.
    """

    def __init__(self, cursor: IteratorCursor, deal: Deal, *, draws: bool) -> None:
        self._cursor = cursor
        self._deal = deal
        self._key = PassKey(0, 0, 0)
        self._at = _BEFORE  # the pass that is read: the open one, or one that a step had to begin early
        self._crossed = False  # a group has taken batches of a further pass: data of unknown length end with it
        self._early = False  # the group before the open pass did
        self._over = False  # the end of the pass that is read, of unknown length, was seen
        self._own: Any = NOTHING
        self._draws = draws
        self._states: dict[str, Any] | None = None
        self.taken = 0
        self.idle = False

    @property
    def batches(self) -> int | None:
        """Steps in a pass, `None` where nobody can know."""
        batches = self._cursor.batches
        return None if batches is None else self._deal.steps(self._key, batches)

    @property
    def varies(self) -> bool:
        """Whether a pass had another number of batches than the one before it."""
        return self._cursor.varies

    @property
    def taken_early(self) -> bool:
        """Whether the open pass may be empty: steps of the one before it have taken batches of it."""
        return self._early

    def steps_in(self, epochs: range) -> int:
        """Return how many steps these epochs make before they are extended."""
        return self._deal.steps_in(epochs, self._cursor.batches or 0)

    def begin(self, key: PassKey, limit: int | None) -> None:
        """Begin a pass of steps. It continues a pass over the data that the step before has begun.

        Raises:
            DataError: If the length of the data has changed, and a rank has taken batches of this pass already.
        """
        del limit  # what is not taken is left
        self._early = self._crossed or (not key.pass_index and self._at.epoch >= key.epoch)
        self._key, self.taken, self.idle, self._crossed = key, 0, False, False
        if self._at.epoch < key.epoch:
            self._begin_pass(PassKey(key.seed, key.epoch, 0))
        elif key.pass_index and self._ended():
            self._begin_next()
        if self._cursor.varies and self._cursor.batches and self._deal.first(key, self._cursor.batches):
            raise DataError(
                f"the loader has changed its length to {self._cursor.batches} when a rank had begun pass "
                f"{key.pass_index} of epoch {key.epoch} with the last batches of the step before; use "
                "remainder='drop' or 'flush'"
            )

    def take(self) -> Any:
        """Return this rank's batch of the next group, or `NOTHING` where a pass of unknown length is over."""
        deal, own, last = self._deal, NOTHING, NOTHING
        sized = self._cursor.batches is not None
        if not sized and (self._crossed or self._at.epoch > self._key.epoch):
            return NOTHING
        for rank in range(deal.world):
            batch = self._read()
            if batch is NOTHING:
                # a pass that extends the epoch makes a step at least; another rank may have taken all of the data's own
                open_ended = not sized and not (self._key.pass_index and not self.taken)
                if deal.remainder == "drop" and rank and not self.taken:
                    self._refuse_no_step()
                if (open_ended and not rank) or deal.remainder == "drop":
                    return NOTHING
                if not deal.goes_on(self._at):
                    break
                if not sized and deal.remainder == "carry":
                    self._refuse_few()
                self._begin_next()
                self._crossed = True
                if (batch := self._read()) is NOTHING:
                    raise DataError(f"pass {self._at.pass_index} of epoch {self._at.epoch} yields nothing")
            last = batch
            if rank == deal.rank:
                own = batch
        self.taken += 1
        self.idle = own is NOTHING
        if own is NOTHING:
            own = last if self._own is NOTHING else self._own
        elif deal.remainder in ("flush", "carry"):
            self._own = own
        return own

    def end(self) -> None:
        """End the pass over the data, unless the next pass of steps continues it."""
        self._own = NOTHING
        if self._ended():
            self._end_pass()

    def identity(self) -> dict[str, Any]:
        """Return what the cursor says."""
        return self._cursor.identity()

    def state(self) -> dict[str, Any]:
        """Return the place, the same on all ranks."""
        group = {
            "world": self._deal.world,
            "key": list(self._key),
            "taken": self.taken,
            "reads": [*self._at],
            "crossed": self._crossed,
            "states": self._states,
        }
        return {**self._cursor.state(), "group": group}

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Return to a place."""
        group: Mapping[str, Any] = state.get("group") or _alone(state, key)
        world = self._deal.world
        self._key, self._at = PassKey(*group["key"]), PassKey(*group["reads"])
        self._crossed, self._own, self.idle = group["crossed"], NOTHING, False
        if (states := group["states"]) is not None:
            with stored_state_of("what draws the order of the data"):
                check_states(states)
        self._states = states
        remarks = self._cursor.restore(state, self._at)
        self._over = not state["open"]
        batches, self.taken = self._cursor.batches, group["taken"]
        if group["world"] != world:
            if batches is None:
                self.taken, odd = divmod(self.taken * group["world"], world)
                if odd:
                    raise CheckpointError(
                        f"{group['world']} ranks had taken {group['taken']} batches each, where no step of {world} "
                        "begins; resume with a number of ranks that divides the window, where one is closed"
                    )
            else:
                before = Deal(0, group["world"], self._deal.remainder).steps(self._key, batches)
                self.taken, _ = self._deal.moved(group["world"], self._key, self.taken, before, batches)
        return remarks

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
        """Return the next batch of the pass, or `NOTHING` at its end."""
        if self._ended():
            return NOTHING
        with self._alike():
            batch = self._cursor.take()
        self._over = batch is NOTHING
        return batch

    def _ended(self) -> bool:
        batches = self._cursor.batches
        return self._over or (batches is not None and self._cursor.taken >= batches)

    def _refuse_no_step(self) -> None:
        raise DataError(
            f"epoch {self._at.epoch} has {counted(self._cursor.taken, 'batch')}, fewer than the {self._deal.world} "
            "ranks, and remainder='drop' leaves out a group that is not full, so that no step would be made; use "
            "remainder='extend' or 'flush', a smaller batch_size or fewer ranks"
        )

    def _refuse_few(self) -> None:
        """Refuse epochs shorter than a step, whose number is limited: the last may have no step of its own.

        Where the length is known, the step before it closes the window; here nobody has known that it would have to.
        """
        batches, world = self._cursor.taken, self._deal.world
        if batches < world and self._deal.epochs is not None:
            raise DataError(
                f"epoch {self._at.epoch} has {counted(batches, 'batch')}, fewer than the {world} ranks, and "
                "remainder='carry' cannot tell which step of data of unknown length is the last one then; use "
                "remainder='extend' or 'flush', max_updates in place of epochs, or fewer ranks"
            )

    def _begin_next(self) -> None:
        self._end_pass()
        self._begin_pass(self._deal.after(self._at))

    def _begin_pass(self, key: PassKey) -> None:
        self._at, self._over = key, False
        with self._alike():
            self._cursor.begin(key, None)

    def _end_pass(self) -> None:
        with self._alike():
            self._cursor.end()

    @contextmanager
    def _alike(self) -> Generator[None]:
        """Let the block draw what it draws on all ranks: from the root of the data's order on, as a single process."""
        if not self._draws:
            yield
            return
        with preserved():
            if self._states is None:
                seed_cpu(self._key.seed)
            else:
                restore_states(self._states)
            try:
                yield
            finally:
                self._states = cpu_states()


def _alone(state: Mapping[str, Any], key: PassKey) -> dict[str, Any]:
    """Return the group of a place that a single process was at."""
    place = list(key)
    return {"world": 1, "key": place, "taken": state["taken"], "reads": place, "crossed": False, "states": None}
