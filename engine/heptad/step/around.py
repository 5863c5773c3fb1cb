"""`StepAround`: a step function around another one. Its subclasses replace what they do otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from heptad.run.runtime import Place, StepFunction
from heptad.run.state import RunState
from heptad.run.weight import Weight


class StepAround:
    """Does what another step function does; see the protocol.

    Args:
        step: That one.
    """

    def __init__(self, step: StepFunction) -> None:
        self.giver = step.giver
        self._step = step

    def place(self, batch: Any, place: Place) -> Any:
        """Place a batch."""
        return self._step.place(batch, place)

    def run(self, at: RunState) -> Mapping[str, float | torch.Tensor] | None:
        """Run the step function."""
        return self._step.run(at)

    def weigh(self, at: RunState) -> Weight:
        """Return what the mean of the step was taken over."""
        return self._step.weigh(at)

    def count(self, at: RunState) -> Weight:
        """Return what a metric of the step is averaged by."""
        return self._step.count(at)

    def predict(self, batch: Any) -> Any:
        """Return the network's output."""
        return self._step.predict(batch)
