"""`ForkedError`: what a recorder says in a forked child."""

from __future__ import annotations

import os


class ForkedError(Exception):
    """In a forked child: the file belongs to the parent."""

    def __init__(self) -> None:
        super().__init__(
            f"belongs to the process {os.getppid()}, which writes on; this one ({os.getpid()}) is a fork of it: "
            "end it in the handler that forks it, with os._exit(), or start processes with the method spawn"
        )
