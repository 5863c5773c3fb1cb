"""`TimeLimit` changes the run: it ends or pauses it once it has been driven for so many seconds."""

from __future__ import annotations

from typing import Any, Literal

from heptad import Plugin, Run
from heptad_plugins._options import number, one_of
from heptad_plugins._stopwatch import Stopwatch
from heptad_plugins._stored import flag_in, real_in


class TimeLimit(Plugin):
    """Stop or pause the run when its time is up.

    The clock is read on exit of `after_step`, `optimizer_update` and `evaluate`, so the limit is kept to within a step
    or an evaluation. Time in which the run is paused does not count (driven by `advance()`, the pauses between turns
    do). The time used is part of the plugin's state: a resumed run has what is left.

    Of several ranks the one whose time is up first asks the others; all end, or pause, with the window under way.

    Args:
        seconds: Seconds that the run may be driven for.
        action: `"stop"` ends the run in order when the open window closes. `"pause"` pauses it; each time that the run
            continues, in this process or from a checkpoint taken there, it has the full time again.

    Raises:
        PluginError: If `seconds` is not a number above 0, or `action` is another word.
    """

    observes = True  # it decides how far a run is driven, and no step of it: a resumed run may do without
    ranks = "all"  # whose clock is ahead asks, and all end
    requests = ("end",)

    runs_before = ("Checkpoint",)

    def __init__(self, seconds: float, action: Literal["stop", "pause"] = "stop") -> None:
        self._seconds = number("TimeLimit", "seconds", seconds, above=0)
        self._action = one_of("TimeLimit", "action", action, ("stop", "pause"))
        self._watch = Stopwatch()
        self._stopped = False

    def on_begin(self, run: Run) -> None:
        """Forget the time that an earlier run used."""
        self._watch.put(0.0)
        self._stopped = False

    def open(self, run: Run) -> None:
        """Start the clock."""
        run.ask(self._request, wanted=False)
        self._watch.start()

    def on_pause(self, run: Run) -> None:
        """Stop the clock: saving a checkpoint is paused time. If it pauses for that, all ranks get the time anew."""
        self._watch.stop()
        if self._action == "pause" and run.agreed(self._request):
            self._watch.put(0.0)

    def close(self, run: Run) -> None:
        """Stop the clock."""
        self._watch.stop()

    def on_exit_after_step(self, run: Run) -> None:
        """Read the clock, and act once the time is up."""
        if self._stopped or (spent := self._watch.read()) < self._seconds or run.agreed(self._request):
            return
        run.ask(self._request)
        reason = f"TimeLimit: the run was driven for {spent:.4g} s of {self._seconds:g} s"
        if self._action == "stop":
            self._stopped = True
            run.stop(reason)
        else:
            self._watch.stop()  # until it is opened again: the turns until the pause do not count for the next time
            self._watch.put(0.0)
            run.pause(reason)

    on_exit_optimizer_update = on_exit_after_step
    on_exit_evaluate = on_exit_after_step

    @property
    def _request(self) -> str:
        return f"{self.name}.end"

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds used, and whether the run was stopped for it."""
        return {"seconds": self._watch.read(), "stopped": self._stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        seconds, self._stopped = real_in(state, "seconds"), flag_in(state, "stopped")
        self._watch.put(seconds)
