"""What plugins look up: recorded values (`monitored`, `refuse_unrecorded`, `Watch`), weights and sums of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from heptad.errors import EngineError, diagnose
from heptad.run.run import Run


def monitored(run: Run, name: str, plugin: str, interval: Literal["update", "epoch", "evaluation"] = "epoch") -> float:
    """Return the newest value recorded under a name; values that are still on their device are waited for.

    Args:
        run: The run.
        name: The value's name.
        plugin: Who asks, for the message.
        interval: Whether the plugin asks after each update, epoch or evaluation.

    Raises:
        EngineError: If nothing was recorded under that name yet; the message lists the recorded names.
    """
    newest = run.newest(name)
    if newest is None:
        raise _unrecorded(run, name, plugin, interval)
    return newest.value


def refuse_unrecorded(run: Run, name: str, plugin: str) -> None:
    """Raise an error if nothing was recorded under a name, and no evaluation is to record its first values later.

    Args:
        run: The run, at the end of an epoch.
        name: The value's name.
        plugin: Who asks, for the message.

    Raises:
        EngineError: As `monitored`.
    """
    if name not in run.names_recorded() and not run.expects(name):
        raise _unrecorded(run, name, plugin, "epoch")


def metric_weight(run: Run) -> float | torch.Tensor | None:
    """Return what a metric of this step is averaged by: `Run.weight`, but each target counts once (no device sync).

    `None` where there is nothing to measure: no step is under way, or `RunConfig.redo` computed its batch in parts, of
    which some gave no output.
    """
    at = run._position
    if at.batch is None or (at.redo is not None and at.redo.output_in_part):
        return None
    return run._runtime.step.count(at)


def add_over_ranks(run: Run, sums: Mapping[str, float | torch.Tensor]) -> dict[str, float | torch.Tensor]:
    """Return sums that are added over the ranks of the run, by name: the same bits on all of them, in float64.

    One exchange; every rank calls it at the same place, with the same names. In a single process they are returned as
    they are (no device sync).

    Args:
        run: The run.
        sums: Numbers, or tensors, of shapes that are the same on all ranks.
    """
    peers = run._runtime.peers
    if peers.world == 1:
        return dict(sums)
    own = [torch.as_tensor(value, dtype=torch.float64).cpu() for value in sums.values()]
    whole: Any = peers.add(torch.cat([one.reshape(-1) for one in own]))
    added = whole.split([one.numel() for one in own])
    return {name: part.view(one.shape) for name, part, one in zip(sums, added, own, strict=True)}


class Watch:
    """The new values of a name: each is returned once.

    Args:
        name: The value's name.

    Attributes:
        name: See above.
        seen: How many values of any name were recorded when it was last asked: what a plugin stores of it. `None` for
            all there are when it is asked next, as of a checkpoint that does not say.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: int | None = 0

    def take(self, run: Run) -> list[float]:
        """Return the values recorded since the last call, oldest first (waits for those on a device, if there are)."""
        seen, self.seen = self.seen, run.record_count
        if seen is None or seen == self.seen or self.name not in run.names_recorded(seen):
            return []
        return [value.value for value in run.records(seen) if value.name == self.name]


def _unrecorded(run: Run, name: str, plugin: str, interval: str) -> EngineError:
    names = run.metrics
    known = ", ".join(repr(other) for other in names) or "none"
    place = f"by the end of epoch {run.epoch} (update {run.update})"
    if interval == "update":
        place = f"by update {run.update} (epoch {run.epoch})"
    return EngineError(
        f"{plugin}(monitor='{name}'): no value of that name has been recorded {place}; "
        f"recorded so far: {known}; {diagnose('unrecorded', name, names, interval)}"
    )
