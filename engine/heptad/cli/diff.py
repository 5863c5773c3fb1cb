"""`heptad diff`: where two runs part, and how they compare."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from heptad.cli.compare import print_comparison
from heptad.cli.grid import print_text
from heptad.cli.output import print_error, print_json, print_line
from heptad.errors import LogError
from heptad.history.comparison import compare_runs
from heptad.history.diff import Diff
from heptad.history.export.rows import finite
from heptad.history.query import TransitionLog


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "files",
        metavar="RUN",
        nargs="+",
        help="two journals, or run folders; one with --ranks, any number with --summary",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of text and tables")
    parser.add_argument(
        "--summary",
        action="store_true",
        help="last and best values, times, speed and the facts that differ, and not where the runs part; exit code 0",
    )
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
        help="ignore values of this name and notes of this kind, such as 'gradient_*'; may be repeated",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="let count that a run was paused or resumed, and what it measured of the clock and the machine",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        LogError: If there is one journal too few or too many.
    """
    files: list[str] = arguments.files
    if arguments.ranks:
        return _diff_ranks(arguments)
    if arguments.summary:
        return _print_summary(arguments, [TransitionLog.load(file) for file in files])
    if len(files) != 2:
        raise LogError(
            "diff takes two journals, or one and --ranks for that of a run of several ranks, or any number and "
            f"--summary; got {len(files)}"
        )
    here, there = map(TransitionLog.load, files)
    found = here.diff(there, arguments.ignore, strict=arguments.strict)
    side_by_side = compare_runs([here, there], ("here", "there"))
    if arguments.json:
        print_json(finite(found.to_plain() | {"summary": side_by_side.to_plain()}))
        return 1 if found else 0
    print_text(found if found.same else "\n".join(found.path_in_words()))
    print_text(f"\nhere is {files[0]}, there is {files[1]}\n")
    print_comparison(side_by_side)
    return 1 if found else 0


def _print_summary(arguments: argparse.Namespace, logs: Sequence[TransitionLog]) -> int:
    """Print runs side by side, and nothing of where they part.

    Raises:
        LogError: If an option is given that is about where they part.
    """
    if arguments.ignore or arguments.strict:
        raise LogError("diff --summary takes neither --ignore nor --strict, which are about where runs part")
    found = compare_runs(logs)
    if arguments.json:
        print_json(finite(found.to_plain()))
    else:
        print_comparison(found)
    return 0


def _diff_ranks(arguments: argparse.Namespace) -> int:
    """Compare the ranks of one run, and name the one that parts first.

    Raises:
        LogError: If there is one journal too many, or only one rank.
    """
    if len(arguments.files) != 1 or arguments.ignore or arguments.strict or arguments.summary:
        raise LogError("diff --ranks takes one journal, rank 0's, and compares paths: neither values nor notes")
    (file,) = arguments.files
    log = TransitionLog.load(file)
    missing = log.missing
    for rank, reason in missing.items():
        print_error(f"rank {rank} is left out: {reason}")
    if len(log.ranks) == 1:
        raise LogError(f"{file} holds rank {log.rank} of {log.world}: there is no other to compare it with")
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
        print_text(parted)
    return 1


def _first_place(parted: tuple[int, Diff]) -> tuple[int, int]:
    """Return what to sort ranks by: where they part, those of which only facts differ last."""
    rank, found = parted
    return sys.maxsize if found.seq is None else found.seq, rank
