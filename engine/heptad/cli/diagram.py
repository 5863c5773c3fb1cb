"""`heptad diagram`: the table of a run, detours included, as a Mermaid state diagram."""

from __future__ import annotations

import argparse

from heptad.cli.arguments import Commands, command, takes_file
from heptad.cli.files import open_log
from heptad.cli.output import data, line


def add_to(commands: Commands) -> None:
    """Adds the command."""
    takes_file(command(commands, "diagram", run, "draw the table of a run as a Mermaid state diagram"))


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    table = open_log(arguments.file).source.table
    if arguments.json:
        data({"mermaid": table.mermaid(), "table": table.to_plain()})
    else:
        line(table.mermaid())
    return 0
