"""What a log is made of, in memory and on disk: chunks of arcs and times, and what follows from them.

Guards, states and counters are not stored. The number of the arc says which guards were asked and what they answered,
and `Effects` derives the counters from the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from heptad.record.counters import Counters
from heptad.table import Table

Ints = npt.NDArray[np.int64]


class Chunk(Protocol):
    """Consecutive transitions: their arcs and times, and what was true before the first of them.

    Attributes:
        seq: The number of the first.
        clock: When the transition before it was made, or the run began, in nanoseconds on the clock of `times`.
        offset: What to add to that clock for nanoseconds since the Unix epoch.
        counters: What the counters stood at then.
        skipped: The places of those whose update was skipped.
        gaps: The time that the run was paused before a transition: its place, and nanoseconds.
    """

    @property
    def seq(self) -> int: ...
    @property
    def clock(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def skipped(self) -> Sequence[int]: ...
    @property
    def gaps(self) -> Sequence[tuple[int, int]]: ...

    def __len__(self) -> int: ...

    def arcs(self) -> Ints:
        """Return the number of the arc taken, for each transition."""
        ...

    def times(self) -> Ints:
        """Return when each transition was made, in nanoseconds."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """The log at one moment: the chunks, and the numbers of the first transition kept and of the one after the last."""

    chunks: Sequence[Chunk]
    first: int
    end: int


MOMENTS = ("body", "exit", "guard", "enter")
"""When a run may fail in a turn."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a run failed.

    Attributes:
        seq: The number of the transition to `failed`, the log's last.
        state: The state in which it happened.
        moment: `"body"`, `"exit"`, `"guard"` or `"enter"`.
        who: The plugin and method that raised; empty for the engine itself.
        guard: The guard that raised, if it was one.
        error: The exception in a line.
        counters: What the counters stood at, the body perhaps half done.
        guards: What the guards had answered by then, those asked.
    """

    seq: int
    state: str
    moment: str
    who: str
    guard: str
    error: str
    counters: Counters
    guards: dict[str, bool]

    def __str__(self) -> str:
        place = {
            "body": f"in the body of {self.state}",
            "exit": f"on exit of {self.state}",
            "guard": f"in the guard {self.guard} asked in {self.state}",
            "enter": f"on entry to {self.state}",
        }[self.moment]
        at = self.counters
        who = f"in {self.who} " if self.who else ""
        return f"{who}{place} (epoch {at.epoch}, batch {at.batch_index}, step {at.step}, update {at.update})"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a handler, kept with `RunConfig(trace_handlers=True)`.

    Attributes:
        seq: The transition in whose turn it was called.
        who: Plugin and method, or the function.
        moment: `"enter"` or `"exit"`.
        state: Of which state.
        time_ns: When it was called: nanoseconds since the Unix epoch.
        duration_ns: How long it took.
    """

    seq: int
    who: str
    moment: str
    state: str
    time_ns: int
    duration_ns: int


class Effects:
    """What leaving each state does to the counters, as arrays over the arcs of a table.

    Attributes:
        carries: Whether the end of an epoch leaves a window open.
    """

    def __init__(self, table: Table) -> None:
        self.carries = False
        # Numbers 0 … n - 1 are the n arcs of the table; n + k is the failure in the state of number k, no arc of it.
        sources = [arc.source for arc in table.arcs] + [state.name for state in table.states]
        self.sources = np.array([table.index[name] for name in sources], dtype=np.int64)
        self.dests = np.array(
            [table.index[arc.dest] for arc in table.arcs] + [table.index["failed"]] * len(table.states), dtype=np.int64
        )
        counted = len(table.arcs)

        def leaving(name: str) -> npt.NDArray[np.bool_]:
            return np.array([place < counted and source == name for place, source in enumerate(sources)])

        self.counts_step = leaving("after_step")
        self.counts_update = leaving("optimizer_update")
        self.counts_epoch = leaving("after_epoch")
        self.opens_epoch = leaving("before_epoch")
        self.closes_window = self.counts_update | self.counts_epoch | self.opens_epoch

    def counters(self, chunk: Chunk, failure: Failure | None) -> dict[str, Ints]:
        """Return the counters after the body of the source of each transition of a chunk.

        Running sums of what each arc counts, from what stood before the chunk. `batch_index` and `window` restart: they
        are the steps since the last arc that opened an epoch, or closed a window. The counters at a failure are those
        stored with it, because its body may be half done.

        Args:
            chunk: The chunk.
            failure: Where the run failed, if it did.
        """
        base = chunk.counters
        arcs = chunk.arcs()
        steps = base.step + np.cumsum(self.counts_step[arcs])
        counted = self.counts_update[arcs]
        counted[list(chunk.skipped)] = False
        closes = self.counts_update if self.carries else self.closes_window
        columns = {
            "epoch": base.epoch + np.cumsum(self.counts_epoch[arcs]),
            "batch_index": steps - _latest(self.opens_epoch[arcs], steps, base.step - base.batch_index),
            "step": steps,
            "update": base.update + np.cumsum(counted),
            "window": steps - _latest(closes[arcs], steps, base.step - base.window),
        }
        if failure is not None and chunk.seq <= failure.seq < chunk.seq + len(arcs):
            for name, value in failure.counters._asdict().items():
                columns[name][failure.seq - chunk.seq] = value
        return columns


def durations(chunk: Chunk) -> Ints:
    """Return nanoseconds spent in the source of each transition, without the time that the run was paused."""
    spent = np.diff(chunk.times(), prepend=chunk.clock)
    for place, paused in chunk.gaps:
        spent[place] -= paused
    return spent


def _latest(where: npt.NDArray[np.bool_], values: Ints, before: int) -> Ints:
    """Return at each place the value at the last place up to it where `where` holds; `before` at those in front of it.

    A running maximum gives that, because neither the values nor `before` ever exceed a later value.
    """
    return np.maximum.accumulate(np.where(where, values, before))
