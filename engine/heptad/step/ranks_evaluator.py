"""`RanksEvaluator`: evaluations and predictions that several ranks share, each with its own batches of one pass.

Built by the engine in place of an `Evaluator` where there are ranks. Every rank calls its methods in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch

from heptad.config import Components, RunConfig
from heptad.data.feed import Feed
from heptad.data.own_feed import OwnFeed, own_part
from heptad.errors import ConfigError, DataError
from heptad.run.evaluating import EvaluationOptions, Measures
from heptad.run.peers import Peers
from heptad.run.run import Run
from heptad.run.runtime import StepFunction
from heptad.step.evaluation import Evaluation, build_reading_feed
from heptad.step.evaluator import Drives, Evaluator
from heptad.step.metric_states import merge_mistake, unsynced
from heptad.step.metrics import MetricObject, Metrics, MetricsInput, named_metrics
from heptad.step.ranks_metrics import Meeting, RanksMetrics


class RanksEvaluation(Evaluation):
    """The bodies of an evaluation of which a rank may have no batch."""

    def refuse_nothing(self, run: Run) -> None:
        """Do nothing: it is an error where no rank has a batch, which the exchange tells."""


class RanksEvaluator(Evaluator):
    """Evaluates a network together with the other ranks.

    A rank makes forward passes of its own batches only, of the bare network: they may be unequally many.

    Args:
        components: Whose network and loss are used.
        config: That of the training run.
        device: Where the network is.
        machine: Makes what drives a run.
        peers: The ranks.
    """

    _numbers_outputs = True

    def __init__(
        self,
        components: Components,
        config: RunConfig,
        device: torch.device,
        machine: Callable[..., Drives],
        peers: Peers,
    ) -> None:
        super().__init__(components, config, device, machine)
        self._peers = peers
        self._rank, self._world = peers.rank, peers.world
        self._meeting: Meeting

    def _feed(self, data: Any, name: str) -> Feed:
        return build_reading_feed(
            data, self._components, self._config, name, self._place, share=(self._rank, self._world)
        )

    def attempt(self, data: Any, metrics: MetricsInput, name: str, **options: Unpack[EvaluationOptions]) -> None:
        """Try metrics on the first batch, on each rank for itself."""
        _refuse_unmergeable(metrics, self._world)
        objects = [one for one in named_metrics(metrics).values() if isinstance(one, MetricObject)]
        with unsynced(objects):
            super().attempt(data, metrics, name, **options)

    def evaluate(
        self,
        data: Any,
        metrics: MetricsInput | None = None,
        ended: Callable[[], bool] | None = None,
        *,
        name: str = "run.evaluate(data)",
        **options: Unpack[EvaluationOptions],
    ) -> Measures:
        """Return the mean loss and metrics over one pass of data: the same bits on all ranks (one exchange).

        Raises:
            ConfigError: If a metric object cannot be merged.
            RankFailed: If another rank has failed in it.
        """
        del ended  # a rank alone must not end early: with ranks a pause is agreed on between two windows
        with Meeting(self._peers, name) as self._meeting:
            if metrics is not None:
                _refuse_unmergeable(metrics, self._world)
            return super().evaluate(data, metrics, name=name, **options)

    def _metrics(self, metrics: MetricsInput, options: EvaluationOptions) -> RanksMetrics:
        return RanksMetrics(metrics, options, self._meeting)

    def _evaluation(
        self,
        data: Any,
        step: StepFunction,
        metrics: Metrics,
        options: EvaluationOptions,
        ended: Callable[[], bool] | None,
    ) -> Evaluation:
        if "limit" in options:
            options = {**options, "limit": own_part(options["limit"], self._rank, self._world)}
        return RanksEvaluation(step, metrics, options, ended)

    def _refuse_no_prediction(self, feed: Feed) -> None:
        """Refuse data of unknown length that ended at once: all ranks read them whole, so all know."""
        if isinstance(feed, OwnFeed) and feed.batches is None and not feed.read:
            raise DataError("the data to predict on yield nothing")


def _refuse_unmergeable(metrics: MetricsInput, world: int) -> None:
    if mistake := merge_mistake(metrics, world):
        raise ConfigError(mistake)
