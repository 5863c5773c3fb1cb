"""`SubscriptionTable`: who is called when, as `Engine.subscriptions()` returns it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from heptad.history.html import table
from heptad.plugin.manager import PluginManager
from heptad.plugin.marks import Moment
from heptad.plugin.subscription import Subscription
from heptad.table import REDO, Table


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A handler on a moment of a state.

    Attributes:
        state: The state.
        moment: `"enter"` or `"exit"`.
        order: Its place among the handlers of that moment, from 1; 0 for one that is idle.
        who: Plugin and method, or the function.
        filter: Which of the moment's events it is called at, in words; empty for all.
        idle: Why it is never called; empty for one that is.
    """

    state: str
    moment: Moment
    order: int
    who: str
    filter: str = ""
    idle: str = ""


class SubscriptionTable(Sequence[Subscribed]):
    """The handlers, in the order of the states, of their moments, and of the calls on a moment; `str()` is a table."""

    def __init__(self, rows: Iterable[Subscribed]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Subscribed: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Subscribed, ...]: ...
    def __getitem__(self, index: int | slice) -> Subscribed | tuple[Subscribed, ...]:
        return self._rows[index]

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [("state", "moment", "#", "who", "")]
        for row in self._rows:
            note = "; ".join(part for part in (row.filter, row.idle and f"idle: {row.idle}") if part)
            cells.append((row.state, row.moment, str(row.order or "-"), row.who, note))
        widths = [max(len(line[column]) for line in cells) for column in range(5)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        rows = [(one.state, one.moment, one.order or "-", one.who, one.filter, one.idle) for one in self._rows]
        return table("handlers", ("state", "moment", "#", "who", "filter", "idle because"), rows)

    def __repr__(self) -> str:
        return f"<SubscriptionTable: {len(self)} handlers>"


def tabulate(subscriptions: Iterable[Subscription], manager: PluginManager, states: Table) -> SubscriptionTable:
    """Return the table of subscriptions, with the reason why one is never called."""
    moments: dict[tuple[str, Moment], list[Subscribed]] = {}
    for subscription in subscriptions:
        mark, idle = subscription.mark, ""
        if mark.state not in states.scopes():
            idle = "RunConfig.redo names no cause" if mark.state == REDO else f"no plugin brings {mark.state}"
        elif subscription.plugin is not None:
            idle = manager.idle_because(subscription.plugin)
        rows = moments.setdefault((mark.state, mark.moment), [])
        order = 0 if idle else 1 + sum(not row.idle for row in rows)
        rows.append(Subscribed(mark.state, mark.moment, order, subscription.who, mark.words(), idle))
    known = dict.fromkeys((*states.scopes(), *(state for state, _ in moments)))
    both: tuple[Moment, ...] = ("enter", "exit")
    return SubscriptionTable(row for state in known for moment in both for row in moments.get((state, moment), ()))
