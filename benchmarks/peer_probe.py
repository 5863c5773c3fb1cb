"""What becomes of an accumulation window: the coefficient with which each micro-batch counts in each update."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from peer_adapters import ADAPTERS, heptad_flush
from peer_hugging_face import reset, transformers_counted
from peer_work import Ready, Work


class Project(nn.Module):
    """A network whose gradient is the mean of its samples, whatever its weights are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, data: Tensor) -> Tensor:
        """Return the projection of each sample on the weights."""
        return data @ self.weight


class MeanOutput(nn.Module):
    """A criterion: the mean of the output over the samples."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean."""
        return (output - target).mean()


def coefficients(name: str, sizes: list[int], accumulation: int, epochs: int = 1) -> list[Tensor]:
    """Train on micro-batches of these sizes, each of its own unit vector; return the coefficients of each update."""
    rows = torch.eye(len(sizes))
    batches = [(rows[number].repeat(size, 1), torch.zeros(size)) for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        network = Project(len(sizes))
        work = Work(network, MeanOutput(), 1.0, Path(folder), Ready(batches), accumulation=accumulation, epochs=epochs)
        reset(name.split(",", maxsplit=1)[0])
        weights = [network.weight.detach().clone()]
        hook = register_optimizer_step_post_hook(lambda *_: weights.append(network.weight.detach().clone()))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                PROBED[name](work)()
        finally:
            hook.remove()
    return [before - after for before, after in pairwise(weights)]


VARIANTS = {'heptad, remainder="flush"': heptad_flush, "transformers, num_items_in_batch": transformers_counted}
PROBED = {**ADAPTERS, **VARIANTS}
"""What the probe asks; the journal changes nothing there."""

LAST, UNEQUAL = [4] * 10, [4, 4, 2, 2]
"""Sizes of the micro-batches: 10 in windows of 4, so that 2 are left; and one window of unequal ones."""


def third_update(name: str) -> Tensor:
    """Return the coefficients of the third update of two epochs: the two micro-batches that are left come before it."""
    return coefficients(name, LAST, 4, epochs=2)[2]


def only_update(name: str) -> Tensor:
    """Return the coefficients of the update over unequal micro-batches."""
    (update,) = coefficients(name, UNEQUAL, 4)
    return update


def as_large_batch(update: Tensor, sizes: list[int]) -> bool:
    """Return whether an update is that of its samples as one large batch."""
    own = torch.tensor(sizes, dtype=torch.float) * (update != 0)
    return bool(own.any()) and torch.allclose(update, own / own.sum(), atol=1e-6)


def spelt(update: Tensor) -> str:
    """Return an update as a sum, without what is 0."""
    return " + ".join(f"{value:.3g} e{place}" for place, value in enumerate(update.tolist()) if value) or "0"


def probe(names: list[str]) -> str:
    """Return the Markdown of both probes."""
    lines = ["| | 10 micro-batches of 4, windows of 4, two epochs: the third update | as one batch, with e8 and e9 |"]
    lines[0] += " sizes 4, 4, 2, 2 in a window of 4 | as one batch |"
    lines.append("|---|---|---|---|---|")
    asked = [name for name in PROBED if name.split(",")[0] in names and name != "heptad + journal"]
    asked.sort(key=lambda name: list(ADAPTERS).index(name.split(",")[0]))  # a variant behind its own
    for name in asked:
        row = [name]
        for update_of, sizes, least in ((third_update, LAST, [8, 9]), (only_update, UNEQUAL, [])):
            try:
                update = update_of(name)
            except Exception as error:
                print(f"{name} fails in the probe: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
                row += ["fails", "–"]
                continue
            whole = as_large_batch(update, sizes) and all(update[place] for place in least)
            row += [spelt(update), "yes" if whole else "no"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)
