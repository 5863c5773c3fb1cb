"""The clock of the log, for plugins that measure beside it: `entered_ns` and `now_ns`."""

from __future__ import annotations

from heptad.run.run import Run


def entered_ns(run: Run) -> int:
    """Return when the run entered the state that it is in: `time_ns` of its newest transition, without a search.

    Nanoseconds since the Unix epoch. In `idle`, and where a run was restored from a checkpoint, when that was done.
    """
    return run._buffer.entered_ns


def now_ns(run: Run) -> int:
    """Return the present time on the clock of `Transition.time_ns`, which never runs backwards within a process."""
    return run._buffer.now_ns
