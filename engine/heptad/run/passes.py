"""`RunPasses`: the passes over data that a run makes beside its own; they change nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Unpack

from heptad.errors import EngineError
from heptad.run.evaluating import EvaluationOptions, Measures
from heptad.run.runtime import Evaluates, Runtime
from heptad.run.state import RunState


class RunPasses:
    """What a run can be asked to measure: evaluations, and passes over its training data. The base of `RunView`."""

    __slots__ = ()

    if TYPE_CHECKING:
        _runtime: Runtime
        _position: RunState

    def prepare_evaluation(
        self,
        data: Any,
        name: str = "run.evaluate(data)",
        records: str = "",
        metrics: Any = None,
        **options: Unpack[EvaluationOptions],
    ) -> None:
        """Open data for `evaluate`, and try metrics on one batch, so that a mistake in either is raised now.

        Neither the data nor the generators, the network and the metrics are moved by it. Where no batch can be had so,
        as of a stream, nothing is tried.

        Args:
            data: As for `evaluate`.
            name: What errors call the data.
            records: What the names begin with under which its values will be recorded, such as `"valid/"`.
            metrics: What to try, as for `evaluate`; `None` tries nothing, and nothing is read yet.
            **options: Those of `evaluate`.

        Raises:
            ConfigError: If the data are samples and there is no `batch_size`.
            DataError: If it is known now that the data hold no batch.
        """
        self._evaluator.prepare(data, name, records)
        if metrics is not None:
            self._evaluator.attempt(data, metrics, name, **options)

    def evaluate(self, data: Any, metrics: Any = None, **options: Unpack[EvaluationOptions]) -> Measures:
        """Evaluate the network in a run of its own, in which no handler of this run is called.

        Modes and random state are put back. The worker processes of the data are kept for further evaluations of the
        same object, until plugins are closed. In a detour's body the evaluation ends at its next batch if a pause is
        asked for after it began: the run pauses in the detour, and the body is run again from its start.

        Args:
            data: A dataset of samples, a loader, or any re-iterable of batches, as for `Engine.evaluate`.
            metrics: As for `Engine.evaluate`.
            **options: Those of `EvaluationOptions`.

        Returns:
            What was measured by name, `"loss"` among it.

        Raises:
            ConfigError: If a metric is no function, or the data are samples and there is no `batch_size`.
            DataError: If the data yield nothing.
            Unfinished: If it ended early, as said above. Let it through.
        """
        at = self._position
        # An older request pauses the run after this turn: ending early for it would repeat the body for ever.
        may_end = at.visit is not None and at.pause_requested is None
        return self._evaluator.evaluate(data, metrics, lambda: may_end and at.pause_requested is not None, **options)

    def training_pass(self) -> Iterator[Any]:
        """Yield the batches of one pass over the training data, placed, apart from the run's own place in them.

        Samples come in their own order, not shuffled, in batches of `batch_size`, with the `drop_last` and
        `limit_batches` of the run; a `DataLoader` is copied, with its samplers, and iterated in the order that it has.
        The feed, the counters and the batch of the run stay as they are. The global generators are seeded alike on all
        ranks while the pass is open, and restored as it ends, those of the data too: iterate to the end, or call
        `close`. Of several ranks each reads the whole, unless the sampler of a loader deals it out.

        Raises:
            DataError: If the data can be iterated once.
        """
        return self._evaluator.training_pass(self._runtime.feed.seed)

    def forward(self, batch: Any) -> Any:
        """Run the network on a placed batch as a step does, and return its output; no gradients, nothing is counted.

        The precision is that of the run, modes are as they stand, and gradients are not computed: what the network
        keeps of a pass, such as the statistics of BatchNorm, is kept. With `compute_loss` that is called, and what it
        logs is dropped. With `strategy="fsdp"` all ranks call this together.

        Args:
            batch: Such as one of `training_pass`.
        """
        return self._evaluator.forward(batch)

    @property
    def _evaluator(self) -> Evaluates:
        if self._runtime.evaluator is None:
            raise EngineError("only the run of an engine can evaluate")
        return self._runtime.evaluator
