"""The log: every transition of a run, kept small, read back in full."""

from heptad.log.explain import Explanation, Tried
from heptad.log.memory import Failure, Memory
from heptad.log.query import Duration, TransitionLog
from heptad.log.record import Counters, Note, Transition

__all__ = [
    "Counters",
    "Duration",
    "Explanation",
    "Failure",
    "Memory",
    "Note",
    "Transition",
    "TransitionLog",
    "Tried",
]
