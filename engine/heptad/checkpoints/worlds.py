"""A checkpoint that another number of ranks resumes from: whether it can, and what it must find elsewhere.

The resumption asks first, and calls `adapt_to_world` when the data are at their place. Batches are numbered whatever
the world, so where a window is closed, ranks of another number continue with the same batches in every window. What
counts the steps of a rank is another number then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from heptad.checkpoints.form import StoredAgreed, StoredCounters, StoredPlugin, StoredSections
from heptad.data.generators import derive, global_states, preserved, seed_all
from heptad.errors import CheckpointError, counted, in_a_line
from heptad.plugin.contract import Plugin
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
    window = sections.run.position.window
    if window.steps:
        _check_strategy(sections, run)
    if then == now:
        return
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


def _check_strategy(sections: StoredSections, run: Run) -> None:
    """Refuse the gradients of an open window that another strategy has, or has not, averaged yet."""
    then, now = str(sections.run.identity.config.get("strategy", "none")), run.config.strategy
    if then != now and "fsdp" in (then, now):
        raise CheckpointError(
            f"the checkpoint was taken with strategy={then!r} where a window was open, and strategy={now!r} cannot "
            f"finish it; resume with {then!r}, or from a checkpoint of a closed window, as "
            "Checkpoint(at='optimizer_update') and 'after_epoch' store them"
        )


def take_over(
    run: Run, sections: StoredSections, taken: Sequence[Mapping[tuple[str, ...], Any]], plugins: Iterable[Plugin]
) -> None:
    """Let none of what ranks sum up be lost, or counted twice: samples, losses of the epoch, what plugins declare.

    A rank that is no more leaves its sums to one that is; one that is new begins with nothing.

    Args:
        run: The run.
        sections: What is stored, which is changed.
        taken: What is own of each rank that this one takes over.
        plugins: Those of the run.
    """
    then, now, position = sections.run.identity.world, run.world, sections.run.position
    if then == now:
        return
    try:
        parts = [_Part(one) for one in taken]
        losses = list(zip(position.epoch_loss, *(part.epoch_loss for part in parts), strict=True))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"what is a rank's own in the checkpoint has another form: {in_a_line(error)}") from error
    new, placed, agreed = run.rank >= then, position.placed, position.agreed
    position.epoch_loss = [summed(sums, new=new) for sums in losses]
    position.asked = sorted({*position.asked, *(name for part in parts for name in part.asked)})
    if agreed is not None:
        placed.samples = (
            agreed.samples if new else placed.samples + sum(part.samples - agreed.samples for part in parts)
        )
        agreed.stop = next((stop for stop in (agreed.stop, *(part.stop for part in parts)) if stop is not None), None)
        if now == 1 and agreed.stop is not None and not position.stopped:
            position.stopped, position.reason = True, agreed.stop
    for plugin in plugins:
        if (stored := sections.plugins.get(plugin.name)) is not None:
            states = [stored.state, *(part.plugins[plugin.name] for part in parts if plugin.name in part.plugins)]
            for key in plugin.summed_state:
                if key in stored.state:
                    stored.state[key] = summed([state[key] for state in states if key in state], new=new)


class _Part:
    """What there is to sum in what is own of a rank."""

    def __init__(self, own: Mapping[tuple[str, ...], Any]) -> None:
        at = ("run", "position")
        self.samples = StoredCounters.model_validate(own[*at, "placed"]).samples
        self.epoch_loss: list[Any] = own[*at, "epoch_loss"]
        self.asked: list[str] = own.get((*at, "asked"), [])
        agreed = own.get((*at, "agreed"))
        self.stop = None if agreed is None else StoredAgreed.model_validate(agreed).stop
        self.plugins: dict[str, dict[str, Any]] = {
            keys[1]: StoredPlugin.model_validate(value).state
            for keys, value in own.items()
            if keys[0] == "plugins" and len(keys) == 2
        }


def summed(parts: Sequence[Any], *, new: bool = False) -> Any:
    """Return the sum of numbers or tensors, or dicts of them, of what each part has.

    Args:
        parts: Of one form, some of which may lack something.
        new: The first counts as nothing.
    """
    first, *others = parts
    if not isinstance(first, dict):
        return sum(others, start=first * 0 if new else first)
    named = cast("list[dict[str, Any]]", parts)
    names = dict.fromkeys(name for part in named for name in part)
    return {name: summed([part[name] for part in named if name in part], new=new and name in first) for name in names}


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
