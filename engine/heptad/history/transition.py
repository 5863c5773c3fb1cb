"""`Transition`: one line of the log, for one turn of the machine."""

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
        guards: The guards that were asked, in order, each with its answer.
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
    """The titles of `cells`."""

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
        """Return the guards that were asked and their answers, in words."""
        return ", ".join(f"{name}={'yes' if answer else 'no'}" for name, answer in self.guards.items())

    def cells(self) -> tuple[str, ...]:
        """Return the cells of its row in a table, in the order of `COLUMNS`."""
        counters = (self.epoch, self.batch_index, self.step, self.update)
        spent = f"{self.duration_ns / 1e3:,.1f}"
        return (str(self.seq), self.source, self.dest, *map(str, counters), spent, self.answers())
