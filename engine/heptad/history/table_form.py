"""A table as plain data, as journals and exports hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import replace
from itertools import chain
from typing import Any

from heptad.errors import TableError
from heptad.table import Arc, State, Table

FAILED = "failed"
MOST_STATES, MOST_ARCS = 1024, 4096
"""In a file. A detour by itself has some ten arcs; n of them after one state have n²/2 between them."""


def table_to_plain(table: Table) -> dict[str, Any]:
    """Return a table as plain data, from which `table_from_plain` makes it again."""
    return {
        "states": [[state.name, state.kind, state.body, state.shown, state.after] for state in table.states],
        "arcs": [[arc.source, arc.dest, arc.guard] for arc in table.arcs],
        "guards": list(table.guards),
        "origin": dict(table.origin),
    }


def check_size(states: Sized, arcs: Sized) -> None:
    """Refuse a table that no journal holds.

    Raises:
        TableError: If it is too large.
    """
    if len(states) > MOST_STATES or len(arcs) > MOST_ARCS:
        raise TableError(
            f"a journal holds a table of {MOST_STATES:,} states and {MOST_ARCS:,} arcs at most, this one has "
            f"{len(states):,} and {len(arcs):,}; each detour after a state has an arc to every later one after it"
        )


def table_from_plain(plain: Mapping[str, Any]) -> Table:
    """Return the table that `table_to_plain` was given.

    Rows of states without `after`, as journals of version 1 hold them, get it from the arcs.

    Raises:
        TableError: If it is not a table that could be built, or larger than any: what is asked of one takes time with
            the square of its size.
    """
    check_size(plain["states"], plain["arcs"])
    rows = [*plain["states"], *(row[:2] for row in plain["arcs"]), plain["guards"], plain["origin"]]
    guards = [guard for row in plain["arcs"] for guard in row[2:] if guard is not None]
    if not all(isinstance(name, str) for name in chain(guards, *rows)):
        raise TableError("a name in the table is no text")
    if not all(isinstance(number, int) for number in plain["origin"].values()):
        raise TableError("the place of a detour in the table is no number")
    arcs = [Arc(*row) for row in plain["arcs"]]
    states = [State(*row) for row in plain["states"]]
    scopes = {state.name for state in states if state.kind == "scope"}
    left = {arc.dest: arc.source for arc in arcs if arc.source in scopes}
    states = [
        replace(state, after=left.get(state.name, "")) if state.kind == "detour" and not state.after else state
        for state in states
    ]
    if FAILED not in {state.name for state in states}:
        raise TableError(f"the table has no state '{FAILED}', which a run ends in that an exception ends")
    return Table(states, arcs, plain["guards"], plain["origin"])
