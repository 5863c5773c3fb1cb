"""Mixed precision: autocast around forward and loss, wherever the network is run, and nowhere else.

The bodies and the evaluator wrap their step functions here. `loss_scaling.py` has what fp16 needs beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from heptad.errors import ConfigError
from heptad.run.runtime import StepFunction
from heptad.run.state import RunState
from heptad.step.around import StepAround

DTYPES = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}
"""What autocast computes in, by `RunConfig.precision`; the one that is not here has no autocast."""


def in_precision(step: StepFunction, precision: str, device: torch.device) -> StepFunction:
    """Return the step function that runs the network in a precision: with fp32 the one that is given.

    Raises:
        ConfigError: If torch has no such autocast for the device.
    """
    context = autocast(precision, device)
    return step if context is None else AutocastStep(step, context)


def autocast(precision: str, device: torch.device) -> torch.autocast | None:
    """Return the autocast of a precision, `None` for fp32.

    Raises:
        ConfigError: If torch has none for the device.
    """
    if precision not in DTYPES:
        return None
    try:
        with warnings.catch_warnings(action="error"):  # torch warns, and computes in fp32
            return torch.autocast(device.type, DTYPES[precision])
    except (RuntimeError, UserWarning) as error:
        raise ConfigError(
            f"RunConfig.precision is {precision!r}, which torch does not have on '{device}' here: {error}; use 'fp32', "
            "or another device"
        ) from None


class AutocastStep(StepAround):
    """Runs a step function under autocast, one context a step, so that no cast weight outlives its update.

    Args:
        step: The step function.
        context: Its own, entered in each step: to make one takes longer than that. It is not entered within itself.
    """

    def __init__(self, step: StepFunction, context: torch.autocast) -> None:
        super().__init__(step)
        self._autocast = context

    def run(self, at: RunState) -> Mapping[str, float | torch.Tensor] | None:
        """Run forward and loss; see the protocol."""
        with self._autocast:
            logs = self._step.run(at)
        torch.clear_autocast_cache()  # within an autocast of the caller's it would outlive the update
        return logs

    def predict(self, batch: Any) -> Any:
        """Return the network's output; see the protocol."""
        with self._autocast:
            return self._step.predict(batch)
