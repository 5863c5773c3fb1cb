"""`Agreed`: what the ranks of a run have agreed on, and what this one has asked for since.

`RanksRun` and the agreement write it, checkpoints store it; a process alone has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class Agreed:
    """What several ranks know of each other between two agreements.

    Attributes:
        number: How many agreements there were.
        samples: Those of all ranks at the newest agreement; the run counts its own on top of them.
        names: What the ranks have agreed on, of what `Run.ask` asks for.
        wanted: Why this rank asks for a stop or a pause, by these names.
        mean_loss: That of the newest window over all ranks.
        epoch_loss: The mean loss of the newest complete epoch over all ranks, and the number of that epoch.
    """

    number: int = 0
    samples: int = 0
    names: set[str] = field(default_factory=set[str])
    wanted: dict[str, str] = field(default_factory=dict[str, str])
    mean_loss: torch.Tensor | None = None
    epoch_loss: tuple[int, torch.Tensor | None] | None = None
