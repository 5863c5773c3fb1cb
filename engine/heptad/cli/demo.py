"""`heptad demo`: run the example that is installed with the plugins, in this process or on several ranks."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from importlib import import_module
from types import FrameType

from heptad.errors import EngineError

EXAMPLE = "heptad_plugins.examples.digits"
"""Imported by name: the engine does not depend on the plugins, nor the command line on torch."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--epochs", metavar="N", type=int, default=8, help="epochs of each run; 8")
    parser.add_argument("--folder", metavar="PATH", default="runs/digits", help="where to write; runs/digits")
    parser.add_argument(
        "--ranks",
        metavar="N",
        type=_number_of_ranks,
        default=1,
        help="processes that torchrun starts on this machine; 1",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        EngineError: If an extra that the example needs is not installed.
    """
    given = [f"--epochs={arguments.epochs}", f"--folder={arguments.folder}"]
    try:
        example = import_module(EXAMPLE)
        if arguments.ranks > 1:
            return _launch(arguments.ranks, given)
        example.main(given)
    except ImportError as error:
        raise EngineError(f"the demo needs an extra; install it with: pip install 'heptad[demo]' ({error})") from error
    return 0


def _number_of_ranks(text: str) -> int:
    if (ranks := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {ranks}")
    return ranks


def _launch(ranks: int, given: list[str]) -> int:
    """Run the example under torchrun, which shows what the first rank prints; return its exit code.

    Torchrun is alone in its session, so Ctrl-C comes to this process only. However this one ends, torchrun is asked to
    end its ranks first.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--local-ranks-filter=0"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    before = signal.signal(signal.SIGTERM, _exit)
    torchrun = subprocess.Popen(
        [sys.executable, *launcher, "-m", EXAMPLE, *given], env=environment, start_new_session=True
    )
    try:
        return torchrun.wait()
    finally:
        if torchrun.poll() is None:
            torchrun.terminate()
            torchrun.wait()
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)
