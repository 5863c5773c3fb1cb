"""`heptad stats`: where the time went, by states and, where they were traced, by handlers."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from heptad.cli.arguments import Commands, command, takes_file
from heptad.cli.files import open_log
from heptad.cli.output import Column, data, duration, line, table
from heptad.history.query import TransitionLog
from heptad.history.summary import Duration


def add_to(commands: Commands) -> None:
    """Adds the command."""
    takes_file(command(commands, "stats", run, "tell how often each state was entered and where the time went"))


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    log = open_log(arguments.file)
    stays, calls = log.durations(), log.call_durations()
    entries = _entries(log, stays)
    kinds = Counter(note.kind for note in log.notes())
    if arguments.json:
        told = {
            name: {"entries": entries[name], **_plain(stays.get(name))} for name in dict.fromkeys((*stays, *entries))
        }
        handlers = {name: _plain(stay) for name, stay in calls.items()}
        data({"transitions": len(log), "states": told, "handlers": handlers, "notes": dict(kinds)})
        return 0
    line(_heading(log, stays))
    line()
    _print("state", "entered", stays, {name: str(entries[name]) for name in stays})
    if calls:
        line()
        _print("handler", "calls", calls, {name: str(stay.count) for name, stay in calls.items()})
    if kinds:
        line()
        line(f"notes: {', '.join(f'{number} {kind}' for kind, number in kinds.most_common())}")
    return 0


def _entries(log: TransitionLog, stays: Mapping[str, Duration]) -> Counter[str]:
    """Returns `log.counts()`, without reading all of a file a second time: whatever was left had been entered."""
    entries = Counter({name: stay.count for name, stay in stays.items()})
    if len(log):
        entries[log[0].source] -= 1  # before the log begins
        entries[log[-1].dest] += 1  # and has not been left
    return entries


def _heading(log: TransitionLog, stays: Mapping[str, Duration]) -> str:
    total = sum(stay.total_ns for stay in stays.values())
    return f"{len(log):,} transitions from #{log.source.view().first}, {duration(total)} in all"


def _print(what: str, times: str, stays: Mapping[str, Duration], counts: Mapping[str, str]) -> None:
    total = sum(stay.total_ns for stay in stays.values()) or 1
    columns = [Column(what), *(Column(title, right=True) for title in (times, "total", "share", "mean", "median"))]
    columns += [Column("p99", right=True), Column("slowest", right=True), Column("at")]
    rows = [
        [
            name,
            counts[name],
            duration(stay.total_ns),
            f"{100 * stay.total_ns / total:.1f} %",
            *map(duration, (stay.mean_ns, stay.median_ns, stay.p99_ns, stay.max_ns)),
            ", ".join(f"#{seq}" for seq, _ in stay.slowest[:3]),
        ]
        for name, stay in sorted(stays.items(), key=lambda row: -row[1].total_ns)
    ]
    table(columns, rows)


def _plain(stay: Duration | None) -> dict[str, object]:
    return {} if stay is None else asdict(stay)
