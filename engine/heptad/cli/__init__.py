"""The command line: asks the log of a run at a terminal. `heptad --help` tells how."""

from heptad.cli.main import main

__all__ = ["main"]
