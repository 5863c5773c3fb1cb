"""Versions of what is installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def installed(name: str) -> str:
    """Return the version of an installed package; `"unknown"` where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def versions_here() -> dict[str, str]:
    """Return the versions that a run depends on, by name."""
    found = {name: installed(name) for name in ("heptad", "torch", "numpy")}
    return {**found, "python": platform.python_version()}
