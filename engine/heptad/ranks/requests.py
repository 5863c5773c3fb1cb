"""`RanksRun`: a run of several ranks. What one of them asks for is a request, and becomes a fact when all agree."""

from __future__ import annotations

from typing import NoReturn

import torch

from heptad.errors import EngineError
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot
from heptad.run.view import in_words


class RanksRun(Run):
    """The run as one rank sees it; all ranks make the same turns.

    A stop, a pause and what `ask` asks for wait until the ranks agree: on exit of `optimizer_update` and `after_epoch`
    and of detours after these.
    """

    #   _wanted: Why this rank asks for a stop or a pause, by these names.
    #   _agreed: What the ranks have agreed on, of what `ask` asks for.
    #   _mean_loss: That of the newest window over all ranks.
    #   _loss_of_epoch: The mean loss of the newest complete epoch over all ranks, and the number of that epoch.
    #   _samples_of_all: Samples of all ranks, as far as these have told each other; `samples` adds those of this one.

    __slots__ = ("_agreed", "_loss_of_epoch", "_mean_loss", "_samples_of_all", "_wanted")

    def __init__(self, *args: object, **named: object) -> None:
        super().__init__(*args, **named)  # pyright: ignore[reportArgumentType] - those of a run
        self._wanted: dict[str, str] = {}
        self._agreed: set[str] = set()
        self._mean_loss: torch.Tensor | None = None
        self._loss_of_epoch: tuple[int, torch.Tensor | None] | None = None
        self._samples_of_all = 0

    def snapshot(self) -> Snapshot:
        """Return everything that the rest of the run depends on; see `Run.snapshot`. All ranks call it: one exchange.

        A window may be open, or the newest ones not be agreed on: so the samples of all ranks are counted here, and a
        stop that this rank asks for is stored.
        """
        if self.state != "idle" and not self.ended:
            own = torch.tensor(float(self.samples - self._samples_of_all), dtype=torch.float64)
            self.count_samples(int(self._runtime.peers.add(own)))
        snapshot = super().snapshot()
        snapshot.sections["run"]["position"]["wanted"] = self._wanted.get("stop")
        return snapshot

    def count_samples(self, since: int) -> None:
        """Count the samples that all ranks have had since they last told each other."""
        self._samples_of_all += since
        self._position.samples = self._samples_of_all

    def stop(self, reason: str) -> None:
        """Ask that the run ends in order; see `Run.stop`. It does from the next agreement of the ranks on."""
        self._refuse_when_ended("stop")
        self._wanted.setdefault("stop", in_words("stop", reason))

    def pause(self, reason: str) -> None:
        """Ask that the run pauses; see `Run.pause`. It does after the next agreement of the ranks."""
        self._refuse_when_ended("pause")
        self._wanted.setdefault("pause", in_words("pause", reason))

    def ask(self, name: str, wanted: bool = True) -> None:
        """Ask for something, or take it back, also what is agreed; see `Run.ask`."""
        super().ask(name, wanted)
        if not wanted:
            self._agreed.discard(name)

    def agreed(self, name: str) -> bool:
        """Return whether the ranks have agreed that one of them asks for it."""
        return name in self._agreed

    def skip_batch(self, reason: str) -> NoReturn:
        """Refuse: this rank alone would leave out a step whose backward pass the others wait for."""
        raise EngineError(
            f"skip_batch({reason!r}) cannot be called in a run of several ranks: the others wait for the backward pass "
            "of this one; return LossOutput(loss, weight=0), or skip the update of all ranks by skip_update"
        )

    @property
    def mean_loss(self) -> torch.Tensor | None:
        """The mean loss of the newest complete window over all ranks; known from entry to `optimizer_update` on."""
        return self._mean_loss

    @property
    def epoch_loss(self) -> torch.Tensor | None:
        """The mean loss over the epoch: that of this rank while it lasts, over all ranks from `after_epoch` on."""
        known = self._loss_of_epoch
        if known is not None and known[0] == (self.epoch if self.epoch_open else self.epoch - 1):
            return known[1]
        return self._position.epoch_loss.mean()
