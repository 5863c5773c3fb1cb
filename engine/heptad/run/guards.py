"""The guards of the training table: pure, cheap predicates of where a run is."""

from __future__ import annotations

from operator import attrgetter
from typing import Protocol

from heptad.run.state import RunState
from heptad.table import REDO, State

MID_STEP = frozenset({"process_batch", "after_step", "optimizer_update"})
"""Where no snapshot is taken and no requested pause takes effect, because a step or an update is under way."""


def in_mid_step(state: State) -> bool:
    """Return whether a step or an update is under way in a state; in a detour, whether one is in the state it leaves.

    After the body of `after_step` and `optimizer_update` nothing is, but in the redo of a window.
    """
    return state.name in MID_STEP or state.after == "process_batch" or state.shown == REDO


class HasPosition(Protocol):
    """What a guard reads of a run."""

    @property
    def _position(self) -> RunState:
        """Where the run is."""
        ...


update_due = attrgetter("_position.update_due")
"""The window is full; or it holds something, no batch follows it, and what is left is to be flushed.

The bodies keep the answer, since it is asked after every step: reading a slot this way costs no call.
"""


def batches_remain(run: HasPosition) -> bool:
    """Another step follows in this epoch: the open window continues, or a further one can be started."""
    at = run._position
    if at.window.steps:
        return at.remaining > 0 or at.extends
    return at.remaining >= at.needed and not at.ending


def epochs_remain(run: HasPosition) -> bool:
    """Another epoch follows; where a run ends, only if it carries an open window, which that epoch fills."""
    at = run._position
    follows = not at.ending or (at.carries and at.window.steps > 0)
    return follows and (at.last_epoch is None or at.epoch < at.last_epoch)


def is_update_due(at: RunState) -> bool:
    """Work out the answer of `update_due`, for a run that was brought to its place by other means than its bodies."""
    steps = at.window.steps
    return steps == at.window.size or (at.flushes and steps > 0 and not at.remaining)


GUARDS = {"update_due": update_due, "batches_remain": batches_remain, "epochs_remain": epochs_remain}
