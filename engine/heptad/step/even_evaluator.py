"""`EvenEvaluator`: evaluations and predictions of a network that is sharded, of which ranks make each pass together.

Built by the engine in place of a `RanksEvaluator` where the strategy shards. A forward pass gathers parameters from all
ranks, so all must make equally many. A rank that has no batch in the last round repeats one, and a rank whose metrics
have failed continues without them. The results of such passes are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, Unpack, cast

import torch
from torch import nn

from heptad.config import Components, ComputeLoss, RunConfig
from heptad.data.cursor import NOTHING
from heptad.data.feed import Feed
from heptad.data.own_feed import own_part
from heptad.errors import add_note
from heptad.ranks.strategy import Strategy
from heptad.run.evaluating import EvaluationOptions
from heptad.run.run import Run
from heptad.run.runtime import StepFunction
from heptad.run.state import RunState
from heptad.step.evaluation import Evaluation, build_reading_feed, generators_preserved
from heptad.step.evaluator import PREDICTION, Drives, Evaluator
from heptad.step.function import LossStep, build_step
from heptad.step.metrics import Metrics, MetricsInput
from heptad.step.precision import in_precision
from heptad.step.ranks_evaluator import RanksEvaluation, RanksEvaluator
from heptad.step.ranks_metrics import Meeting
from heptad.step.trial import buffers_preserved


class ShardingStrategy(Strategy, Protocol):
    """A strategy that shards networks, as evaluations use it; see `Fsdp`."""

    def divides(self, network: nn.Module) -> bool:
        """Return whether a network is sharded by now."""
        ...

    def forward_of(self, network: nn.Module) -> Callable[[Any], Any]:
        """Return what calls a network."""
        ...

    def loss_of(self, network: nn.Module, given: ComputeLoss) -> ComputeLoss:
        """Return a `compute_loss` that may call parts of a network."""
        ...

    def resting(self, network: nn.Module, name: str) -> AbstractContextManager[None]:
        """Return a block of forward passes without a backward pass, which errors call `name`."""
        ...

    def break_off(self, network: nn.Module, error: Exception) -> None:
        """Tell the other ranks of an error for which they would wait in a forward pass."""
        ...


class EvenEvaluation(RanksEvaluation):
    """The bodies of an evaluation in which all ranks make equally many forward passes.

    Args:
        step: The step function.
        metrics: What is measured beside the loss.
        options: Those of the evaluation.
        meeting: Where the ranks exchange something.
        strategy: Shards the network.
        first_batch: Returns one that a rank may run the network on that could read none of its own, or `NOTHING`.
    """

    def __init__(
        self,
        step: StepFunction,
        metrics: Metrics,
        options: EvaluationOptions,
        meeting: Meeting,
        strategy: ShardingStrategy,
        first_batch: Callable[[], Any],
    ) -> None:
        rank, world = strategy.share()
        self._all = options.get("limit")
        """The limit over all ranks."""
        self._own: int | None = None
        """How many of these batches are this rank's."""
        if self._all is not None:
            self._own = own_part(self._all, rank, world)
            options = {**options, "limit": own_part(self._all, 0, world)}
        super().__init__(step, metrics, options)
        self._meeting = meeting
        self._strategy = strategy
        self._first_batch = first_batch
        self._spare: Any = NOTHING
        """The batch taken last."""
        self._idle = False
        """Whether the pass under way counts nowhere."""
        self._error: Exception | None = None
        """What is to be raised when all ranks have made their passes."""

    def before_epoch(self, run: Run) -> None:
        """Open the data, reset metric objects, and see that all ranks have as many batches."""
        self._metrics.reset(run._runtime.device)
        feed = run._runtime.feed
        feed.open(0, 0, self._all)
        left = run._position.remaining = super()._left(run)
        self._meeting.begin(None if feed.batches is None else left)

    def before_step(self, run: Run) -> None:
        """Take the next batch and place it; repeat the last where the data have ended or this rank has failed."""
        at, feed = run._position, run._runtime.feed
        if self._error is None or feed.batches is None:  # what has no length is read to its end
            try:
                super().before_step(run)
                self._spare = at.batch
            except Exception as error:
                if self._spare is NOTHING and (batch := self._first_batch()) is not NOTHING:
                    self._spare = self._step.place(batch, run._runtime.place)
                if feed.batches is None or self._spare is NOTHING:
                    self._strategy.break_off(run.network, error)
                    raise
                self._defer(at, error)
        at.batch = self._spare
        beyond = self._own is not None and at.batch_index >= self._own
        self._idle = feed.idle or beyond or self._error is not None

    def process_batch(self, run: Run) -> None:
        """Run forward, loss and metrics, without gradients; in an idle round forward alone counts."""
        at = run._position
        if self._idle:
            with buffers_preserved(run.network), generators_preserved(run._runtime.device):
                self._run(run)
            return
        self._run(run)
        if self._error is not None:
            return
        try:
            with self._gradients_off():
                self._add(at)
        except Exception as error:
            self._defer(at, error)

    def _run(self, run: Run) -> None:
        at = run._position
        at.output = None
        try:
            with self._gradients_off():
                self._step.run(at)
        except Exception as error:
            if at.output is None:  # else the criterion has raised it, after the pass
                self._strategy.break_off(run.network, error)
                raise
            self._defer(at, error)

    def after_step(self, run: Run) -> None:
        """Count the step, and no samples of one that was idle."""
        samples = run._position.samples
        super().after_step(run)
        if self._idle:
            run._position.samples = samples

    def _left(self, run: Run) -> int:
        try:
            return super()._left(run)
        except Exception as error:
            self._strategy.break_off(run.network, error)
            raise

    def after_epoch(self, run: Run) -> None:
        """Raise what this rank has failed with; else take the means, and what metric objects compute."""
        error, self._error, self._spare = self._error, None, NOTHING
        if error is not None:
            try:
                raise error
            finally:
                del error  # break the traceback's reference cycle
        super().after_epoch(run)

    def _defer(self, at: RunState, error: Exception) -> None:
        """Keep an error until all ranks have made their passes."""
        if self._error is None:
            add_note(error, f"heptad: in step {at.batch_index} of the evaluation")
            self._error = error


class EvenEvaluator(RanksEvaluator):
    """Evaluates a network that is sharded, or will be, together with the other ranks.

    Args:
        components: Whose network and loss are used.
        config: That of the training run.
        device: Where the network is.
        machine: Makes what drives a run.
        strategy: Shards the network.
    """

    def __init__(
        self,
        components: Components,
        config: RunConfig,
        device: torch.device,
        machine: Callable[..., Drives],
        strategy: ShardingStrategy,
    ) -> None:
        super().__init__(components, config, device, machine, strategy.peers)
        self._strategy = strategy

    def _feed(self, data: Any, name: str) -> Feed:
        share = self._strategy.share()
        return build_reading_feed(data, self._components, self._config, name, self._place, share, even=True)

    def _step(self, options: EvaluationOptions) -> StepFunction:
        components, network, strategy = self._components, self._components.network, self._strategy
        if not strategy.divides(network):
            return super()._step(options)
        own, forward = options.get("compute_loss"), strategy.forward_of(network)
        given = components.compute_loss if own is None else own
        compute_loss = None if given is None else strategy.loss_of(network, given)
        if own is not None:
            step: StepFunction = LossStep(network, compute_loss)
        else:
            step = build_step(components, forward, weighs=True, compute_loss=compute_loss)
        precision = self._config.precision
        return in_precision(step, precision, self._device) if strategy.autocasts(precision) else step

    def _evaluation(
        self,
        data: Any,
        step: StepFunction,
        metrics: Metrics,
        options: EvaluationOptions,
        ended: Callable[[], bool] | None,
    ) -> Evaluation:
        first_batch = partial(super()._first_batch, data)  # of this rank alone
        return EvenEvaluation(step, metrics, options, self._meeting, self._strategy, first_batch)

    def _passes(self, network: nn.Module, name: str) -> AbstractContextManager[None]:
        return self._strategy.resting(network, name)

    # -- trials

    def attempt(self, data: Any, metrics: MetricsInput, name: str, **options: Unpack[EvaluationOptions]) -> None:
        """Try metrics on the first batch: each rank for itself, unless the network is sharded already."""
        with self._passes(self._components.network, name):
            super().attempt(data, metrics, name, **options)

    def _first_batch(self, data: Any) -> Any:
        batch = super()._first_batch(data)
        if not self._strategy.divides(self._components.network):
            return batch
        return batch if all(self._peers.gather(b"" if batch is NOTHING else b"has one")) else NOTHING

    # -- predictions

    def _begin_prediction(self, data: Any) -> tuple[Feed, int]:
        with Meeting(self._peers, PREDICTION) as meeting:
            feed, left = super()._begin_prediction(data)
            meeting.begin(None if feed.batches is None else left)
        return feed, left

    def _predict_next(self, step: StepFunction, feed: Feed) -> Any:
        network = self._components.network
        try:
            batch = self._place(feed.take())
            if not feed.idle:
                return super()._predict(step, batch)
            with buffers_preserved(network):
                super()._predict(step, batch)
        except Exception as error:
            self._strategy.break_off(network, error)
            raise
        return NOTHING

    def _left(self, feed: Feed, known: int | None) -> int:
        try:
            return super()._left(feed, known)
        except Exception as error:
            self._strategy.break_off(self._components.network, error)
            raise


def build_evaluator(
    components: Components,
    config: RunConfig,
    device: torch.device,
    machine: Callable[..., Drives],
    strategy: Strategy,
) -> Evaluator:
    """Return what evaluates for a process alone, or for one of several ranks."""
    if strategy.shares:
        return EvenEvaluator(components, config, device, machine, cast("ShardingStrategy", strategy))
    if strategy.peers.world == 1:
        return Evaluator(components, config, device, machine)
    return RanksEvaluator(components, config, device, machine, strategy.peers)
