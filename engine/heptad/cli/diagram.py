"""`heptad diagram`: the table of a run, detours included, as a Mermaid state diagram."""

from __future__ import annotations

import argparse

from heptad.cli.arguments import takes_journals
from heptad.cli.output import print_json, print_line
from heptad.history.drawing import mermaid
from heptad.history.query import TransitionLog
from heptad.history.table_form import table_to_plain


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    table = TransitionLog.load(arguments.file).source.table
    if arguments.json:
        print_json({"mermaid": mermaid(table), "table": table_to_plain(table)})
    else:
        print_line(mermaid(table))
    return 0
