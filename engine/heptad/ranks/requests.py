"""`RanksRun`: a run of several ranks. What one of them asks for is a request, and becomes a fact when all agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from heptad.errors import EngineError, add_note
from heptad.run.agreed import Agreed
from heptad.run.run import Run
from heptad.run.view import in_words

T = TypeVar("T")

MIXED_WITH_SHARED = (
    "with strategy='fsdp' a parameter is a DTensor wherever the block that holds it is not being called: in a handler "
    "take what this rank holds by run.local(tensor), or all of it by run.whole(tensor), on all ranks alike; in a loss "
    "call weight.full_tensor(); where one block uses weights of another, name by Components.blocks what holds both"
)


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


class SharedRun(RanksRun):
    """A run whose ranks hold a part of each parameter: what is recorded may be shared by them, too."""

    __slots__ = ()

    def fail(self, error: BaseException, moment: str, who: str, guard: str, guards: dict[str, bool]) -> None:
        """End the run in `failed`, see `Run.fail`; say more of an error that only shared parameters bring about."""
        super().fail(error, moment, who, guard, guards)
        if "mixed torch.Tensor and DTensor" in str(error):
            add_note(error, MIXED_WITH_SHARED)

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor whole on each rank, see `RunView.whole`."""
        return whole_value(tensor)

    def record(self, name: str, value: float | torch.Tensor) -> None:
        """Record a value, see `Run.record`; a DTensor, such as a norm, as the whole (an exchange)."""
        super().record(name, whole_value(value))

    def record_array(self, name: str, value: np.ndarray[Any, Any] | torch.Tensor) -> None:
        """Record an array, see `Run.record_array`; a DTensor as the whole."""
        super().record_array(name, whole_value(value))

    def record_defaults(self, values: Mapping[str, float | torch.Tensor | None], since: int) -> int:
        """Record values, see `Run.record_defaults`; DTensors as wholes."""
        return super().record_defaults({name: whole_value(value) for name, value in values.items()}, since)


def whole_value(value: T) -> T:
    """Return a tensor that is whole on each rank; all of them call this."""
    return cast("T", value.full_tensor()) if isinstance(value, DTensor) else value
