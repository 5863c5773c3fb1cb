"""`Evaluator`: evaluations and predictions beside a training run, each a run of its own on the evaluation table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Unpack

import torch
from torch import nn

from heptad.config import Components, ComputeLoss, RunConfig
from heptad.data.cursor import NOTHING
from heptad.data.feed import Feed
from heptad.data.generators import preserved
from heptad.data.placement import read_numbers
from heptad.data.transfer import build_transfer
from heptad.errors import ConfigError, DataError, add_note, in_a_line, summarize
from heptad.record.buffer import LogBuffer
from heptad.run.evaluating import EvaluationOptions, Measures, NumberedOutput, options_mistake
from heptad.run.guards import GUARDS
from heptad.run.others import evaluated_beside
from heptad.run.run import Run
from heptad.run.runtime import Runtime, StepFunction
from heptad.run.state import initial_state
from heptad.step.evaluation import (
    Evaluation,
    build_reading_feed,
    evaluating,
    generators_preserved,
    generators_restored_on_error,
    gradients_off,
    holds_samples,
    reading_config,
    without_graph,
)
from heptad.step.function import LossStep, build_step
from heptad.step.metrics import Metrics, MetricsInput, metrics_mistake
from heptad.step.optimizers import Optimizers
from heptad.step.precision import autocast, in_precision
from heptad.step.training_pass import training_pass
from heptad.step.trial import buffers_preserved, copies_of, first_batch, has_memory
from heptad.table import evaluation_table

PREDICTION = "Engine.predict(data)"
"""What errors call a prediction."""

LOG_CAPACITY = 1024
"""Transitions that an evaluation keeps: its log is read where it fails, if at all."""


class Drives(Protocol):
    """What drives a run over its table: a machine."""

    def drive(self, run: Run, turns: int) -> None:
        """Make up to so many turns."""
        ...


class Evaluator:
    """Evaluates a network, and keeps the feed of each data object until it is closed.

    Args:
        components: Whose network and loss are used.
        config: That of the training run.
        device: Where the network is.
        machine: Makes what drives a run; a machine imports this room, so it is handed in.

    Attributes:
        expected: What the names begin with under which values will be recorded.
    """

    _rank, _world = 0, 1
    _numbers_outputs = False

    def __init__(
        self, components: Components, config: RunConfig, device: torch.device, machine: Callable[..., Drives]
    ) -> None:
        self._components = components
        self._training = config
        self._config = reading_config(config)
        autocast(config.precision, device)  # refused now and not in the first step
        self._device = device
        self._place = build_transfer(device, config)
        self._machine = machine
        self.expected: set[str] = set()
        self._feeds: dict[int, tuple[Any, Feed]] = {}  # by id; the object is held so that its id stays its own

    def prepare(self, data: Any, name: str, records: str = "") -> Feed:
        """Return the feed of a data object, built when it is first asked for. See `Run.prepare_evaluation`."""
        if records:
            self.expected.add(records)
        if id(data) not in self._feeds:
            self._feeds[id(data)] = data, self._feed(data, name)
        return self._feeds[id(data)][1]

    def _feed(self, data: Any, name: str) -> Feed:
        return build_reading_feed(data, self._components, self._config, name, self._place)

    def _metrics(self, metrics: MetricsInput, options: EvaluationOptions) -> Metrics:
        return Metrics(metrics, options)

    def _evaluation(
        self,
        data: Any,
        step: StepFunction,
        metrics: Metrics,
        options: EvaluationOptions,
        ended: Callable[[], bool] | None,
    ) -> Evaluation:
        return Evaluation(step, metrics, options, ended)

    def attempt(self, data: Any, metrics: MetricsInput, name: str, **options: Unpack[EvaluationOptions]) -> None:
        """Try metrics on one batch; nothing is moved. See `Run.prepare_evaluation`.

        Without such a batch, or where the network cannot be run yet, nothing is tried.
        """
        network = self._components.network
        copies = copies_of(metrics)
        if not copies or not has_memory(network):
            return
        network.to(self._device)
        at, measured = initial_state(self._config), Metrics(copies, options)
        off = gradients_off(options.get("inference_mode", False))
        measured.reset(self._device)
        with (
            generators_preserved(self._device),
            evaluating(network),
            buffers_preserved(network),
            warnings.catch_warnings(action="ignore"),  # of what one batch lacks, such as a class
        ):
            batch = self._first_batch(data)
            if batch is NOTHING:
                return
            at.batch = self._place(batch)
            with off():
                step = self._step(options)
                try:
                    step.run(at)
                except DataError:  # the loss cannot take a batch of this form
                    raise
                except Exception:  # no mistake in a metric: handlers may still have to complete network or loss
                    return
                try:
                    measured.add(without_graph(at.output), at.batch, at.loss, at.weight, step.count(at))
                    if measured.counted:
                        measured.measures(trial=True)
                except Exception as error:
                    for what, value in (("batch", at.batch), ("output", at.output)):
                        add_note(error, f"the {what}: {summarize(value)}")
                    add_note(error, f"in a trial of the metrics of {name} on one batch; trial=False leaves it out")
                    raise
        for metric, error in measured.unready.items():
            warnings.warn(
                f"{name}: metrics[{metric!r}] could compute nothing of one batch ({in_a_line(error)}); that of "
                "all batches is asked for in each evaluation",
                stacklevel=2,
            )

    def _first_batch(self, data: Any) -> Any:
        components = self._components
        return first_batch(data, components, self._config, of_samples=holds_samples(data, components))

    def _step(self, options: EvaluationOptions) -> StepFunction:
        compute_loss, parts = options.get("compute_loss"), self._components
        own = None if compute_loss is None else LossStep(parts.network, compute_loss)
        return in_precision(own or build_step(parts, parts.network, weighs=True), self._config.precision, self._device)

    def evaluate(
        self,
        data: Any,
        metrics: MetricsInput | None = None,
        ended: Callable[[], bool] | None = None,
        *,
        name: str = "run.evaluate(data)",
        **options: Unpack[EvaluationOptions],
    ) -> Measures:
        """Return the mean loss and metrics over one pass of data. See `Run.evaluate`.

        Args:
            data: What to evaluate on.
            metrics: By name.
            ended: Asked before each batch; where it says True, `Unfinished` is raised.
            name: What errors call the data.
            **options: Those of `EvaluationOptions`.
        """
        metrics = {} if metrics is None else metrics
        if mistake := metrics_mistake(metrics, alone=True) or options_mistake(options):
            raise ConfigError(mistake)
        feed, network = self.prepare(data, name), self._components.network
        table = evaluation_table()
        runtime = Runtime(self._components, feed, self._device, Optimizers(), self._place)
        run = Run(table, self._config, runtime, LogBuffer(table, LOG_CAPACITY, read_numbers))
        evaluation = self._evaluation(data, self._step(options), self._metrics(metrics, options), options, ended)
        bodies = evaluation.bodies(feed)
        machine = self._machine(run, bodies, GUARDS, owners=dict.fromkeys(bodies, "the evaluation"))
        network.to(self._device)
        preserve = options.get("preserve_rng", True)
        generators = generators_preserved(self._device) if preserve else generators_restored_on_error()
        with evaluated_beside(network, name), self._passes(network, name), generators, evaluating(network):
            run._buffer.go()
            while not run.ended:
                run._position.halt = False
                machine.drive(run, run._buffer.room)
                run._buffer.settle(run.counters)
        return evaluation.measures

    def predict(
        self,
        data: Any,
        compute_loss: ComputeLoss | None = None,
        *,
        inference_mode: bool = False,
        numbered: bool | None = None,
    ) -> Iterator[Any]:
        """Yield the network's output for each batch of data. See `Engine.predict`."""
        number, numbered = self._rank, self._numbers_outputs if numbered is None else numbered
        feed, left = self._begin_prediction(data)
        network = self._components.network.to(self._device)
        step = self._step({} if compute_loss is None else {"compute_loss": compute_loss})
        off = gradients_off(inference_mode)
        while left:
            with (
                evaluated_beside(network, PREDICTION),
                self._passes(network, PREDICTION),
                generators_preserved(self._device),
                evaluating(network),
                off(),
            ):
                output = self._predict_next(step, feed)
                feed.read_ahead(left - 1)
            if output is not NOTHING:
                yield NumberedOutput(number, output) if numbered else output
            number += self._world
            left = self._left(feed, left - 1)
        with preserved():
            feed.end()

    def training_pass(self, seed: int) -> Iterator[Any]:
        """Yield the batches of a pass over the training data. See `Run.training_pass`."""
        return training_pass(self._components, self._training, self._device, self._place, seed)

    def forward(self, batch: Any) -> Any:
        """Run the network on a placed batch. See `Run.forward`."""
        at = initial_state(self._config)
        at.batch = batch
        with torch.no_grad(), self._passes(self._components.network, "run.forward(batch)"):
            self._step({}).run(at)
        return at.output

    def _begin_prediction(self, data: Any) -> tuple[Feed, int]:
        """Return the feed of a pass that has begun, and how many batches follow."""
        feed = self.prepare(data, PREDICTION)
        with preserved():
            feed.open(0, 0)
        left = self._left(feed, feed.batches)
        if not left:
            self._refuse_no_prediction(feed)
        return feed, left

    def _predict_next(self, step: StepFunction, feed: Feed) -> Any:
        return self._predict(step, self._place(feed.take()))

    def _predict(self, step: StepFunction, batch: Any) -> Any:
        return without_graph(step.predict(batch))

    def _left(self, feed: Feed, known: int | None) -> int:
        """Return how many batches follow: 1 stands for more where nobody can know."""
        if feed.batches is None:
            with preserved():
                return 1 if feed.more() else 0
        return known or 0

    def _passes(self, network: nn.Module, name: str) -> AbstractContextManager[None]:
        """Return a block in which the network is run; errors call it `name`."""
        del network, name
        return nullcontext()

    def _refuse_no_prediction(self, feed: Feed) -> None:
        raise DataError("the data to predict on yield nothing")

    def close(self) -> None:
        """Close all feeds, and end their worker processes."""
        while self._feeds:
            _, (_, feed) = self._feeds.popitem()
            feed.close()
