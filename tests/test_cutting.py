"""Cutting batches of any nesting into parts, and joining what a network gave for them."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from heptad.data.cutting import cut, joined
from heptad.errors import DataError
from heptad.step.parts import parts_in

Pair = namedtuple("Pair", "data target")


@dataclass(frozen=True)
class Graphs:
    nodes: torch.Tensor
    names: list[str]
    number: int = 3


X = torch.arange(12.0).reshape(6, 2)
Y = torch.arange(6)


def as_lists(value: Any) -> Any:
    """Return a batch as plain data."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict | UserDict | MappingProxyType):
        return {key: as_lists(part) for key, part in value.items()}
    return [as_lists(part) for part in value] if isinstance(value, list | tuple) else value


BATCHES = {
    "a tensor": X,
    "an array": X.numpy(),
    "a tuple": (X, Y),
    "a list": [X, Y],
    "a named tuple": Pair(X, Y),
    "a dict": {"x": X, "inner": {"y": [Y, X]}},
    "an ordered dict": OrderedDict(x=X, y=Y),
    "a mapping of a user's own": UserDict(x=X, y=Y),
    "a mapping that is fixed": MappingProxyType({"x": X, "y": Y}),
    "a dataclass": Graphs(X, list("abcdef")),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("parts", [2, 4, 6])
def test_each_sample_is_in_one_part_and_containers_keep_their_kind(name, parts):
    batch = BATCHES[name]
    found = cut(batch, 6, parts)
    assert [type(part) for part in found] == [type(batch)] * parts
    sizes = [len(first(part)) for part in found]
    assert sum(sizes) == 6
    assert max(sizes) - min(sizes) <= 1
    assert [row for part in found for row in first(part).tolist()] == first(batch).tolist()


def first(batch: Any) -> Any:
    """Return the first tensor of a batch."""
    if isinstance(batch, torch.Tensor | np.ndarray):
        return batch
    if isinstance(batch, Graphs):
        return batch.nodes
    return first(next(iter(batch.values() if hasattr(batch, "values") else batch)))


def test_what_belongs_to_all_samples_is_in_each_part():
    batch = {"x": X, "positions": torch.zeros(1, 9), "scale": torch.tensor(2.0), "name": "a", "number": 6, "no": None}
    for part in cut(batch, 6, 3):
        assert {name: as_lists(value) for name, value in part.items() if name != "x"} == {
            name: as_lists(value) for name, value in batch.items() if name != "x"
        }


def test_lists_of_samples_are_cut_as_such():
    """Images of unequal sizes and what is known of each, texts."""
    images = [torch.zeros(3, 4 + n) for n in range(5)]
    boxes = [{"boxes": torch.zeros(n + 6, 4), "name": str(n)} for n in range(5)]
    parts = cut((images, boxes, list("abcde")), 5, 2)
    assert [[tuple(one.shape) for one in part[0]] for part in parts] == [[(3, 4), (3, 5)], [(3, 6), (3, 7), (3, 8)]]
    assert [[one["name"] for one in part[1]] for part in parts] == [["0", "1"], ["2", "3", "4"]]
    assert [part[2] for part in parts] == [["a", "b"], ["c", "d", "e"]]


def test_two_samples_in_a_pair():
    """The pair is no list of two samples."""
    assert [as_lists(part) for part in cut((X[:2], Y[:2]), 2, 2)] == [[[[0.0, 1.0]], [0]], [[[2.0, 3.0]], [1]]]


def test_two_lists_of_two_samples():
    """As a detector's batches of two are collated: images of unequal sizes, and a mapping for each."""
    images, boxes = [torch.zeros(3, 4), torch.zeros(3, 5)], [{"y": 1}, {"y": 2}]
    parts = cut([images, boxes], 2, 2)
    assert [[tuple(one.shape) for one in part[0]] for part in parts] == [[(3, 4)], [(3, 5)]]
    assert [part[1] for part in parts] == [[{"y": 1}], [{"y": 2}]]


class Moves:
    def to(self, device: Any) -> Moves:
        return self


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ((X, torch.zeros(7)), r"float32 of shape \(7,\) beside 6 samples"),
        ((X, Moves()), "how a Moves is cut"),
        (({"x": [torch.zeros(6, 2)] * 6},), "may hold 6 samples, or tensors of as many"),
        (torch.nn.utils.rnn.pack_padded_sequence(torch.zeros(6, 3, 2), [3] * 6, batch_first=True), "shape"),
    ],
)
def test_what_says_nothing_of_samples_is_named(batch, what):
    with pytest.raises(DataError, match=what):
        cut(batch, 6, 2)


@pytest.mark.parametrize(
    ("samples", "halvings", "least", "parts"),
    [(6, 0, 1, 1), (6, 1, 1, 2), (6, 2, 1, 4), (6, 3, 1, 6), (6, 9, 1, 6), (6, 9, 2, 3), (1, 3, 1, 1), (1, 3, 2, 1)],
)
def test_how_many_parts_there_are(samples, halvings, least, parts):
    assert parts_in(samples, halvings, least) == parts


def test_outputs_are_joined():
    outputs = [Pair(part, {"y": [part]}) for part in X.clone().requires_grad_().split(4)]
    whole = joined(outputs)
    assert type(whole) is Pair
    assert torch.equal(whole.data, X)
    assert torch.equal(whole.target["y"][0], X)
    assert not whole.data.requires_grad
    assert joined([torch.zeros(2, 3), torch.zeros(2, 4)]) is None
    assert joined(["a", "b"]) is None
