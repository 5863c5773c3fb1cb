"""`heptad export`: a log as lines of JSON, as CSV, or in the Chrome trace format."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from heptad.cli.arguments import Commands, command, takes_file
from heptad.cli.files import open_log
from heptad.cli.output import data, line
from heptad.errors import LogError
from heptad.log import TransitionLog
from heptad.log.decode import by_seq
from heptad.log.jsonl import plain
from heptad.log.output import written

FORMATS = ("jsonl", "csv", "trace")


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "export", run, "write a log in another format")
    takes_file(parser)
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="trace opens in https://ui.perfetto.dev")
    parser.add_argument("-o", "--output", metavar="PATH", required=True, help="the file to write; it is replaced")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    log, path = open_log(arguments.file), Path(arguments.output)
    if path.exists() and path.samefile(arguments.file):
        raise LogError(f"{path} is the log itself; name another file to write to")
    match arguments.format:
        case "csv":
            to_csv(log, path)
        case "trace":
            log.to_trace(path)
        case _:
            log.to_jsonl(path)
    if arguments.json:
        data({"path": str(path), "format": arguments.format, "transitions": len(log)})
    else:
        line(f"{len(log):,} transitions in {path}")
    return 0


def to_csv(log: TransitionLog, path: Path) -> None:
    """Writes a row for each transition; guards and notes are words.

    Raises:
        OSError: If the file cannot be written.
    """
    notes = by_seq(log.notes())
    with written(path) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True) as file:
        rows = csv.writer(file, lineterminator="\n")
        for number, transition in enumerate(log):
            row = plain(transition) | {"guards": transition.answers()}
            told = "; ".join(f"{note.kind}: {note.text}" for note in notes.get(transition.seq, []))
            if not number:
                rows.writerow([*row, "notes"])
            rows.writerow([*row.values(), told])
