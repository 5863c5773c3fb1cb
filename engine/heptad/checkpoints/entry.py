"""`Entry`: a checkpoint in a directory, and the order of checkpoints by their monitored value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

WHICH = ("newest", "best", "ema")
"""How the weights of a checkpoint in a directory are asked for, see `load_weights`."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A checkpoint in a directory.

    Attributes:
        number: Grows by one with each that is written.
        path: Its directory.
    """

    number: int
    path: Path


def rank(summaries: Iterable[tuple[Entry, dict[str, Any]]]) -> list[Entry]:
    """Return the checkpoints by their monitored value, the best first, of equals the oldest.

    Only those are compared that monitor what the newest of them does. NaN is not a value. The oldest of equals is what
    was measured, where earlier versions gave the value to later checkpoints as well.

    Args:
        summaries: Checkpoints with their summaries, see `Snapshot.summary`.
    """
    found = [(entry, monitor) for entry, summary in summaries if (monitor := _monitor_of(summary)) is not None]
    if not found:
        return []
    name, mode, _ = max(found)[1]
    sign = 1 if mode == "min" else -1
    ranked = [(sign * monitor[2], entry.number, entry) for entry, monitor in found if monitor[:2] == (name, mode)]
    return [entry for _, _, entry in sorted(ranked)]


def best_of(summaries: Sequence[tuple[Entry, dict[str, Any]]], count: int) -> list[Entry]:
    """Return the checkpoints of so many best values: of several with one value and one update, the oldest.

    Args:
        summaries: As for `rank`.
        count: At most so many.
    """
    updates = {entry: summary.get("update", entry.number) for entry, summary in summaries}
    values = {entry: summary.get("monitor") for entry, summary in summaries}
    kept: list[Entry] = []
    for entry in rank(summaries):
        if len(kept) < count and not any(
            (updates[entry], values[entry]) == (updates[other], values[other]) for other in kept
        ):
            kept.append(entry)
    return kept


def _monitor_of(summary: dict[str, Any]) -> tuple[str, str, float] | None:
    match summary.get("monitor"):
        case {"name": str(name), "mode": "min" | "max" as mode, "value": int() | float() as value}:
            if isinstance(value, int) and value.bit_length() > 64:  # no run records one
                return None
            return None if math.isnan(value) else (name, cast("str", mode), float(value))
        case _:
            return None
