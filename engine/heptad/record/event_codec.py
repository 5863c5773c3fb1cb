"""Events as plain data, which is what files hold of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from heptad.record.checkpoint_events import (
    MirrorFailed,
    MirrorRestored,
    NotMirrored,
    OptionChange,
    Remark,
    Resume,
    StillDetached,
    Written,
)
from heptad.record.chunk import MOMENTS, Failure
from heptad.record.counters import Counters
from heptad.record.events import (
    Accumulation,
    Behind,
    Compilation,
    Detach,
    Drop,
    Event,
    Extend,
    Failed,
    Halved,
    Note,
    NoUpdate,
    Pause,
    Recompilation,
    RecordedArray,
    Repeated,
    SharedGenerators,
    Skip,
    SkipBatch,
    Stop,
    Uncompiled,
    Untrained,
    Unverified,
)

EVENTS: dict[str, type[Event]] = {
    one.__name__: one
    for one in (
        Accumulation,
        Behind,
        Compilation,
        Detach,
        Drop,
        Extend,
        Failed,
        Halved,
        MirrorFailed,
        MirrorRestored,
        NoUpdate,
        NotMirrored,
        Note,
        OptionChange,
        Pause,
        RecordedArray,
        Recompilation,
        Remark,
        Repeated,
        Resume,
        SharedGenerators,
        Skip,
        SkipBatch,
        StillDetached,
        Stop,
        Uncompiled,
        Untrained,
        Written,
        Unverified,
    )
}
"""Every event by the name of its class, which is what a file stores."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (float, int),
    "str": str,
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
    "Failure": Failure,
}
"""What may stand in a field, by its annotation."""


def to_plain(event: Event) -> dict[str, Any]:
    """Return an event as plain data: the name of its class as `event`, and its fields."""
    plain = {"event": type(event).__name__, **asdict(event)}
    del plain["rank"]  # a log is one rank's: its facts say of which
    return plain


def from_plain(plain: Mapping[str, Any]) -> Event:
    """Return the event that `to_plain` was given.

    Raises:
        ValueError: If the data describe no event.
    """
    values = dict(plain)
    made = EVENTS.get(values.pop("event", ""))
    if made is None or "rank" in values:
        raise ValueError(f"{plain.get('event')!r} is not the name of an event")
    try:
        if isinstance(values.get("failure"), Mapping):
            values["failure"] = _failure(values["failure"])
        for one in fields(made):
            if one.name in values and not isinstance(values[one.name], _TYPES[str(one.type)]):
                raise ValueError(f"{plain['event']}.{one.name} is {values[one.name]!r}")
        return made(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"an event {plain['event']} has not the fields of one: {error}") from error


def _failure(plain: Mapping[str, Any]) -> Failure:
    values = dict(plain)
    values["counters"] = Counters(*values["counters"])
    failed = Failure(**values)
    answers = values["guards"]
    texts = (failed.state, failed.who, failed.guard, failed.error, *answers)
    if (
        not all(isinstance(text, str) for text in texts)
        or failed.moment not in MOMENTS
        or not all(type(number) is int for number in (failed.seq, *failed.counters))
        or not all(type(answer) is bool for answer in answers.values())
    ):
        raise ValueError(f"{plain!r:.60} describes no failure")
    return failed
