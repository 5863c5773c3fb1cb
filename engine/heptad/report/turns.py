"""Turns one by one, packed for the page's script: all of a short run; of a long one those around what is remarkable.

It owns what the page can show turn by turn, and what its script needs to say why a turn took its arc. Called by `page`
for the file, and by `server` for the stretch that somebody looks at.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Iterable
from typing import Any

import numpy as np

from heptad.history.decode import Decoder, blocks, holding
from heptad.history.explain import handlers_of
from heptad.history.source import Source
from heptad.record.chunk import Ints, View
from heptad.report.words import harmless

AT_ONCE = 20_000
"""Turns that are drawn one by one, and that one question to the server may be for."""

WHOLE = 200_000
"""Turns that a page holds one by one."""

AROUND = 250
"""Turns before and after a remarkable one that the page of a long run holds."""


def deflated(array: np.ndarray[Any, Any]) -> str:
    """Return an array deflated, as base64, little-endian."""
    return b64encode(zlib.compress(array.astype(array.dtype.newbyteorder("<")).tobytes(), 6)).decode("ascii")


def stretch_of_turns(source: Source, view: View, first: int, end: int) -> dict[str, Any]:
    """Return some consecutive turns that the view holds: arcs, microseconds, and what was true before the first."""
    chunk = holding(view, first)
    counters = Decoder(source).counters(chunk, first - chunk.seq - 1)
    arcs: list[Ints] = []
    spent: list[Ints] = []
    skipped: list[int] = []
    times = 0
    chunks = [chunk for chunk in view.chunks if chunk.seq < end and chunk.seq + len(chunk) > first]
    for block in blocks(View(chunks, first, end)):
        if not times:
            times = int(block.times()[0]) - int(block.spent()[0])
        arcs.append(block.arcs)
        spent.append(block.spent())
        skipped += [one.seq + place for one in block.chunks for place in one.skipped if first <= one.seq + place < end]
    count = end - first
    return {
        "first": first,
        "count": count,
        "arcs": deflated(np.concatenate(arcs)[:count].astype(np.uint16)),
        "spent": deflated((np.concatenate(spent)[:count] / 1e3).astype(np.float32)),
        "counters": list(counters),
        "began": times / 1e6,
        "skipped": skipped,
    }


def remarkable(view: View, seqs: Iterable[int], most: int) -> list[tuple[int, int]]:
    """Return the stretches that a page holds turn by turn: all, or the first, the last and those around some turns.

    Args:
        view: The turns that are kept.
        seqs: The remarkable turns, the most remarkable first.
        most: How many turns the page may hold.
    """
    if view.end - view.first <= most:
        return [(view.first, view.end)] if view.end > view.first else []
    few = most // 10
    wanted = [(view.end - few, view.end), (view.first, view.first + few // 2)]
    left = most - few - few // 2
    for seq in seqs:
        if left < 2 * AROUND:
            break
        wanted.append((max(view.first, seq - AROUND), min(view.end, seq + AROUND)))
        left -= 2 * AROUND
    joined: list[tuple[int, int]] = []
    for low, high in sorted(wanted):
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        elif high > low:
            joined.append((low, high))
    return joined


def rules(source: Source) -> dict[str, Any]:
    """Return what the script explains a turn by: the table, what arcs do to the counters, who is called."""
    table, effects = source.table, source.effects
    nodes = [[state.shown, state.kind] for state in table.states]
    handlers: dict[str, list[str]] = {}
    for one in handlers_of(source.facts)[:2_000]:
        words = f"{one.who} ({one.filter})" if one.filter else one.who
        handlers.setdefault(f"{one.moment} {one.state}", []).append(harmless(words, 200))
    return {
        "nodes": nodes,
        "arcs": [[table.index[arc.source], table.index[arc.dest], arc.guard] for arc in table.arcs],
        "step": effects.counts_step.astype(int).tolist(),
        "update": effects.counts_update.astype(int).tolist(),
        "epoch": effects.counts_epoch.astype(int).tolist(),
        "opens": effects.opens_epoch.astype(int).tolist(),
        "handlers": handlers,
    }
