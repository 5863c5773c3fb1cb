"""`heptad`: reads the command, runs it, and makes of what went wrong a line and an exit code.

0 is fine, 1 is said by `diff` where two runs differ, 2 is a file or an argument that is no good, 130 is Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from heptad.cli import demo, diagram, diff, explain, export, show, stats
from heptad.cli.output import complain, printable
from heptad.errors import EngineError
from heptad.history.journal.versions import installed

COMMANDS = (show, stats, explain, diff, diagram, export, demo)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; by default those that the program was called with.

    Returns:
        The exit code.

    Raises:
        SystemExit: If the arguments are none that a command takes, with 2; after `--help` and `--version`, with 0.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - so it is where it was closed: `>&-`
        complain("standard output is closed; send it to a file, or to /dev/null")
        return 2
    with printable():
        arguments = _parsed(sys.argv[1:] if argv is None else argv)
        try:
            status = arguments.run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has seen enough, such as `head`
            _discard()
            return 0
        except KeyboardInterrupt:
            return 130
        except (EngineError, OSError) as error:
            complain(error)
            _flush()
            return 2
    return int(status)


def _flush() -> None:
    """Prints what has not been printed yet, if it can be."""
    try:
        sys.stdout.flush()
    except OSError:  # the disk is full, say, which was told
        _discard()


def _discard() -> None:
    """Lets go of what has not been printed: else the flush at the end of the program would fail again."""
    with suppress(OSError):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the arguments; after the command's name they may stand in any order."""
    parser, commands = _parsers()
    if argv and argv[0] in commands:
        return commands[argv[0]].parse_intermixed_args(argv[1:])
    return parser.parse_args(argv)


def _parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Returns what reads the arguments of the program, and by its name that of each command."""
    parser = argparse.ArgumentParser(
        prog="heptad",
        description="Asks the log of a run: a journal that the Journal plugin wrote or is writing, or lines of JSON.",
        epilog="Exit codes: 0 fine, 1 the runs differ (diff), 2 a file or an argument is no good.",
    )
    parser.add_argument("--version", action="version", version=f"heptad {installed('heptad')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_to(commands)
    return parser, commands.choices
