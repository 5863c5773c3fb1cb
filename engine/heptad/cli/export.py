"""`heptad export`: a log as lines of JSON, as CSV, or in the Chrome trace format."""

from __future__ import annotations

import argparse
import codecs
import csv
import sys
from pathlib import Path

from heptad.cli.arguments import Commands, command, takes_file
from heptad.cli.files import open_log
from heptad.cli.output import data, is_stdout, line
from heptad.errors import LogError
from heptad.history.decode import by_seq
from heptad.history.export import jsonl, timeline
from heptad.history.export.jsonl import plain
from heptad.history.export.output import Target, written
from heptad.history.query import TransitionLog

STDOUT = "-"
"""What standard output is called."""


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "export", run, "write a log in another format")
    takes_file(parser)
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="trace opens in https://ui.perfetto.dev")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        required=True,
        help=f"the file to write; it is replaced, but a pipe or a device is written to; {STDOUT} is standard output",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    log, path = open_log(arguments.file), Path(arguments.output)
    write = FORMATS[arguments.format]
    if arguments.output == STDOUT or is_stdout(path):
        sys.stdout.flush()
        write(log, sys.stdout.buffer)  # and nothing else, which a reader would take for a part of it
        return 0
    if path.exists() and path.samefile(arguments.file):
        raise LogError(f"{path} is the log itself; name another file to write to")
    write(log, path)
    if arguments.json:
        data({"path": str(path), "format": arguments.format, "transitions": len(log)})
    else:
        line(f"{len(log):,} transitions in {path}")
    return 0


def to_jsonl(log: TransitionLog, target: Target) -> None:
    """Writes lines of JSON.

    Raises:
        OSError: If they cannot be written.
    """
    jsonl.write(log.source, target)


def to_trace(log: TransitionLog, target: Target) -> None:
    """Writes a log in the Chrome trace format.

    Raises:
        OSError: If it cannot be written.
    """
    timeline.write(log.source, target)


def to_csv(log: TransitionLog, target: Target) -> None:
    """Writes a row for each transition; guards and notes are words.

    Raises:
        OSError: If it cannot be written.
    """
    notes = by_seq(log.notes())
    with written(target) as file:
        # half a surrogate pair, as in names of files that are no UTF-8, is written out
        rows = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"), lineterminator="\n")
        for number, transition in enumerate(log):
            row = plain(transition) | {"guards": transition.answers()}
            told = "; ".join(f"{note.kind}: {note.text}" for note in notes.get(transition.seq, []))
            if not number:
                rows.writerow([*row, "notes"])
            rows.writerow([*row.values(), told])


FORMATS = {"jsonl": to_jsonl, "csv": to_csv, "trace": to_trace}
