"""`heptad diff`: where two runs part."""

from __future__ import annotations

import argparse

from heptad.cli.arguments import Commands, command, takes_file
from heptad.cli.files import open_log
from heptad.cli.output import data, line


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "diff", run, "tell where two runs part; exit code 1 if they differ in more than times")
    takes_file(parser, "here")
    takes_file(parser, "there")
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out values of this name and notes of this kind, such as '*_per_second'; may be given again",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    found = open_log(arguments.here).diff(open_log(arguments.there), ignore=arguments.ignore)
    if arguments.json:
        data(found.to_plain())
    else:
        line(found)
    return 1 if found else 0
