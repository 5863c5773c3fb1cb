"""Who is called when: the table that `Engine.subscriptions()` returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from heptad.plugin import Edge, Subscription
from heptad.states import Table


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A handler on an edge of a state.

    Attributes:
        state: The state.
        edge: `"enter"` or `"exit"`.
        order: Its place among the handlers of that edge, from 1; 0 for one that is idle.
        who: Plugin and method, or the function.
        filter: Which of the edge's events it hears, in words; empty for all.
        idle: Why it is never called; empty for one that is.
    """

    state: str
    edge: Edge
    order: int
    who: str
    filter: str = ""
    idle: str = ""


class SubscriptionTable(Sequence[Subscribed]):
    """The handlers, in the order of the states, of their edges, and of the calls on an edge; `str()` is a table."""

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
        cells: list[tuple[str, ...]] = [("state", "edge", "#", "who", "")]
        for row in self._rows:
            told = "; ".join(part for part in (row.filter, row.idle and f"idle: {row.idle}") if part)
            cells.append((row.state, row.edge, str(row.order or "-"), row.who, told))
        widths = [max(len(line[column]) for line in cells) for column in range(5)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        return f"<SubscriptionTable: {len(self)} handlers>"


def tabulate(subscriptions: Iterable[tuple[Subscription, str]], table: Table) -> SubscriptionTable:
    """Returns the table of subscriptions, each with the reason why it is idle, if it is."""
    edges: dict[tuple[str, Edge], list[Subscribed]] = {}
    for subscription, idle in subscriptions:
        mark = subscription.mark
        rows = edges.setdefault((mark.state, mark.edge), [])
        order = 0 if idle else 1 + sum(not row.idle for row in rows)
        rows.append(Subscribed(mark.state, mark.edge, order, subscription.who, mark.words(), idle))
    states = dict.fromkeys((*table.scopes(), *(state for state, _ in edges)))
    both: tuple[Edge, ...] = ("enter", "exit")
    return SubscriptionTable(row for state in states for edge in both for row in edges.get((state, edge), ()))
