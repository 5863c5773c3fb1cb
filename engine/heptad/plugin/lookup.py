"""`monitored`: the newest value recorded under a name, for plugins that watch one."""

from __future__ import annotations

from typing import Literal

from heptad.errors import EngineError, diagnose
from heptad.run.run import Run


def monitored(run: Run, name: str, plugin: str, interval: Literal["update", "epoch"] = "epoch") -> float:
    """Return the newest value recorded under a name; values that are still on their device are waited for.

    Args:
        run: The run.
        name: The value's name.
        plugin: Who asks, for the message.
        interval: Whether the plugin asks after each update or after each epoch.

    Raises:
        EngineError: If nothing was recorded under that name yet; the message lists the recorded names.
    """
    metrics = run.metrics
    if name in metrics:
        return metrics[name]
    known = ", ".join(repr(other) for other in metrics) or "none"
    place = f"by the end of epoch {run.epoch} (update {run.update})"
    if interval == "update":
        place = f"by update {run.update} (epoch {run.epoch})"
    raise EngineError(
        f"{plugin}(monitor='{name}'): no value of that name has been recorded {place}; "
        f"recorded so far: {known}; {diagnose('unrecorded', name, metrics, interval)}"
    )
