"""`heptad show --follow`: wait for what a run writes, until the run has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from heptad.cli.output import print_error
from heptad.history.journal.presence import absence
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
            assert isinstance(log.source, FileSource)
            if absent := absence(log.source.writer):
                print_error(
                    f"nothing has been written for {QUIET_SECONDS:g} s, and {absent}; a resumed run continues in this "
                    "file, Ctrl-C ends the waiting"
                )


def has_ended(log: TransitionLog) -> bool:
    """Return whether the run has finished or failed."""
    last = log.tail(1)
    ends = {state.shown for state in log.source.table.states if state.kind in ("end", "failed")}
    return bool(last) and last[0].dest in ends
