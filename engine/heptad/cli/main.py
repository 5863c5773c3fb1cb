"""`heptad`: reads the command, runs it, and makes of what went wrong a line and an exit code.

0 is fine, 1 is said by `diff` where two runs differ, 2 is a file or an argument that is no good, 130 is Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from heptad.cli import demo, diagram, diff, explain, export, show, stats
from heptad.errors import EngineError

COMMANDS = (show, stats, explain, diff, diagram, export, demo)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; by default those that the program was called with.

    Returns:
        The exit code.

    Raises:
        SystemExit: If the arguments are none that a command takes, with 2; after `--help`, with 0.
    """
    arguments = _parser().parse_args(argv)
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would fail again
        return 0
    except KeyboardInterrupt:
        return 130
    except (EngineError, OSError) as error:
        sys.stderr.write(f"heptad: {error}\n")
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="heptad",
        description="Asks the log of a run: a journal that the Journal plugin wrote or is writing, or lines of JSON.",
        epilog="Exit codes: 0 fine, 1 the runs differ (diff), 2 a file or an argument is no good.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_to(commands)
    return parser
