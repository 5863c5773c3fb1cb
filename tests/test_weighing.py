"""A criterion's mean is weighed by what it was taken over, so that updates and evaluations are those of one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from builders import CLASSES, FEATURES
from heptad import Components, Engine, EngineError, RunConfig
from heptad.step.weighing import weigher

IGNORED = -100
SIZES = (3, 1, 4, 2)
"""Samples of the steps of a window."""

Batch = tuple[torch.Tensor, torch.Tensor]


def vectors(outputs: int = CLASSES) -> nn.Module:
    """Return a network whose output is a vector a sample."""
    torch.manual_seed(1)
    return nn.Linear(FEATURES, outputs, dtype=torch.float64)


def sequences() -> nn.Module:
    """Return a network whose output is (batch, classes, time)."""
    return nn.Sequential(vectors(), nn.Unflatten(0, (-1, 5)), Transposed())


class Transposed(nn.Module):
    """Exchanges time and classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def classes(count: int) -> torch.Tensor:
    return torch.randint(0, CLASSES, (count,))


def padded(count: int) -> torch.Tensor:
    """Return (count, 5) classes; of some samples all but one are ignored."""
    target = classes(5 * count).reshape(count, 5)
    target[::2, 1:] = IGNORED
    return target


CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
CASES: dict[str, tuple[nn.Module, Callable[[], nn.Module], int, Callable[[int], torch.Tensor]]] = {
    "classes": (nn.CrossEntropyLoss(), vectors, 1, classes),
    "weighted classes": (nn.CrossEntropyLoss(CLASS_WEIGHTS), vectors, 1, classes),
    "an ignored class": (nn.CrossEntropyLoss(ignore_index=1), vectors, 1, classes),
    "padding": (nn.CrossEntropyLoss(), sequences, 5, padded),
    "padding, weights and smoothing": (nn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.1), sequences, 5, padded),
    "probabilities": (nn.CrossEntropyLoss(), vectors, 1, lambda n: torch.rand(n, CLASSES).double().softmax(1)),
    "log likelihoods": (nn.NLLLoss(CLASS_WEIGHTS), vectors, 1, classes),
    "squares": (nn.MSELoss(), vectors, 1, lambda n: torch.rand(n, CLASSES).double()),
    "something else": (nn.MultiMarginLoss(), vectors, 1, classes),
}


def batches_of(sizes: Sequence[int], rows: int, target: Callable[[int], torch.Tensor]) -> list[Batch]:
    torch.manual_seed(2)
    return [(torch.randn(rows * size, FEATURES).double(), target(size)) for size in sizes]


def engine_over(batches: list[Batch], network: nn.Module, criterion: nn.Module, accumulation: int) -> Engine:
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    parts = Components(network=network, loader=batches, criterion=criterion, optimizer=optimizer)
    return Engine(parts, RunConfig(epochs=1, accumulation=accumulation, device="cpu"))


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_that_of_one_large_batch(case):
    """To rounding, in float64: also where targets are ignored and classes have weights."""
    criterion, build, rows, target = CASES[case]
    batches = batches_of(SIZES, rows, target)
    whole = [tuple(map(torch.cat, zip(*batches, strict=True)))]
    small, large = build(), build()
    assert engine_over(batches, small, criterion, len(SIZES)).run().update == 1
    assert engine_over(whole, large, criterion, 1).run().update == 1
    for ours, theirs in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_is_that_of_one_large_batch(case):
    """The mean of a loss does not depend on how the data are cut into batches."""
    criterion, build, rows, target = CASES[case]
    batches = batches_of(SIZES, rows, target)
    whole = [tuple(map(torch.cat, zip(*batches, strict=True)))]
    engine = engine_over(batches, build(), criterion, 1)
    assert engine.evaluate(batches)["loss"] == pytest.approx(engine.evaluate(whole)["loss"], rel=1e-12)


def test_a_batch_in_which_all_is_ignored_counts_for_nothing_in_an_evaluation():
    """Its loss is not a number; the mean is that of the others."""
    criterion, build, rows, target = CASES["padding"]
    batches = batches_of((3,), rows, target)
    empty = (batches[0][0][:5], torch.full((1, 5), IGNORED))
    engine = engine_over(batches, build(), criterion, 1)
    assert engine.evaluate([*batches, empty]) == engine.evaluate(batches)


def test_a_batch_in_which_all_is_ignored_is_an_error_within_a_window():
    """No gradient could be made of it; the message says what may have happened."""
    criterion, build, rows, target = CASES["padding"]
    batches = batches_of((3, 1), rows, target)
    batches[1][1].fill_(IGNORED)
    with pytest.raises(EngineError, match="are all targets of this batch ignored"):
        engine_over(batches, build(), criterion, 2).run()


@pytest.mark.parametrize(
    ("criterion", "target", "weight"),
    [
        (nn.CrossEntropyLoss(), torch.zeros(4, dtype=torch.int64), 4),
        (nn.CrossEntropyLoss(), torch.zeros(4, 2), 4),
        (nn.CrossEntropyLoss(), torch.zeros(4, 3, 5), 20),
        (nn.MSELoss(), torch.zeros(4, 3), 12),
        (nn.CTCLoss(), torch.zeros(4, 3), 4),
        (nn.MSELoss(), [1.0, 2.0], 2),
        (lambda output, target: output.mean(), torch.zeros(4, 3), 4),
    ],
)
def test_nothing_is_asked_of_a_device_where_the_shape_says_it(criterion: Any, target: Any, weight: int):
    """The weight is a plain number then, and unweighted windows have the bits of the textbook loop."""
    weighed = weigher(criterion)(target)
    assert (type(weighed), weighed) == (int, weight)
