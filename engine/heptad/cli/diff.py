"""`heptad diff`: where two runs part."""

from __future__ import annotations

import argparse

from heptad.cli.arguments import takes_journals
from heptad.cli.output import print_json, print_line
from heptad.history.export.rows import finite
from heptad.history.query import TransitionLog


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "here", "there")
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="ignore values of this name and notes of this kind, such as '*_per_second'; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    found = TransitionLog.load(arguments.here).diff(TransitionLog.load(arguments.there), ignore=arguments.ignore)
    if arguments.json:
        print_json(finite(found.to_plain()))
    else:
        print_line(found)
    return 1 if found else 0
