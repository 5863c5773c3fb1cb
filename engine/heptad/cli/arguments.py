"""What several commands take: a file, and which of its transitions are meant."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from heptad.history.select import Conditions

EVER = 1 << 62
COUNTERS = ("epoch", "step", "update")

Commands = Any  # argparse gives what add_subparsers returns no public name
Command = Callable[[argparse.Namespace], int]


def command(commands: Commands, name: str, run: Command, words: str) -> argparse.ArgumentParser:
    """Adds a command; all have `--json`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=f"{words[0].upper()}{words[1:]}."
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="plain data in place of text and tables")
    return parser


def takes_file(parser: argparse.ArgumentParser, name: str = "file") -> None:
    """Lets a command take a log."""
    parser.add_argument(name, metavar=name.upper(), help="a journal, or lines of JSON as to_jsonl writes them")


def takes_conditions(parser: argparse.ArgumentParser) -> None:
    """Lets a command take what transitions are to be like."""
    parser.add_argument("--source", metavar="STATE", help="the state that was left")
    parser.add_argument("--dest", metavar="STATE", help="the state that was entered")
    for name in COUNTERS:
        parser.add_argument(
            f"--{name}", metavar="N", type=number_or_range, help=f"complete {name}s: a number, or a:b (b left out)"
        )


def conditions(arguments: argparse.Namespace) -> Conditions:
    """Returns what transitions are to be like."""
    counters = {name: getattr(arguments, name) for name in COUNTERS}
    asked = {name: value for name, value in counters.items() if value is not None}
    return Conditions(arguments.source, arguments.dest, asked)


def given(asked: Conditions) -> bool:
    """Tells whether anything was asked for."""
    return bool(asked.source or asked.dest or asked.counters)


def count(text: str) -> int:
    """Returns how many, none at least.

    Raises:
        argparse.ArgumentTypeError: For anything else than such a number.
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not how many; say 0 or more")
    return number


def number_or_range(text: str) -> int | range:
    """Returns `7` as a number, `3:9`, `3:` and `:9` as ranges.

    Raises:
        argparse.ArgumentTypeError: For anything else, and for what no counter can be: below 0, or in an empty range.
    """
    first, colon, end = text.partition(":")
    try:
        begin = int(first or 0) if colon else int(first)
        found = range(begin, int(end or EVER)) if colon else range(begin, begin + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number nor a range such as 3:9, 3: or :9") from None
    if begin < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is below 0, from which counters count")
    if not found:
        raise argparse.ArgumentTypeError(f"nothing is in '{text}'; a:b goes from a to before b")
    return found if colon else begin
