"""Numbers computed of tensors that ranks may share, such as norms of gradients, made whole in one exchange.

Plugins that take norms or look for numbers that are not finite use it; alone, nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from heptad import Run


def whole_numbers(run: Run, tensors: Sequence[Tensor], numbers: Sequence[Tensor]) -> list[Tensor]:
    """Return numbers whole on each rank; all ranks call this with as many.

    Args:
        run: The run.
        tensors: What they were computed of, one each.
        numbers: Such as the norms of these.
    """
    found = [*numbers]
    shared = [place for place, one in enumerate(tensors) if _is_shared(run, one)] if run.shares else []
    if shared:
        wholes = run.whole(torch.stack([found[place] for place in shared])).unbind()
        for place, one in zip(shared, wholes, strict=True):
            found[place] = one
    return found


def norm_of(values: Tensor) -> Tensor:
    """Return the 2-norm of all numbers of a tensor."""
    return torch.linalg.vector_norm(values)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - torch has no types for it


def apart(run: Run, tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return tensors by kind, whole ones and shared ones, since torch takes no list of both; no kind that has none."""
    found: list[list[Tensor]] = [[], []]
    if run.shares:
        for one in tensors:
            found[_is_shared(run, one)].append(one)
    else:
        found[0] += tensors
    return [kind for kind in found if kind]


def _is_shared(run: Run, tensor: Tensor) -> bool:
    return run.local(tensor) is not tensor
