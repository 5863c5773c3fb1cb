"""Comparing runs: last and best values, times and speeds side by side, and the facts that differ. Any number of runs.

`compare_runs` answers as data, which a terminal shows as tables and a report as its section "Compare".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from heptad.history.facts import differing, run_facts
from heptad.history.figures import Better, Figure
from heptad.history.judge import judge
from heptad.history.query import TransitionLog
from heptad.history.verdict import Verdict, by_weight


@dataclass(frozen=True, slots=True)
class ComparedValue:
    """A recorded value in several runs.

    Attributes:
        name: Its name.
        better: Whether lower or higher values are better; empty where the name does not say.
        figures: What became of it in each run; `None` where it was not recorded.
        ahead: The places of the runs whose best value is the best of all; empty where all are equal, or where the name
            does not say what is better.
    """

    name: str
    better: Better
    figures: tuple[Figure | None, ...]
    ahead: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ComparedFact:
    """A fact that is not the same in all runs: a setting, an optimizer's option, a handler, a version.

    Attributes:
        name: Such as `"optimizers[0].groups[0].lr"`.
        values: What it is in each run; `None` where a run lacks it.
    """

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs side by side; all that is listed for each run is in the order of `runs`.

    Attributes:
        names: Short names of the runs, each another one.
        runs: How each run went: outcome, times, speed.
        values: The recorded values, those that say most of a run first.
        facts: The facts that differ, versions of packages and hosts among them.
    """

    names: tuple[str, ...]
    runs: tuple[Verdict, ...]
    values: tuple[ComparedValue, ...]
    facts: tuple[ComparedFact, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "names": list(self.names),
            "runs": [run.to_plain() for run in self.runs],
            "values": [
                {
                    "name": value.name,
                    "better": value.better,
                    "last": [figure and asdict(figure.last) for figure in value.figures],
                    "best": [figure and figure.best and asdict(figure.best) for figure in value.figures],
                    "ahead": list(value.ahead),
                }
                for value in self.values
            ],
            "facts": [{"name": fact.name, "values": list(fact.values)} for fact in self.facts],
        }


def compare_runs(
    logs: Sequence[TransitionLog], names: Sequence[str] | None = None, judged: Sequence[Verdict] | None = None
) -> Comparison:
    """Compare runs.

    Args:
        logs: Their logs.
        names: What to call them; by default what differs in the paths of their journals.
        judged: How each run went, if somebody has worked it out already.
    """
    runs = judged or [judge(log.source, log.all_ranks) for log in logs]
    facts = [_with_versions(run_facts(log.source), run) for log, run in zip(logs, runs, strict=True)]
    figures = [figure for run in runs for figure in run.figures.values()]
    return Comparison(
        tuple(names or short_names([run.name for run in runs])),
        tuple(runs),
        tuple(_compared(name, runs) for name in dict.fromkeys(figure.name for figure in by_weight(figures))),
        tuple(ComparedFact(name, tuple(values)) for name, values in differing(facts)),
    )


def _with_versions(facts: dict[str, Any], run: Verdict) -> dict[str, Any]:
    hosts = {"host": run.sessions[-1].host, **run.sessions[-1].origin} if run.sessions else {}
    return facts | {f"version of {name}": word for name, word in run.versions.items()} | hosts


def _compared(name: str, runs: Sequence[Verdict]) -> ComparedValue:
    figures = tuple(run.figures.get(name) for run in runs)
    better: Better = next(figure.better for figure in figures if figure is not None)
    best = {place: figure.best.value for place, figure in enumerate(figures) if figure is not None and figure.best}
    ahead: tuple[int, ...] = ()
    if len(set(best.values())) > 1:
        first = min(best.values()) if better == "lower" else max(best.values())
        ahead = tuple(place for place, value in best.items() if value == first)
    return ComparedValue(name, better, figures, ahead)


def short_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each path: what differs between them; paths that are equal get a number too."""
    parts = [PurePath(path).parts or ("live run",) for path in paths]
    shortest = min(map(len, parts), default=0)
    front = 0
    while front < shortest - 1 and len({part[front] for part in parts}) == 1:
        front += 1
    back = 0
    while back < shortest - 1 - front and len({part[-1 - back] for part in parts}) == 1:
        back += 1
    names = ["/".join(part[front : len(part) - back]) for part in parts]
    if len(set(names)) == len(names):
        return names
    return [f"{number} {name}" for number, name in enumerate(names, 1)]
