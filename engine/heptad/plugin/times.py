"""The place and the clock of the log, for plugins that measure beside it: `entered` and `now_ns`."""

from __future__ import annotations

from heptad.run.run import Run


def entered(run: Run) -> tuple[int, int]:
    """Return number and time of the newest transition, which led to the state that the run is in.

    They are the `seq` and `time_ns` that it has in the log, without a search: nanoseconds since the Unix epoch. In
    `idle`, and where a run was restored from a checkpoint, the time is when that was done, and the number one less than
    that of the next transition.
    """
    return run._buffer.seq - 1, run._buffer.entered_ns


def now_ns(run: Run) -> int:
    """Return the present time on the clock of `Transition.time_ns`, which never runs backwards within a process."""
    return run._buffer.now_ns
