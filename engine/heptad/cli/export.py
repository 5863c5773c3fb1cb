"""`heptad export`: transitions or recorded values, all or a range, as JSON lines, CSV, Parquet or a trace."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from heptad.cli.arguments import any_given, conditions, load_log, takes_journals, takes_ranges, takes_rank
from heptad.cli.output import is_stdout, print_json, print_line
from heptad.errors import LogError, counted
from heptad.history.export import csv_rows, jsonl, parquet, timeline, value_rows
from heptad.history.part import LogPart, range_of
from heptad.history.source import Source

STDOUT = "-"
"""The name of standard output."""

Write = Callable[[Mapping[int, Source], Any], None]

FORMATS: dict[str, Write] = {
    "jsonl": jsonl.write,
    "csv": csv_rows.write,
    "parquet": parquet.write_parquet,
    "trace": timeline.write,
}
OF_VALUES: dict[str, Write] = {
    "jsonl": value_rows.write_values_jsonl,
    "csv": value_rows.write_values_csv,
    "parquet": parquet.write_values_parquet,
    "trace": timeline.write_values_trace,
}

BY_NAME = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "trace"}
"""The format that the end of a file's name stands for, `.gz` left out; any other is `jsonl`."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file")
    takes_rank(parser, "all, with the rank in each row")
    takes_ranges(parser)
    parser.add_argument("--values", action="store_true", help="the recorded values in place of the transitions")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="by default what the name of the output says, else jsonl; trace opens in https://ui.perfetto.dev",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        required=True,
        help=f"the file to replace (….gz is compressed), or a pipe or device to write to; {STDOUT} is standard output",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        LogError: If nothing matches, if the format does not go with the name, or if the path is the journal.
    """
    log, path = load_log(arguments), Path(arguments.output)
    unpacked = path.with_suffix("") if path.suffix == ".gz" else path
    name = arguments.format or BY_NAME.get(unpacked.suffix, "jsonl")
    if name == "parquet" and path.suffix == ".gz":
        raise LogError(f"Parquet is compressed by itself; name the output {unpacked}")
    write = (OF_VALUES if arguments.values else FORMATS)[name]
    logs: Mapping[int, Source] = log.all_ranks.sources()
    if any_given(asked := conditions(arguments)):
        first, end = range_of(log.source, asked)
        if first == end:
            raise LogError("no transition matches; `heptad show` lists the transitions")
        logs = {rank: LogPart(source, first, end) for rank, source in logs.items()}
    if arguments.output == STDOUT or is_stdout(path):
        sys.stdout.flush()
        write(logs, sys.stdout.buffer)  # nothing else is printed: it would become a part of the export
        return 0
    write(logs, path)
    _print_done(arguments, name, path, logs)
    return 0


def _print_done(arguments: argparse.Namespace, name: str, path: Path, logs: Mapping[int, Source]) -> None:
    """Print what was written where."""
    view = next(iter(logs.values())).view()
    ranks = list(logs) if len(logs) > 1 else None
    if arguments.json:
        plain = {"path": str(path), "format": name, "transitions": view.end - view.first}
        print_json(plain | ({"ranks": ranks} if ranks else {}))
        return
    what = "the recorded values of " if arguments.values else ""
    print_line(
        f"{what}{counted(view.end - view.first, 'transition')} {f'on {len(ranks)} ranks ' if ranks else ''}in {path}"
    )
