"""Where two runs part: the first turn that differs in an event, a recorded value, a guard's answer or the transition.

Both logs are read side by side, a block at a time. They are compared by the names of states and guards, so that runs
with other plugins, or of another version, can be compared too. Times do not count as differences, nor do events whose
place depends on the clock. That a run was paused, or killed and resumed, and what it measured of the clock and the
machine, counts only where that is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from operator import attrgetter
from typing import Any, Literal

import numpy as np

from heptad.history.decode import Decoder, blocks, ints
from heptad.history.explain import Explanation, explain
from heptad.history.export.rows import transition_row
from heptad.history.facts import HOW_KEPT, OF_A_RANK, differing, fact_in_words, run_facts
from heptad.history.html import table
from heptad.history.source import Source
from heptad.history.transition import Transition
from heptad.record.chunk import Ints, View
from heptad.record.events import Event
from heptad.record.values import Recorded

BEFORE, AFTER = 3, 3
"""Transitions that are shown around the place where two runs part."""

MEASURED = ("*_per_second", "data_wait_share", "mfu", "device/*", "host/*")
"""Patterns of recorded values that measure the clock or the machine: those of `Throughput` and `DeviceMonitor`."""

_EVER = 1 << 62
_COUNTED = ("epoch", "batch_index", "step", "update")


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact that differs between two runs: a setting, an optimizer, a handler, an arc.

    Attributes:
        name: Such as `"optimizers[0].groups[0].lr"`, `"handlers on exit of after_step"` or `"arcs from after_step"`.
        here: What it is in this log; `None` where this log lacks it.
        there: What it is in the other one.
    """

    name: str
    here: Any
    there: Any

    def __str__(self) -> str:
        return f"{self.name}: {fact_in_words(self.here)} here, {fact_in_words(self.there)} there"


@dataclass(frozen=True, slots=True)
class Parting:
    """One thing that differs in the first turn that does.

    Attributes:
        kind: `"note"`, `"value"`, `"guard"`, `"transition"`, or `"end"` where one log ends before the other.
        name: The note's kind, the value's name, the guard's name; else empty.
        here: What this log says, in words.
        there: What the other one says.
    """

    kind: Literal["note", "value", "guard", "transition", "end"]
    name: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.kind}{f' {self.name}' if self.name else ''}: {self.here} here, {self.there} there"


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences of two logs. It is true where they differ, false where only times do.

    Attributes:
        facts: The facts that differ: configuration, optimizers, handlers, the table.
        seq: The number of the first turn that differs; `None` where none does.
        parted: What differs in it: events, values, the guard, the transition.
        before: The last transitions that both have in common, from this log.
        here: The transitions from there on in this log.
        there: Those in the other one.
        first: The first transition that was compared; both logs hold it.
        end: The one after the last that both hold.
    """

    facts: tuple[Fact, ...]
    seq: int | None
    parted: tuple[Parting, ...]
    before: tuple[Transition, ...]
    here: tuple[Transition, ...]
    there: tuple[Transition, ...]
    first: int
    end: int

    @property
    def same(self) -> bool:
        """Whether nothing differs but times."""
        return not self.facts and self.seq is None

    def __bool__(self) -> bool:
        return not self.same

    def __str__(self) -> str:
        compared = f"transitions #{self.first} to #{self.end - 1}" if self.end > self.first else "no transition"
        if self.same:
            return f"the same but for times: {compared}, their notes and recorded values"
        return "\n".join([*self.facts_in_words(), *self.path_in_words()])

    def facts_in_words(self) -> list[str]:
        """Return the lines that name the facts that differ; none where none does."""
        if not self.facts:
            return []
        head = f"{len(self.facts)} facts differ:" if len(self.facts) > 1 else "1 fact differs:"
        return [head, *(f"    {fact}" for fact in self.facts)]

    def path_in_words(self) -> list[str]:
        """Return the lines that say where the runs part, with the transitions around that place."""
        compared = f"transitions #{self.first} to #{self.end - 1}" if self.end > self.first else "no transition"
        if self.seq is None:
            return [f"path, notes and recorded values are the same: {compared}"]
        lines = [f"the runs part in turn #{self.seq}:", *(f"    {parting}" for parting in self.parted)]
        for title, rows in (("before", self.before), ("here", self.here), ("there", self.there)):
            lines += [f"{title}:", *(f"    {row}" for row in rows or ("nothing",))]
        return lines

    def _repr_html_(self) -> str:
        facts = [("fact", fact.name, fact_in_words(fact.here), fact_in_words(fact.there)) for fact in self.facts]
        parts = [(f"#{self.seq} {one.kind}", one.name, one.here, one.there) for one in self.parted]
        return table(repr(self)[1:-1], ("what", "name", "here", "there"), [*facts, *parts])

    def __repr__(self) -> str:
        where = "the same" if self.seq is None else f"part at #{self.seq}"
        return f"<Diff: {where}, {len(self.facts)} facts differ>"

    def to_plain(self) -> dict[str, Any]:
        """Return the differences as plain data."""
        return {
            "same": self.same,
            "facts": [asdict(fact) for fact in self.facts],
            "seq": self.seq,
            "parted": [asdict(parting) for parting in self.parted],
            "before": [transition_row(row) for row in self.before],
            "here": [transition_row(row) for row in self.here],
            "there": [transition_row(row) for row in self.there],
            "first": self.first,
            "end": self.end,
        }


def diff(one: Source, other: Source, ignore: Iterable[str] = (), strict: bool = False) -> Diff:
    """Compare the transitions that two logs both hold.

    Args:
        one: "Here".
        other: "There".
        ignore: Patterns, such as `"gradient_*"`: values of these names and events of these kinds are ignored.
        strict: Compare also what two equal runs differ in: where they were paused and resumed, and values that measure
            the clock or the machine (`MEASURED`).
    """
    patterns = (*ignore, *(() if strict else MEASURED))

    def heard(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in patterns)

    views = one.view(), other.view()
    first = max(view.first for view in views)
    end = max(first, min(view.end for view in views))
    events = tuple(_events_of(source, first, heard, strict) for source in (one, other))
    seq, parted = _first_parting((one, other), views, events, first, end, heard)
    return _found((one, other), views, seq, parted, first, end, HOW_KEPT)


def diff_path(one: Source, other: Source) -> Diff:
    """Compare the paths that two logs both hold, and what their runs are made of: no events, no recorded values.

    Args:
        one: "Here".
        other: "There".
    """
    views = one.view(), other.view()
    first = max(view.first for view in views)
    end = max(first, min(view.end for view in views))
    seq = next((parts for _, parts in _side_by_side((one, other), views, first, end) if parts is not None), None)
    parted = () if seq is None else _path_parting((one, other), views, seq)
    return _found((one, other), views, seq, parted, first, end, (*HOW_KEPT, *OF_A_RANK))


def _found(
    sources: tuple[Source, Source],
    views: tuple[View, View],
    seq: int | None,
    parted: tuple[Parting, ...],
    first: int,
    end: int,
    apart: Sequence[str],
) -> Diff:
    """Return the differences, and the transitions around where the logs part; leave out the facts that are `apart`."""
    facts = tuple(Fact(name, *values) for name, values in differing([run_facts(each, apart) for each in sources]))
    if seq is None:
        return Diff(facts, None, (), (), (), (), first, end)
    before = range(max(first, seq - BEFORE), min(seq, end))
    after = [range(max(seq, view.first), min(seq + AFTER, view.end)) for view in views]
    here, there = (
        tuple(Decoder(source).at(view, seqs)) for source, view, seqs in zip(sources, views, after, strict=True)
    )
    return Diff(facts, seq, parted, tuple(Decoder(sources[0]).at(views[0], before)), here, there, first, end)


# -- the path


def _first_parting(
    sources: tuple[Source, Source],
    views: tuple[View, View],
    events: tuple[list[Event], ...],
    first: int,
    end: int,
    heard: Callable[[str], bool],
) -> tuple[int | None, tuple[Parting, ...]]:
    begin = first
    # Events and values are read for as far as the paths agree, and within the turn where they part: that turn's events
    # come before its transition, so they are named first. Each block costs one query of values in either log.
    for stop, parts in _side_by_side(sources, views, first, end):
        found = _remarks(sources, events, begin, stop if parts is None else parts + 1, heard)
        if found is not None:
            seq, parted = found
            return seq, (*parted, *(_path_parting(sources, views, seq) if seq == parts else ()))
        if parts is not None:
            return parts, _path_parting(sources, views, parts)
        begin = stop
    if views[0].end == views[1].end:
        return _remarks(sources, events, begin, _EVER, heard) or (None, ())  # those of the turn under way
    ends = [f"the log {'ends with' if view.end == end else 'continues to'} #{view.end - 1}" for view in views]
    return end, (Parting("end", "", *ends),)


def _events_of(source: Source, first: int, heard: Callable[[str], bool], strict: bool) -> list[Event]:
    """Return the events that are compared, by transition: not those whose place depends on the clock."""
    events = (e for e in source.events(first) if heard(e.kind) and not e.timed and (strict or not e.of_session))
    return sorted(events, key=attrgetter("seq"))


def _side_by_side(
    sources: tuple[Source, Source], views: tuple[View, View], first: int, end: int
) -> Iterator[tuple[int, int | None]]:
    """Yield how far both logs have been read; last, with it, where their paths part."""
    numbers: dict[tuple[Any, ...], int] = {}
    ones, others = (_columns(source, view, first, numbers) for source, view in zip(sources, views, strict=True))
    one = other = np.empty((1 + len(_COUNTED), 0), dtype=np.int64)
    at = first
    while at < end:
        one = next(ones) if not one.shape[1] else one
        other = next(others) if not other.shape[1] else other
        size = min(one.shape[1], other.shape[1], end - at)
        differs = np.flatnonzero((one[:, :size] != other[:, :size]).any(axis=0))
        parts = at + int(differs[0]) if len(differs) else None
        at += size
        yield at, parts
        if parts is not None:
            return
        one, other = one[:, size:], other[:, size:]


def _columns(source: Source, view: View, first: int, numbers: dict[tuple[Any, ...], int]) -> Iterator[Ints]:
    """Yield, block by block from a transition on, the arcs by numbers that both logs share, and the counters."""
    table, decoder = source.table, Decoder(source)
    shared = np.empty(len(source.effects.sources), dtype=np.int64)
    for arc, (start, end) in enumerate(zip(ints(source.effects.sources), ints(source.effects.dests), strict=True)):
        key = (table.states[start].name, table.states[end].name, tuple(decoder.guards(arc).items()))
        shared[arc] = numbers.setdefault(key, len(numbers))
    for block in blocks(View(view.chunks, first, view.end)):
        counters = block.counters(source)
        yield np.stack([shared[block.arcs], *(counters[name] for name in _COUNTED)])


def _path_parting(sources: tuple[Source, Source], views: tuple[View, View], seq: int) -> tuple[Parting, ...]:
    """Return what differs in the transition of that number: the first guard with another answer, else all of it."""
    explained = tuple(explain(source, view, seq) for source, view in zip(sources, views, strict=True))
    here, there = (each.transition for each in explained)
    if here.source == there.source:
        for one, other in zip_longest(here.guards.items(), there.guards.items()):
            if one != other:  # the same guard with another answer, or in one run a guard that the other lacks
                names = dict.fromkeys(guard[0] for guard in (other, one) if guard is not None)
                return tuple(Parting("guard", name, *(_said(each, name) for each in explained)) for name in names)
    return (Parting("transition", "", *(_place_of(row) for row in (here, there))),)


def _said(explained: Explanation, guard: str) -> str:
    return next((tried.said for tried in explained.tried if tried.guard == guard), "not asked")


def _place_of(row: Transition) -> str:
    at = f"epoch {row.epoch} batch {row.batch_index} step {row.step} update {row.update}"
    return f"{row.source} -> {row.dest} ({at})"


# -- events and values


def _remarks(
    sources: tuple[Source, Source],
    events: tuple[list[Event], ...],
    first: int,
    end: int,
    heard: Callable[[str], bool],
) -> tuple[int, tuple[Parting, ...]] | None:
    """Return the first turn from `first` to before `end` whose events or values differ, and what differs."""
    # those of the turns alone: a log may be read in as many parts as it has events
    said = [
        rows[bisect_left(rows, first, key=attrgetter("seq")) : bisect_left(rows, end, key=attrgetter("seq"))]
        for rows in events
    ]
    one, other = (_by_turn(rows, ((e.kind, replace(e, time_ns=0)) for e in rows), first, end) for rows in said)
    recorded = [[v for v in source.values_between(first, end) if heard(v.name)] for source in sources]
    mine, theirs = (_by_turn(rows, ((v.name, v.value) for v in rows), first, end) for rows in recorded)
    seqs = sorted({*one, *other, *mine, *theirs})
    for seq in seqs:
        parted = [
            *_pairs("note", one.get(seq, []), other.get(seq, []), attrgetter("text")),
            *_pairs("value", mine.get(seq, []), theirs.get(seq, []), repr),
        ]
        if parted:
            return seq, tuple(parted)
    return None


def _by_turn(
    rows: Sequence[Event | Recorded], pairs: Iterable[tuple[str, Any]], first: int, end: int
) -> dict[int, list[tuple[str, Any]]]:
    turns: dict[int, list[tuple[str, Any]]] = {}
    for row, pair in zip(rows, pairs, strict=True):
        if first <= row.seq < end:
            turns.setdefault(row.seq, []).append(pair)
    return turns


def _pairs(
    kind: Literal["note", "value"],
    one: list[tuple[str, Any]],
    other: list[tuple[str, Any]],
    words: Callable[[Any], str],
) -> Iterator[Parting]:
    """Yield the first of the events or values of a turn that differs."""
    for place in range(max(len(one), len(other))):
        here, there = (rows[place] if place < len(rows) else None for rows in (one, other))
        if here is not None and there is not None and here[0] == there[0]:
            if not _is_same(here[1], there[1]):
                yield Parting(kind, here[0], words(here[1]), words(there[1]))
                return
        else:
            name = (here or there or ("", None))[0]
            yield Parting(kind, name, *(f"{row[0]} {words(row[1])}" if row else "none" for row in (here, there)))
            return


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values are the same: NaN is NaN. A journal keeps no sign of zero, so 0.0 is -0.0."""
    return one == other or (one != one and other != other)  # noqa: PLR0124 - only NaN differs from itself
