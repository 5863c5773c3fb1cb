# PYTHON_ARGCOMPLETE_OK
"""`heptad`: load the command that was named, run it, and turn what went wrong into one line and an exit code.

Exit codes: 0 is fine, 1 is from `diff` when two runs differ, 2 is a bad file or argument, 130 is Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module

from heptad.cli.output import print_error, printable
from heptad.errors import EngineError, nearest
from heptad.history.journal.versions import installed

COMMANDS = {
    "summary": "show in ten lines how a run went; `heptad RUN.journal` is the same",
    "show": "show the last transitions, notes or recorded values",
    "watch": "look at a run while it goes on: a bar, the newest values, the last event",
    "stats": "show how often each state was entered and where the time went",
    "explain": "explain why a transition took its arc, and which handlers were called",
    "diff": "show where two runs part; exit code 1 if they differ in more than times",
    "diagram": "draw the table of a run as a Mermaid state diagram",
    "export": "write a journal in another format",
    "weights": "write the weights of a checkpoint as one safetensors file, for other programs",
    "report": "write one run, or several that are compared, as a page that opens in a browser without a network",
    "serve": "show the same page of a run that goes on, on this machine alone",
    "demo": "train a network on handwritten digits, kill the run, resume it, and ask its journal",
}
"""What each command does. Its module has the same name and is imported only when the command is called."""

_OPTIONS = ("-h", "--help", "--version")
"""What may stand before a command."""


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
        try:
            arguments = _parsed(sys.argv[1:] if argv is None else argv)  # which imports the command
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
    """Return the arguments; after the command's name they may stand in any order. A journal alone is summarised."""
    parser = argparse.ArgumentParser(
        prog="heptad",
        usage="heptad [-h] [--version] command …\n       heptad RUN.journal",
        description="Ask the journal of a run, which the Journal plugin wrote or is writing; write its weights.",
        epilog="Exit codes: 0 fine, 1 the runs differ (diff), 2 bad file or argument. More: heptad command --help",
    )
    parser.add_argument("--version", action="version", version=f"heptad {installed('heptad')}")
    commands = parser.add_subparsers(required=True, metavar="command", prog="heptad")
    for name, words in COMMANDS.items():
        commands.add_parser(name, help=words, description=f"{words.capitalize()}.")
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser, commands.choices)
    if not argv:
        parser.print_help()
        parser.exit()
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        if not _is_a_path(argv[0]):
            parser.error(f"no command and no file is called '{argv[0]}'{nearest(argv[0], COMMANDS)}")
        argv = ["summary", *argv]
    if argv[0] not in COMMANDS:
        if not any(option.startswith(argv[0]) for option in _OPTIONS):
            parser.error(f"no option before a command is called '{argv[0]}'{nearest(argv[0], _OPTIONS)}")
        parser.parse_args(argv[:1])  # prints help, version or an error, and exits
        parser.error("name a command first")
    command = commands.choices[argv[0]]
    _build(argv[0], command)
    return command.parse_intermixed_args(argv[1:])


def _build(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command, and the function that runs it."""
    module = import_module(f"heptad.cli.{name}")
    module.add_to(parser)
    parser.set_defaults(run=module.run)


def _is_a_path(word: str) -> bool:
    """Return whether a word in place of a command is meant to be a file, which may be missing."""
    return os.path.exists(word) or os.sep in word or "." in word  # noqa: PTH110 - a name that no path may have is none


def _complete(parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Answer a shell that asks how a line goes on, and end the program; without argcomplete nothing is answered."""
    for name, command in commands.items():
        _build(name, command)
    with suppress(ImportError):
        import_module("argcomplete").autocomplete(parser)
