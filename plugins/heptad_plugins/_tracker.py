"""What the plugins for experiment trackers share: which values they send at which update, and what describes a run."""

from __future__ import annotations

import os
import platform
import time
import warnings
import weakref
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch

import heptad
from heptad import Plugin, Run
from heptad.plugin import Placing, Recorded, Store, origin
from heptad_plugins._losses import Losses, is_per_update, thinned
from heptad_plugins._options import directory_of, hparams_of, number, selection
from heptad_plugins._outbox import MOST, MetricPoint, Outbox, Tracking
from heptad_plugins._output_path import output_of
from heptad_plugins._stored import mapping, scalars_in

Parameter = str | float
"""A value of a parameter; whole numbers and truth values too."""


class Tracker(Plugin):
    """Base of the plugins that send what is recorded to an experiment tracker, on a thread of their own.

    Args:
        every: Updates between two values of `train/loss` and of the learning rates.
        first: The first of these numbers.
        hparams: Further parameters by name.
        checkpoints: The directory of a `Checkpoint` whose checkpoints are uploaded, or the `RunFolder` that it is in.
        wait: Seconds to wait at most, when the run ends or pauses, until all is sent.
        on_error: What an exception does.
    """

    observes = True
    needs_epoch_loss = True

    def __init__(
        self,
        every: int,
        first: int | None,
        hparams: Mapping[str, Parameter] | None,
        checkpoints: str | os.PathLike[str] | Placing | None,
        wait: float,
        on_error: Literal["raise", "detach"],
    ) -> None:
        self.on_error = on_error
        self._numbers = selection(self.name, every, first)
        self._hparams = hparams_of(self.name, hparams)
        self._wait = number(self.name, "wait", wait, least=0)
        self._checkpoints = None
        if checkpoints is not None:
            self._checkpoints = output_of(self.name, "checkpoints", checkpoints, "checkpoints", directory_of)
        self._outbox: Outbox | None = None
        self._closed: Outbox | None = None  # the last one
        self._forget()

    @abstractmethod
    def _tracking(self, tracked: str, resumed: bool, had: bool, sent: int) -> Tracking:
        """Return the run in the tracker.

        Args:
            tracked: What it is found by.
            resumed: Whether it was begun before, by this object or by a process before this one.
            had: Whether values were recorded by then: if the tracker has none, they were lost there.
            sent: How many of the recorded values this object has sent, at least.
        """

    def _forget(self) -> None:
        self._losses = Losses()
        self._tracked = ""
        self._rates: dict[str, float | torch.Tensor] = {}
        self._seen = 0  # recorded values that were handed over
        self._sent = 0  # of these, what is known to have reached the tracker
        self._uploaded: set[str] = set()

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Start the thread, which begins or continues the run in the tracker."""
        self._losses.open(run)
        continues = bool(self._tracked)
        self._tracked = self._tracked or run.id
        had = continues and bool(run.names_recorded())
        tracked, sent, make = self._tracked, self._sent, self._tracking
        self._outbox = outbox = Outbox(lambda: make(tracked, continues, had, sent), self.name, MOST, self._closed)
        weakref.finalize(self, outbox.stop)  # an object that is dropped unclosed leaves no thread
        # all once more: what the tracker has is left out, and what a process before this one did not send is sent
        self._seen = 0
        if continues and run.optimizers:
            self._describe(run)

    def close(self, run: Run) -> None:
        """Send what is left, and say how the run ended."""
        outbox, self._outbox = self._outbox, None
        if outbox is None:
            return
        self._closed = outbox
        try:
            self._hand_over(run, outbox, all_at_once=True)
            outbox.put(self._new_checkpoints())
        finally:
            unsent = outbox.close(_ending_of(run), self._wait)
            self._say(run, outbox)
            if self._checkpoints is not None and not self._uploaded and run.state == "finished":
                run.note(f"{self.name}: no checkpoint was found in {self._checkpoints.path}, so none was uploaded")
            self._sent = self._sent if unsent else self._seen
            if unsent:
                what = f"{unsent} values and files" if unsent > 0 else "how the run ended"
                limit = "" if outbox.refused else f" within {self._wait:g} s of its end"
                text = (
                    f"{self.name}: {what} could not be sent{limit}"
                    f"{f' ({outbox.trouble})' if outbox.trouble else ''}; a run that continues from here, or from a "
                    "checkpoint, sends what the tracker lacks"
                )
                run.note(text)
                warnings.warn(text, stacklevel=2)

    def on_exit_before_loop(self, run: Run) -> None:
        """Send the parameters, now that there is an optimizer."""
        self._describe(run)

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the loss and the learning rates; hand over the values since the last time."""
        self._losses.record_update(run, self._rates)
        if self._outbox is None or not self._outbox.room(run.record_count - self._seen):
            return
        # a loss that is not sent need not be read from its device either
        if self._numbers.selects(run.update) or not all(map(is_per_update, run.names_recorded(self._seen))):
            self._hand_over(run)

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Read the learning rates; after the update they may be those of the next one."""
        self._rates = run.learning_rates()

    def on_exit_evaluate(self, run: Run) -> None:
        """Hand over the values since the last time."""
        self._hand_over(run)

    def on_exit_checkpoint(self, run: Run) -> None:
        """Hand over the checkpoints that were written since the last time."""
        self._hand_over(run)
        self._upload(run)

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the loss of the epoch; hand over the values and the checkpoints since the last time."""
        self._losses.record_epoch(run)
        self._hand_over(run)
        self._upload(run)

    def state_dict(self) -> dict[str, Any]:
        """Return by what the run in the tracker is found."""
        return {"tracked": self._tracked, "rates": dict(self._rates), "losses": self._losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        tracked = mapping(state).get("tracked", "")
        if not isinstance(tracked, str):
            raise ValueError(f"tracked is {tracked!r:.60}, expected the id of a run")
        rates = scalars_in(state, "rates") if "rates" in state else {}
        self._losses.load_state_dict(state.get("losses", {}))
        self._tracked, self._rates = tracked, rates

    def _describe(self, run: Run) -> None:
        if self._outbox is not None:
            own = parameters_of(run)
            for name in sorted(own.keys() & self._hparams.keys()):
                run.note(f"{self.name}: hparams sets {name} to {self._hparams[name]!r}; the run has {own[name]!r}")
            self._outbox.put([own | self._hparams])
            self._say(run, self._outbox)

    def _hand_over(self, run: Run, outbox: Outbox | None = None, *, all_at_once: bool = False) -> None:
        """Hand over the values since the last time, as many as there is room for; the rest stays with the run."""
        outbox = outbox or self._outbox
        if outbox is None:
            return
        count = run.record_count - self._seen
        room = count if all_at_once else outbox.room(count)
        values = run.records(self._seen) if room else []
        values = values[: _end_of_update(values, room)]
        now = time.time_ns() // 10**6
        places = {id(value): self._seen + place for place, value in enumerate(values)}
        points = [
            MetricPoint(value.name, value.value, value.update, now, places[id(value)])
            for value in thinned(values, self._numbers)
        ]
        self._seen += len(values)
        outbox.put(points)
        self._say(run, outbox)

    def _upload(self, run: Run) -> None:
        """Hand over new checkpoints; a listing of their directory, and so not done in each update."""
        if self._outbox is not None and (new := self._new_checkpoints()):
            self._outbox.put(new)
            self._say(run, self._outbox)

    def _new_checkpoints(self) -> list[Path]:
        """Return the checkpoints that were written since the last call, as far as they are still there."""
        if self._checkpoints is None:
            return []
        new = [entry.path for entry in Store(self._checkpoints.path).entries() if entry.path.name not in self._uploaded]
        self._uploaded |= {path.name for path in new}
        return new

    def _say(self, run: Run, outbox: Outbox) -> None:
        for text in outbox.remarks():
            run.note(f"{self.name}: {text}")


def _end_of_update(values: Sequence[Recorded], place: int) -> int:
    """Return where the update of the value before a place ends: a loss and its rate are looked at together."""
    while 0 < place < len(values) and values[place].update == values[place - 1].update:
        place += 1
    return place


def _ending_of(run: Run) -> str:
    """Return how a run ended, in the words of `Tracking.end`."""
    if run.state == "finished":
        return "finished"
    if run.state != "failed":
        return "paused"
    return "killed" if (run.reason or "").startswith(("KeyboardInterrupt", "SystemExit")) else "failed"


class Unwritten:
    """Which points a run in a tracker lacks, of those that are handed over once more when it is continued.

    Args:
        there: How many points of each name and update the tracker has.
    """

    def __init__(self, there: Counter[tuple[str, int]] | None = None) -> None:
        self._there = there or Counter[tuple[str, int]]()
        self._given: MetricPoint | None = None
        self._lacking: list[tuple[str, MetricPoint]] = []

    def of(self, points: Sequence[MetricPoint], rename: Callable[[str], str]) -> list[tuple[str, MetricPoint]]:
        """Return those that are not there, each with its name in the tracker; of the same points again the same."""
        if points[0] is not self._given:
            named = [(rename(point.name), point) for point in points]
            self._lacking = [(name, point) for name, point in named if not self._take((name, point.update))]
            self._given = points[0]
        return self._lacking

    def _take(self, key: tuple[str, int]) -> bool:
        """Take one of a kind, if there is one."""
        if key not in self._there:
            return False
        self._there[key] -= 1
        if not self._there[key]:
            del self._there[key]
        return True


def origin_texts() -> dict[str, str]:
    """Return the versions, and where the program comes from: its command line, and the commit it was at."""
    versions = {"torch": str(torch.__version__), "python": platform.python_version(), "heptad": heptad.__version__}
    return {**{f"version/{name}": version for name, version in versions.items()}, **origin()}


def parameters_of(run: Run) -> dict[str, Parameter]:
    """Return configuration, network, optimizers and their groups' options, flat, with `/` between the parts."""
    optimizers = [type(optimizer).__name__ for optimizer in run.optimizers]
    found: dict[str, Parameter] = {"network": type(run.network).__name__, "optimizer_class": ", ".join(optimizers)}
    found |= flattened(run.config.model_dump(), "config/")
    groups = run.parameter_groups()
    for place, group in enumerate(groups):
        options = {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
        options["lr"] = group.get("initial_lr", group.get("lr"))  # a schedule has written its first rate over it
        found |= flattened(options, "optimizer/" if len(groups) == 1 else f"optimizer/{place}/")
    return found


def flattened(values: Mapping[str, Any], above: str = "") -> dict[str, Parameter]:
    """Return nested values as plain ones, with `/` between the parts of a name; `None` and others as text."""
    found: dict[str, Parameter] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flattened(cast("Mapping[str, Any]", value), f"{above}{name}/")
        else:
            plain = isinstance(value, bool | int | float | str)
            found[f"{above}{name}"] = value if plain else str(value)
    return found


def shortened(text: str, longest: int) -> str:
    """Return a text, cut where it is too long for a tracker."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
