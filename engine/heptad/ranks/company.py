"""A step that adds nothing, in a run of several ranks: its backward pass, for which the other ranks wait.

Its loss may be NaN, as the mean over nothing is, and 0 times NaN is NaN. So nothing is handed back through it: the
parameters that it was computed from get gradients of 0, which is all that DDP waits for. Where a `compute_loss` gives
the loss, it stands on a parameter of the `CompanyLossModule` alone: one of the network that no other step has used, of
any rank, has no gradient then, as in one process, where an optimizer leaves it alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from heptad.config import ComputeLoss, LossOutput
from heptad.run.weight import adds_nothing, known_weight


def keep_company(loss: torch.Tensor) -> None:
    """Add 0 to the gradients of all parameters that a loss was computed from."""
    _of_nothing(leaves_of(loss)).backward()


def leaves_of(loss: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that gradients of a loss are added up in, in the order in which they are found."""
    found: dict[int, torch.Tensor] = {}
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting += [follower for follower, _ in node.next_functions]
    return list(found.values())


def _of_nothing(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return a 0 that depends on tensors; on one element of each, so that it costs nothing."""
    return torch.stack([tensor.reshape(-1)[:1].sum().to("cpu") * 0 for tensor in tensors]).sum()


def use_again(parameters: Iterable[nn.Parameter]) -> None:
    """Let DDP know which parameters have gradients that are not averaged yet, and leave these as they are.

    It notes in each backward pass what it has used since the last average. A run that is resumed inside a window brings
    the gradients along, and DDP would leave those alone that the rest of the window does not use.
    """
    used = [one for one in parameters if one.requires_grad and one.grad is not None]
    gradients = [one.grad for one in used]
    for one in used:
        one.grad = None
    if used:
        _of_nothing(used).backward()
    for one, gradient in zip(used, gradients, strict=True):
        one.grad = gradient


class LossModule(nn.Module):
    """The network with a `compute_loss`, as one module to be wrapped.

    So a `compute_loss` may call parts of the network, or the network more than once, as it may with one process.

    Attributes:
        given: What it has returned.
    """

    def __init__(self, network: nn.Module, compute_loss: ComputeLoss) -> None:
        super().__init__()
        self.network = network
        self.given: torch.Tensor | LossOutput | None = None
        self._compute_loss = compute_loss

    def forward(self, batch: Any) -> torch.Tensor | None:
        """Return the loss alone; what else is given with it waits in `given`."""
        given = self.given = self._compute_loss(self.network, batch)
        return cast("Any", given.value if isinstance(given, LossOutput) else given)


class CompanyLossModule(LossModule):
    """One for DDP, which finds by it which parameters the loss depends on; none, where the step adds nothing.

    Attributes:
        idle: Whether the step only keeps other ranks company.
    """

    def __init__(self, network: nn.Module, compute_loss: ComputeLoss) -> None:
        super().__init__(network, compute_loss)
        self.idle = False
        trained = next(one for one in network.parameters() if one.requires_grad)
        # behind those of the network, and so in a bucket with one of them; no optimizer knows it
        self._company = nn.Parameter(torch.zeros_like(trained.detach().reshape(-1)[:1].sum()))

    def forward(self, batch: Any) -> torch.Tensor | None:
        """Return the loss, or a 0 that depends on no parameter of the network."""
        loss: Any = super().forward(batch)
        given = self.given
        nothing = self.idle or (isinstance(given, LossOutput) and adds_nothing(known_weight(given.weight)))
        if nothing and isinstance(loss, torch.Tensor) and torch.is_grad_enabled():
            return loss.detach() + 0 * self._company.to(loss.device)
        return loss


def through(wrapped: nn.Module, inner: LossModule) -> ComputeLoss:
    """Return a `compute_loss` that goes through what DDP has wrapped around a `LossModule`."""

    def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor | LossOutput | None:
        del network
        loss = wrapped(batch)
        given, inner.given = inner.given, None
        return replace(given, value=loss) if isinstance(given, LossOutput) else loss

    return compute_loss
