"""The log: every transition of a run, kept small, read back in full."""

from heptad.log.chunk import Call, Failure, Source
from heptad.log.diff import Diff, Fact, Parting
from heptad.log.explain import Called, Explanation, Tried
from heptad.log.memory import Follower, Memory, Packed
from heptad.log.query import TransitionLog
from heptad.log.record import Counters, Note, Transition
from heptad.log.summary import Duration
from heptad.log.values import Recorded

__all__ = [
    "Call",
    "Called",
    "Counters",
    "Diff",
    "Duration",
    "Explanation",
    "Fact",
    "Failure",
    "Follower",
    "Memory",
    "Note",
    "Packed",
    "Parting",
    "Recorded",
    "Source",
    "Transition",
    "TransitionLog",
    "Tried",
]
