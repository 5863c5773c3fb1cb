"""A criterion's mean is weighed by what it was taken over, so that updates and evaluations are those of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from builders import CLASSES, FEATURES
from heptad import Components, Engine, RunConfig
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
    "divergence of batches": (
        nn.KLDivLoss(reduction="batchmean"),
        vectors,
        1,
        lambda n: torch.rand(n, CLASSES).double(),
    ),
    "hinges": (nn.HingeEmbeddingLoss(), vectors, 1, lambda n: torch.randint(0, 2, (n, CLASSES)).double() * 2 - 1),
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


IGNORING = {
    "by default": (nn.CrossEntropyLoss(), IGNORED),
    "named": (nn.CrossEntropyLoss(ignore_index=1), 1),
    "with smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), IGNORED),
    "with weights": (nn.CrossEntropyLoss(CLASS_WEIGHTS), IGNORED),
    "likelihoods": (nn.NLLLoss(), IGNORED),
    "a class of weight 0": (nn.CrossEntropyLoss(torch.tensor([1.0, 0.0, 2.0]).double()), 1),
}


@pytest.mark.parametrize("case", IGNORING)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_step_of_nothing_but_ignored_targets_adds_nothing(case, place):
    """It counts as a step; the update is that of the others as one batch."""
    criterion, ignored = IGNORING[case]
    given = batches_of((3, 2, 4), 1, classes)
    given[place][1].fill_(ignored)
    others = [tuple(map(torch.cat, zip(*(batch for n, batch in enumerate(given) if n != place), strict=True)))]
    small, large = vectors(), vectors()
    run = engine_over(given, small, criterion, 3).run()
    engine_over(others, large, criterion, 1).run()
    assert (run.step, run.update, run.windows, run.samples) == (3, 1, 1, 9)
    for ours, theirs in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run.mean_loss, criterion(vectors()(others[0][0]), others[0][1]))


@pytest.mark.parametrize("case", IGNORING)
@pytest.mark.parametrize("k", [1, 3])
def test_a_window_of_nothing_but_ignored_targets_is_a_skipped_update(case, k):
    """Weights, momentum and `update` stand still, and the log says why."""
    criterion, ignored = IGNORING[case]
    given = batches_of((3, 2, 4), 1, classes)
    for _, target in given:
        target.fill_(ignored)
    network = vectors()
    before = [parameter.clone() for parameter in network.parameters()]
    run = engine_over(given, network, criterion, k).run()
    assert (run.step, run.update, run.windows) == (3, 0, 3 // k)
    assert all(map(torch.equal, before, network.parameters()))
    assert [note.reason for note in run.log.notes("skip")] == [
        "no step of this window counts: each weighs 0 or has no loss"
    ] * (3 // k)
    assert (run.update_skipped, run.mean_loss) == (True, None)


def test_targets_that_are_ignored_by_default_are_left_out_of_a_window_of_vectors():
    """Windows of 4 x 4 against one batch of 16: the length of the update is the same."""
    given = batches_of((4, 4, 4, 4), 1, classes)
    for number, (_, target) in enumerate(given):
        target[: number % 4] = IGNORED
    whole = [tuple(map(torch.cat, zip(*given, strict=True)))]
    small, large = vectors(), vectors()
    engine_over(given, small, nn.CrossEntropyLoss(), 4).run()
    engine_over(whole, large, nn.CrossEntropyLoss(), 1).run()
    for ours, theirs in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", IGNORING)
def test_an_evaluation_leaves_out_a_batch_of_ignored_targets(case):
    """Loss and metrics are those of the other batches; of nothing the mean is not a number."""
    criterion, ignored = IGNORING[case]
    given = batches_of((3, 2, 4), 1, classes)
    empty = (given[0][0], torch.full_like(given[0][1], ignored))
    engine = engine_over(given, vectors(), criterion, 1)
    metrics = {"right": lambda output, batch: output.argmax(1) == batch[1]}
    assert engine.evaluate([empty, *given, empty], metrics) == engine.evaluate(given, metrics)
    assert all(map(math.isnan, engine.evaluate([empty], metrics).values()))


class Focal(nn.CrossEntropyLoss):
    """A focal loss: a mean over samples, whatever the weights of the classes."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(input, target, self.weight, reduction="none")
        return ((1 - (-loss).exp()) ** 2 * loss).mean()


class MeanOfRows(nn.MSELoss):
    """The mean over rows of the largest square."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (input - target).square().amax(1).mean()


class Renamed(nn.CrossEntropyLoss):
    """Torch's own but for the name."""


def patched() -> nn.Module:
    """Return a criterion of torch's whose `forward` is replaced on the object."""
    criterion = nn.CrossEntropyLoss(CLASS_WEIGHTS)
    criterion.forward = Focal(CLASS_WEIGHTS).forward
    return criterion


class Called(nn.CrossEntropyLoss):
    """A mean over samples by a `__call__` of its own."""

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return Focal(CLASS_WEIGHTS).forward(output, target)


class Unreduced(nn.CrossEntropyLoss):
    """A mean over samples, of what torch does not reduce."""

    def __init__(self) -> None:
        super().__init__(CLASS_WEIGHTS, reduction="none")

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return super().forward(output, target).mean()


def hooked() -> nn.Module:
    """Return a criterion of torch's whose loss a hook replaces."""
    criterion = nn.CrossEntropyLoss(CLASS_WEIGHTS)
    criterion.register_forward_hook(lambda module, given, loss: Focal(CLASS_WEIGHTS).forward(*given))
    return criterion


@pytest.mark.parametrize(
    "criterion",
    [Focal(CLASS_WEIGHTS), patched(), Called(CLASS_WEIGHTS), Unreduced(), hooked()],
    ids=["subclass", "patched", "called", "unreduced", "hooked"],
)
def test_only_torchs_own_forward_is_trusted(criterion):
    """A class of one's own is weighed by samples: a window is one large batch of its mean over samples."""
    given = batches_of((4, 1, 3), 1, classes)
    whole = [tuple(map(torch.cat, zip(*given, strict=True)))]
    small, large = vectors(), vectors()
    engine_over(given, small, criterion, 3).run()
    engine_over(whole, large, criterion, 1).run()
    for ours, theirs in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert weigher(criterion)(torch.zeros(4, dtype=torch.int64)) == 4


def test_a_subclass_without_a_forward_is_trusted():
    """What it computes is torch's."""
    assert weigher(Renamed(ignore_index=2))(torch.tensor([2, 1, 2, 0])) == 2
    assert weigher(MeanOfRows())(torch.zeros(4, 3)) == 4


@pytest.mark.parametrize(
    ("criterion", "target", "weight"),
    [
        (nn.CrossEntropyLoss(), torch.zeros(4, dtype=torch.int64), 4),
        (nn.CrossEntropyLoss(), torch.zeros(4, 2), 4),
        (nn.CrossEntropyLoss(), torch.zeros(4, 3, 5), 20),
        (nn.MSELoss(), torch.zeros(4, 3), 12),
        (nn.CTCLoss(), torch.zeros(4, 3), 4),
        (nn.KLDivLoss(), torch.zeros(4, 3), 12),
        (nn.KLDivLoss(reduction="batchmean"), torch.zeros(4, 3), 4),
        (nn.HingeEmbeddingLoss(), torch.zeros(4, 3), 12),
        (nn.MSELoss(), [1.0, 2.0], 2),
        (lambda output, target: output.mean(), torch.zeros(4, 3), 4),
    ],
)
def test_nothing_is_asked_of_a_device_where_the_shape_says_it(criterion: Any, target: Any, weight: int):
    """The weight is a plain number then, and unweighted windows have the bits of the textbook loop."""
    weighed = weigher(criterion)(target)
    assert (type(weighed), weighed) == (int, weight)
