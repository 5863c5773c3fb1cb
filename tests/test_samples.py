"""How many samples a batch holds: what `run.samples` counts, and what a criterion of one's own is weighed by."""

from __future__ import annotations

from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from builders import FEATURES, small_components, small_network
from heptad import Engine, RunConfig
from heptad.data.placement import count_samples

N = 4


class Pair(NamedTuple):
    """A target of two parts."""

    one: torch.Tensor
    other: torch.Tensor


X = torch.ones(N, FEATURES)
Y = torch.zeros(N, dtype=torch.int64)
TARGETS: dict[str, Any] = {
    "a tensor": Y,
    "a tuple": (Y, Y),
    "three": [Y, Y, Y],
    "a named tuple": Pair(Y, Y),
    "a dict": {"a": Y, "b": Y},
    "a mapping": UserDict(a=Y, b=Y, c=Y),
    "nested": (Y, {"b": (Y, Y)}),
    "nested in a dict": {"b": {"c": [Y, Y]}},
    "numbers": [0, 1, 2, 0],
    "texts": ("a", "b", "c", "d"),
    "a scale first": (torch.tensor(2.0), Y),
    "a number first": (0.3, Y, Y),
    "a name first": ("mixed", Y),
    "a truth first": (True, Y),
    "names only": {"name": "what", "id": 7},
    "none": None,
}
DATA: dict[str, Any] = {"a tensor": X, "a tuple": (X, X), "a dict": {"x": X, "mask": X}, "nested": ((X, X), {"m": X})}


def rows_of(network: nn.Module, data: Any) -> torch.Tensor:
    while not isinstance(data, torch.Tensor):
        data = next(iter(data.values())) if isinstance(data, dict) else data[0]
    return network(data)


class Rows(nn.Module):
    """Takes the first tensor of whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_network()

    def forward(self, data: Any) -> torch.Tensor:
        return rows_of(self.inner, data)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("k", [1, 3])
def test_a_run_counts_samples_whatever_the_batch_is_made_of(data, target, k):
    """Three batches of four."""
    batch = (DATA[data], TARGETS[target])
    parts = small_components(Rows(), loader=[batch] * 3, criterion=lambda output, target: output.mean())
    assert Engine(parts, RunConfig(epochs=1, accumulation=k)).run().samples == 12


@pytest.mark.parametrize("target", ["a tuple", "a dict", "nested", "texts"])
def test_a_criterion_of_ones_own_is_weighed_by_samples(target):
    """Windows of unequal batches of (x, (y1, y2)) are one large batch."""

    def cut(value: Any, rows: slice) -> Any:
        if isinstance(value, torch.Tensor):
            return value[rows]
        if isinstance(value, dict):
            return {name: cut(part, rows) for name, part in value.items()}
        return value[rows] if isinstance(value[0], str) else tuple(cut(part, rows) for part in value)

    whole = torch.arange(N * FEATURES).reshape(N, FEATURES) / 7
    batches = [(whole[rows], cut(TARGETS[target], rows)) for rows in (slice(0, 3), slice(3, 4))]
    networks = []
    for given, k in ((batches, 2), ([(whole, TARGETS[target])], 1)):
        network = small_network()
        parts = small_components(network, loader=given, criterion=lambda output, target: output.square().mean())
        Engine(parts, RunConfig(epochs=1, accumulation=k)).run()
        networks.append(network)
    torch.testing.assert_close(networks[0].weight, networks[1].weight)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (X, 4),
        (torch.tensor(1.0), 1),
        ((torch.tensor(1.0), X), 4),
        ({"x": X, "y": Y}, 4),
        ({"id": 3, "x": X}, 4),
        ([X, Y], 4),
        (((X, X), Y), 4),
        (([torch.ones(3, 8, 8)] * 5, [{"boxes": torch.ones(2, 4)}] * 5), 5),
        (([torch.ones(3, 8, 8)] * 5, [1, 2, 0, 1, 2]), 5),
        ((["a", "b", "c"], None), 3),
        (["a", "b", "c"], 3),
        ([], 1),
        ((), 1),
        ({}, 1),
        (7, 1),
        (None, 1),
    ],
)
def test_count_samples(batch, samples):
    """The first tensor's rows, outer ones first; lists of one length hold one sample an item."""
    assert count_samples(batch) == samples
