"""Whether the weights of all ranks are equal, to the bit: looked at once an epoch, in the numbers of the agreement.

Whatever writes to the weights of one rank alone (a handler, an optimizer that a plugin steps in mid-window) would leave
several networks, of which one is stored and nobody tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import nn

from heptad.errors import RankFailed
from heptad.run.run import Run

PIECE = 1 << 20
"""Words that are summed at once."""

_MOST_NAMED = 5
_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_of(run: Run) -> dict[str, nn.Parameter]:
    """Return all that the ranks must hold equally: the network's parameters, and what optimizers hold beside it."""
    found = dict(run.network.named_parameters())
    known = {id(parameter) for parameter in found.values()}
    optimizers = run._runtime.optimizers
    for each in (optimizers, optimizers.beside()):
        for where, optimizer in zip(each.where, each, strict=True):
            held = [parameter for group in each.groups(optimizer) for parameter in group["params"]]
            found |= {f"{where}[{place}]": one for place, one in enumerate(held) if id(one) not in known}
    return found


def checksum_of(run: Run) -> int:
    """Return a number of 62 bits that depends on every bit of the parameters (one device sync)."""
    total = 0
    for place, one in enumerate(_checksums(_held_whole(run))):
        total = (total * 1_000_003 + one + place) % (1 << 62)
    return total


def refuse_unequal(run: Run) -> None:
    """Say which parameters differ, and on which ranks; one exchange.

    Raises:
        RankFailed: The same on all ranks.
    """
    weights = _held_whole(run)
    told = [json.loads(text) for text in run._runtime.peers.gather(json.dumps(_checksums(weights)).encode())]
    odd = [name for place, name in enumerate(weights) if len({row[place] for row in told}) > 1]
    ranks = [rank for rank, row in enumerate(told) if row != told[0]]
    more = f" and {len(odd) - _MOST_NAMED} more" if len(odd) > _MOST_NAMED else ""
    raise RankFailed(
        f"the weights of the ranks differ: {', '.join(odd[:_MOST_NAMED])}{more} of rank {', '.join(map(str, ranks))} "
        "from those of rank 0, though all have made the same updates of the same gradients; something has written to "
        "them on one rank alone, or an optimizer has other settings there: a handler, a schedule that goes by what one "
        "rank measures, an optimizer that a plugin steps before the gradients are averaged"
    )


def _held_whole(run: Run) -> dict[str, nn.Parameter]:
    """Return the weights that each rank holds whole: of the others nobody has the same."""
    return {name: one for name, one in weights_of(run).items() if run._runtime.shards.part(one) is None}


def _checksums(weights: Mapping[str, nn.Parameter]) -> list[int]:
    """Return a number for each parameter: a sum over its bits, each word weighed by its place."""
    with torch.no_grad():
        sums = [_checksum(parameter.detach()) for parameter in weights.values()]
    return [int(number) for number in torch.stack([one.cpu() for one in sums]).numpy()] if sums else []


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return it for one, a piece at a time: it needs memory for a piece, and not for a large parameter."""
    words = tensor.contiguous().view(-1).view(_WIDTHS[min(tensor.element_size(), 8)])
    places = torch.arange(1, min(len(words), PIECE) + 1, device=words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, len(words), PIECE):
        piece = words[start : start + PIECE]
        total = total * 31 + (piece.to(torch.int64) * places[: len(piece)]).sum()
    return total
