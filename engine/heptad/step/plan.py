"""The plan: the turns and calls to come, found by walking the table with a shadow of the run.

The shadow has the run's position and nothing else. The engine's own guards and bodies decide on it what they will
decide on the run, so the plan cannot say other than the machine does; data, network and optimizer are not there to be
touched. A guard that asks for more than the position cannot be answered ahead: it becomes a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from heptad.config import Components
from heptad.data.feed import Feed
from heptad.history.html import table
from heptad.plugin.detour_state import DetourState
from heptad.plugin.subscription import Subscription
from heptad.record.buffer import LogBuffer
from heptad.run.guards import GUARDS
from heptad.run.run import Run
from heptad.run.runtime import Runtime
from heptad.step.bodies import after_epoch, after_step, before_epoch, before_step, optimizer_update
from heptad.step.optimizers import Optimizers
from heptad.step.reading import READERS
from heptad.table import Arc

Body = Callable[[Run], object]
Guard = Callable[[Run], bool]


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A handler that will be called.

    Attributes:
        who: Plugin and method, or the function.
        conditional: Its `when` asks for more than the position, so it may not be called.
    """

    who: str
    conditional: bool = False


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """A turn to come.

    Attributes:
        source: The state that is left.
        dest: The state that is entered.
        condition: The guard on which the turn depends, if its answer cannot be known ahead. A detour is
            then shown as taken. Where `batches_remain` is the condition, because nobody knows the length of the data,
            the plan ends here.
        exit_calls: The handlers called on leaving `source`, in order.
        enter_calls: The handlers called on entering `dest`, in order.
        epoch: Complete epochs after the body of `source`; so are the next three.
        batch_index: Complete steps in the epoch.
        step: Complete steps.
        update: Complete optimizer updates.
    """

    source: str
    dest: str
    condition: str | None
    exit_calls: tuple[PlannedCall, ...]
    enter_calls: tuple[PlannedCall, ...]
    epoch: int
    batch_index: int
    step: int
    update: int

    def __str__(self) -> str:
        calls = [
            f"{call.who}{' (if its when holds)' if call.conditional else ''}"
            for call in (*self.exit_calls, *self.enter_calls)
        ]
        condition = f" if {self.condition}" if self.condition else ""
        return f"{self.source} -> {self.dest}{condition}{': ' + ', '.join(calls) if calls else ''}"


class _BeyondPosition(Exception):
    """A guard asked for something that only the run itself has."""


class _LengthUnknown(Exception):
    """Nobody knows whether a batch follows."""


class _ShadowFeed:
    """A feed that gives nothing, as often as the real one gives something."""

    reads_early = idle = False
    remarks = ()

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.batches = feed.batches
        self.varies = False
        self.taken_early = True
        self.seed = 0

    def steps_in(self, epochs: range) -> int:
        return self._feed.steps_in(epochs)

    def open(self, epoch: int, pass_index: int, limit: int | None = None) -> None:
        del limit
        if self.batches is not None and not pass_index:
            self.batches = self.steps_in(range(epoch, epoch + 1))

    def take(self) -> None:
        return None

    def more(self) -> bool:
        raise _LengthUnknown

    def read_ahead(self, most: int) -> None:
        del most

    def end(self) -> None:
        pass

    def identity(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        del state

    def doubt(self) -> str:
        """Return nothing: no data are read."""
        return ""

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass


_BEYOND = frozenset(
    (
        "batch",
        "output",
        "loss",
        "mean_loss",
        "epoch_loss",
        "weight",
        "samples",
        "network",
        "optimizer",
        "optimizers",
        "side_optimizers",
        "metrics",
        "history",
        "records",
        "log",
    )
)


class _Shadow(Run):
    """A run that has a position and nothing else."""

    def __getattribute__(self, name: str) -> Any:
        if name in _BEYOND:
            raise _BeyondPosition
        return super().__getattribute__(name)


def _left_out(run: Run) -> None:
    del run


def _plan_windows(run: Run) -> None:
    run.plan_windows()


_BODIES: Mapping[str, Body] = {
    "before_loop": _plan_windows,
    "before_epoch": before_epoch,
    "before_step": before_step,
    "after_step": after_step,
    "optimizer_update": optimizer_update,
    "after_epoch": after_epoch,
}


class _CallAhead:
    """A subscription whose filter is counted on ahead of the run."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self._heard = False
        self._event = subscription.filter.ahead(self._hear)

    def call(self, run: Run) -> PlannedCall | None:
        """Count an event; return the call that it leads to."""
        self._heard = False
        try:
            self._event(run)
        except _BeyondPosition:  # raised by `when`: the event was counted, and `once` is still to come
            return PlannedCall(self.subscription.who, conditional=True)
        return PlannedCall(self.subscription.who) if self._heard else None

    def _hear(self, run: Run) -> None:
        del run
        self._heard = True


class Plan(Iterator[PlannedTurn]):
    """The turns to come, one after the other; a notebook shows the next ones as a table, and takes none.

    Args:
        begin: Begins to yield them, from where the run is now.
    """

    def __init__(self, begin: Callable[[], Iterator[PlannedTurn]]) -> None:
        self._begin = begin
        self._turns = begin()

    def __next__(self) -> PlannedTurn:
        return next(self._turns)

    def _repr_html_(self) -> str:
        rows = [
            (
                turn.source,
                turn.dest,
                turn.condition or "",
                ", ".join(call.who for call in (*turn.exit_calls, *turn.enter_calls)),
                f"{turn.epoch}, {turn.batch_index}, {turn.step}, {turn.update}",
            )
            for turn in islice(self._begin(), SHOWN)
        ]
        head = ("left", "entered", "if", "called", "epoch, batch, step, update")
        return table(f"the next {len(rows)} turns", head, rows)


SHOWN = 20
"""Turns in the table that a notebook shows."""


class Planner:
    """Walks the table ahead of a run.

    Args:
        run: Where to start from; it is not changed.
        visits: The detours, as they stand in the run.
        guard_names: The name of each detour's guard.
        subscriptions: The handlers that are called, in the order of the calls.
    """

    def __init__(
        self,
        run: Run,
        visits: Sequence[DetourState],
        guard_names: Sequence[str],
        subscriptions: Sequence[Subscription],
    ) -> None:
        self._table = run.table
        self._sized = run._runtime.feed.batches is not None
        nothing = Components.model_construct(network=torch.nn.Module())
        parts = Runtime(nothing, _ShadowFeed(run._runtime.feed), torch.device("cpu"), Optimizers())
        self._shadow = _Shadow(run.table, run.config, parts, LogBuffer(run.table, 1))
        object.__setattr__(self._shadow, "_position", copy(run._position))
        self._shadow._position.window = copy(run._position.window)
        self._shadow._position.kept = None
        self._visits = [visit.ahead() for visit in visits]
        self._guards: dict[str, Guard] = dict(GUARDS)
        self._guards |= {name: visit.due for name, visit in zip(guard_names, self._visits, strict=True)}
        self._filters = [_CallAhead(subscription) for subscription in subscriptions]

    def turns(self) -> Iterator[PlannedTurn]:
        """Yield turn after turn to the end of the run, or to where the length of the data would have to be known."""
        run, table = self._shadow, self._table
        while (state := table.states[run._position.node]).kind not in ("end", "failed"):
            known = self._knows(self._body(state.name))
            left = self._calls("exit", state.shown)
            if not self._sized and state.name in READERS:
                known = known and self._knows(READERS[state.name])
            arc, condition = self._choose(state.name, known)
            at = run.counters()
            run._position.node = table.index[arc.dest]
            entered = self._calls("enter", table.shown[arc.dest])
            yield PlannedTurn(
                state.shown,
                table.shown[arc.dest],
                condition,
                left,
                entered,
                at.epoch,
                at.batch_index,
                at.step,
                at.update,
            )
            if not known:
                return

    def _knows(self, body: Body) -> bool:
        """Do what the engine will do; return whether the length of the data was not needed for it."""
        try:
            body(self._shadow)
        except _LengthUnknown:
            return False
        return True

    def _body(self, name: str) -> Body:
        if name in self._table.origin:
            return self._visits[self._table.origin[name]].count
        return _BODIES.get(name, _left_out)

    def _choose(self, name: str, known: bool) -> tuple[Arc, str | None]:
        for arc in self._table.leaving[name]:
            if arc.guard is None:
                return arc, None
            if not known and arc.guard == "batches_remain":
                return arc, arc.guard
            try:
                if self._guards[arc.guard](self._shadow):
                    return arc, None
            except _BeyondPosition:
                return arc, arc.guard
        raise AssertionError("a table's arcs end in an unguarded one")

    def _calls(self, moment: str, state: str) -> tuple[PlannedCall, ...]:
        mine = (f for f in self._filters if f.subscription.mark.moment == moment and f.subscription.mark.state == state)
        calls: list[Any] = [filtered.call(self._shadow) for filtered in mine]
        return tuple(call for call in calls if call is not None)
