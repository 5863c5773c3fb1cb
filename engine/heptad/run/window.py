"""The window: the steps that make one update, and what each of them weighs.

An update must equal that of the window's samples as one large batch. With r a step's weight relative to the window's
first, each loss is scaled by r / k before the backward pass, and on entry to `optimizer_update` the gradients by
k / Σr where that is not 1. Where all steps weigh the same, r is 1 and, in a full window, Σr is k: the loss is divided
by k as textbooks do, with the same bits, and the gradients are left alone. Else the result is exact to rounding: with
unequal weights, and in a window of n < k steps that `remainder="flush"` closed, where k / Σr is k / n. A step of weight
0 or without a loss has r = 0 and no backward pass, since 0 times NaN is NaN.
"""

from __future__ import annotations

from typing import Any

import torch

from heptad.errors import EngineError
from heptad.run.loss_mean import Losses
from heptad.run.seed import seed_of
from heptad.run.weight import Weight, adds_nothing, relate


class Window:
    """The open window.

    Attributes:
        steps: Complete steps in it; 0 before the first of them, and again once it is closed.
        size: Steps that fill it (k).
        next_size: Steps that the next window will hold.
        resized: Whether another size was ever asked for.
        first: The first weight above 0 of its steps.
        total: The sum of the weights of its steps, each relative to the first.
        empty: None of its steps adds anything: each weighs 0 or has no loss. Weights on an accelerator are not asked.
        losses: What its mean loss is taken over; `None` where that is the loss of the newest step.
        closed: The same of the window that was closed last.
        seeds: What each full, unweighted step hands to its backward pass, by dtype and device of the loss.
        scale: What fp16 multiplies losses by, a scalar; `None` where nothing is scaled.
        reference: What fp16 relates weights to in place of the first, where a window holds several.
    """

    __slots__ = (
        "closed",
        "empty",
        "first",
        "losses",
        "next_size",
        "reference",
        "resized",
        "scale",
        "seeds",
        "size",
        "steps",
        "total",
    )

    def __init__(self, size: int) -> None:
        self.steps = 0
        self.size = size
        self.next_size = size
        self.resized = False
        self.first: Weight | None = None
        self.total: Weight = 0.0
        self.empty = False
        self.losses: Losses | None = []
        self.closed: Losses | None = []
        self.seeds: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
        self.scale: torch.Tensor | None = None
        self.reference: Weight | None = None

    def fresh(self) -> Window:
        """Return an empty window like this one, in which its steps are computed again."""
        window = Window(self.size)
        window.scale, window.reference = self.scale, self.reference
        return window

    def resize(self, loss: torch.Tensor | None) -> None:
        """Give the window that is about to be opened the size that was asked for.

        Args:
            loss: The loss of the newest step, of which nothing is kept in windows of one step.
        """
        if self.closed is None and loss is not None:
            self.closed = [(loss.detach(), 1.0)]
        self.size, self.reference = self.next_size, None
        self.seeds.clear()

    def backward(self, loss: Any, weight: Weight | None) -> torch.Tensor | None:
        """Run the backward pass of one step, scaled for the window; none for a step that weighs 0.

        Args:
            loss: The mean loss of the step, a scalar; of a step that weighs 0 also `None`.
            weight: What the mean was taken over; `None` where every step weighs the same.

        Returns:
            The loss, detached where there was no backward pass that freed its graph.

        Raises:
            EngineError: If the window mixes steps with and without a weight.
        """
        relative = self._relative(weight)
        known = not isinstance(relative, torch.Tensor)  # one on an accelerator stays there: no sync
        if known and not relative:
            return loss.detach() if isinstance(loss, torch.Tensor) else None
        if not known or relative != 1.0:
            loss.backward(seed_of(loss, relative / self.size, self.scale))
        elif self.size == 1:
            loss.backward(self.scale)  # the only step of its window needs no more
        else:
            # 1 / k, to the bit what dividing the loss by k hands on; kept, since the window asks for it k times
            seed = self.seeds.get((loss.dtype, loss.device))
            if seed is None:
                seed = self.seeds[loss.dtype, loss.device] = seed_of(loss, 1.0 / self.size, self.scale).detach()
            loss.backward(seed)
        if self.losses is not None:
            self.losses.append((loss.detach(), relative))
        return loss

    def correction(self) -> Weight:
        """Return k / Σr, by which the gradients are to be multiplied; exactly 1.0 where nothing is to be done.

        A window of one step needs no correction, whatever its weight; and its sum may not have been kept.
        """
        if self.size == 1:
            return 1.0
        if isinstance(self.total, torch.Tensor):
            return torch.where(self.total > 0, self.size / self.total, 0.0)
        return self.size / self.total

    def _relative(self, weight: Weight | None) -> Weight:
        if self.steps == 0:
            self.first, self.total, self.empty, self.losses = self.reference, 0.0, True, []
        elif weight.__class__ is int is self.first.__class__ and weight == self.first:
            self.total = self.total + 1.0  # what follows comes to the same, at the cost of two calls for each step
            return 1.0
        if adds_nothing(weight):
            return 0.0
        if (weight is None) != (self.first is None) and not self.empty:
            raise EngineError(
                f"step {self.steps} of this window {'has no' if weight is None else 'has a'} weight, the ones before "
                f"{'do' if weight is None else 'do not'}; give LossOutput.weight in every step of a window or in none"
            )
        self.empty = False
        relative, self.first = (1.0, None) if weight is None else relate(weight, self.first)
        self.total = self.total + relative  # not +=, which would write into a tensor that a checkpoint may hold
        return relative
