"""The guards of the training table: pure, cheap predicates of where a run is."""

from __future__ import annotations

from typing import Protocol

from heptad.run.state import RunState


class HasPosition(Protocol):
    """What a guard reads of a run."""

    @property
    def position(self) -> RunState:
        """Where the run is."""
        ...


MID_STEP = frozenset({"process_batch", "after_step", "optimizer_update"})
"""Where an interrupt does not pause and no snapshot is taken, because a step or an update is under way."""


def update_due(run: HasPosition) -> bool:
    """The window is full; or it holds something, no batch follows it, and what is left is to be flushed."""
    at = run.position
    steps = at.window.steps
    return steps == at.window.size or (at.flushes and steps > 0 and not at.remaining)


def batches_remain(run: HasPosition) -> bool:
    """Another step follows in this epoch: the open window goes on, or a further one can be started."""
    at = run.position
    if at.window.steps:
        return at.remaining > 0 or at.extends
    return at.remaining >= at.needed and not at.ending


def epochs_remain(run: HasPosition) -> bool:
    """Another epoch follows."""
    at = run.position
    return not at.ending and (at.last_epoch is None or at.epoch < at.last_epoch)


GUARDS = {"update_due": update_due, "batches_remain": batches_remain, "epochs_remain": epochs_remain}
