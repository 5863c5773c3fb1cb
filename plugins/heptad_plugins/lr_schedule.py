"""`LRSchedule` changes the run: it steps a learning-rate scheduler after each update or each epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from heptad import EngineError, Plugin, PluginError, Run
from heptad.plugin import Watch, monitored, refuse_unrecorded
from heptad_plugins._options import one_of, whole_number
from heptad_plugins._scheduler import check_monitor, scheduler_from_format_1, takes_length

Build = Callable[[Optimizer, int], LRScheduler] | Callable[[Optimizer], LRScheduler]


class LRSchedule(Plugin):
    """Drive any of torch's learning-rate schedulers.

    A function is called once, on exit of `before_loop`, with an optimizer of the run and `run.total_updates`, so a
    warm-up and a decay end where the run ends; one that takes the optimizer alone needs no length. The schedule moves
    only if an update was made since it last moved: on a skipped update, and in an epoch without any update, it stands
    still. It keeps the length that it was built with, for torch's schedulers cannot change theirs: where
    `Run.set_accumulation` changes how many updates are made, only a function that itself asks for `run.total_updates`
    follows.

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

    Raises:
        PluginError: When built, for an option that does not fit.
        EngineError: In the run, if its number of updates is not known, the function returns no scheduler, the scheduler
            belongs to another optimizer, or the monitored value was never recorded.
    """

    runs_before = ("CSVLogger", "TensorBoardLogger", "Progress")

    def __init__(
        self,
        scheduler: LRScheduler | Build,
        interval: Literal["update", "epoch", "evaluation"] = "update",
        monitor: str | None = None,
        *,
        optimizer: int = 0,
    ) -> None:
        one_of("LRSchedule", "interval", interval, ("update", "epoch", "evaluation"))
        if interval == "evaluation" and monitor is None:
            raise PluginError(
                "LRSchedule(interval='evaluation') steps ReduceLROnPlateau on each new value of monitor=…, such as "
                "'valid/loss'; got monitor=None"
            )
        self._number = whole_number("LRSchedule", "optimizer", optimizer, least=0)
        if optimizer:
            self.name = f"LRSchedule/{optimizer}"
        self._source = scheduler
        self._interval: Literal["update", "epoch", "evaluation"] = interval
        self._monitor = monitor
        self._watch = Watch(monitor or "")
        self._sized = True
        self._forget()
        if isinstance(scheduler, LRScheduler):
            check_monitor(scheduler, monitor, PluginError)
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
        self._watch.seen = 0
        self._restored: dict[str, Any] | None = None

    def on_begin(self, run: Run) -> None:
        """Forget the scheduler that was built for an earlier run."""
        self._forget()

    def on_exit_before_loop(self, run: Run) -> None:
        """Build the scheduler, now that there is an optimizer."""
        if run.total_updates != 0:  # a run without updates has nothing to schedule, and no length to divide by
            self._ready(run)

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the rate of this update, then move on to that of the next."""
        if self._interval == "update":
            self._move(run)
        elif self._interval == "evaluation":
            self._step_on_values(run)

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the rate of this epoch, then move on to that of the next."""
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
            return self._restored or {}
        return {
            "scheduler": self._scheduler.state_dict(),
            "total_updates": self._total,
            "moved_at": self._moved_at,
            "seen": self._watch.seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until there is a scheduler to restore it to."""
        self._restored = state or None
        self._moved_at, self._watch.seen = state.get("moved_at", 0), state.get("seen", None if state else 0)
        self._total = state.get("total_updates")

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
        for name, rate in run.learning_rates(scheduler.optimizer).items():
            run.record(name, rate)
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(monitored(run, self._monitor or "", "LRSchedule", self._interval))
        else:
            scheduler.step()

    def _ready(self, run: Run) -> LRScheduler:
        """Return the scheduler: built when first asked for, and restored from a checkpoint."""
        state, self._restored = self._restored, None
        if self._scheduler is None:
            groups = run.parameter_groups()
            kept = [_options_of(group) for group in groups]
            self._scheduler = self._build(run)
            if state is not None:  # its constructor has written its first rate over that of the checkpoint
                for group, options in zip(groups, kept, strict=True):
                    group.update(options)
        if state is not None:
            # torch warns if a scheduler steps before its optimizer; it cannot know of the steps before the restart
            self._scheduler.optimizer.__dict__["_opt_called"] = True
            self._scheduler.load_state_dict(scheduler_from_format_1(state["scheduler"]))
        return self._scheduler

    def _build(self, run: Run) -> LRScheduler:
        scheduler = self._source
        if not isinstance(scheduler, LRScheduler):
            self._total = run.total_updates if self._total is None else self._total
            if self._total is None and self._sized:
                raise EngineError(
                    "LRSchedule cannot size the schedule: the data have no length, so nobody knows how many updates "
                    "there will be; give RunConfig(max_updates=…), or pass a scheduler that you have built yourself"
                )
            if self._number >= len(run.optimizers):
                count = len(run.optimizers)
                there = "there is 1 optimizer" if count == 1 else f"there are {count} optimizers"
                raise EngineError(f"LRSchedule(optimizer={self._number}): {there}, counted from 0")
            build: Any = scheduler
            optimizer = run.optimizers[self._number]
            scheduler = build(optimizer, self._total) if self._sized else build(optimizer)
            if not isinstance(scheduler, LRScheduler):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
                raise EngineError(f"LRSchedule: the function must return a torch scheduler, got {scheduler!r}")
            check_monitor(scheduler, self._monitor, EngineError)
        if not any(scheduler.optimizer is optimizer for optimizer in run.optimizers):
            raise EngineError(
                f"LRSchedule: the {type(scheduler).__name__} belongs to an optimizer that is not the run's; build it "
                "from the optimizer in Components, or pass a function (optimizer, total_updates)"
            )
        return scheduler


def _options_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter group's options; a rate that is a tensor is written in place, so it is copied."""
    options = {name: value for name, value in group.items() if name != "params"}
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in options.items()}
