"""Programs that tests start: what a child process needs to run the code under test."""

from __future__ import annotations

import os
from pathlib import Path

import heptad
import heptad_plugins

FOLDERS = (
    *(str(Path(package.__file__).parents[1]) for package in (heptad, heptad_plugins)),
    str(Path(__file__).parent),
)
"""Where the packages that this process runs, and the modules of the tests, are found."""


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a child that imports the very packages that this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS), **variables}
