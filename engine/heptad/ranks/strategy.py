"""`Strategy`: all that several processes have to agree on, behind one object.

A strategy is asked at four places, and takes no part in the loop. With one process it is `Alone`, which does what a
plain loop does. The core never asks how many ranks there are.

One for several ranks has more to settle, which each process decides for itself today: the root of the data's order
where `seed` is None, what `init_weights` writes and dropout draws, what a stream or a loader yields and when it ends,
the weight of a window of one step, the first weight and the sum of a longer one, skipping an update, the size of
windows, when to stop, pause or fail, detours that rest on a clock, evaluation, and who writes files.
"""

from __future__ import annotations

from typing import Protocol

import torch

from heptad.run.run import Run
from heptad.run.runtime import Runtime


class Strategy(Protocol):
    """How the ranks of a run work together.

    Attributes:
        announces: Whether `window_closes` does anything. Where it does not, it is not called: a call costs 40 ns.
    """

    announces: bool

    def place(self, runtime: Runtime) -> None:
        """Move the network to its device and set `runtime.forward`, what is called; before optimizers are built.

        An optimizer that the user built is there already: the parameters it holds must stay the same objects.
        """
        ...

    def window_closes(self, closes: bool) -> None:
        """Take note, before the forward pass, of whether this step closes its window."""
        ...

    def reduce(self, run: Run) -> None:
        """Make the gradients those of the whole window; the first handler on entry to `optimizer_update`."""
        ...

    def share(self) -> tuple[int, int]:
        """Return which part of an indexed dataset is this process's: its rank, and the number of ranks.

        Called when the engine is built. Loaders and iterable datasets are read whole.
        """
        ...


class Alone:
    """The strategy of a single process."""

    announces = False

    def place(self, runtime: Runtime) -> None:
        """Move the network to the device."""
        runtime.network.to(runtime.device)
        runtime.forward = runtime.network

    def window_closes(self, closes: bool) -> None:
        """Do nothing: there is nobody to reduce with."""

    def reduce(self, run: Run) -> None:
        """Multiply the gradients by k / Σr, so that the window counts as one large batch.

        A window of one step needs no correction. In a full, unweighted one the factor is exactly 1, and the gradients
        keep the bits of the textbook loop. A window of which nothing counts makes no update.
        """
        window = run._position.window
        if window.empty:
            run.skip_update("no step of this window counts: each weighs 0 or has no loss")
            return
        if window.size == 1:  # what correction() would say, less a call for each update
            return
        factor = window.correction()
        if isinstance(factor, torch.Tensor) or factor != 1.0:
            scale(run._runtime.optimizers.parameters(run.network), factor)

    def share(self) -> tuple[int, int]:
        """Return all of it."""
        return 0, 1


def scale(parameters: list[torch.nn.Parameter], factor: float | torch.Tensor) -> None:
    """Multiply gradients by a factor."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is None:
                continue
            if isinstance(factor, torch.Tensor):
                parameter.grad.mul_(factor.to(parameter.grad.device, parameter.grad.dtype))
            else:
                parameter.grad.mul_(factor)
