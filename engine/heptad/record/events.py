"""What one line of the log says: a `Transition`, a `Note`, and the counters that both are placed by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """A rare event, bound to the transition in whose turn it came.

    Attributes:
        seq: That transition.
        kind: `"stop"`, `"interrupt"`, `"pause"`, `"skip_update"`, `"accumulation"`, `"extension"`, `"failure"`,
            `"data"`, or `"note"` for what `Run.note` was given.
        text: What happened, in words.
        time_ns: When, on the clock of `Transition.time_ns`.
    """

    seq: int
    kind: str
    text: str
    time_ns: int

    def __str__(self) -> str:
        return f"#{self.seq} {self.kind}: {self.text}"
