"""The log: every transition of a run, kept small, read back in full."""

from heptad.log.chunk import Call, Failure, Source
from heptad.log.explain import Explanation, Tried
from heptad.log.memory import Follower, Memory, Packed
from heptad.log.query import Duration, TransitionLog
from heptad.log.record import Counters, Note, Transition

__all__ = [
    "Call",
    "Counters",
    "Duration",
    "Explanation",
    "Failure",
    "Follower",
    "Memory",
    "Note",
    "Packed",
    "Source",
    "Transition",
    "TransitionLog",
    "Tried",
]
