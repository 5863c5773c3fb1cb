"""Recorded values as rows, to write them in a format for tables: each with its place, a chunk of the log at a time."""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from heptad.history.export.output import Target, replacing
from heptad.history.export.rows import json_number, rank_column
from heptad.history.source import Source

COLUMNS = ("seq", "epoch", "step", "update", "name", "value")


def each_value(logs: Mapping[int, Source]) -> Iterator[dict[str, Any]]:
    """Yield the values of the logs of ranks, those of rank 1 after those of rank 0."""
    for rank, source in logs.items():
        view = source.view()
        ends = [*(chunk.seq for chunk in view.chunks[1:]), sys.maxsize]  # the last with those of the turn under way
        first = view.first
        for end in ends:
            for value in source.values_between(first, end):
                yield rank_column(logs, rank) | {name: getattr(value, name) for name in COLUMNS}
            first = end


def write_values_csv(logs: Mapping[int, Source], target: Target) -> None:
    """Write them as CSV.

    Raises:
        OSError: If the target cannot be written.
    """
    with replacing(target) as file:
        rows = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"), lineterminator="\n")
        rows.writerow((rank_column(logs, 0) | dict.fromkeys(COLUMNS)).keys())
        for row in each_value(logs):
            rows.writerow(row.values())


def write_values_jsonl(logs: Mapping[int, Source], target: Target) -> None:
    """Write them as lines of JSON, one for each value; NaN and the infinities are texts.

    Raises:
        OSError: If the target cannot be written.
    """
    with replacing(target) as file:
        for row in each_value(logs):
            line = json.dumps(row | {"value": json_number(row["value"])}, allow_nan=False)
            file.write(line.encode() + b"\n")
