"""`FirstStep`: the step function of the first steps, which looks at their loss and at what becomes of gradients."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch

from heptad.errors import EngineError, diagnose
from heptad.run.runtime import Runtime, StepFunction
from heptad.run.state import RunState
from heptad.step.around import StepAround
from heptad.step.function import check_loss


class FirstStep(StepAround):
    """Runs a step function until it has given a loss, beside gradients too; leaves the runtime to it then.

    Args:
        step: The step function.
        runtime: Whose `step` this object is until then.
    """

    def __init__(self, step: StepFunction, runtime: Runtime) -> None:
        super().__init__(step)
        self._runtime = weakref.ref(runtime)  # which refers to this object: a cycle would keep networks alive

    def run(self, at: RunState) -> Mapping[str, float | torch.Tensor] | None:
        """Run the step function; see the protocol.

        Raises:
            EngineError: If the loss cannot be trained on; or if a parameter of an optimizer has got a gradient from the
                step function, which would be counted twice, or has lost that of the window's earlier steps.
        """
        runtime = self._runtime()
        assert runtime is not None
        parameters = runtime.optimizers.held()
        before = [_stamp(parameter.grad) for parameter in parameters]
        logs = self._step.run(at)
        changed = [one for one, stamp in zip(parameters, before, strict=True) if _is_changed(one.grad, stamp)]
        if changed:
            names = {id(parameter): name for name, parameter in runtime.network.named_parameters()}
            lost = all(one.grad is None for one in changed)
            topic = "own_clearing" if lost else "own_backward"
            raise EngineError(diagnose(topic, self.giver, [names.get(id(one), "") for one in changed]))
        if at.loss is not None:
            check_loss(at.loss, self.giver, at.weight)
            if at.window.size == 1 or any(before):
                runtime.step = self._step
        return logs


def _is_changed(gradient: torch.Tensor | None, stamp: tuple[int, int] | None) -> bool:
    """Return whether a gradient is another than it was; zeros where there was none change nothing."""
    if _stamp(gradient) == stamp:
        return False
    return stamp is not None or (gradient is not None and bool(gradient.any()))


def _stamp(gradient: torch.Tensor | None) -> tuple[int, int] | None:
    """Return what changes when something is added to a gradient: which tensor it is, and its version."""
    return None if gradient is None else (id(gradient), gradient._version)
