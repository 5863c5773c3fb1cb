"""`heptad diff`: where two runs part."""

from __future__ import annotations

import argparse
import sys

from heptad.cli.arguments import takes_journals
from heptad.cli.output import print_error, print_json, print_line
from heptad.errors import LogError
from heptad.history.diff import Diff
from heptad.history.export.rows import finite
from heptad.history.query import TransitionLog


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "here")
    parser.add_argument("there", metavar="THERE", nargs="?", help="another journal; none with --ranks")
    parser.add_argument(
        "--ranks",
        action="store_true",
        help="compare the paths of the ranks of one run, each with rank 0's, in place of two runs",
    )
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="ignore values of this name and notes of this kind, such as '*_per_second'; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        LogError: If there is one journal too few or too many.
    """
    if arguments.ranks:
        return _diff_ranks(arguments)
    if arguments.there is None:
        raise LogError("diff takes two journals, or one and --ranks for that of a run of several ranks")
    found = TransitionLog.load(arguments.here).diff(TransitionLog.load(arguments.there), ignore=arguments.ignore)
    if arguments.json:
        print_json(finite(found.to_plain()))
    else:
        print_line(found)
    return 1 if found else 0


def _diff_ranks(arguments: argparse.Namespace) -> int:
    """Compare the ranks of one run, and name the one that parts first.

    Raises:
        LogError: If there is one journal too many, or only one rank.
    """
    if arguments.there is not None or arguments.ignore:
        raise LogError("diff --ranks takes one journal, rank 0's, and compares paths: neither values nor notes")
    log = TransitionLog.load(arguments.here)
    missing = log.missing
    for rank, reason in missing.items():
        print_error(f"rank {rank} is left out: {reason}")
    if len(log.ranks) == 1:
        raise LogError(f"{arguments.here} holds rank {log.rank} of {log.world}: there is no other to compare it with")
    found = dict(sorted(log.diff_ranks().items(), key=_first_place))
    if arguments.json:
        parts = {str(rank): finite(parted.to_plain()) for rank, parted in found.items()}
        print_json({"same": not found, "ranks": list(log.ranks), "missing": list(missing), "parts": parts})
        return 1 if found else 0
    if not found:
        print_line(f"the path is the same on the ranks {', '.join(map(str, log.ranks))}")
        return 0
    for rank, parted in found.items():
        print_line(f"rank {rank} parts from rank 0: here is rank 0, there is rank {rank}")
        print_line(parted)
    return 1


def _first_place(parted: tuple[int, Diff]) -> tuple[int, int]:
    """Return what to sort ranks by: where they part, those of which only facts differ last."""
    rank, found = parted
    return sys.maxsize if found.seq is None else found.seq, rank
