"""Looking things up in a run: what its optimizers hold, and a recorded value by its name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import cast

from torch.nn import Parameter

from heptad import EngineError, Run


def held_parameters(run: Run) -> list[Parameter]:
    """Returns the parameters that the run's optimizers hold, in their order, each once."""
    groups = [cast("list[Parameter]", group["params"]) for one in run.optimizers for group in one.param_groups]
    return list({id(parameter): parameter for parameters in groups for parameter in parameters}.values())


def monitored(plugin: str, run: Run, name: str) -> float:
    """Returns the newest value recorded under a name; reading waits for values that are still on their device.

    Raises:
        EngineError: If nothing was recorded under it yet; the recorded names are in the message.
    """
    metrics = run.metrics
    if name not in metrics:
        known = ", ".join(repr(other) for other in metrics) or "none"
        raise EngineError(
            f"{plugin}(monitor='{name}'): no value of that name has been recorded by the end of epoch {run.epoch} "
            f"(update {run.update}); recorded so far: {known}; {_hint(name, metrics)}"
        )
    return metrics[name]


def _hint(name: str, metrics: dict[str, float]) -> str:
    if close := get_close_matches(name, metrics, n=1):
        return f"did you mean '{close[0]}'?"
    return "Evaluate(data) records 'valid/loss', run.record(name, value) any other"
