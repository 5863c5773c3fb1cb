"""Rows of a log as data for JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, cast

from heptad.history.transition import Transition
from heptad.record.chunk import Call
from heptad.record.events import Event
from heptad.record.values import Recorded


def transition_row(transition: Transition) -> dict[str, Any]:
    """Return the fields of a transition."""
    return {
        "seq": transition.seq,
        "time_ns": transition.time_ns,
        "duration_ns": transition.duration_ns,
        "source": transition.source,
        "dest": transition.dest,
        "guards": dict(transition.guards),
        "epoch": transition.epoch,
        "batch_index": transition.batch_index,
        "step": transition.step,
        "update": transition.update,
    }


def rank_column(ranks: Collection[int], rank: int) -> dict[str, Any]:
    """Return the field `rank` of a row, which rows of a single log lack."""
    return {"rank": rank} if len(ranks) > 1 else {}


def note_row(note: Event) -> dict[str, Any]:
    """Return the fields of a note, without its transition."""
    return {"kind": note.kind, "text": note.text, "time_ns": note.time_ns}


def value_row(value: Recorded) -> dict[str, Any]:
    """Return the fields of a recorded value, without its transition."""
    return {
        "name": value.name,
        "value": json_number(value.value),
        "epoch": value.epoch,
        "step": value.step,
        "update": value.update,
    }


def call_row(call: Call) -> dict[str, Any]:
    """Return the fields of a handler's call, without its transition."""
    return {
        "who": call.who,
        "moment": call.moment,
        "state": call.state,
        "time_ns": call.time_ns,
        "duration_ns": call.duration_ns,
    }


def json_number(value: float) -> float | str:
    """Return a number; NaN and the infinities, which JSON lacks, as `"NaN"`, `"Infinity"` or `"-Infinity"`."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def finite(value: Any) -> Any:
    """Return nested plain data with each float as `json_number` returns it."""
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, dict):
        return {name: finite(part) for name, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in cast("Sequence[Any]", value)]
    return value
