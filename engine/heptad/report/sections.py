"""What each section of the page says of a run, as rows of text: the template lays them out and escapes them.

Every text is cut to a length that a page can hold, and every list to a number of rows; what was left out is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from heptad.history.comparison import compare_runs
from heptad.history.explain import handlers_of
from heptad.history.facts import fact_in_words
from heptad.history.figures import Figure
from heptad.history.journal.origin import origin
from heptad.history.journal.versions import versions_here
from heptad.history.verdict import Line
from heptad.history.wording import date_and_time, long_time, readable_time, shown_share, with_hard_spaces
from heptad.record.counters import Counters
from heptad.record.events import Event
from heptad.report.gathered import Gathered
from heptad.report.graph import drawing
from heptad.report.words import harmless, real

LAST = 20
"""Turns that the section on the ending lists."""

ROWS = 300
"""Rows of a list: of events of one kind, of facts, of values."""

PARTS = 30
"""Parts of a line of the verdict."""

POINTS = 12
"""Values of a curve that stand in the table for those who have scripts switched off."""

WAITING = ("before_epoch", "before_step")
"""The states in which a run waits for data."""


def of_run(run: Gathered, number: int) -> dict[str, Any]:
    """Return what the template shows of one run."""
    return {
        "number": number,
        "label": run.label,
        "outcome": run.verdict.outcome,
        "verdict": [(line.title, _some_parts(line)) for line in run.verdict.lines],
        "first": run.walk.first,
        "end": run.walk.end,
        "curves": any(curve.found.lowest is not None for curve in run.curves),
        "bands": len(run.walk.bands) > 1,
        "sampled": run.walk.sampled,
        "samples": run.samples,
        "epochs": len(run.walk.ends),
        "values": _value_rows(run.verdict.figures),
        "points": _some_points(run),
        "time": _time(run),
        "graph": drawing(run.log.source, run.walk, number) if run.walk.end > run.walk.first else "",
        "arcs": _arcs(run),
        "events": _event_rows(run.events),
        "ending": _ending_rows(run),
        "provenance": _provenance(run),
    }


def _some_parts(line: Line) -> list[str]:
    """Return the parts of a line of the verdict; of many values the first, and how many more there are."""
    some = [harmless(part, 400) for part in line.parts[:PARTS]]
    if line.title != "next":  # commands are copied, and a shell knows no hard space
        some = [with_hard_spaces(part) for part in some]
    more = len(line.parts) - PARTS
    return some + ([f"{more:,} more"] if more > 0 else [])


# -- curves


def _value_rows(found: Mapping[str, Figure]) -> list[list[str]]:
    rows: list[list[str]] = []
    for figure in list(found.values())[:ROWS]:
        best = figure.best
        rows.append(
            [
                harmless(figure.name, 200),
                f"{figure.count:,}",
                f"{real(figure.last.value)} (epoch {figure.last.epoch})",
                "" if best is None else f"{real(best.value)} (epoch {best.epoch})",
                "none" if figure.lowest is None else real(figure.lowest.value),
                "none" if figure.highest is None else real(figure.highest.value),
                f"{figure.not_finite:,}" if figure.not_finite else "",
            ]
        )
    return rows


def _some_points(run: Gathered) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return some points of each curve, from the first to the last."""
    rows: list[tuple[str, list[tuple[str, str]]]] = []
    for curve in [curve for curve in run.curves if len(curve.smooth)][:20]:
        some = np.unique(np.linspace(0, len(curve.smooth) - 1, POINTS).astype(int))
        pairs = [(f"{curve.smooth_place[at, 3]:,.0f}", real(float(curve.smooth[at]))) for at in some.tolist()]
        rows.append((harmless(curve.name, 200), pairs))
    return rows


# -- time


def _time(run: Gathered) -> dict[str, Any]:
    walked, log = run.walk, run.log
    stays = dict(sorted(walked.durations.items(), key=lambda row: -row[1].total_ns))
    total = sum(stay.total_ns for stay in stays.values()) or 1
    states = [
        {
            "name": name,
            "share": shown_share(stay.total_ns, total),
            "width": round(100 * stay.total_ns / total, 2),
            "count": f"{stay.count:,}",
            "total": readable_time(stay.total_ns),
            "mean": readable_time(stay.mean_ns),
            "median": readable_time(stay.median_ns),
            "p99": readable_time(stay.p99_ns),
            "most": readable_time(stay.max_ns),
            "at": stay.slowest[0][0],
        }
        for name, stay in stays.items()
    ]
    turns = {turn.seq: turn for turn in _turns(run, [seq for seq, _ in walked.slowest])}
    slowest = [
        [seq, readable_time(time), turns[seq].source, turns[seq].dest, turns[seq].epoch, turns[seq].update]
        for seq, time in walked.slowest
    ]
    waited = sum(stays[name].total_ns for name in WAITING if name in stays)
    share = run.verdict.figures.get("data_wait_share")
    words = f"{shown_share(waited, total)} of the time in {' and '.join(WAITING)}, {long_time(waited)} in all"
    if share is not None:
        words += f"; data_wait_share was {real(share.last.value)} when it was recorded last"
    handlers = [
        [
            harmless(name, 200),
            f"{stay.count:,}",
            readable_time(stay.total_ns),
            readable_time(stay.median_ns),
            readable_time(stay.max_ns),
        ]
        for name, stay in list(log.call_durations().items())[:ROWS]
    ]
    return {
        "total": long_time(total),
        "states": states,
        "slowest": slowest,
        "handlers": handlers,
        "waiting": words,
        "ranks": [
            [
                name,
                f"rank {one.rank}",
                readable_time(one.own_ns[one.rank]),
                *map(_by_rank, (one.waited_ns, one.stood_ns)),
            ]
            for name, one in sorted(log.slowest_ranks().items(), key=lambda row: -sum(row[1].waited_ns.values()))
        ],
        "missing": [f"rank {rank}: {harmless(reason, 300)}" for rank, reason in log.missing.items()],
    }


def _by_rank(times: Mapping[int, int]) -> str:
    rows = sorted(((rank, time) for rank, time in times.items() if time > 0), key=lambda row: -row[1])
    words = [f"rank {rank} {readable_time(time)}" for rank, time in rows[:4]]
    return ", ".join([*words, f"{len(rows) - 4} more"] if len(rows) > 4 else words)


def _turns(run: Gathered, seqs: Sequence[int]) -> Sequence[Any]:
    return [run.log[seq - run.walk.first] for seq in seqs]


# -- the machine


def _arcs(run: Gathered) -> list[list[str]]:
    table, walked = run.log.source.table, run.walk
    leaving: dict[str, int] = {}
    for arc, taken in zip(table.arcs, walked.taken.tolist(), strict=False):
        leaving[arc.source] = leaving.get(arc.source, 0) + taken
    rows: list[list[str]] = []
    for arc, taken in zip(table.arcs, walked.taken.tolist(), strict=False):
        share = shown_share(taken, leaving[arc.source]) if leaving[arc.source] else ""
        source = table.shown[arc.source]
        after = f" (after {arc.source.partition('@')[2]})" if "@" in arc.source else ""
        rows.append([f"{source}{after}", arc.guard or "always", table.shown[arc.dest], f"{taken:,}", share])
    return rows


def guards_of(run: Gathered) -> dict[str, list[list[Any]]]:
    """Return for each node its arcs in the order in which they are tried, with how often each guard said what.

    A guard is asked whenever none before it has said yes: as often as its own arc, or one behind it, was taken.
    """
    table, taken = run.log.source.table, run.walk.taken.tolist()
    found: dict[str, list[list[Any]]] = {}
    for state in table.states:
        numbers = [number for number, arc in enumerate(table.arcs) if arc.source == state.name]
        rows: list[list[Any]] = []
        for place, number in enumerate(numbers):
            asked = sum(taken[other] for other in numbers[place:])
            arc = table.arcs[number]
            rows.append([arc.guard, table.shown[arc.dest], asked, taken[number], number])
        found[state.name] = rows
    return found


# -- events


def _event_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    by_kind: dict[str, list[Event]] = {}
    for event in events:
        by_kind.setdefault(event.kind, []).append(event)
    return [
        {
            "kind": kind,
            "count": len(some),
            "rows": [
                [
                    event.seq,
                    date_and_time(event.time_ns),
                    f"rank {event.rank} " if event.rank else "",
                    harmless(event.text, 600),
                ]
                for event in some[:ROWS]
            ],
            "left": max(0, len(some) - ROWS),
        }
        for kind, some in sorted(by_kind.items(), key=lambda row: (row[0] != "failure", -len(row[1])))
    ]


# -- the ending


def _ending_rows(run: Gathered) -> dict[str, Any]:
    failure = run.log.source.failure
    last = run.verdict.last
    facts: list[tuple[str, str]] = [("how", f"{run.verdict.outcome}: {harmless(run.verdict.why)}")]
    if failure is not None:
        facts += [
            ("exception", harmless(failure.error)),
            ("where", f"{failure.moment} of {failure.state}" if failure.moment != "guard" else "a guard"),
            ("raised in", harmless(failure.who) or "the engine itself"),
        ]
        if failure.guard:
            facts.append(("guard", harmless(failure.guard)))
        facts += [(name, f"{value:,}") for name, value in failure.counters._asdict().items()]
    elif last is not None:
        names = [name for name in Counters._fields if hasattr(last, name)]
        facts += [(name, f"{getattr(last, name):,}") for name in names]
    begin = max(run.walk.first, run.walk.end - LAST)
    rows = [
        [
            turn.seq,
            turn.source,
            turn.dest,
            ", ".join(f"{name}: {'yes' if answer else 'no'}" for name, answer in turn.guards.items()),
            f"{turn.epoch}, {turn.step:,}, {turn.update:,}",
            readable_time(turn.duration_ns),
        ]
        for turn in _turns(run, range(begin, run.walk.end))
    ]
    told = [f"#{event.seq} {event.kind}: {harmless(event.text, 600)}" for event in run.events if event.seq >= begin][
        -LAST:
    ]
    return {"facts": facts, "turns": rows, "events": told}


# -- provenance


def _provenance(run: Gathered) -> dict[str, Any]:
    facts = {name: value for name, value in run.log.facts.items() if name not in ("handlers", "optimizers")}
    optimizers = {"optimizers": run.log.facts.get("optimizers", [])}
    sessions = [
        [
            str(one.number),
            f"#{one.first:,}",
            date_and_time(one.began_ns),
            f"{one.pid} on {harmless(one.host, 80)}",
            harmless(one.resumed_from or "the start", 200),
            "" if one.again is None else f"{one.again.transitions:,} turns from #{one.again.first:,}",
        ]
        for one in run.verdict.sessions[-ROWS:]
    ]
    moments: dict[str, list[str]] = {}
    for one in handlers_of(run.log.facts):
        words = f"{one.who} ({one.filter})" if one.filter else one.who
        moments.setdefault(f"{'on exit of' if one.moment == 'exit' else 'on entry to'} {one.state}", []).append(
            harmless(words, 200)
        )
    return {
        "origin": [(harmless(name, 80), harmless(value)) for name, value in origin_of(run).items()],
        "sessions": sessions,
        "facts": list(flat(facts))[:ROWS],
        "optimizers": list(flat(optimizers))[:ROWS],
        "handlers": list(moments.items())[:ROWS],
    }


def origin_of(run: Gathered) -> Mapping[str, str]:
    """Return versions, the commit and the command line of the newest session; of a live run those of this process."""
    sessions = run.verdict.sessions
    return {**run.verdict.versions, **sessions[-1].origin} if sessions else {**versions_here(), **origin()}


def flat(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield nested plain data as pairs of a path and a text."""
    waiting: list[tuple[str, Any]] = [("", facts)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping) and value:
            inside = cast("Mapping[Any, Any]", value).items()
            waiting += reversed([(f"{name}.{key}" if name else str(key), part) for key, part in inside])
        elif _is_nested(value):
            parts = cast("Sequence[Any]", value)
            waiting += reversed([(f"{name}[{place}]", part) for place, part in enumerate(parts)])
        elif value not in ([], {}, ()):
            yield harmless(name, 200), harmless("none" if value is None else cast("object", value), 500)


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(
        isinstance(part, list | dict) for part in cast("Sequence[Any]", value)
    )


# -- several runs


def compared(runs: Sequence[Gathered]) -> dict[str, Any]:
    """Return what differs between runs: facts, last and best values, where each parts from the first."""
    logs = [run.log for run in runs]
    found = compare_runs(logs, [run.label for run in runs], [run.verdict for run in runs])
    rows: list[list[Any]] = []
    for value in found.values[:ROWS]:
        row: list[Any] = [harmless(value.name, 200)]
        for place, figure in enumerate(value.figures):
            best = None if figure is None else figure.best
            row.append("" if figure is None else f"{real(figure.last.value)} (epoch {figure.last.epoch})")
            ahead = " ★" if place in value.ahead else ""
            row.append("" if best is None else f"{real(best.value)} (epoch {best.epoch}){ahead}")
        rows.append(row)
    parts = [(run.label, harmless(str(logs[0].diff(run.log)), 3_000)) for run in runs[1:]]
    speed = [
        [
            run.label,
            run.verdict.outcome,
            long_time(run.verdict.driven_ns),
            f"{run.verdict.updates:,}",
            f"{run.verdict.updates_per_second:,.2f}",
        ]
        for run in runs
    ]
    return {
        "labels": [run.label for run in runs],
        "table": rows,
        "facts": [
            [harmless(fact.name, 200), *(harmless(fact_in_words(value), 300) for value in fact.values)]
            for fact in found.facts[:ROWS]
        ],
        "left": max(0, len(found.facts) - ROWS),
        "parts": parts,
        "speed": speed,
    }
