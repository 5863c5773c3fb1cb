"""The facts of a run by name, as it was asked for and built: to find those that differ between runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from heptad.history.source import Source

HOW_KEPT = ("log_capacity", "trace_handlers", "rank")
"""Facts about how a log is kept, and whose it is, which do not change what the run does."""

OF_A_RANK = ("device", "num_workers")
"""Further facts that differ between ranks that take one path."""


def run_facts(source: Source, apart: Sequence[str] = HOW_KEPT) -> dict[str, Any]:
    """Return the facts of a run by name, such as `"optimizers[0].groups[0].lr"`, `"handlers on exit of after_step"`.

    First what it was asked for and is made of, then its handlers by moment, then the arcs of its table by state.

    Args:
        source: The log.
        apart: Facts that are left out.
    """
    # a log that does not say how many ranks its run had is older than ranks: it had one
    told = {"world": 1, **{name: value for name, value in source.facts.items() if name not in ("handlers", *apart)}}
    arcs = {
        f"arcs from {state}": [f"{arc.dest} if {arc.guard}" if arc.guard else arc.dest for arc in rows]
        for state, rows in source.table.leaving.items()
    }
    return _flat(told) | _by_moment(source.facts.get("handlers", ())) | arcs


def differing(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the facts that differ between runs, each with its value in every run; `None` where one lacks it."""
    for name in sorted(dict.fromkeys(name for facts in runs for name in facts), key=_group_of):
        values = [facts.get(name) for facts in runs]
        if len({json.dumps(value) for value in values}) > 1:  # as plain data: a tuple is a list, NaN is NaN
            yield name, values


def _group_of(name: str) -> int:
    """Return what to sort facts by: handlers after settings, and arcs last."""
    return 2 if name.startswith("arcs from ") else name.startswith("handlers on ")


def _by_moment(handlers: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Return who is called on each moment of each state, in order."""
    moments: dict[str, list[str]] = {}
    for state, moment, who, words, *_ in handlers:
        name = f"handlers on {'exit of' if moment == 'exit' else 'entry to'} {state}"
        moments.setdefault(name, []).append(f"{who} ({words})" if words else who)
    return moments


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested plain data as a flat mapping from paths to values."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", facts)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            inside = cast("Mapping[Any, Any]", value).items()
            parts = [(f"{name}.{key}" if name else str(key), part) for key, part in inside]
        elif isinstance(value, list | tuple):
            parts = [(f"{name}[{place}]", part) for place, part in enumerate(cast("Sequence[Any]", value))]
        else:
            found[name] = value
            continue
        waiting += reversed(parts)
    return found


def fact_in_words(value: Any) -> str:
    """Return the value of a fact in words; `None` is a fact that a run lacks."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[Any]", value))) or "nobody"
    return str(value)
