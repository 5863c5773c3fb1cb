"""Measure what the engine costs a step, against a plain loop over the same parts. One thread, rounds interleaved.

Three measurements:

1. A null step: network, loss, backward and optimizer return at once, so only the engine is left, with the log on. It is
   measured with 0, 5 and 10 empty subscribers each on entry to and on exit of `process_batch`, and with the stock
   dispatch of the `transitions` library, to show why a compiled one exists. Printed are medians over the rounds, and
   the same less the bare loop.
2. A real step: an MLP 32-64-10, batch 32, SGD, against the textbook loop, for accumulation 1 and 4. Printed are medians
   of paired ratios over blocks of 25 steps (24 for accumulation 4); the plain loop is measured before and after each
   block. The ratio of the plain loop to itself shows the noise.
3. Python and C calls a step, counted with `sys.setprofile`. They have no noise, and a test holds them.

Absolute times depend on the machine; `bare loop` and the line on the interpreter show its speed. Run it on an idle
machine:

    python benchmarks/overhead.py

Measured on two shared virtual cores, Python 3.11.7 and torch 2.13.0, where one pass of an empty loop took 14 ns: null
step 2.3 µs beyond the bare loop (0.19 µs), 3.0 µs with 10 + 10 subscribers, the stock dispatch 50 µs; 13 Python and 14
C calls. MLP: 1.022 times the plain loop for accumulation 1, 1.012 for 4, the plain loop against itself 1.01 and 1.02.
On a machine half as fast it was 6.9, 9.1 and 165 µs, and 0.985 and 0.969. The engine saves part of what its turns cost:
it clears gradients without the profiler record that `Optimizer.zero_grad` makes, and it passes 1 / k to the backward
pass instead of dividing the loss.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from heptad import Components, Engine, Plugin, RunConfig

# the stock dispatch is not part of the package; the tests compare the compiled one with it
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from stock import StockEngine

Batch = tuple[torch.Tensor, torch.Tensor]


class NullLoss(torch.Tensor):
    """A loss whose backward pass does nothing."""

    def backward(self, *args, **kwargs):
        pass


class NullNetwork(nn.Module):
    """A network that returns at once."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def __call__(self, data):
        return data


class NullOptimizer:
    """An optimizer that does nothing. It avoids torch's base class, which wraps `step` in a profiler record."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters)}]

    def step(self):
        pass

    def zero_grad(self):
        pass


LOSS = torch.zeros((), requires_grad=True).as_subclass(NullLoss)
NULL_BATCH = (torch.zeros(1), (0,))


def null_criterion(output, target):
    """Return the same loss in each call."""
    return LOSS


def build_null_engine(
    steps: int,
    subscribers: int,
    engine_class: type[Engine] = Engine,
    plugins: Sequence[Plugin] = (),
    criterion: Callable[..., torch.Tensor] = null_criterion,
) -> Engine:
    """Return an engine whose step is empty, with that many subscribers on entry and as many on exit."""
    network = NullNetwork()
    engine = engine_class(
        Components(
            network=network,
            loader=[NULL_BATCH] * steps,
            criterion=criterion,
            optimizer=NullOptimizer(network.parameters()),
        ),
        RunConfig(epochs=1),
        plugins,
    )
    for _ in range(subscribers):
        engine.on_enter("process_batch")(lambda run: None)
        engine.on_exit("process_batch")(lambda run: None)
    return engine


def time_null(steps: int, subscribers: int, engine_class: type[Engine] = Engine) -> float:
    """Return microseconds a step."""
    engine = build_null_engine(steps, subscribers, engine_class)
    engine.run(until="before_step")
    began = time.perf_counter()
    engine.run()
    return (time.perf_counter() - began) / steps * 1e6


def time_bare(steps: int) -> float:
    """Return microseconds a step of a plain loop over the same null parts."""
    network = NullNetwork()
    optimizer = NullOptimizer(network.parameters())
    loader = [NULL_BATCH] * steps
    began = time.perf_counter()
    for data, target in loader:
        optimizer.zero_grad()
        loss = null_criterion(network(data), target)
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - began) / steps * 1e6


def null_steps(rounds: int, steps: int) -> None:
    """Print the cost of a null step."""
    kinds: dict[str, Callable[[], float]] = {
        "bare loop": lambda: time_bare(steps),
        "engine, no subscriber": lambda: time_null(steps, 0),
        "engine, 5 + 5 subscribers": lambda: time_null(steps, 5),
        "engine, 10 + 10 subscribers": lambda: time_null(steps, 10),
        "stock dispatch, no subscriber": lambda: time_null(max(steps // 10, 100), 0, StockEngine),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, measure in kinds.items():
            taken[name].append(measure())
    print(f"null step, {rounds} rounds of {steps:,} steps     µs a step   less the bare loop")
    for name, values in taken.items():
        less = statistics.median(value - bare for value, bare in zip(values, taken["bare loop"], strict=True))
        print(f"  {name:32}{statistics.median(values):12.2f}{less:21.2f}")


def interpreter_speed() -> float:
    """Return the nanoseconds of one iteration of an empty `for` loop: about 15 on a fast, idle machine."""
    began = time.perf_counter()
    for _ in range(2_000_000):
        pass
    return (time.perf_counter() - began) / 2_000_000 * 1e9


def build_mlp() -> nn.Module:
    """Return the MLP 32-64-10."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def plain_blocks(loader: list[Batch], k: int) -> Iterator[float]:
    """Train by the textbook loop; yield the seconds of each pass over the loader."""
    network = build_mlp()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    while True:
        began = time.perf_counter()
        if k == 1:
            for data, target in loader:
                optimizer.zero_grad()
                loss = criterion(network(data), target)
                loss.backward()
                optimizer.step()
        else:
            for number, (data, target) in enumerate(loader):
                if number % k == 0:
                    optimizer.zero_grad()
                loss = criterion(network(data), target) / k
                loss.backward()
                if (number + 1) % k == 0:
                    optimizer.step()
        yield time.perf_counter() - began


def build_mlp_engine(loader: list[Batch], k: int, epochs: int, plugins: Sequence[Plugin] = ()) -> Engine:
    """Return an engine over the same network and loader."""
    network = build_mlp()
    return Engine(
        Components(
            network=network,
            loader=loader,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        ),
        RunConfig(epochs=epochs, accumulation=k),
        plugins,
    )


def engine_blocks(loader: list[Batch], k: int) -> Iterator[float]:
    """Train by the engine, paused after each epoch; yield the seconds of each, pause and restart included."""
    engine = build_mlp_engine(loader, k, epochs=10**9)
    engine.on_exit("after_epoch")(lambda run: run.pause("end of the block"))
    while True:
        began = time.perf_counter()
        engine.run()
        yield time.perf_counter() - began


def real_steps(blocks: int, k: int) -> None:
    """Print the ratio of the engine to the plain loop."""
    steps = 25 - 25 % k
    loader = [(torch.randn(32, 32), torch.randint(0, 10, (32,))) for _ in range(steps)]
    before, engine, after = plain_blocks(loader, k), engine_blocks(loader, k), plain_blocks(loader, k)
    ratios: list[float] = []
    itself: list[float] = []
    plain: list[float] = []
    for number in range(blocks + 10):
        first, ours, second = next(before), next(engine), next(after)
        if number >= 10:  # the first ones warm up
            ratios.append(ours / ((first + second) / 2))
            itself.append(second / first)
            plain.append(first / steps * 1e6)
    quarters = statistics.quantiles(ratios, n=4)
    print(
        f"MLP 32-64-10, accumulation {k}, {blocks} blocks of {steps}: engine / plain {statistics.median(ratios):.3f} "
        f"(quartiles {quarters[0]:.3f} to {quarters[2]:.3f}); plain / plain {statistics.median(itself):.3f}; "
        f"plain step {statistics.median(plain):.0f} µs"
    )


def count_calls(engine: Engine, steps: int) -> tuple[float, float]:
    """Return Python and C calls a step, of a new engine over that many steps."""
    counts = {"call": 0, "c_call": 0}

    def profile(frame, event, argument):
        if event in counts:
            counts[event] += 1

    engine.run(until="before_step")
    sys.setprofile(profile)
    try:
        engine.run()
    finally:
        sys.setprofile(None)
    return counts["call"] / steps, counts["c_call"] / steps


def calls(steps: int = 5000) -> None:
    """Print the calls of a null step; the bare loop makes 5 Python calls."""
    python, c = count_calls(build_null_engine(steps, 0), steps)
    print(f"calls a null step: {python:.2f} Python, {c:.2f} C")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the null step (default 9)")
    parser.add_argument("--steps", type=int, default=20_000, help="null steps a round (default 20,000)")
    parser.add_argument("--blocks", type=int, default=300, help="blocks of the real step (default 300)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"one pass of an empty for loop: {interpreter_speed():.0f} ns; torch {torch.__version__}, one thread")
    null_steps(asked.rounds, asked.steps)
    calls()
    for k in (1, 4):
        real_steps(asked.blocks, k)


if __name__ == "__main__":
    main()
