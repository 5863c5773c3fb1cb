"""`LRSchedule` changes the run: it steps a learning-rate scheduler after each update or each epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from heptad import CheckpointError, EngineError, Plugin, PluginError, Run
from heptad.plugin import Watch, monitored, refuse_unrecorded
from heptad_plugins._joining import is_announced
from heptad_plugins._losses import EPOCH, Losses
from heptad_plugins._options import one_of, text_of, whole_number
from heptad_plugins._scheduler import (
    check_monitor,
    is_rebased,
    rebase,
    refuse_stuck,
    scheduler_from_format_1,
    takes_length,
)
from heptad_plugins._stored import count_in, mapping, refuse_other_form
from heptad_plugins._stretching import (
    TrialOptimizer,
    as_joined,
    facts_of,
    include,
    options_of,
    other_facts,
    replay,
    shows_all,
)

SCHEDULES = "_heptad_schedules"
"""The attribute of an optimizer that holds the names of its schedules."""

Build = Callable[[Optimizer, int], LRScheduler] | Callable[[Optimizer], LRScheduler]


MOVES_AT_ONCE = 1_000_000
"""Moves that are made again at most where a run has not made as many; a schedule may have moved before the run."""


class LRSchedule(Plugin):
    """Drive any of torch's learning-rate schedulers.

    A function is called once, on exit of `before_loop`, with an optimizer of the run and `run.total_updates`, so a
    warm-up and a decay end where the run ends; one that takes the optimizer alone needs no length. The schedule moves
    only if an update was made since it last moved: on a skipped update, and in an epoch without any update, it stands
    still. It keeps the length that it was built with, for torch's schedulers cannot change theirs: where
    `Run.set_accumulation` changes how many updates are made, only a function that itself asks for `run.total_updates`
    follows.

    With several ranks each has a schedule, and all make the same updates: their number does not grow with the ranks. A
    monitored value must be the same on all, as those of `Evaluate` and the means of the training are.

    A resumed run may be longer or shorter than the one of the checkpoint (`epochs`, `max_updates`), or its schedule be
    built with other options. That is refused, unless `on_resize` says which schedule is meant. To find it out, a
    function is called once more where a run is resumed, with an optimizer of the same options that is thrown away.

    The rate that an update (or an epoch) was made with is recorded as `"lr"`; with several parameter groups, counted
    over all optimizers, as `"lr/0"`, `"lr/1"`, …. Nothing waits for the device, but for a monitored value that is still
    on it.

    Args:
        scheduler: A scheduler of one of the run's optimizers, or a function `(optimizer, total_updates) -> scheduler`,
            or of the optimizer alone for a schedule that does not depend on how long the run is. A class is refused:
            its second parameter may be anything.
        interval: Whether the scheduler counts updates or epochs; `total_updates` counts updates in both cases. With
            `"evaluation"` `ReduceLROnPlateau` steps on each new value of `monitor`, however often it is recorded, on
            the next exit of `evaluate`, `optimizer_update` or `after_epoch`.
        monitor: For `ReduceLROnPlateau`: the name of the recorded value that it looks at, at each interval the newest.
        optimizer: Which of several optimizers a function gets, by its number in `Components.optimizer`. Each has a
            schedule of its own: one plugin for each.
        on_resize: What a resumed run does whose schedule is another one than that of the checkpoint. `"stretch"`: the
            schedule as it is built now, brought to its place by as many moves as were made; so from here on the rates
            are those of a run that had this length from its beginning. `"keep"`: the one of the checkpoint, as it was
            built. `None`: refuse to resume. `ReduceLROnPlateau` has no length and stays as it is.
        name: The plugin's name; two of one optimizer need one. By default `LRSchedule`, with the number of the
            optimizer, such as `LRSchedule/1`, where that is not 0.

    Raises:
        PluginError: When built, for an option that does not fit.
        EngineError: In the run, if its number of updates is not known, the function returns no scheduler, the scheduler
            belongs to another optimizer, or the monitored value was never recorded.
    """

    ranks = "all"  # each steps its own optimizers, by updates, which all make together
    own_state = True  # where it has looked: the first rank may have recorded more values
    runs_before = ("CSVLogger", "TensorBoardLogger", "Progress")

    def __init__(
        self,
        scheduler: LRScheduler | Build,
        interval: Literal["update", "epoch", "evaluation"] = "update",
        monitor: str | None = None,
        *,
        optimizer: int = 0,
        on_resize: Literal["stretch", "keep"] | None = None,
        name: str | None = None,
    ) -> None:
        one_of("LRSchedule", "interval", interval, ("update", "epoch", "evaluation"))
        if interval == "evaluation" and monitor is None:
            raise PluginError(
                "LRSchedule(interval='evaluation') steps ReduceLROnPlateau on each new value of monitor=…, such as "
                "'valid/loss'; got monitor=None"
            )
        self._number = whole_number("LRSchedule", "optimizer", optimizer, least=0)
        if name is not None:
            self.name = text_of("LRSchedule", "name", name, "a word such as 'warm-up'")
        elif optimizer:
            self.name = f"LRSchedule/{optimizer}"
        if on_resize is not None:
            one_of("LRSchedule", "on_resize", on_resize, ("stretch", "keep"))
        self._on_resize = on_resize
        self._source = scheduler
        self._interval: Literal["update", "epoch", "evaluation"] = interval
        self._monitor = monitor
        self._watch = Watch(monitor or "")
        self.needs_epoch_loss = monitor == EPOCH
        self._sized = True
        self._forget()
        if isinstance(scheduler, LRScheduler):
            check_monitor(scheduler, monitor, PluginError)
            if on_resize == "stretch":
                raise PluginError(
                    "LRSchedule(on_resize='stretch') builds the schedule once more, and so takes a function "
                    "(optimizer, total_updates) that builds it, got a scheduler that is built"
                )
        elif isinstance(scheduler, type):
            made = scheduler.__name__
            raise PluginError(
                f"LRSchedule got the class {made}, and cannot know what the options of {made} are to be; pass a "
                f"function, LRSchedule(lambda optimizer: {made}(optimizer, …))"
            )
        elif callable(scheduler):
            self._sized = takes_length(scheduler)
        else:
            raise PluginError(
                "LRSchedule takes a scheduler or a function (optimizer, total_updates) that returns one, "
                f"got {scheduler!r}"
            )

    def _forget(self) -> None:
        self._scheduler: LRScheduler | None = None
        self._total: int | None = None
        self._moved_at = 0
        self._entered: int | None = None
        self._moves = 0
        self._first: dict[str, Any] = {}
        """What the scheduler was built from."""
        self._options: list[dict[str, Any]] = []
        """The options that each group of its optimizer was built with, or joined with."""
        self._length: int | None = None
        """The updates of the whole run as it was configured; `total_updates` may change while it is driven."""
        self._begun: Run | None = None
        """A run that has begun and not made a turn: one that a state can be compared with."""
        self._stretches = False
        self._watch.seen = 0
        self._losses = Losses()
        self._beside: set[str] = set()
        """The names of all schedules of its optimizer."""
        self._restored: dict[str, Any] | None = None

    def on_begin(self, run: Run) -> None:
        """Forget the scheduler that was built for an earlier run."""
        self._forget()
        if run.state == "idle":
            self._begun, self._length = run, run.total_updates

    def open(self, run: Run) -> None:
        """Bring the schedule of a resumed run to its place, where that needs the optimizer as it was restored.

        That is: one of another length; one that begins at another learning rate; one that was not in the checkpoint,
        which has to write its first rate before the next update.
        """
        self._begun = None
        self._losses.open(run)
        self._refuse_endless(run.update, run.epoch, run.record_count)
        if self._stretches:
            self._ready(run)
        elif self._restored is not None and run.optimizers:
            given = self._source
            optimizer = given.optimizer if isinstance(given, LRScheduler) else run.optimizers[self._number]
            state, groups = scheduler_from_format_1(self._restored["scheduler"]), run.parameter_groups(optimizer)
            if is_rebased(state, groups):
                self._refuse_others(self._restored, "a changed learning rate", "keep that of the checkpoint")
                self._scheduler, self._restored = rebase(lambda: self._build(run), given, state, groups), None
        elif self._scheduler is None and run.optimizers and run.total_updates != 0:
            self._ready(run)

    def on_exit_before_loop(self, run: Run) -> None:
        """Build the scheduler, now that there is an optimizer."""
        if run.total_updates != 0:  # a run without updates has nothing to schedule, and no length to divide by
            self._ready(run)

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Remember how many values were recorded when the rates were still those of this update."""
        self._entered = run.record_count if self._interval == "update" else None
        self._include(run)

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the rate of this update, then move on to that of the next."""
        self._losses.record_watched(run, self._watch.name)
        if self._interval == "update":
            self._move(run)
        elif self._interval == "evaluation":
            self._step_on_values(run)

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the rate of this epoch, then move on to that of the next."""
        self._losses.record_watched(run, self._watch.name, epoch=True)
        if self._interval == "epoch":
            self._move(run)
        elif self._interval == "evaluation":
            self._step_on_values(run)
            if run.batch_index:
                refuse_unrecorded(run, self._watch.name, "LRSchedule")

    def on_exit_evaluate(self, run: Run) -> None:
        """Step on what an evaluation recorded."""
        if self._interval == "evaluation":
            self._step_on_values(run)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, the length it was built with, and up to where it has moved."""
        if self._scheduler is None:
            return {**self._restored, **self._places()} if self._restored else {}
        return {
            "scheduler": self._scheduler.state_dict(),
            "total_updates": self._total,
            "moved_at": self._moved_at,
            "moves": self._moves,
            "beside": sorted(self._beside),
            "length": self._length,
            "first": self._first,
            # of the one that is never built again: torch's own follows the number of groups
            "options": [] if isinstance(self._scheduler, ReduceLROnPlateau) else self._options,
            **self._places(),
        }

    def _places(self) -> dict[str, Any]:
        """Return up to which recorded value it has looked, and what the means are that were recorded."""
        return {"seen": self._watch.seen, "losses": self._losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until there is a scheduler to restore it to.

        Raises:
            EngineError: If the schedule is another one now, and `on_resize` does not say what is meant.
        """
        moved_at, seen = count_in(state, "moved_at", 0), count_in(state, "seen", None if state else 0)
        losses = mapping(state.get("losses", {}), "losses")
        self._total = count_in(state, "total_updates", None)
        self._first = dict(mapping(state.get("first", {}), "first"))
        self._options = [dict(mapping(one, "options")) for one in state.get("options", ())]
        count_in(state, "moves", None)
        count_in(state, "length", None)
        self._moved_at, self._watch.seen = moved_at, seen
        self._losses.load_state_dict(losses)
        if state:
            self._refuse_another_form(scheduler_from_format_1(state["scheduler"]))
        if state and self._begun is not None:
            if changes := self._changes(self._begun, state):
                self._choose(changes, state)
        elif state:
            self._length = state.get("length", self._total)
        scheduler: Any = scheduler_from_format_1(state.get("scheduler", {}))
        self._moves = state.get("moves", scheduler.get("last_epoch", self._moved_at))  # older checkpoints lack it
        self._restored = state or None
        self._refuse_endless(moved_at, seen or 0)

    def _refuse_another_form(self, stored: object) -> None:
        """Compare the stored schedule with one of torch's own as it would be built now, in form."""
        mapping(stored, "the schedule")
        run = self._begun
        scheduler = None if run is None else self._tried(run)
        if run is not None and scheduler is not None and type(scheduler).__module__ == LRScheduler.__module__:
            refuse_other_form(stored, scheduler.state_dict())
            if scheduler is not self._source:
                refuse_stuck(scheduler, mapping(stored), lambda: self._tried(run))

    def _refuse_endless(self, *counts: int) -> None:
        """Refuse a schedule that has moved further than the run: to move there again could take for ever."""
        most = max(*counts, MOVES_AT_ONCE)
        last: Any = scheduler_from_format_1((self._restored or {}).get("scheduler", {})).get("last_epoch", 0)
        if max(self._moves, last) > most:
            raise CheckpointError(
                f"LRSchedule: the schedule in the checkpoint has moved {max(self._moves, last)} times"
            )

    def _step_on_values(self, run: Run) -> None:
        """Step on each new value of the monitor."""
        for value in self._watch.take(run):
            scheduler: Any = self._ready(run)
            for name, rate in run.learning_rates(scheduler.optimizer).items():
                run.record(name, rate)
            scheduler.step(value)

    def _move(self, run: Run) -> None:
        if run.update == self._moved_at:
            return
        scheduler = self._ready(run)
        self._moved_at = run.update
        self._moves += 1
        taken = set[str]() if self._entered is None else run.names_recorded(self._entered)
        for name, rate in run.learning_rates(scheduler.optimizer).items():
            if name not in taken:  # another schedule of this optimizer has recorded it, and moved it since
                run.record(name, rate)
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(monitored(run, self._monitor or "", "LRSchedule", self._interval))
        else:
            try:
                scheduler.step()
            except ValueError as error:
                error.add_note(f"LRSchedule: {self._advice(run)}")
                raise

    def _include(self, run: Run) -> None:
        """Build the schedule again, if a parameter group has joined its optimizer, before that steps with it."""
        if self._scheduler is None and self._restored is None:
            return
        scheduler = self._ready(run)
        groups = run.parameter_groups(scheduler.optimizer)
        known = len(scheduler.get_last_lr())
        if known >= len(groups) or isinstance(scheduler, ReduceLROnPlateau):
            return
        self._refuse_joining(scheduler.optimizer)
        self._know(groups)
        first = self._first
        self._scheduler = include(groups, self._options, lambda: self._build(run), self._moves, known)
        self._first = first

    def _refuse_joining(self, optimizer: Optimizer) -> None:
        """Refuse a schedule that cannot be built again for a group that joins its optimizer."""
        others = vars(optimizer).get(SCHEDULES, set[str]()) - {self.name}
        why = f"{min(others)} schedules this optimizer too" if others else ""
        if isinstance(self._source, LRScheduler):
            why = f"it was given a {type(self._source).__name__} that is built already"
        if why:
            raise EngineError(
                f"{self.name}: a parameter group joins {type(optimizer).__name__} during the run, for which the "
                f"schedule is built again, and {why}; give LRSchedule one function that builds it, or build the "
                "optimizer with all parameters: those that are frozen stand still"
            )

    def _know(self, groups: Sequence[dict[str, Any]]) -> None:
        """Remember the options of groups that no schedule of this plugin has written to."""
        self._options += [as_joined(group) for group in groups[len(self._options) :]]

    def _advice(self, run: Run) -> str:
        return (
            f"the schedule has moved {self._moves - 1} times and cannot move further, and the run makes "
            f"{run.total_updates or 'more'} updates; size it by total_updates, LRSchedule(lambda optimizer, "
            "total_updates: …), and where a run is resumed for longer say on_resize='stretch'"
        )

    def _ready(self, run: Run) -> LRScheduler:
        """Return the scheduler: built when first asked for, and restored from a checkpoint."""
        state, self._restored = self._restored, None
        if state is not None and self._stretches:
            self._stretches, self._total = False, None
            groups = run.parameter_groups(self._optimizer(run))
            self._scheduler = replay(groups, self._options, lambda: self._build(run), self._moves)
            state = None
        if self._scheduler is None:
            groups = run.parameter_groups()
            kept = [options_of(group) for group in groups]
            first = self._first
            self._scheduler = self._build(run)
            if state is not None:  # its constructor has written its first rate over that of the checkpoint
                self._first = first
                for group, options in zip(groups, kept, strict=True):
                    group.update(options)
        if state is not None:
            # torch warns if a scheduler steps before its optimizer; it cannot know of the steps before the restart
            self._scheduler.optimizer.__dict__["_opt_called"] = True
            self._scheduler.load_state_dict(scheduler_from_format_1(state["scheduler"]))
        return self._scheduler

    def _build(self, run: Run) -> LRScheduler:
        """Return the scheduler as it begins, and remember what it and the groups of its optimizer are then."""
        scheduler = self._source
        if not isinstance(scheduler, LRScheduler):
            self._total = run.total_updates if self._total is None else self._total
            if self._total is None and self._sized:
                raise EngineError(
                    "LRSchedule cannot size the schedule: the data have no length, so nobody knows how many updates "
                    "there will be; give RunConfig(max_updates=…), or pass a scheduler that you have built yourself"
                )
            optimizer = self._optimizer(run)
            self._know(run.parameter_groups(optimizer))
            scheduler = self._call(optimizer, self._total)
            if not isinstance(scheduler, LRScheduler):
                raise EngineError(f"LRSchedule: the function must return a torch scheduler, got {scheduler!r}")
            check_monitor(scheduler, self._monitor, EngineError)
        if not any(scheduler.optimizer is optimizer for optimizer in run.optimizers):
            raise EngineError(
                f"LRSchedule: the {type(scheduler).__name__} belongs to an optimizer that is not the run's; build it "
                "from the optimizer in Components, or pass a function (optimizer, total_updates)"
            )
        if is_announced(run, scheduler.optimizer) and not isinstance(scheduler, ReduceLROnPlateau):
            self._refuse_joining(scheduler.optimizer)
        # by name: an optimizer that serves a second run has the same plugins
        self._beside = vars(scheduler.optimizer).setdefault(SCHEDULES, set())
        self._beside.add(self.name)
        self._length = run.total_updates if self._length is None else self._length
        self._first = facts_of(type(scheduler).__name__, scheduler.state_dict())
        return scheduler

    def _optimizer(self, run: Run) -> Optimizer:
        count = len(run.optimizers)
        if self._number >= count:
            there = "there is 1 optimizer" if count == 1 else f"there are {count} optimizers"
            raise EngineError(f"LRSchedule(optimizer={self._number}): {there}, counted from 0")
        return run.optimizers[self._number]

    def _call(self, optimizer: Optimizer, total: int | None) -> object:
        build: Any = self._source
        return build(optimizer, total) if self._sized else build(optimizer)

    # -- a resumed run whose schedule is another one

    def _changes(self, run: Run, state: dict[str, Any]) -> list[str]:
        """Return in what the schedule is another one than that of a checkpoint, in words."""
        scheduler, first = self._tried(run), self._first
        if isinstance(scheduler, ReduceLROnPlateau) or (self._sized and self._length is None):
            return []  # it has no length, or the data change and nobody knows that of the run
        changes: list[str] = []
        if first and scheduler is not None:
            moved = facts_of(first["class"], scheduler_from_format_1(state["scheduler"]))
            changes = other_facts(first, moved, facts_of(type(scheduler).__name__, scheduler.state_dict()))
            if not changes and shows_all(scheduler):
                return []  # a function may take the length and make nothing of it
        stored = state.get("length", self._total)
        if self._sized and stored != self._length:
            changes.insert(0, f"it was sized for {stored} updates, and the run makes {self._length} now")
        return changes

    def _refuse_others(self, state: dict[str, Any], what: str, way: str) -> None:
        """Raise an error where another schedule drives the same optimizer: their moves cannot be made again alone."""
        if others := set(state.get("beside", ())) - {self.name}:
            raise EngineError(
                f"{self.name}: with {what} a schedule is moved to its place from its beginning, which cannot be done "
                f"beside {min(others)}, since the rates of their optimizer are the work of both; {way}, or give the "
                "optimizer one schedule, such as torch's SequentialLR or ChainedScheduler"
            )

    def _tried(self, run: Run) -> LRScheduler | None:
        """Return the scheduler as it would be built now, on an optimizer like it; `None` where that fails."""
        if isinstance(self._source, LRScheduler):
            return self._source
        try:
            optimizer = self._optimizer(run)
            groups = run.parameter_groups(optimizer)
            joined = self._options[len(groups) :]
            self._options = [*map(as_joined, groups), *joined]
            added = [{**options, "params": [torch.nn.Parameter(torch.zeros(1))]} for options in joined]
            scheduler = self._call(TrialOptimizer([*groups, *added], optimizer.defaults), self._length)
        except Exception:  # whoever builds it for the run will raise it again
            return None
        return scheduler if isinstance(scheduler, LRScheduler) else None

    def _choose(self, changes: list[str], state: dict[str, Any]) -> None:
        """Do what `on_resize` says.

        Raises:
            EngineError: If it says nothing.
        """
        if self._on_resize is None:
            raise EngineError(
                f"the schedule is another one than in the checkpoint: {'; '.join(changes)}. "
                "LRSchedule(on_resize='stretch') continues with the one that is built now, at the present update; "
                "on_resize='keep' with the one of the checkpoint, as it was built; or give the run the epochs, "
                "max_updates and schedule that it had"
            )
        if self._on_resize == "stretch":
            self._refuse_others(state, "on_resize='stretch'", "say on_resize='keep'")
        ended = self._length is not None and self._moved_at >= self._length
        self._stretches = self._on_resize == "stretch" and not ended
        if self._on_resize == "keep":
            self._length = state.get("length", self._total)  # a run that continues this one is asked again
