"""`RanksWindow`: a window over several ranks, whose steps are related to a weight that all ranks know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from heptad.errors import EngineError
from heptad.run.weight import Weight, adds_nothing
from heptad.run.window import Window


class RanksWindow(Window):
    """The steps of one rank in a window of all.

    With r a step's weight relative to the reference, each loss is scaled by r / k, and the average over the ranks is
    corrected by world · k / Σr, see `Grouped.reduce`. The first weight of the window, which one process takes for its
    reference, is another one on each rank.

    Args:
        size: Steps of each rank that fill it (k).
        reference: What a full batch weighs.
        keep_company: Makes the backward pass of a step that adds nothing, given its loss and whether it closes the
            window.

    Attributes:
        common: The reference.
        again: Whether it is computed again: its loss is not that of the run's newest window.
        mean: Its loss over all ranks, once they have reduced it.
        kinds: Whether steps of it had no weight (1), had one (2), or both; 0 of none that counts.
        closes: Whether the step under way closes the window: its backward pass is the one that the ranks share.
    """

    __slots__ = ("_keep_company", "again", "closes", "common", "kinds", "mean")

    def __init__(self, size: int, reference: float, keep_company: Callable[[Any, bool], None]) -> None:
        super().__init__(size)
        self.common = reference
        self._keep_company = keep_company
        self.closes = self.again = False
        self.kinds = 0
        self.mean: torch.Tensor | None = None

    def fresh(self) -> RanksWindow:
        """Return an empty window like this one."""
        window = RanksWindow(self.size, self.common, self._keep_company)
        window.scale, window.reference, window.again = self.scale, self.reference, True
        return window

    def backward(self, loss: Any, weight: Weight | None) -> torch.Tensor | None:
        """Run the backward pass of a step; see `Window.backward`.

        Raises:
            EngineError: If the step gave no loss: the other ranks wait for its backward pass.
        """
        if loss is None:
            raise EngineError(
                "compute_loss returned None in a run of several ranks, and the others wait for this one's backward "
                "pass; return LossOutput(loss, weight=0) for a batch that is to count for nothing"
            )
        if adds_nothing(weight):
            self._keep_company(loss, self.closes)
        return super().backward(loss, weight)

    def _relative(self, weight: Weight | None) -> Weight:
        if self.steps == 0:
            self.total, self.empty, self.losses, self.kinds = 0.0, True, [], 0
        if adds_nothing(weight):
            return 0.0
        self.empty = False
        self.kinds |= 1 if weight is None else 2
        relative: Weight = 1.0 if weight is None else weight / (self.reference or self.common)
        self.first = weight
        self.total = self.total + relative
        return relative
