"""`heptad summary`: how a run went, in ten lines. `heptad RUN.journal` is the same."""

from __future__ import annotations

import argparse

from heptad.cli.arguments import load_log, takes_journals, takes_rank
from heptad.cli.grid import print_fields
from heptad.cli.output import print_json
from heptad.history.export.rows import finite


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file")
    takes_rank(parser, "rank 0's, and what was unusual on all")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    found = load_log(arguments).verdict()
    if arguments.json:
        print_json(finite(found.to_plain()))
    else:
        print_fields({line.title: line.parts for line in found.lines}, optional=("next",))
    return 0
