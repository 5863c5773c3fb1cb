"""`heptad export`: a journal as JSON lines, as CSV, or in the Chrome trace format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from heptad.cli.arguments import takes_journals
from heptad.cli.output import is_stdout, print_json, print_line
from heptad.errors import LogError
from heptad.history.export import csv_rows, jsonl, timeline
from heptad.history.query import TransitionLog

STDOUT = "-"
"""The name of standard output."""

FORMATS = {"jsonl": jsonl.write, "csv": csv_rows.write, "trace": timeline.write}


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file")
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
    log, path = TransitionLog.load(arguments.file), Path(arguments.output)
    write = FORMATS[arguments.format]
    if arguments.output == STDOUT or is_stdout(path):
        sys.stdout.flush()
        write(log.source, sys.stdout.buffer)  # nothing else is printed: it would become a part of the export
        return 0
    if path.exists() and path.samefile(arguments.file):
        raise LogError(f"{path} is the journal itself; name another file to write to")
    write(log.source, path)
    if arguments.json:
        print_json({"path": str(path), "format": arguments.format, "transitions": len(log)})
    else:
        print_line(f"{len(log):,} transitions in {path}")
    return 0
