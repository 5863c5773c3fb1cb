"""The table of a run as a drawing in SVG: places follow from the table, counts and times from the walk.

The engine's own states stand below each other in the order of the table. A detour stands to the right of the state that
it leaves from. An arc to the next state is straight, one further down bends to the right, one back up to the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from heptad.history.source import Source
from heptad.history.wording import readable_time, shown_share
from heptad.report.walk import Walk
from heptad.report.words import harmless
from heptad.table import Arc, State, Table

WIDE, HIGH = 168, 44
ROW, COLUMN = 88, 250
LEFT, TOP = 210, 20

COUNT = 70
"""Room for a count beside the arc that bends farthest: ten million."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A state with the middle of its box."""

    state: State
    x: float
    y: float


def places(table: Table, failed: bool) -> dict[str, Placed]:
    """Return where each state stands, by the name of its node; `failed` only where the run did."""
    found: dict[str, Placed] = {}
    trunk = [state for state in table.states if state.kind not in ("detour", "failed")]
    for row, state in enumerate(trunk):
        found[state.name] = Placed(state, LEFT + WIDE / 2, TOP + HIGH / 2 + row * ROW)
    beside: dict[str, int] = {}
    for state in table.states:
        if state.kind == "detour":
            after = state.after if state.after in found else trunk[-1].name
            number = beside[after] = beside.get(after, 0) + 1
            at = found[after]
            found[state.name] = Placed(state, at.x + COLUMN + 40 + (number - 1) * (WIDE + 60), at.y + ROW / 2 - 8)
    for state in table.states:
        if state.kind == "failed" and failed:
            last = found[trunk[-1].name]
            found[state.name] = Placed(state, last.x + COLUMN + 40, last.y)
    return found


def drawing(source: Source, walk: Walk, run: int) -> str:
    """Return the graph as SVG. Every text in it is escaped.

    Args:
        source: The log.
        walk: How often each arc was taken, and the time in each state.
        run: The number of the run in the page, for what is clicked.
    """
    table = source.table
    at = places(table, bool(walk.taken[len(table.arcs) :].any()))
    times = [0] * len(table.states)
    entered = [0] * len(table.states)
    sources, dests = source.effects.sources.tolist(), source.effects.dests.tolist()
    for number, (taken, time) in enumerate(zip(walk.taken.tolist(), walk.spent.tolist(), strict=True)):
        times[sources[number]] += time
        entered[dests[number]] += taken
    total = sum(times) or 1
    arcs = [_arc(arc, number, at, table, int(walk.taken[number]), run) for number, arc in enumerate(table.arcs)]
    failures = [
        _failure_arc(at[state.name], at["failed"], int(walk.taken[len(table.arcs) + number]))
        for number, state in enumerate(table.states)
        if walk.taken[len(table.arcs) + number] and "failed" in at
    ]
    boxes = [
        _box(placed, times[table.index[name]], total, entered[table.index[name]], run) for name, placed in at.items()
    ]
    left, right = _sides(table, at)
    wide = right - left
    high = max(placed.y for placed in at.values()) + HIGH / 2 + 24
    return (
        f'<svg class="graph" viewBox="{left:.0f} 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" height="{high:.0f}" '
        f'role="img" aria-label="The states of the run, and how often each arc was taken">'
        f"<title>The table of the run as a graph</title>"
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 10 5 0 10z" fill="currentColor"/></marker></defs>'
        f"{''.join(arcs)}{''.join(failures)}{''.join(boxes)}</svg>"
    )


def _sides(table: Table, at: Mapping[str, Placed]) -> tuple[float, float]:
    """Return from where to where the drawing reaches: boxes, arcs that bend aside, and room for their counts."""
    bends = [_path(at[arc.source], at[arc.dest], at, table)[1] for arc in table.arcs]
    boxes = [placed.x for placed in at.values()]
    left = min(min(boxes) - WIDE / 2, min(bends, default=LEFT))
    return left - COUNT, max(max(boxes) + WIDE / 2, max(bends, default=LEFT)) + COUNT


def _box(placed: Placed, time: int, total: int, entered: int, run: int) -> str:
    share = time / total
    name = escape(harmless(placed.state.shown, 24))
    x, y = placed.x - WIDE / 2, placed.y - HIGH / 2
    words = f"{entered:,} × · {shown_share(share, 1)} of the time" if entered else "never entered"
    if placed.state.kind == "start":
        words = "the start"
    elif placed.state.kind in ("end", "failed") and entered:
        words = "the end"
    unused = "" if entered or placed.state.kind == "start" else " unused"
    return (
        f'<g class="node{unused}" tabindex="0" role="button" data-run="{run}" data-node="{escape(placed.state.name)}">'
        f"<title>{name}: entered {entered:,} times, {readable_time(time)}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDE}" height="{HIGH}" rx="7"/>'
        f'<rect class="shade" x="{x:.0f}" y="{y:.0f}" width="{WIDE}" height="{HIGH}" rx="7" '
        f'fill-opacity="{0.85 * share**0.5:.3f}"/>'
        f'<text x="{placed.x:.0f}" y="{placed.y - 3:.0f}">{name}</text>'
        f'<text class="small" x="{placed.x:.0f}" y="{placed.y + 14:.0f}">{words}</text></g>'
    )


def _arc(arc: Arc, number: int, at: dict[str, Placed], table: Table, taken: int, run: int) -> str:
    one, two = at[arc.source], at[arc.dest]
    path, x, y, anchor = _path(one, two, at, table)
    label = f'<text class="count" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{taken:,}</text>' if taken else ""
    guard = f" if {arc.guard}" if arc.guard else ""
    said = escape(f"{table.shown[arc.source]} to {table.shown[arc.dest]}{guard}: taken {taken:,} times")
    return (
        f'<g class="arc{"" if taken else " unused"}" tabindex="0" role="button" data-run="{run}" data-arc="{number}">'
        f'<title>{said}</title><path class="hit" d="{path}"/>'
        f'<path class="line" d="{path}" marker-end="url(#tip)"/>{label}</g>'
    )


def _failure_arc(one: Placed, failed: Placed, taken: int) -> str:
    path, x, y, anchor = _sideways(one, failed, 0)
    said = escape(f"{one.state.shown} failed {taken:,} times")
    return (
        f'<g class="arc failure"><title>{said}</title><path class="line" d="{path}" marker-end="url(#tip)"/>'
        f'<text class="count" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">failed</text></g>'
    )


def _path(one: Placed, two: Placed, at: Mapping[str, Placed], table: Table) -> tuple[str, float, float, str]:
    """Return the way of an arc, and where its count stands."""
    if "detour" in (one.state.kind, two.state.kind):
        leaving = [arc.dest for arc in table.leaving[one.state.name]]
        away = leaving.index(two.state.name) - (len(leaving) - 1) / 2 if one.state.kind == "detour" else 0
        return _sideways(one, two, away)
    rows = round((two.y - one.y) / ROW)
    if rows == 1:
        top, bottom = one.y + HIGH / 2, two.y - HIGH / 2
        return f"M{one.x:.0f} {top:.0f}V{bottom:.0f}", one.x + 8, (top + bottom) / 2 + 4, "start"
    side = 1 if rows > 0 else -1
    reach = (26 + 19 * abs(rows)) * side
    x = one.x + side * WIDE / 2
    from_y, to_y = one.y + (9 if rows > 0 else -9), two.y + (-9 if rows > 0 else 9)
    out = x + reach * 1.33
    bend = f"M{x:.0f} {from_y:.0f}C{out:.0f} {from_y:.0f} {out:.0f} {to_y:.0f} {x:.0f} {to_y:.0f}"
    return bend, x + reach + 4 * side, (from_y + to_y) / 2 + 4, "start" if side > 0 else "end"


def _sideways(one: Placed, two: Placed, away: float) -> tuple[str, float, float, str]:
    """Return the way of an arc to a state in another column, and where its count stands: near the detour.

    Args:
        one: Where it begins.
        two: Where it ends.
        away: How far from the middle of its side it begins: those that leave a detour begin side by side.
    """
    side = 1 if two.x > one.x else -1
    if abs(two.x - one.x) < WIDE:  # within a column of detours
        x = one.x + WIDE / 2
        bend = f"M{x:.0f} {one.y:.0f}C{x + 70:.0f} {one.y:.0f} {x + 70:.0f} {two.y:.0f} {x:.0f} {two.y:.0f}"
        return bend, x + 58, (one.y + two.y) / 2 + 4, "start"
    x1, x2 = one.x + side * WIDE / 2, two.x - side * WIDE / 2
    y1, y2 = one.y + (6 if side > 0 else 13 * away), two.y + (-10 if side > 0 else 5 if one.y > two.y else -5)
    middle = (x1 + x2) / 2
    near = 0.72 if side > 0 else 0.2
    bend = f"M{x1:.0f} {y1:.0f}C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
    x, y = _on_curve((x1, middle, middle, x2), near), _on_curve((y1, y1, y2, y2), near)
    return bend, x, y - 4, "middle"


def _on_curve(points: tuple[float, float, float, float], t: float) -> float:
    """Return a coordinate of a point of a cubic Bézier curve."""
    a, b, c, d = points
    s = 1 - t
    return s**3 * a + 3 * s * s * t * b + 3 * s * t * t * c + t**3 * d
