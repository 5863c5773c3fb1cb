"""`SharedRun`: a run whose ranks hold a part of each parameter, as one of them sees it; `Fsdp` drives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from heptad.errors import add_note
from heptad.ranks.requests import RanksRun

T = TypeVar("T")

MIXED_WITH_SHARED = (
    "with strategy='fsdp' a parameter is a DTensor wherever the block that holds it is not being called: in a handler "
    "take what this rank holds by run.local(tensor), or all of it by run.whole(tensor), on all ranks alike; in a loss "
    "call weight.full_tensor(); where one block uses weights of another, name by Components.blocks what holds both"
)


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
