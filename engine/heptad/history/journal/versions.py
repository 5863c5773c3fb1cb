"""Versions of what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(name: str) -> str:
    """Returns the version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
