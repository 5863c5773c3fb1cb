"""`heptad stats`: where the time went, by state and, if calls were traced, by handler."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import cast

from heptad.cli.arguments import load_log, takes_columns, takes_journals, takes_rank
from heptad.cli.grid import Column, print_grid
from heptad.cli.output import print_json, print_line
from heptad.errors import counted
from heptad.history.query import TransitionLog
from heptad.history.summary import Duration
from heptad.history.waiting import SlowestRank
from heptad.history.wording import readable_time, shown_share

MOST_RANKS = 4
"""Ranks that are named in a cell."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file")
    takes_rank(parser, "rank 0's, and all ranks compared")
    takes_columns(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    log = load_log(arguments)
    stays, calls, slowest = log.durations(), log.call_durations(), log.slowest_ranks()
    entries = _entries(log, stays)
    kinds = Counter(note.kind for note in log.notes())
    if arguments.json:
        states = {
            name: {"entries": entries[name]} | (asdict(stays[name]) if name in stays else {})
            for name in dict.fromkeys((*stays, *entries))
        }
        handlers = {name: asdict(stay) for name, stay in calls.items()}
        found = {"transitions": len(log), "states": states, "handlers": handlers, "notes": dict(kinds)}
        ranks = {name: asdict(one) for name, one in slowest.items()}
        print_json(found | ({"ranks": list(log.ranks), "slowest": ranks} if slowest else {}))
        return 0
    total = sum(stay.total_ns for stay in stays.values())
    print_line(f"{counted(len(log), 'transition')} from #{log.source.view().first}, {readable_time(total)} in all\n")
    _print_stays("state", "entered", stays, entries, arguments.columns)
    if calls:
        print_line()
        same, names = {"state": "handler", "entered": "calls"}, cast("list[str] | None", arguments.columns)
        chosen = None if names is None else [same.get(name, name) for name in names]
        _print_stays("handler", "calls", calls, {name: stay.count for name, stay in calls.items()}, chosen)
    if slowest:
        print_line()
        _print_slowest(slowest)
    if kinds:
        print_line(f"\nnotes: {', '.join(f'{number} {kind}' for kind, number in kinds.most_common())}")
    return 0


def _entries(log: TransitionLog, stays: Mapping[str, Duration]) -> Counter[str]:
    """Return `log.counts()` without reading the file a second time: a state was entered as often as it was left."""
    entries = Counter({name: stay.count for name, stay in stays.items()})
    if len(log):
        entries[log[0].source] -= 1  # entered before the log begins
        entries[log[-1].dest] += 1  # entered and not left
    return entries


def _print_stays(
    what: str,
    times: str,
    stays: Mapping[str, Duration],
    counts: Mapping[str, int],
    chosen: Sequence[str] | None = None,
) -> None:
    total = sum(stay.total_ns for stay in stays.values())
    titles = (times, "total", "share", "median", "p99", "slowest", "mean")
    columns = (Column(what, wraps=True), *(Column(title, right=True) for title in titles), Column("slowest at"))
    rows = [
        [
            name,
            str(counts[name]),
            readable_time(stay.total_ns),
            shown_share(stay.total_ns, total),
            *map(readable_time, (stay.median_ns, stay.p99_ns, stay.max_ns, stay.mean_ns)),
            ", ".join(f"#{seq}" for seq, _ in stay.slowest[:3]),
        ]
        for name, stay in sorted(stays.items(), key=lambda row: -row[1].total_ns)
    ]
    print_grid(columns, rows, chosen)


def _print_slowest(slowest: Mapping[str, SlowestRank]) -> None:
    """Print the slowest rank in each state, and who waited; the state in which the others waited most first."""
    columns = (
        Column("state"),
        Column("slowest", right=True),
        Column("its own time", right=True),
        Column("the others waited for it", wraps=True, below=True),
        Column("and stood here", wraps=True),
    )
    rows = [
        [
            name,
            f"rank {one.rank}",
            readable_time(one.own_ns[one.rank]),
            _longest_first(one.waited_ns),
            _longest_first(one.stood_ns),
        ]
        for name, one in sorted(slowest.items(), key=lambda row: -sum(row[1].waited_ns.values()))
    ]
    print_grid(columns, rows, ways="or --json")
    print_line(
        "own time: without standing in an exchange until the last rank comes to it; waited: how much more of it the "
        "slowest had"
    )


def _longest_first(waited: Mapping[int, int]) -> str:
    """Return how long ranks waited, those that waited longest first."""
    rows = sorted(((rank, spent) for rank, spent in waited.items() if spent > 0), key=lambda row: -row[1])
    words = [f"rank {rank} {readable_time(spent)}" for rank, spent in rows[:MOST_RANKS]]
    if len(rows) > MOST_RANKS:
        words.append(f"{len(rows) - MOST_RANKS} more")
    return ", ".join(words)
