"""`RunView`: all that can be read of a run. Properties and questions; nothing here changes anything but `batch`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from heptad.config import Components, RunConfig
from heptad.errors import EngineError
from heptad.record.buffer import LogBuffer
from heptad.record.values import Recorded
from heptad.run.detached import detached
from heptad.run.guards import batches_remain, epochs_remain, update_due
from heptad.run.loss_mean import mean_of
from heptad.run.passes import RunPasses
from heptad.run.refusals import refuse_private
from heptad.run.runtime import Runtime
from heptad.run.shards import alike
from heptad.run.state import RunState
from heptad.table import Table

if TYPE_CHECKING:
    from heptad.history.query import TransitionLog


class RunView(RunPasses):
    """What can be read of a run; `Run` adds what it can be asked to do. Never made by itself.

    A counter says how many are complete, which is also the index from 0 of the one under way: on entry to
    `process_batch` of the very first step, `step` is 0; on exit of `after_step` it is 1.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        table: Table
        config: RunConfig
        _runtime: Runtime
        _buffer: LogBuffer
        _position: RunState
        _id: str
        _resumed_from: str | None
        _afresh: bool
        _paused: str | None
        _log: TransitionLog | None
    else:

        def __getattr__(self, name: str) -> object:
            refuse_private(name)
            raise AttributeError(f"a run has no attribute '{name}'", name=name, obj=self)

    # -- where the run is

    @property
    def state(self) -> str:
        """The state that the run is in, as users see it."""
        return self.table.states[self._position.node].shown

    @property
    def log(self) -> TransitionLog:
        """The log: every transition so far."""
        if self._log is None:
            from heptad.history.query import TransitionLog  # noqa: PLC0415 - asking the log is no part of the loop

            self._log = TransitionLog(self._buffer)
        return self._log

    @property
    def id(self) -> str:
        """Unique for each run; one that is resumed keeps it."""
        return self._id

    @property
    def rank(self) -> int:
        """The number of this process among those of the run, from 0 on."""
        return self._runtime.peers.rank

    @property
    def world(self) -> int:
        """How many processes the run has."""
        return self._runtime.peers.world

    def agreed(self, name: str) -> bool:
        """Return whether what `Run.ask` asks for is agreed: all ranks know that one of them asks for it.

        With one process that is so at once, with several from their next agreement on.
        """
        return name in self._position.asked

    @property
    def resumed_from(self) -> str | None:
        """The checkpoint that this run continues from; `None` for one that began at the start."""
        return self._resumed_from

    @property
    def afresh(self) -> bool:
        """Whether it was asked to resume (`resume="auto"`) and there was no checkpoint yet.

        An earlier attempt may have left files.
        """
        return self._afresh

    @property
    def paused(self) -> str | None:
        """Why the run is paused; `None` while it is being driven, before its start and after its end."""
        return self._paused

    @property
    def ended(self) -> bool:
        """Whether the run is finished or failed."""
        return self.table.states[self._position.node].kind in ("end", "failed")

    @property
    def reason(self) -> str | None:
        """Why the run ended, or is going to: what `stop` was given, the failure, or which limit was reached."""
        return self._position.reason

    @property
    def epoch(self) -> int:
        """Complete epochs; grows in the body of `after_epoch`."""
        return self._position.epoch

    @property
    def batch_index(self) -> int:
        """Complete steps in the epoch; grows in the body of `after_step`, returns to 0 in that of `before_epoch`."""
        return self._position.batch_index

    @property
    def step(self) -> int:
        """Complete steps (micro-batches) of the run; grows in the body of `after_step`."""
        return self._position.step

    @property
    def update(self) -> int:
        """Complete optimizer updates; grows in the body of `optimizer_update`."""
        return self._position.update

    @property
    def windows(self) -> int:
        """Closed windows, those of skipped updates included; grows in the body of `optimizer_update`."""
        return self._position.update + self._position.skips

    @property
    def samples(self) -> int:
        """Samples in the complete steps; grows in the body of `after_step`."""
        return self._position.samples

    @property
    def accumulation(self) -> int:
        """Steps in the open window when it is full, or in the next one where none is open."""
        window = self._position.window
        return window.size if window.steps else window.next_size

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps in an epoch at the present accumulation, its extension included; `None` where it cannot be known."""
        batches = self._runtime.feed.batches
        if batches is None:
            return None
        if self.config.remainder in ("flush", "carry"):
            return batches
        return self._updates_of(batches) * self.accumulation

    @property
    def total_updates(self) -> int | None:
        """Updates that the run will have made at its end, if nothing stops it and none is skipped.

        `None` where it cannot be known, because the length of the data is not: they say none, or it has changed between
        two passes and may do so again.
        """
        at, config, feed = self._position, self.config, self._runtime.feed
        batches = feed.batches
        if config.epochs is None:
            return config.max_updates
        if batches is None or (feed.varies and at.epoch + at.epoch_open < config.epochs):
            return None
        if at.window.resized or feed.varies:  # what is done stands; the rest is made with the present accumulation
            total = at.update + self._updates_ahead(batches, config.epochs)
        elif at.carries:
            total = self._updates_of(feed.steps_in(range(config.epochs)))
        else:
            total = config.epochs * self._updates_of(batches)
        return total if config.max_updates is None else min(total, config.max_updates)

    def _updates_of(self, batches: int) -> int:
        """Updates that this many batches make, from a closed window on."""
        size = self._position.window.next_size
        return batches // size if self.config.remainder == "drop" else -(-batches // size)

    def _updates_ahead(self, batches: int, epochs: int) -> int:
        at = self._position
        after = epochs - at.epoch - (1 if at.epoch_open else 0)
        if at.carries:  # windows know no epochs: one update for the open one, those that all other steps make
            steps = (
                at.remaining
                + self._runtime.feed.steps_in(range(epochs - after, epochs))
                - (at.window.size - at.window.steps if at.window.steps else 0)
            )
            return (1 if at.window.steps else 0) + self._updates_of(max(0, steps))
        now = 0
        # In the open epoch: one update for the open window, which takes what it lacks from the remaining batches, and
        # those that the rest makes; a pass begun to fill the window makes no more. Then the epochs to come, each whole.
        if at.epoch_open:
            open_steps = at.window.steps
            left = at.remaining - (at.window.size - open_steps if open_steps else 0)
            now = (1 if open_steps else 0) + (self._updates_of(left) if left > 0 and not at.extending else 0)
        return now + after * self._updates_of(batches)

    # -- guards

    @property
    def update_due(self) -> bool:
        """Guard: the window is full, or holds what is left and is flushed."""
        return update_due(self)

    @property
    def batches_remain(self) -> bool:
        """Guard: another step follows in this epoch."""
        return batches_remain(self)

    @property
    def epochs_remain(self) -> bool:
        """Guard: another epoch follows."""
        return epochs_remain(self)

    # -- current values

    @property
    def batch(self) -> Any:
        """The batch of the step, placed; a handler on entry to `process_batch` may replace it. `None` between steps."""
        return self._position.batch

    @batch.setter
    def batch(self, batch: Any) -> None:
        if self._position.batch is None and self.state not in ("before_step", "process_batch"):
            raise EngineError(
                f"run.batch can be replaced from the exit of before_step to the entry to process_batch; the run is in "
                f"{self.state}, where it has none, and the next one would be taken all the same"
            )
        self._position.batch = batch

    @property
    def output(self) -> Any:
        """What the network gave for this step, detached; `None` after `after_step`."""
        return detached(self._position.output)

    @property
    def loss(self) -> torch.Tensor | None:
        """The loss of the newest step: a scalar, detached, on its device, not scaled; `None` where it gave none."""
        loss = self._position.loss
        return None if loss is None else loss.detach()

    @property
    def mean_loss(self) -> torch.Tensor | None:
        """The mean loss of the newest complete window, weighed as the window is: a detached scalar (no device sync).

        On entry to `optimizer_update` it is that of the window whose update is due; in windows of one step it is the
        loss of the newest step. `None` before the first window is complete, and after one of which no step counts.
        """
        at = self._position
        losses = at.window.losses if at.update_due or at.window.size == 1 else at.window.closed
        if losses is not None:
            return mean_of(losses)
        return None if at.loss is None else at.loss.detach()

    @property
    def epoch_loss(self) -> torch.Tensor | None:
        """The mean loss over the steps of the epoch so far, weighed by what each mean was taken over (no device sync).

        A detached float64 scalar; steps of skipped updates are left out. `None` where nothing counts yet, and in a run
        none of whose plugins says `needs_epoch_loss`.
        """
        return self._position.epoch_loss.mean()

    @property
    def weight(self) -> float | torch.Tensor | None:
        """What the loss of this step is a mean over: samples, tokens; 1 where each step weighs the same.

        0 for a step that adds nothing. `None` between steps: it exists from the body of `process_batch` to that of
        `after_step` (no device sync).
        """
        at = self._position
        return None if at.batch is None else self._runtime.step.weigh(at)

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self._runtime.network

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer; of several the first.

        Raises:
            EngineError: Before `before_loop` has built it.
        """
        if not self._runtime.optimizers:
            raise EngineError("run.optimizer exists from the body of before_loop on; subscribe to its exit or later")
        return self._runtime.optimizers[0]

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """All optimizers, in the order in which they step."""
        return tuple(self._runtime.optimizers)

    @property
    def side_optimizers(self) -> Mapping[str, Optimizer]:
        """The side optimizers by name, for the plugins that step them.

        Raises:
            EngineError: Before `before_loop` has built them.
        """
        if not self._runtime.optimizers:
            raise EngineError(
                "run.side_optimizers exist from the body of before_loop on; subscribe to its exit or later"
            )
        return MappingProxyType(self._runtime.optimizers.side)

    @property
    def update_skipped(self) -> bool:
        """Whether the newest `optimizer_update` leaves the weights alone because `skip_update` was called."""
        at = self._position
        return at.skip is not None if at.entering and self.state == "optimizer_update" else at.skipped

    @property
    def metrics(self) -> dict[str, float]:
        """The newest recorded value of every name (waits for values that are still on a device)."""
        return self._buffer.recorded.newest()

    def newest(self, name: str) -> Recorded | None:
        """Return the newest value of a name with its place (waits for values that are still on a device).

        Returns:
            The value; `None` where nothing was recorded under that name yet.
        """
        return self._buffer.recorded.newest_of(name)

    def expects(self, name: str) -> bool:
        """Return whether a value of that name may still come from an evaluation that records its first ones later."""
        evaluator = self._runtime.evaluator
        names = self.names_recorded()
        return any(
            name.startswith(begin) and not any(other.startswith(begin) for other in names)
            for begin in (() if evaluator is None else evaluator.expected)
        )

    def history(self, name: str) -> list[float]:
        """Return all values recorded under a name, oldest first (waits for values that are still on a device)."""
        return self._buffer.recorded.history(name)

    def records(self, since: int = 0) -> list[Recorded]:
        """Return the recorded values with the place of each, oldest first.

        Args:
            since: How many to leave out; a logger passes how many it has seen.
        """
        return self._buffer.recorded.since(since)

    @property
    def pause_requested(self) -> bool:
        """Whether the run is going to pause; the body of a long detour looks at it between its parts."""
        return self._position.pause_requested is not None

    # -- what it works with

    @property
    def components(self) -> Components:
        """The `Components` that the engine was given."""
        return self._runtime.components

    @property
    def device(self) -> torch.device:
        """The device that network and batches are placed on."""
        return self._runtime.device

    @property
    def data_doubt(self) -> str:
        """What may keep a run that is resumed in a later pass from the data that this one sees, in words, or nothing.

        A loader of one's own may carry random states from pass to pass where no checkpoint reaches them.
        """
        return self._runtime.feed.doubt()

    @property
    def epoch_open(self) -> bool:
        """Whether an epoch is under way: from the body of `before_epoch` to that of `after_epoch`."""
        return self._position.epoch_open

    def parameter_groups(self, of: Optimizer | None = None) -> list[dict[str, Any]]:
        """Return the parameter groups of all optimizers, or of one of them; these themselves, not copies."""
        return self._runtime.optimizers.groups(of)

    def learning_rates(self, of: Optimizer | None = None) -> dict[str, float | torch.Tensor]:
        """Return the learning rates by name, those that are tensors copied, and those that are no numbers left out.

        Args:
            of: Leave out the groups of all other optimizers; the names stay.

        Returns:
            `lr`; of several parameter groups, over all optimizers, `lr/0`, `lr/1` and so on.
        """
        return self._runtime.optimizers.learning_rates(of)

    def optimized_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizers hold, each once, in the order of their groups."""
        return self._runtime.optimizers.held()

    def parameters(self) -> list[nn.Parameter]:
        """Return the network's parameters in its order, then the others that the optimizers hold, each once."""
        return self._runtime.optimizers.parameters(self.network)

    # -- tensors that the ranks of a run share

    @property
    def shares(self) -> bool:
        """Whether each rank holds a part of the parameters only: with `strategy="fsdp"`."""
        return self._runtime.shards.any

    def local(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what this rank holds of a tensor: its part of one that the ranks share, else the tensor itself.

        So what goes number by number, such as an average over updates, works on plain tensors whatever the strategy.
        The part is not copied: who writes to it writes to the tensor. It may have no elements.

        Args:
            tensor: A parameter, its gradient, or what was computed of them number by number.
        """
        part = self._runtime.shards.part(tensor)
        return tensor if part is None else part.local

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor whole on each rank, such as a gradient or its norm; of one that is whole, itself.

        All ranks call this at the same place: one that the ranks share is an exchange, and takes its whole memory.
        """
        return tensor

    def alike(self, stored: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        """Return a stored tensor in the form of a live one: this rank's part of it where the ranks share that.

        For what a plugin has stored of parameters, which comes back whole where a run with another strategy has stored
        it.
        """
        return alike(stored, live, self._runtime.shards)

    @property
    def reading_seconds(self) -> float:
        """Seconds spent on reading ahead, for data of unknown length or by `prefetch`: after the handlers on exit."""
        return self._position.reading_ns / 1e9

    @property
    def record_count(self) -> int:
        """How many values were recorded so far; what `records` and `names_recorded` take as `since`."""
        return len(self._buffer.recorded)

    def names_recorded(self, since: int = 0) -> set[str]:
        """Return the names of the recorded values but for the first `since` (no device sync)."""
        return self._buffer.recorded.names(since)

    def plot(self) -> Any:
        """Return the curves of what was recorded as Bokeh figures, over updates; `bokeh.io.show` shows them.

        Raises:
            LogError: If Bokeh is not installed: pip install 'heptad[report]'.
        """
        from heptad.report.page import plotted  # noqa: PLC0415 - an extra, for who looks at a run

        return plotted(self.log)

    def __repr__(self) -> str:
        paused = f" (paused: {self.paused})" if self.paused else ""
        return (
            f"<Run in {self.state}{paused}: epoch {self.epoch}, batch {self.batch_index}, step {self.step}, "
            f"update {self.update}>"
        )

    def _repr_html_(self) -> str:
        from heptad.history.html import table  # noqa: PLC0415 - for notebooks

        shown = {
            "state": f"{self.state}{f' (paused: {self.paused})' if self.paused else ''}",
            "reason": self.reason or "",
            "epoch, batch": f"{self.epoch}, {self.batch_index}",
            "step, update": f"{self.step}, {self.update}",
            **{name: f"{value:.6g}" for name, value in self.metrics.items()},
        }
        return table("run", (), shown.items())
