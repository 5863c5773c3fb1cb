"""`RanksRun`: a run of several ranks. What one of them asks for is a request, and becomes a fact when all agree."""

from __future__ import annotations

from typing import NoReturn

import torch

from heptad.errors import EngineError
from heptad.run.agreed import Agreed
from heptad.run.refusals import in_words
from heptad.run.run import Run


class RanksRun(Run):
    """The run as one rank sees it; all ranks make the same turns.

    A stop, a pause and what `ask` asks for wait until the ranks agree: on exit of `optimizer_update` and `after_epoch`
    and of detours after these.
    """

    #   _agreed: What the ranks have agreed on, which is part of its position.

    __slots__ = ("_agreed",)

    def __init__(self, *args: object, **named: object) -> None:
        super().__init__(*args, **named)  # pyright: ignore[reportArgumentType] - those of a run
        self._agreed = self._position.agreed = Agreed()

    def stop(self, reason: str) -> None:
        """Ask that the run ends in order; see `Run.stop`. It does from the next agreement of the ranks on."""
        self._refuse_when_ended("stop")
        self._agreed.wanted.setdefault("stop", in_words("stop", reason))

    def pause(self, reason: str) -> None:
        """Ask that the run pauses; see `Run.pause`. It does after the next agreement of the ranks."""
        self._refuse_when_ended("pause")
        self._agreed.wanted.setdefault("pause", in_words("pause", reason))

    def ask(self, name: str, wanted: bool = True) -> None:
        """Ask for something, or take it back, also what is agreed; see `Run.ask`."""
        super().ask(name, wanted)
        if not wanted:
            self._agreed.names.discard(name)

    def agreed(self, name: str) -> bool:
        """Return whether the ranks have agreed that one of them asks for it."""
        return name in self._agreed.names

    def skip_batch(self, reason: str) -> NoReturn:
        """Refuse: this rank alone would leave out a step whose backward pass the others wait for."""
        raise EngineError(
            f"skip_batch({reason!r}) cannot be called in a run of several ranks: the others wait for the backward pass "
            "of this one; return LossOutput(loss, weight=0), or skip the update of all ranks by skip_update"
        )

    @property
    def mean_loss(self) -> torch.Tensor | None:
        """The mean loss of the newest complete window over all ranks; known from entry to `optimizer_update` on."""
        return self._agreed.mean_loss

    @property
    def epoch_loss(self) -> torch.Tensor | None:
        """The mean loss over the epoch: that of this rank while it lasts, over all ranks from `after_epoch` on."""
        known = self._agreed.epoch_loss
        if known is not None and known[0] == (self.epoch if self.epoch_open else self.epoch - 1):
            return known[1]
        return self._position.epoch_loss.mean()
