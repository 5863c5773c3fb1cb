"""`heptad`: load the command that was named, run it, and turn what went wrong into one line and an exit code.

Exit codes: 0 is fine, 1 is from `diff` when two runs differ, 2 is a bad file or argument, 130 is Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from heptad.cli.output import print_error, printable
from heptad.errors import EngineError
from heptad.history.journal.versions import installed

COMMANDS = {
    "show": "show the last transitions, notes or recorded values",
    "stats": "show how often each state was entered and where the time went",
    "explain": "explain why a transition took its arc, and which handlers were called",
    "diff": "show where two runs part; exit code 1 if they differ in more than times",
    "diagram": "draw the table of a run as a Mermaid state diagram",
    "export": "write a journal in another format",
    "report": "write one run, or several that are compared, as a page that opens in a browser without a network",
    "serve": "show the same page of a run that goes on, on this machine alone",
    "demo": "train a network on handwritten digits, kill the run, resume it, and ask its journal",
}
"""What each command does. Its module has the same name and is imported only when the command is called."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; by default those of the program.

    Returns:
        The exit code.

    Raises:
        SystemExit: With 2 if the arguments are wrong, with 0 after `--help` and `--version`.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - it is None after `>&-`
        print_error("standard output is closed; redirect it to a file, or to /dev/null")
        return 2
    with printable():
        arguments = _parsed(sys.argv[1:] if argv is None else argv)
        try:
            status = arguments.run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough, such as `head`
            _discard()
            return 0
        except KeyboardInterrupt:
            return 130
        except (EngineError, OSError) as error:
            print_error(error)
            _flush()
            return 2
    return int(status)


def _flush() -> None:
    """Flush standard output; discard what a full disk cannot take, since that error was printed already."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard()


def _discard() -> None:
    """Point standard output at /dev/null, so that the flush at the end of the program does not fail again."""
    with suppress(OSError):  # standard output is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; after the command's name they may stand in any order."""
    parser = argparse.ArgumentParser(
        prog="heptad",
        description="Ask the journal of a run, which the Journal plugin wrote or is writing.",
        epilog="Exit codes: 0 fine, 1 the runs differ (diff), 2 bad file or argument.",
    )
    parser.add_argument("--version", action="version", version=f"heptad {installed('heptad')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, words in COMMANDS.items():
        commands.add_parser(name, help=words, description=f"{words.capitalize()}.")
    if not argv or argv[0] not in COMMANDS:
        parser.parse_args(argv[:1])  # prints help, version or an error, and exits
        parser.error("name a command first")
    module, command = import_module(f"heptad.cli.{argv[0]}"), commands.choices[argv[0]]
    module.add_to(command)
    command.set_defaults(run=module.run)
    return command.parse_intermixed_args(argv[1:])
