"""Looking things up in a run: what its optimizers hold, and a recorded value by its name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal, cast

from torch.nn import Parameter

from heptad import EngineError, Run


def held_parameters(run: Run) -> list[Parameter]:
    """Returns the parameters that the run's optimizers hold, in their order, each once."""
    groups = [cast("list[Parameter]", group["params"]) for one in run.optimizers for group in one.param_groups]
    return list({id(parameter): parameter for parameters in groups for parameter in parameters}.values())


def monitored(plugin: str, run: Run, name: str, interval: Literal["update", "epoch"] = "epoch") -> float:
    """Returns the newest value recorded under a name; reading waits for values that are still on their device.

    Args:
        plugin: Who asks, for the message.
        run: The run.
        name: The value's name.
        interval: Whether it is asked for after each update or after each epoch.

    Raises:
        EngineError: If nothing was recorded under it yet; the recorded names are in the message.
    """
    metrics = run.metrics
    if name not in metrics:
        known = ", ".join(repr(other) for other in metrics) or "none"
        place = f"by the end of epoch {run.epoch} (update {run.update})"
        if interval == "update":
            place = f"by update {run.update} (epoch {run.epoch})"
        raise EngineError(
            f"{plugin}(monitor='{name}'): no value of that name has been recorded {place}; "
            f"recorded so far: {known}; {_hint(name, metrics, interval)}"
        )
    return metrics[name]


def _hint(name: str, metrics: dict[str, float], interval: str) -> str:
    if close := get_close_matches(name, metrics, n=1):
        return f"did you mean '{close[0]}'?"
    if interval == "update":
        return (
            "interval='update' looks for it after each update; a value that is recorded once an epoch, as "
            "Evaluate(data) records 'valid/loss', needs interval='epoch'"
        )
    return "Evaluate(data) records 'valid/loss', run.record(name, value) any other"
