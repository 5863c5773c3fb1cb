"""The tables of several runs side by side, as `heptad diff` prints them."""

from __future__ import annotations

from collections.abc import Sequence

from heptad.cli.grid import Column, print_grid
from heptad.cli.output import print_line
from heptad.history.comparison import ComparedFact, ComparedValue, Comparison
from heptad.history.facts import fact_in_words
from heptad.history.wording import long_time, rate, short_value

AHEAD = " *"
"""Stands behind the best value of all runs."""


def print_comparison(found: Comparison) -> None:
    """Print last and best values, times and speeds, and the facts that differ."""
    if found.values:
        _print_values(found.names, found.values)
        print_line()
    _print_runs(found)
    print_line()
    if found.facts:
        _print_facts(found.names, found.facts)
    else:
        print_line("no fact differs: settings, optimizers, handlers, table and versions are equal")


def _print_values(names: Sequence[str], values: Sequence[ComparedValue]) -> None:
    columns = (
        Column("value", wraps=True), Column("run", wraps=True), Column("last", right=True), Column("epoch", right=True),
        Column("best", right=True), Column("its epoch", right=True),
    )  # fmt: skip
    rows: list[list[str]] = []
    for value in values:
        for place, figure in enumerate(value.figures):
            title = value.name if place == 0 else ""
            if figure is None:
                rows.append([title, names[place], "none", "", "", ""])
                continue
            best, mark = figure.best, AHEAD if place in value.ahead else " " * len(AHEAD)
            last = [title, names[place], short_value(figure.last.value), str(figure.last.epoch)]
            rows.append([*last, *((f"{short_value(best.value)}{mark}", str(best.epoch)) if best else ("", ""))])
    print_grid(columns, rows, ways="or --json")
    if any(value.ahead for value in values):
        print_line("* the best of all runs")


def _print_runs(found: Comparison) -> None:
    columns = (
        Column("run", wraps=True), Column("ended"), Column("epochs", right=True), Column("updates", right=True),
        Column("driven", right=True), Column("speed", right=True), Column("resumed", right=True),
        Column("most time in", wraps=True),
    )  # fmt: skip
    rows: list[list[str]] = []
    for name, run in zip(found.names, found.runs, strict=True):
        at = [str(run.last.epoch), f"{run.last.update:,}"] if run.last else ["0", "0"]
        resumed = {0: "never", 1: "once"}.get(len(run.resumes), f"{len(run.resumes)} times")
        most = next((line.parts[0] for line in run.lines if line.title == "time"), "")
        times = [long_time(run.driven_ns), rate(run.updates_per_second, "updates")]
        rows.append([name, run.outcome, *at, *times, resumed, most])
    print_grid(columns, rows, ways="or --json")


def _print_facts(names: Sequence[str], facts: Sequence[ComparedFact]) -> None:
    """Print the facts; runs of one value share a row."""
    columns = Column("fact that differs", wraps=True), Column("run", wraps=True), Column("is", wraps=True)
    rows: list[list[str]] = []
    for fact in facts:
        by_words: dict[str, list[str]] = {}
        for name, value in zip(names, fact.values, strict=True):
            by_words.setdefault(fact_in_words(value), []).append(name)
        for place, (words, runs) in enumerate(by_words.items()):
            rows.append([fact.name if place == 0 else "", ", ".join(runs), words])
    print_grid(columns, rows, ways="or --json")
