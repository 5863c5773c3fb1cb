"""`heptad demo`: run the example that is installed with the plugins."""

from __future__ import annotations

import argparse
from importlib import import_module

from heptad.errors import EngineError

EXAMPLE = "heptad_plugins.examples.digits"
"""Imported by name: the engine does not depend on the plugins, nor the command line on torch."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--epochs", metavar="N", type=int, default=8, help="epochs of each run; 8")
    parser.add_argument("--folder", metavar="PATH", default="runs/digits", help="where to write; runs/digits")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        EngineError: If an extra that the example needs is not installed.
    """
    try:
        import_module(EXAMPLE).main([f"--epochs={arguments.epochs}", f"--folder={arguments.folder}"])
    except ImportError as error:
        raise EngineError(f"the demo needs an extra; install it with: pip install 'heptad[demo]' ({error})") from error
    return 0
