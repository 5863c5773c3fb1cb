"""`Deal`: which batches of a run's passes are whose, where several ranks read the same data.

The order knows no rank. Batches are numbered 0, 1, 2, … over the passes of an epoch laid end to end, under
`remainder="carry"` over those of all epochs, and step s of rank r of w takes number s * w + r. So a window holds the
same samples on any world that divides it, and a step may take the last batch of a pass on one rank and the first of the
next on another. Here is only arithmetic; cursors own a `Deal` and ask it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from heptad.data.cursor import PassKey
from heptad.errors import CheckpointError, counted


class Sizes(NamedTuple):
    """How large a pass is, over all ranks.

    Attributes:
        batches: Batches in it.
        samples: Samples in these.
        batch_size: Samples in a full one.
    """

    batches: int
    samples: int
    batch_size: int


class Whole(NamedTuple):
    """A batch: the pass that it belongs to, and its number there."""

    key: PassKey
    number: int


class Slice(NamedTuple):
    """Samples `start` to `stop` of a pass: a part of its last group, which is cut."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Deal:
    """How batches are dealt to the ranks.

    Attributes:
        rank: The number of this process.
        world: How many there are.
        remainder: `RunConfig.remainder`.
        epochs: After which `carry` ends; `None` for no limit.
        least: Samples that a slice must hold, where there are as many.
        slices: Whether the last group of a pass is cut under `flush`; else a rank may have none of its batches. Never
            where fetching may draw: samples of a batch draw one after the other.
    """

    rank: int
    world: int
    remainder: str
    epochs: int | None = None
    least: int = 1
    slices: bool = False

    def first(self, key: PassKey, batches: int) -> int:
        """Return the number of the batch at which a pass of steps begins, in its epoch.

        That of a pass that extends the epoch lies behind whole passes of steps; under `carry` the last step of the
        epoch before has taken the first batches.
        """
        if self.remainder == "carry":
            return -key.epoch * batches % self.world
        return key.pass_index * self.steps(PassKey(0, 0, 0), batches) * self.world

    def steps(self, key: PassKey, batches: int) -> int:
        """Return how many steps a pass of so many batches makes; one that extends an epoch can make as many as it."""
        if self.remainder == "drop":
            return batches // self.world
        taken = self.first(key, batches) if self.remainder == "carry" else 0
        return max(0, -(-(batches - taken) // self.world))

    def steps_in(self, epochs: range, batches: int) -> int:
        """Return how many steps these epochs make before they are extended, of so many batches a pass."""
        if self.remainder != "carry":
            return len(epochs) * self.steps(PassKey(0, 0, 0), batches)
        begin, end = (-(-epoch * batches // self.world) for epoch in (epochs.start, epochs.stop))
        return max(0, end - begin)

    def moved(self, world: int, key: PassKey, taken: int, stop: int, batches: int) -> tuple[int, int]:
        """Return the place, and the end, of a pass of steps in which ranks of another number were here.

        Args:
            world: How many they were.
            key: The pass of steps.
            taken: Steps that they had made in it.
            stop: Steps that they would have made.
            batches: Batches in each pass.

        Raises:
            CheckpointError: If no step here begins at that batch.
        """
        number = replace(self, world=world).first(key, batches) + taken * world
        place, odd = divmod(number - self.first(key, batches), self.world)
        end = max(0, place) if key.pass_index else self.steps(key, batches)
        if taken == stop:
            return end, end
        if odd or not 0 <= place <= end:
            raise CheckpointError(
                f"the {world} ranks of the checkpoint had taken {counted(number, 'batch')}, where no step of "
                f"{self.world} begins; resume with a number of ranks that divides it, at a closed window"
            )
        return place, end

    def goes_on(self, key: PassKey) -> bool:
        """Return whether a step that a pass cannot fill takes the rest from the next pass."""
        if self.remainder == "carry":
            return self.epochs is None or key.epoch + 1 < self.epochs
        return self.remainder == "extend"

    def after(self, key: PassKey) -> PassKey:
        """Return the pass behind one."""
        if self.remainder == "carry":
            return PassKey(key.seed, key.epoch + 1, 0)
        return PassKey(key.seed, key.epoch, key.pass_index + 1)

    def find(self, number: int, batches: int, key: PassKey) -> Whole | None:
        """Return the batch of a number in an epoch, `None` where the data end before it.

        Args:
            number: The number, from 0.
            batches: Batches in each pass.
            key: Of any pass of that epoch.
        """
        beyond, number = divmod(number, batches)
        if self.remainder == "carry":
            epoch = key.epoch + beyond
            ended = self.epochs is not None and epoch >= self.epochs
            return None if ended else Whole(PassKey(key.seed, epoch, 0), number)
        if beyond and self.remainder != "extend":
            return None
        return Whole(PassKey(key.seed, key.epoch, beyond), number)

    def part(self, place: int, sizes: Sizes, key: PassKey) -> Whole | Slice | None:
        """Return what this rank takes in a step of a pass of steps; `None` where it has nothing to take.

        Args:
            place: The number of the step in the pass, from 0.
            sizes: How large each pass is.
            key: The pass of steps.
        """
        group = self.first(key, sizes.batches) + place * self.world
        if self.slices and self.remainder == "flush":
            start = group * sizes.batch_size
            if (left := sizes.samples - start) < self.world * sizes.batch_size:
                return self._slice(start, left)
        return self.find(group + self.rank, sizes.batches, key)

    def _slice(self, start: int, samples: int) -> Slice | None:
        """Cut the last group into slices of nearly equal numbers of samples; the first ones are the larger ones."""
        parts = max(1, min(self.world, samples // self.least))
        if self.rank >= parts:
            return None
        begin, end = (-(-rank * samples // parts) for rank in (self.rank, self.rank + 1))
        return Slice(start + begin, start + end)
