"""`heptad show --follow`: wait for what a run writes, until the run has ended."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

from heptad.cli.output import print_error
from heptad.history.journal.reader import FileSource
from heptad.history.query import TransitionLog

POLL_SECONDS = 0.25
"""How often the file is read."""

QUIET_SECONDS = 10.0
"""After how long without a change the writing process is looked for."""


def follow(log: TransitionLog, show: Callable[[], None]) -> None:
    """Call `show` at intervals until the run has ended; warn once when nobody seems to write any more.

    Args:
        log: The log of a journal.
        show: Print what is new.
    """
    seen, since, warned = log.source.view(), time.monotonic(), False
    while not has_ended(log):
        time.sleep(POLL_SECONDS)
        show()
        view = log.source.view()
        if view is not seen:  # the file has changed
            seen, since, warned = view, time.monotonic(), False
        elif not warned and time.monotonic() - since >= QUIET_SECONDS:
            warned = True
            if absent := _absent(log):
                print_error(
                    f"nothing has been written for {QUIET_SECONDS:g} s, and {absent}; a resumed run continues in this "
                    "file, Ctrl-C ends the waiting"
                )


def has_ended(log: TransitionLog) -> bool:
    """Return whether the run has finished or failed."""
    last = log.tail(1)
    ends = {state.shown for state in log.source.table.states if state.kind in ("end", "failed")}
    return bool(last) and last[0].dest in ends


def _absent(log: TransitionLog) -> str:
    """Return why nothing may follow; empty if the writing process lives.

    This is a guess: a process on another host or in a container cannot be seen, and the process id of one that died may
    have been reused.
    """
    assert isinstance(log.source, FileSource)
    writer = log.source.writer
    if writer is None:
        return "no process has the file open for writing"
    pid, host = writer
    if host != platform.node():
        return f"the process that writes it ({pid} on {host}) cannot be seen from here"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return f"the process that wrote it ({pid} on {host}) is gone"
    except PermissionError:  # it lives and belongs to someone else
        return ""
    return ""
