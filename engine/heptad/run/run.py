"""`Run`: one passage through the machine, the object that handlers receive and that `Engine.run()` returns.

Its place is kept in a `RunState`, what it works with in a `Runtime`. Handlers read both through the properties here,
and act through its verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec
from uuid import uuid4

import numpy as np
import torch

from heptad.config import RunConfig
from heptad.errors import EngineError, add_note, in_a_line, summarize
from heptad.record.arrays import pack_array
from heptad.record.buffer import Follower, LogBuffer
from heptad.record.chunk import Failure
from heptad.record.counters import Counters
from heptad.record.events import Accumulation, Event, Note, RecordedArray, Skip, SkipBatch, Stop
from heptad.run.refusals import in_words, refuse_undeclared
from heptad.run.runtime import Runtime
from heptad.run.snapshot import Snapshot
from heptad.run.state import initial_state
from heptad.run.view import RunView
from heptad.run.weight import adds_nothing
from heptad.table import Table

if TYPE_CHECKING:
    from heptad.history.query import TransitionLog


P = ParamSpec("P")


class Run(RunView):
    """One passage through the machine.

    A counter says how many are complete, which is also the index from 0 of the one under way: on entry to
    `process_batch` of the very first step, `step` is 0; on exit of `after_step` it is 1.

    Attributes:
        config: The `RunConfig`.
    """

    # The rooms of the engine share what has an underscore; handlers read `RunView`, which gives no way to write.
    #   _position: Where the run is.
    #   _runtime: What the bodies work with.
    #   _buffer: The written side of the log.
    #   _capture: Returns a snapshot of the run.

    __slots__ = (
        "__weakref__",
        "_afresh",
        "_buffer",
        "_capture",
        "_id",
        "_log",
        "_paused",
        "_position",
        "_resumed_from",
        "_runtime",
        "config",
        "table",
    )

    def __init__(self, table: Table, config: RunConfig, runtime: Runtime, buffer: LogBuffer) -> None:
        self.table = table
        self.config = config
        self._runtime = runtime
        self._buffer = buffer
        buffer.effects.carries = config.remainder == "carry"
        self._log: TransitionLog | None = None
        self._id = uuid4().hex
        self._resumed_from: str | None = None
        self._afresh = False
        self._capture: Callable[[Run], Snapshot] | None = None
        self._position = initial_state(config)
        self._paused: str | None = None

    # -- for plugins

    def follow(self, follower: Follower) -> None:
        """Hand the log to a follower while it is written, from now on and until `unfollow`.

        Args:
            follower: Its methods are called on the thread that drives the run, see `Follower`.
        """
        self._buffer.follow(follower)
        self._position.halt = True  # the turns up to the next `settled` are counted anew, by the limit of this one too

    def unfollow(self, follower: Follower) -> None:
        """Stop handing the log to a follower; one that does not follow is passed over."""
        self._buffer.leave(follower)

    # -- verbs

    def stop(self, reason: str) -> None:
        """End the run in order: the open window is completed, then the epoch and the loop are closed.

        The epoch counts as complete, though it was cut short. Under `remainder="drop"` a window that data of unknown
        length end in makes no update, as without a stop.

        Args:
            reason: Why, in words; it stands in the log, and in `Run.reason` unless the run is ending already.

        Raises:
            EngineError: If the run has ended, or the reason is no text.
        """
        self._refuse_when_ended("stop")
        self.emit(Stop, reason=in_words("stop", reason))
        self._buffer.stops.append(self._buffer.seq)  # the first guards to see it are those asked next
        self._position.end(reason)

    def pause(self, reason: str) -> None:
        """Pause the run at the end of this turn, or some turns later where it would be in mid-step.

        Three turns at most, and one more for each detour that leaves from `process_batch`, and for a redo.

        Args:
            reason: Why, in words. Once the run pauses, it stands in the log and in `Run.paused`; of several the first.

        Raises:
            EngineError: If the run has ended, or the reason is no text.
        """
        self._refuse_when_ended("pause")
        in_words("pause", reason)
        if self._position.pause_requested is None:
            self._position.pause_requested = reason, self.seq
        self._position.halt = True

    def ask(self, name: str, wanted: bool = True) -> None:
        """Ask for something that depends on this process alone, such as its clock; `Run.agreed` says when all know.

        Args:
            name: A plugin's name and one of its `requests`, such as `"Checkpoint.save"`.
            wanted: `False` takes it back, also what is agreed: say so where all ranks do, as in the body of a detour.

        Raises:
            EngineError: If no plugin of the run declares it.
        """
        refuse_undeclared(name, self._runtime.requests)
        (self._position.asked.add if wanted else self._position.asked.discard)(name)

    def skip_update(self, reason: str) -> None:
        """Leave the weights alone in this update: the gradients are dropped and `update` does not grow.

        Args:
            reason: Why, in words; it stands in the log.

        Raises:
            EngineError: Anywhere but on entry to `optimizer_update`, or if the reason is no text.
        """
        at = self._position
        if self.state != "optimizer_update" or not at.entering:
            raise EngineError(
                f"skip_update is legal on entry to optimizer_update only, the run is in {self.state}, and not on entry "
                "to it; call it in on_enter_optimizer_update, where the gradients of the window are complete"
            )
        in_words("skip_update", reason)
        if at.skip is None:
            self.emit(Skip, reason=reason)
        at.skip = reason

    def skip_batch(self, reason: str) -> None:
        """Leave this step out: it counts as a step and adds nothing to its window.

        Args:
            reason: Why, in words; it stands in the log.

        Raises:
            EngineError: Anywhere but in `Plugin.on_loss`, or if the reason is no text.
        """
        at = self._position
        if not at.judging:
            raise EngineError(f"skip_batch is legal in Plugin.on_loss only, the run is in {self.state}")
        if in_words("skip_batch", reason) and not adds_nothing(at.weight):
            self.emit(SkipBatch, reason=reason)
        at.weight = 0

    def recompute(self) -> torch.Tensor:
        """Compute the window's gradients again, at the present weights; return its loss. See `Plugin.keeps_window`.

        Raises:
            EngineError: Anywhere but on entry to `optimizer_update`, or if no plugin has `keeps_window = True`.
        """
        if self.state != "optimizer_update" or not self._position.entering or self._runtime.recomputation is None:
            raise EngineError("recompute is for on_enter_optimizer_update, of a plugin with keeps_window = True")
        return self._runtime.recomputation.again(self)

    def set_accumulation(self, k: int) -> None:
        """Give the windows from the next one on another number of steps.

        Args:
            k: Steps in a window, at least 1.

        Raises:
            EngineError: If `k` is not a whole number from 1 on.
        """
        k = int(k) if isinstance(k, np.integer) else k
        if type(k) is not int or k < 1:
            raise EngineError(f"set_accumulation takes a whole number from 1 on, got {k!r}")
        at = self._position
        if k == at.window.next_size:
            return
        self.emit(Accumulation, before=at.window.next_size, after=k)
        at.window.next_size = k
        at.window.resized = True
        self.plan_windows()

    def record(self, name: str, value: float | torch.Tensor) -> None:
        """Record a value under a name.

        Args:
            name: Such as `"valid/accuracy"`.
            value: A number or a 0-dim tensor, which stays on its device until it is read.

        Raises:
            EngineError: If the value is neither.
        """
        self._buffer.recorded.record(name, value, self.seq, self.counters())

    def record_array(self, name: str, value: np.ndarray[Any, Any] | torch.Tensor) -> None:
        """Record a small array (waits for its device) as an event that `run.log.arrays(name)` returns.

        Raises:
            EngineError: If it is no array or tensor of numbers, or the name is no text.
        """
        self.emit(RecordedArray, name=in_words("record_array", name), data=pack_array(name, value))

    def record_defaults(self, values: Mapping[str, float | torch.Tensor | None], since: int) -> int:
        """Record values under those of their names that nobody has recorded lately.

        Args:
            values: By name, each as for `record`; `None` is left out.
            since: How many values to look past; what this call returned the last time.

        Returns:
            How many values are recorded now.
        """
        recorded = self._buffer.recorded
        taken, seq, at = recorded.names(since), self.seq, self.counters()
        for name, value in values.items():
            if value is not None and name not in taken:
                recorded.record(name, value, seq, at)
        return len(recorded)

    def note(self, text: str) -> None:
        """Bind a note to the transition under way; it is for rare events, `record` is for values.

        Raises:
            EngineError: If it is no text.
        """
        self.emit(Note, text=in_words("note", text))

    def snapshot(self) -> Snapshot:
        """Return everything that the rest of the run depends on, as `Checkpoint` stores it.

        The tensors are those of the run, not copies: write them, or copy them, before the run continues.

        Raises:
            EngineError: If the run is neither between two turns (paused) nor in the body of a detour, or in mid-step.
            CheckpointError: If an optimizer cannot give its state.
        """
        if self._capture is None:
            raise EngineError("only the run of an engine has a snapshot")
        return self._capture(self)

    # -- for the engine

    def emit(self, make: Callable[Concatenate[int, int, P], Event], /, *args: P.args, **fields: P.kwargs) -> None:
        """Make an event and bind it to the transition under way.

        Args:
            make: The class of the event.
            *args: The fields of the event behind `seq` and `time_ns`.
            **fields: The same by name.
        """
        self._buffer.emit(make, self.seq, *args, **fields)

    def plan_windows(self) -> None:
        """Decide how many batches must remain for a window to be started."""
        drops = self.config.remainder == "drop" and self._runtime.feed.batches is not None
        self._position.needed = self._position.window.next_size if drops else 1

    def counters(self) -> Counters:
        """Return the counters."""
        at = self._position
        return Counters(at.epoch, at.batch_index, at.step, at.update, at.window.steps)

    def fail(self, error: BaseException, moment: str, who: str, guard: str, guards: dict[str, bool]) -> None:
        """End the run in `failed`; say where in the log, in `reason` and in a note on the exception."""
        at = self._position
        step = [(name, value) for name, value in (("batch", at.batch), ("output", at.output)) if value is not None]
        line = in_a_line(error)
        failure = Failure(self._buffer.seq, self.state, moment, who, guard, line, self.counters(), guards)
        self._buffer.fail(failure, at.node)
        at.node = self.table.index["failed"]
        at.entering = False
        at.end(line, failed=True)
        add_note(error, str(failure))
        if failure.state == "process_batch" and isinstance(error, Exception):  # what errors of shape are about
            for name, value in step:
                add_note(error, f"the {name}: {summarize(value)}")

    @property
    def seq(self) -> int:
        """The number of the transition under way: what happens on entry belongs to the one that led there."""
        return self._buffer.seq - self._position.entering

    def _refuse_when_ended(self, verb: str) -> None:
        if self.ended:
            raise EngineError(f"{verb}() came too late: the run is {self.state}")

    def __setattr__(self, name: str, value: object) -> None:
        try:
            if name in ("config", "table") and hasattr(self, name):
                raise AttributeError
            super().__setattr__(name, value)
        except AttributeError:  # there is no such slot, or no setter
            raise AttributeError(
                f"run.{name} cannot be set: a handler acts through the run's verbs (stop, pause, skip_update, "
                "skip_batch, set_accumulation, record, note); what a plugin remembers belongs on the plugin"
            ) from None
