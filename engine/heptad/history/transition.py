"""`Transition`: what one line of the log says of one turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from heptad.history.html import table


@dataclass(frozen=True, slots=True)
class Transition:
    """One turn of the machine, from the body of `source` to the entry of `dest`.

    Attributes:
        seq: The number of the transition in its run, from 0.
        time_ns: When `dest` became the state: nanoseconds since the Unix epoch, on a clock that never runs backwards
            within a process.
        duration_ns: Nanoseconds spent in `source`, from becoming the state to leaving it, paused time left out.
        source: The state that was left.
        dest: The state that was entered.
        guards: Which guards were asked, in order, and what each said.
        epoch: Complete epochs after the body of `source`; so are the next three.
        batch_index: Complete steps in the epoch.
        step: Complete steps in the run.
        update: Complete optimizer updates in the run.
    """

    seq: int
    time_ns: int
    duration_ns: int
    source: str
    dest: str
    guards: Mapping[str, bool]
    epoch: int
    batch_index: int
    step: int
    update: int

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "seq", "source", "dest", "epoch", "batch", "step", "update", "µs in source", "guards",
    )  # fmt: skip
    """What `cells` holds."""

    def __str__(self) -> str:
        asked = self.answers()
        return (
            f"#{self.seq} {self.source} -> {self.dest}  epoch {self.epoch} batch {self.batch_index} step {self.step} "
            f"update {self.update}  {self.duration_ns / 1e3:,.1f} µs{'  ' + asked if asked else ''}"
        )

    def __repr__(self) -> str:
        at = f"epoch {self.epoch} batch {self.batch_index} step {self.step} update {self.update}"
        return f"<Transition #{self.seq} {self.source} -> {self.dest}, {at}>"

    def _repr_html_(self) -> str:
        return table(f"transition #{self.seq}", self.COLUMNS, [self.cells()])

    def answers(self) -> str:
        """Returns which guards were asked and what they said, in words."""
        return ", ".join(f"{name}={'yes' if answer else 'no'}" for name, answer in self.guards.items())

    def cells(self) -> tuple[str, ...]:
        """Returns what a row of a table shows of it, in the order of `COLUMNS`."""
        counters = (self.epoch, self.batch_index, self.step, self.update)
        spent = f"{self.duration_ns / 1e3:,.1f}"
        return (str(self.seq), self.source, self.dest, *map(str, counters), spent, self.answers())
