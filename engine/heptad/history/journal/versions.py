"""Versions of what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(name: str) -> str:
    """Return the version of an installed package; `"unknown"` where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
