"""Where a run is now, as its log says: progress, speed, newest values and how they moved, the last event.

Only the end of the log is read, so that looking again and again costs little however long the run is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heptad.history.decode import Block, Decoder
from heptad.history.source import Source
from heptad.history.transition import Transition
from heptad.record.events import Event

RECENT = 4
"""Chunks, of 1,024 transitions each, that the speed and the newest values are taken from."""

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Now:
    """Where a run is.

    Attributes:
        last: The last transition; `None` where there is none yet.
        total_updates: Updates that the run will have made, if nothing stops it and none is skipped; `None` where that
            cannot be known from the log.
        epochs: Epochs that were asked for, if any.
        share: How much of the run is done, from 0 to 1; `None` where its length is not known.
        updates_per_second: Over the most recent transitions, all states included, paused time left out.
        seconds_left: How long the rest takes at that speed; `None` where it is not known.
        recent: The most recent values by name, oldest first; the name that was recorded last comes last.
        event: The last event; `None` where there is none.
    """

    last: Transition | None
    total_updates: int | None
    epochs: int | None
    share: float | None
    updates_per_second: float
    seconds_left: float | None
    recent: Mapping[str, Sequence[float]]
    event: Event | None


def look(source: Source) -> Now:
    """Return where a run is."""
    view = source.view()
    facts = source.facts
    epochs, total = facts.get("epochs"), total_updates(source)
    event = max(source.events(max(view.end - 1024 * RECENT, 0)), key=lambda one: (one.seq, one.time_ns), default=None)
    if not view.chunks:
        return Now(None, total, epochs, None, 0.0, None, {}, event)
    last = Decoder(source).at(view, [view.end - 1])[0]
    block = Block(view.chunks[-RECENT:], view.first)
    updates, spent = block.counters(source)["update"], int(block.spent()[1:].sum())
    speed = float(updates[-1] - updates[0]) * 1e9 / spent if spent else 0.0
    recent: dict[str, list[float]] = {}
    for value in source.values_between(block.seq, view.end + 1):
        recent.setdefault(value.name, []).append(value.value)
    share = _share(last, epochs, total, facts)
    left = (total - last.update) / speed if total is not None and speed else None
    return Now(last, total, epochs, share, speed, left, recent, event)


def _share(last: Transition, epochs: int | None, total: int | None, facts: Mapping[str, Any]) -> float | None:
    if total:
        return min(1.0, last.update / total)
    batches = facts.get("batches")
    if epochs and batches:
        return min(1.0, (last.epoch + min(1.0, last.batch_index / batches) * (last.dest != "before_epoch")) / epochs)
    return None


def total_updates(source: Source) -> int | None:
    """Return how many updates a run was asked for; `None` where the log does not say, as windows changed their size."""
    facts = source.facts
    limit, epochs, batches = (facts.get(name) for name in ("max_updates", "epochs", "batches"))
    size = facts.get("accumulation", 1)
    if epochs is None:
        return limit
    if batches is None or any(steps != size for _, steps in source.windows):
        return None
    match facts.get("remainder"):
        case "drop":
            total = epochs * (batches // size)
        case "carry":
            total = -(-epochs * batches // size)
        case _:
            total = epochs * -(-batches // size)
    return total if limit is None else min(total, limit)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last values as a line of bars; one that is not finite is an `x`."""
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return "x" * len(shown)
    low, high = min(finite), max(finite)
    top = len(_BARS) - 1
    # divided before they are subtracted: the difference of two floats may be infinite
    span = high / 2 - low / 2
    heights = [
        round((value / 2 - low / 2) / span * top) if span and math.isfinite(value) else top // 2 for value in shown
    ]
    return "".join(_BARS[height] if math.isfinite(value) else "x" for height, value in zip(heights, shown, strict=True))
