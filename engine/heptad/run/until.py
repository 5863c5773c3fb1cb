"""`until=`: where a run is to pause."""

from __future__ import annotations

from collections.abc import Callable

from heptad.errors import EngineError, nearest
from heptad.run.run import Run
from heptad.table import Table

Until = Callable[[Run], bool]


def until_predicate(until: str | Until | None, table: Table) -> Until | None:
    """Return the predicate that a state or a predicate stands for.

    Raises:
        EngineError: If it is neither, or no state of the table.
    """
    if until is None or not isinstance(until, str):
        if until is not None and not callable(until):
            raise EngineError(f"until must be a state or a predicate of the run, got {until!r}")
        return until
    if not table.named(until):
        raise EngineError(f"run(until='{until}'): there is no such state{nearest(until, table.shown.values())}")
    return lambda run: run.state == until
