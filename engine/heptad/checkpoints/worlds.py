"""A checkpoint that another number of ranks resumes from: whether it can, and what it must find elsewhere.

The resumption asks first, and calls `adapt_to_world` when the data are at their place. Batches are numbered whatever
the world, so where a window is closed, ranks of another number continue with the same batches in every window. What
counts the steps of a rank is another number then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heptad.checkpoints.form import StoredCounters, StoredSections
from heptad.data.generators import derive, global_states, preserved, seed_all
from heptad.errors import CheckpointError, counted
from heptad.plugin.detour_state import DetourState
from heptad.run.run import Run

_OF_STEPS = ("before_step", "process_batch", "after_step")
"""States that are entered once a step."""


def check_world(run: Run, sections: StoredSections) -> None:
    """Check that ranks of this number can resume from a checkpoint.

    Raises:
        CheckpointError: If they cannot, with the numbers that could.
    """
    then, now = sections.run.identity.world, run.world
    if then == now:
        return
    window = sections.run.position.window
    if window.steps:
        raise CheckpointError(
            f"the checkpoint was taken by {counted(then, 'rank')} in the middle of a window, after {window.steps} of "
            f"{window.size} steps, and {counted(now, 'rank')} cannot finish it; resume with {counted(then, 'rank')}, "
            "or from a checkpoint of a closed window, as Checkpoint(at='optimizer_update') and 'after_epoch' store them"
        )
    for size in (window.size, window.next_size):
        if size * then % now:
            able = [str(world) for world in range(1, size * then + 1) if size * then % world == 0]
            raise CheckpointError(
                f"a window of the checkpoint is {size * then} batches over {counted(then, 'rank')}, which "
                f"{counted(now, 'rank')} cannot share equally; resume with one of {', '.join(able)}"
            )


def adapt_to_world(run: Run, sections: StoredSections, detours: Sequence[DetourState]) -> str:
    """Change what counts the steps of a rank, and the generators of ranks that are new; return a note for the log.

    Args:
        run: The run, whose data are at their place.
        sections: What is stored, which is changed.
        detours: What the guards of the detours count.
    """
    stored, position = sections.run, sections.run.position
    then, now = stored.identity.world, run.world
    if then == now:
        return ""
    window, placed = position.window, position.placed
    window.size, window.next_size = (size * then // now for size in (window.size, window.next_size))
    _count_steps(run, placed, then, now)
    placed.samples_agreed = placed.samples
    position.visits = [
        _steps(last, then, now) if detour.counts_steps else last
        for detour, last in zip(detours, position.visits, strict=True)
    ]
    for row in position.filters:
        if row[2] in _OF_STEPS:
            row[-2] = row[-2] * then // now
    if run.rank >= then:
        with preserved():
            seed_all(derive("rank", position.seed, run.rank))
            stored.random = global_states()
    return (
        f"resumed by {counted(now, 'rank')} from a run of {counted(then, 'rank')}: windows hold the same batches, and "
        "what follows is equal to rounding, not to the bit; masks and other draws of a rank are others"
    )


def _count_steps(run: Run, placed: StoredCounters, then: int, now: int) -> None:
    """Count the steps of the epoch as ranks of another number do."""
    feed = run._runtime.feed
    before, over = placed.batch_index, not placed.remaining
    placed.batch_index = _steps(before, then, now)
    if placed.epoch_open and placed.sized and not placed.pass_index:
        place: dict[str, Any] = feed.state()
        group: dict[str, Any] = place.get("group") or {}
        taken: int = place["next"] if "next" in place else group.get("taken", placed.batch_index)
        drops = run.config.remainder == "drop"  # at its end a pass counts as taken, with what was dropped
        placed.batch_index = min(taken, placed.batch_index) if drops else taken
        placed.remaining = 0 if over else (feed.batches or 0) - taken
    if run.config.remainder == "flush" and feed.batches is not None:  # the last step of a pass may be of fewer batches
        placed.batch_index = min(placed.batch_index, feed.batches)
        placed.step = placed.epoch * feed.batches + (placed.batch_index if placed.epoch_open else 0)
    else:
        placed.step = _steps(placed.step, then, now)
    placed.step = max(placed.step, placed.update + placed.skips, placed.batch_index)


def _steps(steps: int, then: int, now: int) -> int:
    """Return how many steps the ranks make of the batches of so many."""
    return -(-steps * then // now)
