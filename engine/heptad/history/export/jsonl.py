"""A log as JSON lines: a header, then one object for each transition.

This is an export for other programs and is not read back; the format that is read back is the journal. The header holds
what no line does: the table, the facts, the failure, and the notes and values of the turn that is under way. With
several ranks each line has its `rank`, those of rank 1 follow those of rank 0, and in the header `ranks` holds for each
what differs between them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any

from heptad.history.decode import Decoder, by_seq
from heptad.history.export.output import Target, replacing
from heptad.history.export.rows import call_row, finite, note_row, rank_column, transition_row, value_row
from heptad.history.source import Source
from heptad.history.table_form import table_to_plain
from heptad.record.chunk import View

FORMAT = "heptad log"
VERSION = 2


def write(logs: Mapping[int, Source], target: Target) -> None:
    """Write the logs of ranks, with one chunk in memory at a time.

    Raises:
        OSError: If the target cannot be written.
    """
    views = {rank: source.view() for rank, source in logs.items()}
    lines = (rank_column(logs, rank) | line for rank in logs for line in _lines(logs[rank], views[rank]))
    with replacing(target) as file:
        for line in chain([_log_header(logs, views)], lines):
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def _log_header(logs: Mapping[int, Source], views: Mapping[int, View]) -> Mapping[str, Any]:
    first, source = next(iter(logs.items()))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "table": table_to_plain(source.table),
        "facts": finite(dict(source.facts)),
        **_last_turn(source, views[first]),
    }
    if len(logs) > 1:
        header["ranks"] = [{"rank": rank, **_last_turn(logs[rank], views[rank])} for rank in logs]
    return header


def _last_turn(source: Source, view: View) -> dict[str, Any]:
    """Return how a log ends: the failure, and what came in the turn under way."""
    return {
        "failure": None if source.failure is None else asdict(source.failure),
        "notes": [note_row(note) for note in source.events(view.end)],
        "values": [value_row(value) for value in source.values_between(view.end, sys.maxsize)],
    }


def _lines(source: Source, view: View) -> Iterator[dict[str, Any]]:
    """Yield the transitions, each with the notes, values and calls of its turn."""
    decoder = Decoder(source)
    notes = by_seq(source.events(view.first))
    for chunk in view.chunks:
        first, end = max(chunk.seq, view.first), chunk.seq + len(chunk)
        values = by_seq(source.values_between(first, end))
        calls = by_seq(source.calls(first, end))
        for transition in decoder.at(view, range(first, end)):
            seq = transition.seq
            line = transition_row(transition) | {"notes": [note_row(note) for note in notes.get(seq, ())]}
            if seq in values:
                line["values"] = [value_row(value) for value in values[seq]]
            if seq in calls:
                line["calls"] = [call_row(call) for call in calls[seq]]
            yield line
