"""`heptad export`: a journal as JSON lines, as CSV, or in the Chrome trace format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from heptad.cli.arguments import load_log, takes_journals, takes_rank
from heptad.cli.output import is_stdout, print_json, print_line
from heptad.errors import LogError
from heptad.history.export import csv_rows, jsonl, timeline
from heptad.history.journal.family import files_of_ranks

STDOUT = "-"
"""The name of standard output."""

FORMATS = {"jsonl": jsonl.write, "csv": csv_rows.write, "trace": timeline.write}


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file")
    takes_rank(parser, "all, with the rank in each row")
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="trace opens in https://ui.perfetto.dev")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        required=True,
        help=f"the file to replace, or a pipe or device to write to; {STDOUT} is standard output",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    log, path = load_log(arguments), Path(arguments.output)
    logs = log.all_ranks.sources()
    write = FORMATS[arguments.format]
    if arguments.output == STDOUT or is_stdout(path):
        sys.stdout.flush()
        write(logs, sys.stdout.buffer)  # nothing else is printed: it would become a part of the export
        return 0
    journal = Path(arguments.file)
    for file in (journal, *files_of_ranks(journal).values()):
        if path.exists() and path.samefile(file):
            raise LogError(f"{path} is the journal itself; name another file to write to")
    write(logs, path)
    ranks = list(logs) if len(logs) > 1 else None
    if arguments.json:
        plain = {"path": str(path), "format": arguments.format, "transitions": len(log)}
        print_json(plain | ({"ranks": ranks} if ranks else {}))
    else:
        print_line(f"{len(log):,} transitions {f'on {len(ranks)} ranks ' if ranks else ''}in {path}")
    return 0
