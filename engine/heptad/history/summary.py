"""Summaries of a log: how often each state was entered, how long the run stayed in it, how long handlers took.

Chunks are read in blocks. What is kept for a median and a 99th percentile that are exact is 4 bytes a transition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from heptad.history.decode import blocks, ints
from heptad.history.html import table
from heptad.history.source import Source
from heptad.history.wording import readable_time
from heptad.record.chunk import Ints, View

SLOWEST = 5
"""How many of the longest stays are kept, with the transitions that ended them."""

_CALLS_AT_ONCE = 1 << 16
"""Transitions whose handler calls are read together."""


@dataclass(frozen=True, slots=True)
class Duration:
    """How long a run stayed in a state: nanoseconds over its `count` stays, paused time left out.

    `slowest` holds the longest of them, longest first, as (seq, nanoseconds): `seq` is the transition that ended it.
    """

    count: int
    total_ns: int
    mean_ns: float
    median_ns: float
    p99_ns: float
    max_ns: int
    slowest: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.count:,} × {self.median_ns / 1e3:,.1f} µs (median), {self.total_ns / 1e9:,.3f} s in all"


class Durations(dict[str, Duration]):
    """A duration for each state or handler; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        head = ("", "count", "total", "mean", "median", "p99", "slowest", "at")
        rows = [
            (
                name,
                f"{stay.count:,}",
                *map(readable_time, (stay.total_ns, stay.mean_ns, stay.median_ns, stay.p99_ns, stay.max_ns)),
                ", ".join(f"#{seq}" for seq, _ in stay.slowest[:3]),
            )
            for name, stay in sorted(self.items(), key=lambda row: -row[1].total_ns)
        ]
        return table("durations", head, rows)


class Stays:
    """Collects durations, and where the longest of them were."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.unsignedinteger]] = []
        self._slowest: list[tuple[int, int]] = []

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._parts)

    def add(self, spent: Ints, seqs: Ints) -> None:
        """Add one duration or more, in nanoseconds, with the transitions that ended them."""
        longest, shortest = int(spent.max()), int(spent.min())
        small = shortest >= 0 and longest < 1 << 32  # half the bytes for a stay below 4.3 s
        self._parts.append(cast("npt.NDArray[np.unsignedinteger]", spent.astype(np.uint32) if small else spent.copy()))
        if len(self._slowest) == SLOWEST and longest <= self._slowest[-1][1]:
            return
        top = np.argpartition(spent, -SLOWEST)[-SLOWEST:] if len(spent) > SLOWEST else np.arange(len(spent))
        found = [*self._slowest, *zip(ints(seqs[top]), ints(spent[top]), strict=True)]
        self._slowest = sorted(found, key=lambda stay: (-stay[1], stay[0]))[:SLOWEST]

    def summary(self) -> Duration:
        """Return their summary, and release them."""
        total = sum(int(part.sum(dtype=np.int64)) for part in self._parts)
        stays = np.concatenate(self._parts)
        self._parts = []
        median, p99 = cast("list[float]", np.percentile(stays, [50, 99], overwrite_input=True).tolist())
        return Duration(len(stays), total, total / len(stays), median, p99, self._slowest[0][1], tuple(self._slowest))


def counts(source: Source, view: View) -> Counter[str]:
    """Return how often each state was entered; one that never was counts 0."""
    entries = np.zeros(len(source.table.states), dtype=np.int64)
    for block in blocks(view):
        entries += np.bincount(source.effects.dests[block.arcs], minlength=len(entries))
    entered: Counter[str] = Counter()
    for state, number in zip(source.table.states, ints(entries), strict=True):
        if number:
            entered[state.shown] += number
    return entered


def stays(source: Source, view: View) -> Durations:
    """Return for each state how long the run stayed in it, for every stay that has ended."""
    names = list(dict.fromkeys(state.shown for state in source.table.states))
    number = np.array([names.index(state.shown) for state in source.table.states])
    collected = [Stays() for _ in names]
    for block in blocks(view):
        states = number[source.effects.sources[block.arcs]]
        spent = block.spent()
        for state in ints(np.flatnonzero(np.bincount(states, minlength=len(names)))):
            places = np.flatnonzero(states == state)
            collected[state].add(spent[places], places + block.seq)
    return Durations((name, stay.summary()) for name, stay in zip(names, collected, strict=True) if stay.any)


def calls(source: Source, view: View) -> Durations:
    """Return for each handler how long its calls took, where they were traced; the one with the most time first."""
    collected: dict[str, Stays] = {}
    if not traced(source.facts):
        return Durations()
    for begin in range(view.first, view.end, _CALLS_AT_ONCE):
        found: dict[str, list[tuple[int, int]]] = {}
        for call in source.calls(begin, min(begin + _CALLS_AT_ONCE, view.end)):
            found.setdefault(f"{call.who} ({call.moment} {call.state})", []).append((call.duration_ns, call.seq))
        for name, rows in found.items():
            columns = np.array(rows, dtype=np.int64)
            collected.setdefault(name, Stays()).add(columns[:, 0], columns[:, 1])
    by_name = {name: stay.summary() for name, stay in collected.items()}
    return Durations(sorted(by_name.items(), key=lambda row: -row[1].total_ns))


def traced(facts: Mapping[str, object]) -> bool:
    """Return whether calls of handlers were traced."""
    return bool(facts.get("trace_handlers"))
