"""`FirstStep`: the step function of the first step, which looks for a backward pass that is not the engine's."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch

from heptad.errors import EngineError, diagnose
from heptad.run.runtime import Runtime, StepFunction
from heptad.run.state import RunState
from heptad.run.weight import Weight


class FirstStep:
    """Runs a step function until it gives a loss, and leaves the runtime to that function then.

    Args:
        step: The step function.
        runtime: Whose `step` this object is until then.
    """

    def __init__(self, step: StepFunction, runtime: Runtime) -> None:
        self.giver = step.giver
        self._step = step
        self._runtime = weakref.ref(runtime)  # which refers to this object: a cycle would keep networks alive

    def place(self, batch: Any, device: torch.device) -> Any:
        """Place a batch; see the protocol."""
        return self._step.place(batch, device)

    def run(self, at: RunState) -> Mapping[str, float | torch.Tensor] | None:
        """Run the step function; see the protocol.

        Raises:
            EngineError: If a parameter of an optimizer has got a gradient from it: that would be counted twice.
        """
        runtime = self._runtime()
        assert runtime is not None
        parameters = runtime.optimizers.held()
        before = [_stamp(parameter.grad) for parameter in parameters]
        logs = self._step.run(at)
        got = [one for one, stamp in zip(parameters, before, strict=True) if _stamp(one.grad) not in (stamp, None)]
        if got:
            names = {id(parameter): name for name, parameter in runtime.network.named_parameters()}
            raise EngineError(diagnose("own_backward", self.giver, [names.get(id(one), "") for one in got]))
        if at.loss is not None:
            runtime.step = self._step
        return logs

    def weigh(self, at: RunState) -> Weight:
        """Return what the mean of the step was taken over; see the protocol."""
        return self._step.weigh(at)

    def predict(self, batch: Any) -> Any:
        """Return the network's output; see the protocol."""
        return self._step.predict(batch)


def _stamp(gradient: torch.Tensor | None) -> tuple[int, int] | None:
    """Return what changes when something is added to a gradient: which tensor it is, and its version."""
    return None if gradient is None else (id(gradient), gradient._version)
