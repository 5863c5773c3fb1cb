"""`heptad serve`: the page of runs that go on, on this machine alone."""

from __future__ import annotations

import argparse
import sys

from heptad.cli.arguments import count
from heptad.cli.output import print_line
from heptad.errors import LogError
from heptad.history.query import TransitionLog
from heptad.report.server import LivePage, ReportServer, step_back

_MOST_PORT = 65_535


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a journal, or a run folder with one; it may be written meanwhile"
    )
    parser.add_argument(
        "--port", metavar="N", type=count, default=0, help="the port to listen on; by default any that is free"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command, until Ctrl-C.

    Raises:
        LogError: If there is no such port, or it is taken; if a journal cannot be read, or an extra is missing.
    """
    if arguments.port > _MOST_PORT:
        raise LogError(f"--port takes a number up to {_MOST_PORT:,}, got {arguments.port:,}")
    step_back()  # before all that takes time
    page = LivePage([TransitionLog.load(path) for path in arguments.runs])
    page.page()  # so that what is missing is said now
    try:
        server = ReportServer(page, arguments.port)
    except OSError as error:
        raise LogError(f"port {arguments.port} cannot be listened on: {error.strerror}; leave out --port") from error
    print_line(f"{server.address}\nshows the run as it goes on, to browsers on this machine; Ctrl-C ends it")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0
