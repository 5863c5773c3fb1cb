"""Plugins that ship with Heptad, one a file. Each says in its first line whether it observes or changes the run."""

from heptad_plugins.progress import Progress

__all__ = ["Progress"]
