"""Numbers computed of tensors that ranks may share, such as norms of gradients, made whole in one exchange."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from heptad import Run


def whole_numbers(run: Run, numbers: list[Tensor]) -> list[Tensor]:
    """Return numbers that are whole on each rank, in their order; all ranks call this with as many."""
    if not run.shares:
        return numbers
    shared = [place for place, one in enumerate(numbers) if _is_shared(run, one)]
    if shared:
        wholes = run.whole(torch.stack([numbers[place] for place in shared])).unbind()
        numbers = [*numbers]
        for place, one in zip(shared, wholes, strict=True):
            numbers[place] = one
    return numbers


def apart(run: Run, tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return tensors by kind, whole ones and shared ones, since torch takes no list of both; no kind that has none."""
    if not run.shares:
        found = [[*tensors]]
    else:
        found: list[list[Tensor]] = [[], []]
        for one in tensors:
            found[_is_shared(run, one)].append(one)
    return [kind for kind in found if kind]


def _is_shared(run: Run, tensor: Tensor) -> bool:
    return run.local(tensor) is not tensor
