"""Reading ahead: what the engine does as its last handler on exit of states, when all others have been called.

Data of unknown length are read where the path first depends on whether a batch follows. Where a device copies beside
its computation, batches are read while it computes the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic_ns

from heptad.run.run import Run
from heptad.run.state import RunState


def readers(run: Run) -> Iterator[tuple[str, Callable[[Run], None]]]:
    """Yield the states on whose exit a run reads ahead, and what does it."""
    if run._runtime.feed.reads_early:
        yield "process_batch", read_on_exit_of_process_batch
    if run._runtime.feed.batches is None:
        yield from READERS.items()


def read_on_exit_of_process_batch(run: Run) -> None:
    """Read the batches to come: the device has the whole step before it, and they are copied meanwhile."""
    began = monotonic_ns()
    run._runtime.feed.read_ahead(to_come(run._position))
    run._position.reading_ns += monotonic_ns() - began


def to_come(at: RunState) -> int:
    """Return how many batches of the open pass will be taken after the one under way, as far as that is known.

    Where only reading can tell whether there are more, 1 stands for "more".
    """
    window = at.window
    in_window = window.size - window.steps - 1
    left = at.remaining - 1 if at.sized else 1
    if at.ending or left - in_window < at.needed:
        return min(left, in_window)
    if at.last_update is not None:
        left = min(left, in_window + (at.last_update - at.update - 1) * window.next_size)
    return left


def read_on_exit_of_after_step(run: Run) -> None:
    """Read a batch ahead where the path depends on it: in an open window that is not full.

    Under `remainder="extend"` it does not: the window is filled in any case, and `before_step` finds out what is left.
    """
    at = run._position
    if not at.update_due and not at.extends:
        _read_ahead(run)
        at.update_due = at.flushes and not at.remaining


def read_on_exit_of_optimizer_update(run: Run) -> None:
    """Read a batch ahead after an update and all handlers.

    So a loader that acts with the network acts with the new weights, as in a plain loop. Nothing is read where the run
    is ending anyway, nor in a pass that was begun to fill this window.
    """
    at = run._position
    if at.extending:
        at.remaining = 0
    elif not at.ending:
        _read_ahead(run)


def _read_ahead(run: Run) -> None:
    at, began = run._position, monotonic_ns()
    at.remaining = 1 if run._runtime.feed.more() else 0
    at.reading_ns += monotonic_ns() - began


READERS: dict[str, Callable[[Run], None]] = {
    "after_step": read_on_exit_of_after_step,
    "optimizer_update": read_on_exit_of_optimizer_update,
}
"""What reads data of unknown length, by the state on whose exit it does."""
