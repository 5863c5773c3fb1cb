"""`WatchedFile`: whether a file that a logger has open is still in its place, and as long as it was left."""

from __future__ import annotations

import os
from pathlib import Path

from heptad import PluginError


class WatchedFile:
    """A file that nobody else writes, as it was when it was opened.

    Args:
        plugin: The name of the plugin, for messages.
        path: The file.

    Attributes:
        path: The same.
        size: Its bytes, as the plugin has left it.

    Raises:
        OSError: If it is not there.
    """

    def __init__(self, plugin: str, path: Path) -> None:
        self._plugin = plugin
        self.path = path
        found = path.stat()
        self._identity = found.st_dev, found.st_ino
        self.size = found.st_size
        self._process = os.getpid()

    def refuse_fork(self) -> None:
        """Refuse a forked child, which runs the handlers to the end of its turn: the file is written by the parent.

        Raises:
            PluginError: In such a child.
        """
        if os.getpid() != self._process:
            raise PluginError(
                f"{self._plugin}: {self.path} belongs to the process {self._process}, which writes on; this one "
                f"({os.getpid()}) is a fork of it: end it in the handler that forks it, with os._exit(), or start "
                "processes with the method spawn"
            )

    def check(self, grows: bool = False, when: str = "while the run was writing it") -> None:
        """Look at the file: one call of `stat`.

        Args:
            grows: Whether it may be longer than `size`, because a thread writes it meanwhile.
            when: When that must have been.

        Raises:
            PluginError: If it was removed, renamed, replaced, cut, or written to by somebody else; in a forked child.
        """
        self.refuse_fork()
        change = self._change(grows)
        if change:
            raise PluginError(
                f"{self._plugin}: {self.path} {change} {when}. Leave it as it is until the run "
                "has ended; with on_error='detach' a run continues without its log"
            )

    def _change(self, grows: bool) -> str:
        try:
            found = self.path.stat()
        except OSError:
            return "is gone: it was removed or renamed"
        if (found.st_dev, found.st_ino) != self._identity:
            return "was removed, renamed or replaced by another file"
        if found.st_size < self.size:
            return f"was cut: it ends after {found.st_size} of {self.size} bytes. That happened"
        if found.st_size > self.size and not grows:
            return f"was changed: it has {found.st_size} bytes in place of {self.size}. That happened"
        return ""
