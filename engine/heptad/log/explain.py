"""Why a transition went where it went: the arcs tried, the guards asked, the values that the engine's guards saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heptad.log.record import Counters, Note, Transition


@dataclass(frozen=True, slots=True)
class Tried:
    """An arc that was tried.

    Attributes:
        dest: Where it leads.
        guard: The guard that was asked, `None` for an unguarded arc.
        answer: What it said; `None` for a guard that raised.
        values: What the engine's own guard looked at, by name; empty for a plugin's.
    """

    dest: str
    guard: str | None
    answer: bool | None
    values: Mapping[str, Any]

    def __str__(self) -> str:
        if self.guard is None:
            return f"to {self.dest}: always"
        said = {True: "yes", False: "no", None: "it raised"}[self.answer]
        seen = ", ".join(f"{name} {value}" for name, value in self.values.items())
        return f"to {self.dest} if {self.guard}: {said}{f' ({seen})' if seen else ''}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A transition, the arcs that were tried for it from top to bottom, and the notes made in its turn."""

    transition: Transition
    tried: tuple[Tried, ...]
    notes: tuple[Note, ...]

    def __str__(self) -> str:
        lines = [str(self.transition)]
        lines += [f"    {tried}" for tried in self.tried]
        lines += [f"    {note.kind}: {note.text}" for note in self.notes]
        return "\n".join(lines)


def values_seen(guard: str, at: Counters, facts: Mapping[str, Any], accumulation: int, stopped: bool) -> dict[str, Any]:
    """Returns what one of the engine's guards looked at, told from the counters at that moment.

    Args:
        guard: The guard's name; for another than the engine's own nothing is known.
        at: The counters after the body of the state that was being left.
        facts: What the run was asked for, and the number of batches in a pass where it is known.
        accumulation: The steps that the window holds when it is full.
        stopped: Whether a stop had been asked for.
    """
    limits: dict[str, Any] = {"stop asked for": stopped}
    if facts.get("max_updates") is not None:
        limits |= {"updates": at.update, "max_updates": facts["max_updates"]}
    match guard:
        case "update_due":
            return {
                "steps in the window": at.window,
                "accumulation": accumulation,
                "remainder": facts.get("remainder"),
                **_batches(at, facts),
            }
        case "batches_remain":
            return {"steps in the window": at.window, **_batches(at, facts), **limits}
        case "epochs_remain":
            return {"epochs": at.epoch, "of": facts.get("epochs"), **limits}
        case _:
            return {}


def _batches(at: Counters, facts: Mapping[str, Any]) -> dict[str, Any]:
    batches = facts.get("batches")
    return {"batches": at.batch_index, "in a pass": "unknown" if batches is None else batches}
