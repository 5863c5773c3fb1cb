"""Arguments that several commands take: journals, and which transitions are meant."""

from __future__ import annotations

import argparse
import sys

from heptad.cli.output import print_error
from heptad.history.query import TransitionLog
from heptad.history.select import Conditions

COUNTERS = ("epoch", "step", "update")


def takes_journals(parser: argparse.ArgumentParser, *names: str, data: bool = True) -> None:
    """Add an argument for each journal, and `--json` for a command that prints data."""
    for name in names:
        parser.add_argument(name, metavar=name.upper(), help="a journal, or a run folder with one")
    if data:
        parser.add_argument("--json", action="store_true", help="print JSON in place of text and tables")


def takes_columns(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses the columns of a table."""
    parser.add_argument(
        "--columns", metavar="A,B,…", type=_headings, help="the columns of the table that are wanted, by their headings"
    )


def _headings(text: str) -> list[str]:
    """Return names that are separated by commas.

    Raises:
        argparse.ArgumentTypeError: If there is none.
    """
    names = [name for part in text.split(",") if (name := part.strip())]
    if not names:
        raise argparse.ArgumentTypeError("expected headings with commas between them, such as seq,from,to")
    return names


def takes_rank(parser: argparse.ArgumentParser, words: str) -> None:
    """Add the option that selects the log of one rank; `words` say what is shown without it."""
    parser.add_argument("--rank", metavar="N", type=count, help=f"the log of rank N alone; by default {words}")


def load_log(arguments: argparse.Namespace) -> TransitionLog:
    """Return the log in `file`, or that of the rank that was asked for; say on standard error which ranks it lacks."""
    log = TransitionLog.load(arguments.file)
    if arguments.rank is not None:
        return log.of_rank(arguments.rank)
    for rank, reason in log.missing.items():
        print_error(f"rank {rank} is left out: {reason}")
    return log


def takes_conditions(parser: argparse.ArgumentParser) -> None:
    """Add the options that select transitions."""
    parser.add_argument("--source", metavar="STATE", help="the state that was left")
    parser.add_argument("--dest", metavar="STATE", help="the state that was entered")
    takes_ranges(parser)


def takes_ranges(parser: argparse.ArgumentParser) -> None:
    """Add the options that select transitions by counters."""
    for name in COUNTERS:
        parser.add_argument(
            f"--{name}", metavar="N", type=number_or_range, help=f"complete {name}s: a number, or a:b (b excluded)"
        )


def conditions(arguments: argparse.Namespace) -> Conditions:
    """Return the conditions that the options set."""
    counters = {name: getattr(arguments, name) for name in COUNTERS}
    given = {name: value for name, value in counters.items() if value is not None}
    return Conditions(getattr(arguments, "source", None), getattr(arguments, "dest", None), given)


def any_given(asked: Conditions) -> bool:
    """Return whether at least one condition is set."""
    return bool(asked.source or asked.dest or asked.counters)


def count(text: str) -> int:
    """Return a number that is at least 0.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got '{text}'")
    return number


def number_or_range(text: str) -> int | range:
    """Return `7` as a number, and `3:9`, `3:` or `:9` as a range.

    Raises:
        argparse.ArgumentTypeError: If it is neither, is below 0, or is an empty range.
    """
    first, colon, end = text.partition(":")
    try:
        begin = int(first or 0) if colon else int(first)
        found = range(begin, int(end) if end else sys.maxsize) if colon else range(begin, begin + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or a range such as 3:9, 3: or :9, got '{text}'") from None
    if begin < 0:
        raise argparse.ArgumentTypeError(f"counters begin at 0, got '{text}'")
    if not found:
        raise argparse.ArgumentTypeError(f"the range '{text}' is empty; a:b is from a to before b")
    return found if colon else begin
