"""`TimeLeft`: how long a run will still take, with the detours that it has made so far."""

from __future__ import annotations

from dataclasses import dataclass

from heptad import Run

LOOK_EVERY = 2.0
"""Seconds between two looks into the log for detours, at least."""


@dataclass
class Made:
    """How often a detour was made since measuring began, and how long that took.

    Attributes:
        count: How often.
        seconds: How long, together.
        before: How often up to the end of the last complete epoch.
    """

    count: int = 0
    seconds: float = 0.0
    before: int = 0

    @property
    def mean(self) -> float:
        """Seconds that one took."""
        return self.seconds / self.count if self.count else 0.0


class TimeLeft:
    """Estimates from steps and detours apart: evaluations come when they come, not in proportion to steps.

    Args:
        run: The run, at the end of the first step from which it is measured, so that starting up is not in it.
        now: The time then, in seconds.
    """

    def __init__(self, run: Run, now: float) -> None:
        self._began, self._step, self._update, self._epoch = now, run.step, run.update, run.epoch
        self._seq = self._next_seq(run)
        self._looked = self._began
        self._at = run.epoch  # the epoch that the last look was in
        self.made = {state.shown: Made() for state in run.log.source.table.states if state.kind == "detour"}

    @staticmethod
    def _next_seq(run: Run) -> int:
        last = run.log.tail(1)
        return last[0].seq + 1 if last else 0

    def look(self, run: Run, now: float) -> None:
        """Look for new detours, if it is time: of the log, what came since the last look is read."""
        if now - self._looked < LOOK_EVERY and run.epoch == self._at:
            return
        self._looked = now
        if run.epoch != self._at:
            self._at = run.epoch
            self._read(run)
            for made in self.made.values():
                made.before = made.count
        else:
            self._read(run)

    def _read(self, run: Run) -> None:
        end = self._next_seq(run)
        for name, made in self.made.items():
            for turn in run.log.where(source=name, step=range(self._step, run.step + 1), limit=-1000):
                if turn.seq >= self._seq:
                    made.count += 1
                    made.seconds += turn.duration_ns / 1e9
        self._seq = end

    def steps_per_second(self, run: Run, now: float) -> float:
        """Return the speed between detours; 0 before the second step."""
        spent = now - self._began - sum(made.seconds for made in self.made.values())
        return (run.step - self._step) / spent if spent > 0 else 0.0

    def seconds(self, run: Run, now: float) -> float | None:
        """Return how long the rest takes; `None` where the length of the run, or its speed, is not known yet."""
        speed, total = self.steps_per_second(run, now), run.total_updates
        if not speed or not total or not run.update:
            return None
        updates = max(total - run.update, 0)
        steps = updates * run.accumulation
        epochs = None if run.config.epochs is None else run.config.epochs - run.epoch
        if epochs is not None and run.steps_per_epoch:
            steps = min(steps, max(epochs * run.steps_per_epoch - run.batch_index, 0))
        return steps / speed + sum(made.mean * self._ahead(made, run, updates, epochs) for made in self.made.values())

    def _ahead(self, made: Made, run: Run, updates: int, epochs: int | None) -> float:
        """Return how many detours of a name are to be expected: as many an epoch as so far, else as many an update."""
        complete = run.epoch - self._epoch
        if complete and epochs is not None:
            return max(made.before / complete * epochs - (made.count - made.before), 0.0)
        return made.count * updates / max(run.update - self._update, 1)
