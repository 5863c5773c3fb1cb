"""Events from the sentences that format 1 stored in place of data. This is the only place where a sentence is parsed.

The patterns are what files of format 1 hold, letter for letter: their English is not for us to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from heptad.record.checkpoint_events import Remark, Resume, StillDetached
from heptad.record.chunk import Failure
from heptad.record.counters import Counters
from heptad.record.events import Accumulation, Detach, Drop, Event, Extend, Failed, Note, Pause, Skip, Stop, Untrained


def from_format_1(seq: int, kind: str, text: str, time_ns: int) -> Event:
    """Return the event that a row of format 1 describes.

    A row that cannot be parsed becomes a `Note` that holds its words (of a resume, a `Remark`).

    Args:
        seq: The transition that it is bound to.
        kind: One of format 1's own kinds.
        text: The words.
        time_ns: When it was made.
    """
    if kind in _IN_WORDS:
        return _IN_WORDS[kind](seq, time_ns, text)
    for of_kind, pattern, made in _SENTENCES:
        if of_kind == kind and (found := re.fullmatch(pattern, text, re.DOTALL)) is not None:
            groups = found.groupdict()
            return _of_groups(made, seq, time_ns, groups) if isinstance(made, type) else made(seq, time_ns, groups)
    if kind == "resume":
        return Remark(seq, time_ns, text)
    # format 1 noted a request to pause ("interrupt") beside the pause that followed
    return Note(seq, time_ns, text if kind == "note" else f"{kind}: {text}")


_Found = Mapping[str, Any]
_Parse = Callable[[int, int, _Found], Event]

_IN_WORDS: dict[str, Callable[[int, int, str], Event]] = {
    "stop": Stop,
    "park": Pause,
    "skip_update": Skip,
    "untrained": lambda seq, time_ns, text: Untrained(seq, time_ns),
}


def _of_groups(made: type[Event], seq: int, time_ns: int, found: _Found) -> Event:
    """Return an event of the groups of a match, which have the names of its fields."""
    numbers = {one.name for one in fields(made) if one.type == "int"}
    return made(seq, time_ns, **{name: int(part) if name in numbers else part for name, part in found.items()})


def _detach(seq: int, time_ns: int, found: _Found) -> Event:
    # A detour's guard is named `<plugin>.<state>_due`; nothing else says at which moment it was called.
    moment = "guard" if re.search(r"_due(_\d+)?$", found["handler"]) else ""
    return Detach(seq, time_ns, found["plugin"], found["handler"], found["error"], moment)


def _refused_state(seq: int, time_ns: int, found: _Found) -> Event:
    return Detach(seq, time_ns, found["plugin"], f"{found['plugin']}.load_state_dict", found["error"])


def _no_checkpoint(seq: int, time_ns: int, found: _Found) -> Event:
    del found
    return Resume(seq, time_ns, None, "idle")


def _failed(seq: int, time_ns: int, found: _Found) -> Event:
    moment = next(moment for moment in _PLACES if found[moment] is not None)
    state = found["asked_in"] if moment == "guard" else found[moment]
    at = Counters(*(int(found[name]) for name in ("epoch", "batch_index", "step", "update")))
    failure = Failure(seq, state, moment, found["who"] or "", found["asked"] or "", found["error"], at, {})
    return Failed(seq, time_ns, failure)


_PLACES = {
    "body": r"in the body of (?P<body>\S+)",
    "exit": r"on exit of (?P<exit>\S+)",
    "guard": r"(?P<guard>in the guard (?P<asked>\S+) asked in (?P<asked_in>\S+))",
    "enter": r"on entry to (?P<enter>\S+)",
}
_COUNTED = r"\(epoch (?P<epoch>\d+), batch (?P<batch_index>\d+), step (?P<step>\d+), update (?P<update>\d+)\)"

# Words that stand in files, and so stay as they are: no sentence of today is made from them. Each pattern takes time in
# proportion to the text, which a stranger may have made of what it looks for: the end is looked at first, and `(?>…)`
# tries no second place.
_SENTENCES: list[tuple[str, str, type[Event] | _Parse]] = [
    ("accumulation", r"(?P<before>\d+) -> (?P<after>\d+) from the next window on", Accumulation),
    (
        "detach",
        r"(?=.* is called no more\Z)(?>(?P<handler>.+?) raised )(?P<error>.*); (?P<plugin>.+) is called no more",
        _detach,
    ),
    (
        "drop",
        r"epoch (?P<epoch>\d+) makes no update: (?P<batches>\d+) of (?P<window>\d+) batches of a window",
        Drop,
    ),
    (
        "extension",
        r"epoch (?P<epoch>\d+) goes on for (?P<steps>\d+) more steps?, to fill its last window",
        Extend,
    ),
    ("failure", rf"(?P<error>.*?) (?:in (?P<who>\S+) )?(?:{'|'.join(_PLACES.values())}) {_COUNTED}", _failed),
    (
        "resume",
        r"the plugin (?P<plugin>.+) was detached before the checkpoint was taken: it is called no more",
        StillDetached,
    ),
    (
        "resume",
        r"(?=.*; it is called no more\Z)the plugin (?>(?P<plugin>.+?) cannot take back its state: )(?P<error>.*)"
        r"; it is called no more",
        _refused_state,
    ),
    ("resume", r"goes on from (?P<checkpoint>.+), #\d+ in (?P<state>\S+)", Resume),
    ("resume", r"there is no checkpoint yet: the run begins at its start", _no_checkpoint),
]
"""What a row of a kind may say, and what is made of it: an event of the groups, or what a function returns."""
