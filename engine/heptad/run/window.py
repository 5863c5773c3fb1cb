"""The window: the steps that make one update, and what each of them weighs.

An update must equal that of the window's samples as one large batch. With r a step's weight relative to the window's
first, each loss is scaled by r / k before the backward pass, and on entry to `optimizer_update` the gradients by
k / Σr where that is not 1. Where all steps weigh the same, r is 1 and, in a full window, Σr is k: the loss is divided
by k as textbooks do, with the same bits, and the gradients are left alone. Else the result is exact to rounding: with
unequal weights, and in a window of n < k steps that `remainder="flush"` closed, where k / Σr is k / n.
"""

from __future__ import annotations

import torch

from heptad.config import is_weight
from heptad.errors import EngineError

Weight = float | torch.Tensor


class Window:
    """The open window.

    Attributes:
        steps: Complete steps in it; 0 before the first of them, and again once it is closed.
        size: Steps that fill it (k).
        next_size: Steps that the next window will hold.
        resized: Whether another size was ever asked for.
        first: The weight of its first step.
        total: The sum of the weights of its steps, each relative to the first.
    """

    __slots__ = ("_seeds", "first", "next_size", "resized", "size", "steps", "total")

    def __init__(self, size: int) -> None:
        self.steps = 0
        self.size = size
        self.next_size = size
        self.resized = False
        self.first: Weight | None = None
        self.total: Weight = 0.0
        self._seeds: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    def resize(self) -> None:
        """Give the window that is about to be opened the size that was asked for."""
        self.size = self.next_size
        self._seeds.clear()

    def backward(self, loss: torch.Tensor, weight: Weight | None) -> None:
        """Run the backward pass of one step, scaled for the window.

        Args:
            loss: The mean loss of the step, a scalar.
            weight: What the mean was taken over; `None` where every step weighs the same.

        Raises:
            EngineError: If the weight is not positive, or the window mixes steps with and without a weight.
        """
        # What `backward` is handed is the gradient of the loss with respect to itself: handing in r / k scales every
        # gradient of this step by r / k, as multiplying the loss would, less a forward and a backward operation.
        relative = self._relative(weight)
        if isinstance(relative, torch.Tensor):  # stays on its device: no sync
            loss.backward((relative / self.size).to(loss.device, loss.dtype).reshape(loss.shape))
        elif relative != 1.0:
            loss.backward(torch.full_like(loss, relative / self.size))
        elif self.size == 1:
            loss.backward()  # the only step of its window needs no scaling
        else:
            # 1 / k, to the bit what dividing the loss by k hands on; kept, since the window asks for it k times
            seed = self._seeds.get((loss.dtype, loss.device))
            if seed is None:
                seed = self._seeds[loss.dtype, loss.device] = torch.full_like(loss, 1.0 / self.size).detach()
            loss.backward(seed)

    def correction(self) -> Weight:
        """Return k / Σr, by which the gradients are to be multiplied; exactly 1.0 where nothing is to be done.

        A window of one step needs no correction, whatever its weight; and its sum may not have been kept.
        """
        return 1.0 if self.size == 1 else self.size / self.total

    def _relative(self, weight: Weight | None) -> Weight:
        if self.steps == 0:
            self.first = weight.detach() if isinstance(weight, torch.Tensor) else weight
            self.total = 0.0
        elif (weight is None) != (self.first is None):
            raise EngineError(
                f"step {self.steps} of this window {'has no' if weight is None else 'has a'} weight, the ones before "
                f"{'do' if weight is None else 'do not'}; give LossOutput.weight in every step of a window or in none"
            )
        if weight is None:
            relative: Weight = 1.0
        else:
            _check_weight(weight)
            relative = _ratio(weight, self.first if self.first is not None else weight)
        self.total = self.total + relative  # not +=, which would write into a tensor that a checkpoint may hold
        return relative


def _check_weight(weight: Weight) -> None:
    if isinstance(weight, torch.Tensor):
        # a tensor on another device is not looked at: that would wait for the device
        sound = not weight.dim() and weight.dtype != torch.bool
        if sound and weight.device.type == "cpu":
            sound = is_weight(weight.item())
    else:
        sound = is_weight(weight)
    if not sound:
        raise EngineError(
            f"LossOutput.weight must be above 0, a number or a 0-dim tensor; got {weight!r}. Of a criterion it is what "
            "the mean was taken over: are all targets of this batch ignored?"
        )


def _ratio(weight: Weight, first: Weight) -> Weight:
    """Return weight / first: a float64 tensor if either is a tensor, and exactly 1.0 for equal numbers."""
    if isinstance(weight, torch.Tensor):
        return weight.detach().double() / first
    if isinstance(first, torch.Tensor):
        return weight / first.detach().double()
    return weight / first
