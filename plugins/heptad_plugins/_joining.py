"""Parameter groups that join an optimizer during a run: `Freeze` adds them, `LRSchedule` includes them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

from torch.optim import Optimizer

from heptad import Run

_FROZEN = "_heptad_frozen"
"""The attribute of a network that holds who has frozen which parameter, and in which run."""

_JOINED = "_heptad_joined"
"""The attribute of an optimizer that holds the id of the run in which a group joins it."""


def in_registry(run: Run) -> dict[str, str]:
    """Return the name of the plugin that has frozen each parameter in this run, by the parameter's name; not copied."""
    held = vars(run.network)
    run_id, owners = held.get(_FROZEN, ("", {}))
    if run_id != run.id:
        run_id, owners = held[_FROZEN] = run.id, {}
    return cast("dict[str, str]", owners)


def announce(run: Run, optimizer: Optimizer) -> None:
    """Announce in `before_loop` that a parameter group joins this optimizer later."""
    vars(optimizer)[_JOINED] = run.id


def is_announced(run: Run, optimizer: Optimizer) -> bool:
    """Return whether a parameter group joins this optimizer later in the run."""
    return vars(optimizer).get(_JOINED) == run.id


def option_mistake(optimizer: Optimizer, options: Mapping[str, Any]) -> str:
    """Return which option a parameter group of this optimizer does not have, torch takes any."""
    known = optimizer.defaults
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            nearest = f"; the nearest is {near[0]!r}" if near else ""
            return f"a parameter group of {type(optimizer).__name__} has no option {name!r}{nearest}"
    return ""
