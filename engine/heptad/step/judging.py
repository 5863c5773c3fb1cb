"""Calling `Plugin.on_loss`: the moment of a step between its loss and its backward pass."""

from __future__ import annotations

from heptad.run.run import Run
from heptad.run.weight import adds_nothing


def call_on_loss(run: Run) -> None:
    """Call the plugins that look at the loss of each step; of one that adds nothing there is nothing to look at."""
    at = run._position
    if at.loss is None or adds_nothing(at.weight):
        return
    at.judging = True
    try:
        for call in run._runtime.on_loss:
            call(run)
    finally:
        at.judging = False
