"""`Counters`: how many epochs, steps and updates are complete; what every line of the log is placed by."""

from __future__ import annotations

from typing import NamedTuple


class Counters(NamedTuple):
    """How many are complete. `window` is the number of steps in the open window."""

    epoch: int = 0
    batch_index: int = 0
    step: int = 0
    update: int = 0
    window: int = 0
