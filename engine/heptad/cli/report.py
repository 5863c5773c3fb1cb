"""`heptad report`: one or several runs as a page that opens from disk."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from heptad.cli.output import is_stdout, print_error, print_json, print_line
from heptad.history.query import TransitionLog
from heptad.report.page import write_report

STDOUT = "-"
"""The name of standard output."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a journal, or a run folder with one; several are compared"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        default="report.html",
        help=f"the file to replace; {STDOUT} is standard output; report.html",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        LogError: If the page would replace a journal, an extra is missing, or a journal cannot be read.
    """
    logs = [TransitionLog.load(path) for path in arguments.runs]
    for log in logs:
        for rank, reason in log.missing.items():
            print_error(f"rank {rank} is left out: {reason}")
    path = Path(arguments.output)
    if arguments.output == STDOUT or is_stdout(path):
        sys.stdout.flush()
        write_report(logs, sys.stdout.buffer)
        return 0
    write_report(logs, path)
    if arguments.json:
        print_json({"path": str(path), "runs": list(arguments.runs), "bytes": path.stat().st_size})
    else:
        print_line(f"{path}: open it in a browser; it needs no network")
    return 0
