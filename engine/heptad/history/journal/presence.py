"""Whether the process that writes a file is still there: asked by who waits for a run, or says how it ended."""

from __future__ import annotations

import os
import platform
from typing import Literal

Presence = Literal["closed", "there", "gone", "elsewhere"]


def presence(writer: tuple[int, str] | None) -> Presence:
    """Return whether a process lives that has a file open to write.

    This is a guess: a process on another host or in a container cannot be seen, and the process id of one that died may
    have been reused.

    Args:
        writer: Its id and its host, `None` where no process has the file open.
    """
    if writer is None:
        return "closed"
    pid, host = writer
    if host != platform.node():
        return "elsewhere"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:  # it lives and belongs to someone else
        return "there"
    return "there"


def absence(writer: tuple[int, str] | None) -> str:
    """Return in words why nothing may follow in a file; empty if the writing process lives."""
    pid, host = writer or (0, "")
    return {
        "closed": "no process has the file open for writing",
        "there": "",
        "gone": f"the process that wrote it ({pid} on {host}) is gone",
        "elsewhere": f"the process that writes it ({pid} on {host}) cannot be seen from here",
    }[presence(writer)]
