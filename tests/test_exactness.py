"""A run has the bits of the plain loop that it replaces: weights, buffers, optimizer, losses and random state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from builders import CLASSES, FEATURES, Unsized
from heptad import Components, Engine, LossOutput, Plugin, Run, RunConfig
from heptad_plugins import Evaluate

SEED = 11
BATCH = 4

Build = Callable[[nn.Module], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Build] = {
    "sgd nesterov": lambda net: torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-2),
    "rmsprop": lambda net: torch.optim.RMSprop(net.parameters(), lr=1e-3, momentum=0.5),
}

criterion = nn.CrossEntropyLoss()


def deep_network() -> nn.Module:
    """Return a network with weights of its own, batch norm (buffers) and dropout (random numbers in each step)."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES)
    )


def shuffled(samples: int) -> DataLoader[Any]:
    """Return a new loader that shuffles by the global generator, as a `DataLoader` does by default."""
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(samples, FEATURES, generator=generator)
    target = torch.randint(0, CLASSES, (samples,), generator=generator)
    return DataLoader(TensorDataset(data, target), batch_size=BATCH, shuffle=True)


@dataclass
class Outcome:
    """All that a loop leaves behind."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    losses: list[torch.Tensor]
    gradients: list[torch.Tensor | None]
    training: list[bool]
    random: torch.Tensor


def outcome(network: nn.Module, optimizer: torch.optim.Optimizer, losses: list[torch.Tensor]) -> Outcome:
    return Outcome(
        weights=dict(network.state_dict()),
        optimizer=optimizer.state_dict(),
        losses=losses,
        gradients=[parameter.grad for parameter in network.parameters()],
        training=[module.training for module in network.modules()],
        random=torch.get_rng_state(),
    )


def same(one: Any, other: Any) -> bool:
    """Return whether two nested values are the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def assert_same(expected: Outcome, actual: Outcome) -> None:
    """Compare part by part, so that a failure says which part differs; and the end is that of a finished run."""
    assert len(expected.losses) == len(actual.losses)
    assert same(expected.losses, actual.losses), "losses"
    assert same(expected.weights, actual.weights), "weights and buffers"
    assert same(expected.optimizer, actual.optimizer), "optimizer state"
    assert same(expected.random, actual.random), "the global generator"
    assert [None] * len(expected.gradients) == actual.gradients
    assert [False] * len(expected.training) == actual.training
    assert same(vars(expected), vars(actual))


def plain_loop(build: Build, loader: Iterable[Any], epochs: int) -> Outcome:
    """The textbook loop."""
    network = deep_network()
    optimizer = build(network)
    losses: list[torch.Tensor] = []
    torch.manual_seed(SEED)
    for _ in range(epochs):
        for data, target in loader:
            optimizer.zero_grad()
            loss = criterion(network(data), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    optimizer.zero_grad()
    network.eval()
    return outcome(network, optimizer, losses)


def plain_accumulation(build: Build, epoch: Callable[[], Iterable[Any]], epochs: int, k: int) -> Outcome:
    """The textbook loop with gradient accumulation; what is left over at the end of an epoch is not used."""
    network = deep_network()
    optimizer = build(network)
    losses: list[torch.Tensor] = []
    torch.manual_seed(SEED)
    for _ in range(epochs):
        for index, (data, target) in enumerate(epoch()):
            if index % k == 0:
                optimizer.zero_grad()
            loss = criterion(network(data), target)
            (loss / k).backward()
            if (index + 1) % k == 0:
                optimizer.step()
            losses.append(loss.detach())
    optimizer.zero_grad()
    network.eval()
    return outcome(network, optimizer, losses)


def plain_flushed(build: Build, loader: DataLoader[Any], epochs: int, k: int) -> Outcome:
    """The accumulation loop that updates with what is left over too, scaled to the mean of the steps it holds."""
    network = deep_network()
    optimizer = build(network)
    losses: list[torch.Tensor] = []
    torch.manual_seed(SEED)
    for _ in range(epochs):
        for index, (data, target) in enumerate(loader):
            if index % k == 0:
                optimizer.zero_grad()
            loss = criterion(network(data), target)
            (loss / k).backward()
            if (index + 1) % k == 0:
                optimizer.step()
            elif index + 1 == len(loader):
                for parameter in network.parameters():
                    parameter.grad *= k / (len(loader) % k)
                optimizer.step()
            losses.append(loss.detach())
    optimizer.zero_grad()
    network.eval()
    return outcome(network, optimizer, losses)


class Losses(Plugin):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_exit_process_batch(self, run: Run) -> None:
        assert run.loss is not None
        self.seen.append(run.loss)


def weightless(network: nn.Module, batch: Any) -> torch.Tensor:
    """The criterion as a `compute_loss` that returns the loss alone."""
    data, target = batch
    return criterion(network(data), target)


def weighed(network: nn.Module, batch: Any) -> LossOutput:
    """The same with the number of samples as its weight."""
    data, target = batch
    output = network(data)
    return LossOutput(criterion(output, target), weight=len(target), output=output)


def weighed_by_tensor(network: nn.Module, batch: Any) -> LossOutput:
    """The same with that number as a tensor."""
    data, target = batch
    return LossOutput(criterion(network(data), target), weight=torch.tensor(float(len(target))))


LOSSES: dict[str, dict[str, Any]] = {
    "criterion": {"criterion": criterion},
    "compute_loss": {"compute_loss": weightless},
    "weight": {"compute_loss": weighed},
    "weight as a tensor": {"compute_loss": weighed_by_tensor},
}


def by_engine(build: Build, loader: Any, loss: str = "criterion", **config: Any) -> Outcome:
    """The engine in place of the loop."""
    network = deep_network()
    optimizer = build(network)
    watch = Losses()
    components = Components(network=network, loader=loader, optimizer=optimizer, **LOSSES[loss])
    Engine(components, RunConfig(**{"seed": SEED, **config}), plugins=[watch]).run()
    return outcome(network, optimizer, watch.seen)


each_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
each_k = pytest.mark.parametrize("k", [2, 3, 4, 7])
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_kind = pytest.mark.parametrize("kind", [lambda loader: loader, Unsized], ids=["sized", "unsized"])


@each_optimizer
@each_kind
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_has_the_bits_of_the_textbook_loop(build, kind, epochs):
    """With k = 1 every optimizer leaves what the textbook loop leaves, whether the loader has a length or not."""
    expected = plain_loop(build, shuffled(40), epochs)
    assert_same(expected, by_engine(build, kind(shuffled(40)), epochs=epochs))


@each_optimizer
@each_kind
@each_k
def test_an_accumulating_run_has_the_bits_of_the_textbook_accumulation_loop(build, kind, k):
    """For windows of 2, 3, 4 and 7 steps, each loss divided by that number, over two epochs of two windows."""
    loader = shuffled(2 * k * BATCH)
    expected = plain_accumulation(build, lambda: loader, epochs=2, k=k)
    assert_same(expected, by_engine(build, kind(shuffled(2 * k * BATCH)), epochs=2, accumulation=k))


@each_loss
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_a_loss_may_be_given_as_criterion_or_as_compute_loss(loss, k):
    """A criterion and a `compute_loss` that says the same, with or without a weight, have the same bits."""
    loader = shuffled(2 * k * BATCH)
    expected = plain_accumulation(OPTIMIZERS["adamw"], lambda: loader, epochs=2, k=k)
    actual = by_engine(OPTIMIZERS["adamw"], shuffled(2 * k * BATCH), loss, epochs=2, accumulation=k)
    assert_same(expected, actual)


@each_loss
@each_kind
def test_a_smaller_last_batch_has_the_bits_of_the_textbook_loop(loss, kind):
    """Alone in its window a step weighs nothing: with k = 1 a last batch of fewer samples changes no bit."""
    expected = plain_loop(OPTIMIZERS["sgd nesterov"], shuffled(22), epochs=2)
    assert_same(expected, by_engine(OPTIMIZERS["sgd nesterov"], kind(shuffled(22)), loss, epochs=2))


def extended(loader: DataLoader[Any], k: int) -> Iterator[Any]:
    """One pass over a loader, and of the passes behind it as much as fills the last window."""
    return islice(chain.from_iterable(repeat(loader)), -(-len(loader) // k) * k)


@each_optimizer
@each_kind
@each_k
@pytest.mark.parametrize("batches", [1, 5])
def test_an_extended_epoch_has_the_bits_of_a_loop_that_continues_with_a_further_pass(build, kind, k, batches):
    """With `remainder="extend"` the loader is walked again, as far as the last window needs it."""
    loader = shuffled(batches * BATCH)
    expected = plain_accumulation(build, lambda: extended(loader, k), epochs=2, k=k)
    actual = by_engine(build, kind(shuffled(batches * BATCH)), epochs=2, accumulation=k, remainder="extend")
    assert_same(expected, actual)


@each_optimizer
@each_kind
@each_k
def test_a_flushed_epoch_has_the_bits_of_a_loop_that_scales_its_last_window(build, kind, k):
    """With `remainder="flush"` the gradient of a partial window is multiplied by k over the steps that it holds."""
    samples = (2 * k + 1) * BATCH
    expected = plain_flushed(build, shuffled(samples), epochs=2, k=k)
    actual = by_engine(build, kind(shuffled(samples)), epochs=2, accumulation=k, remainder="flush")
    assert_same(expected, actual)


@each_optimizer
@each_k
def test_an_epoch_that_drops_its_remainder_has_the_bits_of_a_loop_that_ends_before_it(build, k):
    """With `remainder="drop"` and a length the steps that fill no window are not run at all."""
    loader = shuffled((2 * k + 1) * BATCH)
    expected = plain_accumulation(build, lambda: islice(loader, 2 * k), epochs=2, k=k)
    actual = by_engine(build, shuffled((2 * k + 1) * BATCH), epochs=2, accumulation=k, remainder="drop")
    assert_same(expected, actual)


@each_optimizer
@each_k
def test_where_the_length_is_unknown_dropped_steps_run_and_are_left_out_of_every_update(build, k):
    """With `remainder="drop"` and no length the last steps move batch norm and random state, not the weights."""
    loader = shuffled((2 * k + 1) * BATCH)
    expected = plain_accumulation(build, lambda: loader, epochs=2, k=k)
    actual = by_engine(build, Unsized(shuffled((2 * k + 1) * BATCH)), epochs=2, accumulation=k, remainder="drop")
    assert_same(expected, actual)


def test_without_a_seed_a_run_continues_from_the_global_generator():
    """With `seed=None` the generators are left alone, so the caller's own seed counts."""
    expected = plain_loop(OPTIMIZERS["adamw"], shuffled(40), epochs=2)

    def build(network: nn.Module) -> torch.optim.Optimizer:
        optimizer = OPTIMIZERS["adamw"](network)
        torch.manual_seed(SEED)
        return optimizer

    assert_same(expected, by_engine(build, shuffled(40), epochs=2, seed=None))


def test_an_optimizer_may_be_built_by_a_function_of_the_network():
    """A function of the network, called in `before_loop`, gives the bits of the optimizer that it returns."""
    expected = plain_loop(OPTIMIZERS["adamw"], shuffled(40), epochs=2)
    network, watch = deep_network(), Losses()
    components = Components(network=network, loader=shuffled(40), criterion=criterion, optimizer=OPTIMIZERS["adamw"])
    run = Engine(components, RunConfig(epochs=2, seed=SEED), plugins=[watch]).run()
    assert_same(expected, outcome(network, run.optimizer, watch.seen))


@pytest.mark.parametrize("k", [1, 4])
def test_several_optimizers_step_as_one_after_the_other_does(k):
    """Two optimizers that share a network have the bits of a loop that clears and steps both."""

    def build(network: Any) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.SGD(network[0].parameters(), lr=0.1, momentum=0.9),
            torch.optim.AdamW([*network[1].parameters(), *network[4].parameters()], lr=1e-2),
        ]

    network = deep_network()
    optimizers = build(network)
    loader = shuffled(8 * BATCH)
    torch.manual_seed(SEED)
    for index, (data, target) in enumerate(loader):
        if index % k == 0:
            for optimizer in optimizers:
                optimizer.zero_grad()
        (criterion(network(data), target) / k).backward()
        if (index + 1) % k == 0:
            for optimizer in optimizers:
                optimizer.step()

    other = deep_network()
    others = build(other)
    components = Components(network=other, loader=shuffled(8 * BATCH), criterion=criterion, optimizer=others)
    run = Engine(components, RunConfig(epochs=1, accumulation=k, seed=SEED)).run()
    assert 8 // k == run.update
    assert same(network.state_dict(), other.state_dict())
    assert same([each.state_dict() for each in optimizers], [each.state_dict() for each in others])


class Acting(IterableDataset[Any]):
    """Batches of unknown number whose targets the network chooses, as in reinforcement learning."""

    def __init__(self, network: nn.Module, count: int = 5) -> None:
        self.network = network
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(5)
        for _ in range(self.count):
            data = torch.randn(BATCH, FEATURES, generator=generator)
            yield data, self.network(data).detach().argmin(1)


def acted_by_hand(network: nn.Module, loader: Iterable[Any], k: int, remainder: str, epochs: int) -> None:
    """Train by a plain loop: each batch is fetched when it is needed, and not before."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    steps = 0
    for epoch in range(epochs):
        batches, steps, extending = iter(loader), steps if remainder == "carry" else 0, False
        while not (extending and steps == 0):
            batch = next(batches, None)
            if batch is None and steps and remainder == "extend":
                batches, extending = iter(loader), True
                batch = next(batches)
            if batch is None:
                break
            if steps == 0:
                optimizer.zero_grad()
            (criterion(network(batch[0]), batch[1]) / k).backward()
            steps = (steps + 1) % k
            if steps == 0:
                optimizer.step()
        if steps and (remainder == "flush" or (remainder == "carry" and epoch == epochs - 1)):
            for parameter in network.parameters():
                parameter.grad *= k / steps
            optimizer.step()


@pytest.mark.parametrize("remainder", ["extend", "flush", "drop", "carry"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: DataLoader(data, batch_size=None)])
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_loader_without_a_length_acts_with_the_weights_of_the_update_before(evaluated, wrap, k, remainder):
    """A batch that is read ahead is read after the update, as a plain loop fetches it; also beside an evaluation."""
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.BatchNorm1d(CLASSES), nn.Dropout(0.2))
    torch.manual_seed(0)  # where a run of that seed begins to draw
    network = deepcopy(plain)
    acted_by_hand(plain, wrap(Acting(plain)), k, remainder, epochs=3)
    parts = Components(
        network=network,
        loader=wrap(Acting(network)),
        criterion=criterion,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
    )
    evaluation = Evaluate([(torch.ones(BATCH, FEATURES), torch.zeros(BATCH, dtype=torch.int64))], at="after_step")
    Engine(parts, RunConfig(epochs=3, accumulation=k, remainder=remainder), [evaluation] if evaluated else []).run()
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=0, atol=0)
