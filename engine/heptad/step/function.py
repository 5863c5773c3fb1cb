"""The step function: batch to loss, weight, output and samples. The only place where the network is run.

Training, evaluation and prediction share it, so that precision and compilation have one place to go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from heptad.config import Components, LossOutput
from heptad.data.placement import count_samples
from heptad.errors import DataError, EngineError, diagnose
from heptad.run.runtime import StepFunction
from heptad.run.state import RunState
from heptad.step.weighing import weigher


def build_step(components: Components, forward: Any, *, weighs: bool) -> StepFunction:
    """Return the step function of a run.

    Args:
        components: Whose loss is used.
        forward: What is called: the network, or what a strategy wrapped around it.
        weighs: Whether the weight is also needed where a window holds a single step. Training does without it there.
    """
    if components.criterion is not None:
        return CriterionStep(forward, components.criterion, weighs=weighs)
    return LossStep(forward, components.compute_loss)


class CriterionStep:
    """The step function for a criterion, over batches of `(data, target)`."""

    giver = "criterion"

    def __init__(self, forward: Any, criterion: Any, *, weighs: bool) -> None:
        self._forward = forward
        self._criterion = criterion
        self._weigh = weigher(criterion)
        self._weighs = weighs
        self._seen = False

    def run(self, at: RunState) -> None:
        """Run forward and criterion; see the protocol."""
        batch = at.batch
        if not self._seen:  # two rows or two keys unpack as well, and would be taken for (data, target)
            check_pair(batch)
            self._seen = True
        try:
            data, target = batch
        except (TypeError, ValueError):
            check_pair(batch)
            raise
        output = at.output = self._forward(data)
        at.loss = self._criterion(output, target)
        try:
            samples = count_samples(batch) if target.__class__ is dict else len(target)
        except TypeError:  # a single sample
            samples = 1
        at.samples_now = samples
        at.weight = self._weigh(target) if self._weighs or at.window.size != 1 or not samples else None

    def predict(self, batch: Any) -> Any:
        """Run forward alone; a tensor is a batch without targets."""
        if isinstance(batch, torch.Tensor):
            return self._forward(batch)
        check_pair(batch)
        return self._forward(batch[0])


class LossStep:
    """The step function for a `compute_loss`, over batches of any kind."""

    giver = "compute_loss"

    def __init__(self, forward: Any, compute_loss: Any) -> None:
        self._forward = forward
        self._compute_loss = compute_loss

    def run(self, at: RunState) -> Mapping[str, float | torch.Tensor] | None:
        """Run compute_loss; see the protocol."""
        batch = at.batch
        given = self._compute_loss(self._forward, batch)
        if isinstance(given, LossOutput):
            at.output, at.loss, at.weight, logs = given.output, given.value, given.weight, given.logs
        else:
            at.loss, at.weight, logs = given, None, None
        at.samples_now = count_samples(batch)
        return logs

    def predict(self, batch: Any) -> Any:
        """Run compute_loss and return the output that it gives beside the loss.

        Raises:
            EngineError: If it gives none.
        """
        given = self._compute_loss(self._forward, batch)
        if not isinstance(given, LossOutput) or given.output is None:
            raise EngineError(
                "predict needs a compute_loss that returns LossOutput(value, output=…): it yields that output"
            )
        return given.output


def check_pair(batch: Any) -> None:
    """Raise a `DataError` for a batch that is not `(data, target)`."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:  # pyright: ignore[reportUnknownArgumentType] - the user's own
        raise DataError(diagnose("pair", batch))


def check_loss(loss: Any, giver: str) -> None:
    """Raise an `EngineError` for a loss that cannot be trained on."""
    if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.requires_grad:
        raise EngineError(diagnose("loss", loss, giver))
