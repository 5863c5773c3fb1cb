"""The step function: batch to loss, weight, output and samples. The only place where the network is run.

Training, evaluation and prediction share it, so that precision and compilation have one place to go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from heptad.config import Components, ComputeLoss, LossOutput
from heptad.data.placement import count_samples
from heptad.errors import DataError, EngineError, diagnose
from heptad.run.runtime import Place, StepFunction
from heptad.run.state import RunState
from heptad.run.weight import Weight, adds_nothing, known_weight
from heptad.step.weighing import count_targets, ignores_targets, is_nan, weigher, weight_on_host

NUMBERS = (int, float, bool, str)
"""What a target that is a plain list may hold, one a sample."""


def build_step(
    components: Components, forward: Any, *, weighs: bool, compute_loss: ComputeLoss | None = None
) -> StepFunction:
    """Return the step function of a run.

    Args:
        components: Whose loss is used.
        forward: What is called: the network, or what a strategy wrapped around it.
        weighs: Whether the weight is also needed where a window holds a single step. Training does without it there.
        compute_loss: What computes the loss in place of that of the components.
    """
    if components.criterion is not None:
        return CriterionStep(forward, components.criterion, weighs=weighs)
    return LossStep(forward, compute_loss or components.compute_loss)


class CriterionStep:
    """The step function for a criterion, over batches of `(data, target)`."""

    giver = "criterion"

    def __init__(self, forward: Any, criterion: Any, *, weighs: bool) -> None:
        self._forward = forward
        self._criterion = criterion
        self._weigh = weigher(criterion)
        self._by_samples = self._weigh is count_samples
        self._ignores = ignores_targets(criterion)
        self._weighs = weighs
        self._seen = False
        self._placed: tuple[torch.Tensor, int, float] | None = None
        """The target that was placed last, its version then, and its weight."""

    def place(self, batch: Any, place: Place) -> Any:
        """Place a batch; see the protocol. A target that may be ignored is weighed while it is on the host."""
        placed = place(batch)
        self._placed = None
        if self._ignores and isinstance(batch, tuple | list) and len(cast("list[Any]", batch)) == 2:
            weight = weight_on_host(self._criterion, batch[1])
            if weight is not None:
                self._placed = placed[1], placed[1]._version, weight
        return placed

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
        loss = at.loss = self._criterion(output, target)
        # One sample each: a tensor's rows, or plain numbers in a list. Without a call, which each step would make; and
        # len() of a tensor takes four times as long as its shape.
        if target.__class__ is torch.Tensor:
            shape = target.shape
            samples = shape[0] if shape else 1
        else:
            first = target[0] if target.__class__ in (tuple, list) and target else None
            flat = first.__class__ in NUMBERS and target[-1].__class__ in NUMBERS  # (0.3, y1, y2) of mixup is not
            samples = len(target) if flat else count_samples((target, data))
        at.samples_now = samples
        if self._weighs or at.window.size != 1 or not samples:
            at.weight = samples if self._by_samples else self._weight(target)
            return
        at.weight = None
        # The mean over nothing but ignored targets is NaN. On the host a look at it costs half of what counting does.
        if self._ignores and (self._placed is not None or (loss.is_cpu and is_nan(loss))):
            weight = self._weight(target)
            at.weight = weight if adds_nothing(weight) else None

    def weigh(self, at: RunState) -> Weight:
        """Return what the mean of the step was taken over; see the protocol."""
        if at.weight is not None:
            return at.weight
        return at.samples_now if self._by_samples else self._weight(at.batch[1])

    def count(self, at: RunState) -> Weight:
        """Return what a metric of the step is averaged by; see the protocol."""
        weight = self.weigh(at)
        if adds_nothing(weight) or not self._ignores or self._criterion.weight is None:
            return weight
        return count_targets(self._criterion, at.batch[1])

    def _weight(self, target: Any) -> Weight:
        known = self._placed
        if known is not None and known[0] is target and known[1] == target._version:  # nobody has replaced it
            return known[2]
        return self._weigh(target)

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
        self._gave_nothing = False

    def place(self, batch: Any, place: Place) -> Any:
        """Place a batch; see the protocol."""
        return place(batch)

    def run(self, at: RunState) -> Mapping[str, float | torch.Tensor] | None:
        """Run compute_loss; see the protocol."""
        batch = at.batch
        given = self._compute_loss(self._forward, batch)
        if isinstance(given, LossOutput):
            at.output, at.loss, at.weight, logs = given.output, given.value, given.weight, given.logs
            if at.weight is not None:
                at.weight = known_weight(at.weight)
        else:
            at.loss, at.weight, logs = given, None, None
            if given is None:
                self._take_nothing(at)
        at.samples_now = count_samples(batch)
        return logs

    def weigh(self, at: RunState) -> Weight:
        """Return what the mean of the step was taken over; see the protocol."""
        return 1.0 if at.weight is None else at.weight

    def count(self, at: RunState) -> Weight:
        """Return what a metric of the step is averaged by; see the protocol."""
        return self.weigh(at)

    def _take_nothing(self, at: RunState) -> None:
        """Let a step without a loss weigh 0, unless a `return` was forgotten."""
        if not self._gave_nothing and diagnose("never_returns", self._compute_loss):
            raise EngineError(diagnose("loss", None, self.giver))
        self._gave_nothing = True
        at.weight = 0

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


def check_loss(loss: Any, giver: str, weight: Weight | None = None) -> None:
    """Raise an `EngineError` for a loss that cannot be trained on; of a step that weighs 0 none is needed."""
    if adds_nothing(weight):
        return
    if loss is None and giver == LossStep.giver:
        raise EngineError(diagnose("empty_output"))
    if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.requires_grad:
        raise EngineError(diagnose("loss", loss, giver))
