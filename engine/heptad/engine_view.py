"""`EngineView`: what can be asked of an engine beside driving its run. Nothing here makes a turn of that run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import torch

from heptad.blocks.in_use import Blocks
from heptad.config import Components, ComputeLoss, RunConfig
from heptad.history.drawing import mermaid
from heptad.history.html import table
from heptad.machine import Machine
from heptad.plugin.detour_state import DetourState
from heptad.plugin.listing import SubscriptionTable, tabulate
from heptad.plugin.manager import PluginManager
from heptad.plugin.subscription import Subscription
from heptad.ranks.strategy import Strategy
from heptad.run.evaluating import EvaluationOptions, Measures
from heptad.run.run import Run
from heptad.smoke.rehearsal import rehearse
from heptad.step.evaluator import Evaluator
from heptad.step.even_evaluator import build_evaluator
from heptad.step.metrics import MetricsInput
from heptad.step.plan import Plan, PlannedTurn, Planner
from heptad.table import guard_of


class EngineView:
    """What can be asked of an engine; `Engine` adds wiring and driving. Never made by itself."""

    machine_class: type[Machine] = Machine

    if TYPE_CHECKING:
        current: Run
        _blocks: Blocks
        _components: Components
        _config: RunConfig
        _manager: PluginManager
        _strategy: Strategy
        _subscriptions: list[Subscription]
        _visits: Sequence[DetourState]

        def _driving(self, verb: str) -> AbstractContextManager[None]: ...

    def smoke(self) -> Run:
        """Try out what `run` will do, before it: two updates, an evaluation and a checkpoint in a temporary folder.

        Afterwards everything is as it was: weights, optimizers, RNG, data, plugins and their files, log. Plugins that
        observe take no part, except those that evaluate. What handlers do elsewhere stays done.

        Returns:
            The run that was made, finished: its log and its recorded values.

        Raises:
            EngineError: If the run has begun, the data can be iterated once, or `strategy="fsdp"` would shard the
                network for good.
            BaseException: As `run`. Everything is put back then too.
        """
        with self._driving("smoke"):
            build: Any = partial(type(self), self._components, self._config)
            return rehearse(self.current, self._manager, self._subscriptions, build)

    def evaluate(
        self, data: Any, metrics: MetricsInput | None = None, **options: Unpack[EvaluationOptions]
    ) -> Measures:
        """Evaluate the network in a run of its own, in which no handler of this engine is called.

        Modes and random state are put back. May be called at any time, from a handler too, but not from another thread
        while the run is driven. `on_enter_evaluate` belongs to the state that the plugin `Evaluate` adds: so the
        weights of `EMA` are not seen here.

        Args:
            data: A dataset of samples, batched by `RunConfig.batch_size`; or a loader, or any iterable of batches. A
                list holds samples where `Components.dataset` is a list, else batches.
            metrics: By name functions `(output, batch) -> tensor`, the mean over the batch or one value a sample; or
                objects with `update(output, target)`, `compute` and `reset`, such as those of torchmetrics; or one
                object that computes several by name, such as a `MetricCollection`.
            **options: Those of `EvaluationOptions`.

        Returns:
            What was measured by name, `"loss"` among it. Means are weighed as the steps of a window are: with a
            criterion by what its mean is taken over, else by `LossOutput.weight`; without a weight each batch weighs
            the same.

        Raises:
            ConfigError: If a metric is no function, or the data are samples and there is no `batch_size`.
            DataError: If the data yield nothing.
            EngineError: If another thread is driving a run of this network.
        """
        with self._blocks.in_use(), closing(self._evaluator(self.current.device)) as evaluator:
            return evaluator.evaluate(data, metrics, name="Engine.evaluate(data)", **options)

    def predict(
        self,
        data: Any,
        *,
        compute_loss: ComputeLoss | None = None,
        inference_mode: bool = False,
        numbered: bool | None = None,
    ) -> Iterator[Any]:
        """Yield the network's output for each batch, in evaluation mode and without gradients.

        Of several ranks each yields the outputs of its own batches, so they are numbered unless you say otherwise:
        `(number, output)`, where rank r of w has the numbers r, r + w, r + 2 w, …. One may have none.

        Under `strategy="fsdp"` a network that is sharded is run by all ranks together, once for each round of as many
        batches. So iterate to the end on all of them, or stop on all after the same number of outputs: one that
        stops earlier leaves the others waiting. A rank without a batch in the last round makes its part of that pass
        when it is asked for an output more.

        Args:
            data: As for `evaluate`. With a criterion a batch is `(data, target)`, or a tensor without a target.
            compute_loss: As in `EvaluationOptions`; so is `inference_mode`.
            inference_mode: See above.
            numbered: Whether `(number, output)` is yielded, with the place of the batch in the data, from 0. By default
                with several ranks only.

        Raises:
            EngineError: If `compute_loss` gives no `LossOutput.output` to yield, or another thread is driving a run of
                this network.
        """
        with self._blocks.in_use(), closing(self._evaluator(self.current.device)) as evaluator:
            yield from evaluator.predict(data, compute_loss, inference_mode=inference_mode, numbered=numbered)

    def _evaluator(self, device: torch.device) -> Evaluator:
        return build_evaluator(self._components, self._config, device, self.machine_class, self._strategy)

    def subscriptions(self) -> SubscriptionTable:
        """Return who is called on which moment of which state, in order, with its filter; print it for a table."""
        return tabulate(self._subscriptions, self._manager, self.current.table)

    def plan(self) -> Iterator[PlannedTurn]:
        """Yield the turns and calls to come, from where the run is, touching neither data nor network.

        What handlers will do (a stop, a skipped update) cannot be planned. A guard that reads more of the run than its
        position and counters is shown as a condition; one that reads something else is asked as it stands now.
        """
        detours = [detour for _, detour in self._manager.detours_given]
        guards = [guard_of(detours, number) for number in range(len(detours))]
        called = [
            row for row in self._subscriptions if row.plugin is None or not self._manager.idle_because(row.plugin)
        ]
        return Plan(lambda: Planner(self.current, self._visits, guards, called).turns())

    def diagram(self) -> str:
        """Return the table, detours included, as a Mermaid state diagram; a notebook that knows Mermaid draws it."""
        return mermaid(self.current.table)

    def _repr_html_(self) -> str:
        run = self.current
        usual = type(self._config).model_fields
        settings = ((name, value) for name, value in self._config if value != usual[name].default)
        rows = [
            ("run", repr(run)[1:-1]),
            ("network", type(run.network).__name__),
            ("device", run.device),
            ("plugins", ", ".join(plugin.name for plugin in self._manager.plugins) or "none"),
            ("states", ", ".join(run.table.scopes())),
            *settings,
        ]
        return table("engine", (), rows)
