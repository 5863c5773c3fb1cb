"""Measure what plugins cost. One run at a time, one thread, rounds interleaved.

Three measurements:

1. A call: the null step of `overhead.py`, with plugins whose handlers do nothing. Ten plugins subscribe to both moments
   of two states that every step enters, which is 40 calls. Then the same ten subscribe to states that a run enters once
   an epoch, so the states of a step have no subscriber; these must cost nothing. Printed are medians over the rounds of
   the difference to the engine without plugins, which is measured before and after. Calls are counted too, without
   noise.
2. A filter: the same 40 handlers with `every=100`, per event. One event of 100 is a call, so the figure is slightly
   higher than the cost of an event that the filter holds back.
3. A set: `Progress` with its bar, `CSVLogger` with a row each update, `Throughput`, and `NonFiniteGuard` with a check
   each update, on a step of about 1 ms (an MLP, AdamW). Printed are medians of paired ratios over blocks of steps, each
   an epoch with its line and row; the engine without plugins is measured before and after each. Opening and closing,
   once an `engine.run()`, are excluded. The ratio of the engine without plugins to itself shows the noise. Then each of
   the four alone.

Absolute times depend on the machine; the line on the interpreter shows its speed. Run it on an idle machine:

    python benchmarks/plugins.py

Measured on two shared virtual cores, Python 3.11.7 and torch 2.13.0, an empty loop at 15 ns a pass: a call takes 0.045
µs. An event that `every=100` holds back takes 0.074 µs, which is that call and a closure that counts; this misses the
bound of 0.05. With the set, a step of 1.3 ms takes 1.11 times as long, which misses the bound of 1.05: about 60 µs are
the pass of `NonFiniteGuard` over 537 kB of gradients, and 40 µs are `CSVLogger`'s write to the operating system after
each update. Both take `every=`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heptad import Components, Engine, Plugin, Run, RunConfig, on_enter, on_exit
from heptad_plugins import CSVLogger, NonFiniteGuard, Progress, Throughput
from overhead import NULL_BATCH, NullNetwork, NullOptimizer, count_calls, interpreter_speed, null_criterion

PLUGINS = 10
CALLS = 4 * PLUGINS
"""Calls a step of the plugins below."""
IN_STEP = ("process_batch", "after_step")
ONCE_AN_EPOCH = ("before_epoch", "after_epoch")


def silent(number: int, states: Sequence[str], every: int = 1) -> Plugin:
    """Return a plugin with a handler that does nothing on both moments of each state."""
    methods: dict[str, Any] = {"name": f"silent {number}"}
    for moment, mark in (("enter", on_enter), ("exit", on_exit)):
        for state in states:

            @mark(state, every=every)
            def handler(self: Plugin, run: Run) -> None:
                pass

            methods[f"{moment}_{state}"] = handler
    return type("Silent", (Plugin,), methods)()


def build_null(steps: int, states: Sequence[str] = (), every: int = 1) -> Engine:
    """Return an engine whose step is empty, with ten silent plugins on these states, or without plugins."""
    network = NullNetwork()
    parts = Components(
        network=network,
        loader=[NULL_BATCH] * steps,
        criterion=null_criterion,
        optimizer=NullOptimizer(network.parameters()),
    )
    plugins = [silent(number, states, every) for number in range(PLUGINS)] if states else []
    return Engine(parts, RunConfig(epochs=1), plugins)


def time_null(engine: Engine, steps: int) -> float:
    """Return microseconds a step."""
    engine.run(until="before_step")
    began = time.perf_counter()
    engine.run()
    return (time.perf_counter() - began) / steps * 1e6


def calls(rounds: int, steps: int) -> None:
    """Print the cost of a call, of an event that is held back, and of a state without subscriber."""
    kinds: dict[str, tuple[Callable[[], Engine], int, str]] = {
        "40 calls": (lambda: build_null(steps, IN_STEP), CALLS, "a call (bound 0.15)"),
        "40 events, every=100": (lambda: build_null(steps, IN_STEP, 100), CALLS, "an event (bound 0.05)"),
        "subscribers elsewhere": (lambda: build_null(steps, ONCE_AN_EPOCH), 1, "a step (bound 0)"),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    alone = [time_null(build_null(steps), steps)]
    for _ in range(rounds):
        for name, (build, _, _) in kinds.items():
            ours = time_null(build(), steps)
            alone.append(time_null(build_null(steps), steps))
            taken[name].append(ours - (alone[-2] + alone[-1]) / 2)
    print(f"null step, {rounds} rounds of {steps:,} steps: {statistics.median(alone):.2f} µs without plugins")
    for name, (_, per, unit) in kinds.items():
        low, middle, high = (value / per for value in quartiles(taken[name]))
        print(f"  {name:24}{middle:8.3f} µs {unit}; quartiles {low:.3f} to {high:.3f}")
    counted = {states: count_calls(build_null(5000, states), 5000)[0] for states in ((), IN_STEP, ONCE_AN_EPOCH)}
    more = {states: counted[states] - counted[()] for states in (IN_STEP, ONCE_AN_EPOCH)}
    print(
        f"  Python calls a step more: {more[IN_STEP]:.2f} for 40; {more[ONCE_AN_EPOCH]:.2f} for subscribers elsewhere"
    )


class Terminal(io.StringIO):
    """A buffer that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def observed(folder: Path) -> dict[str, Callable[[], Plugin]]:
    """Return a factory for each plugin of the set."""
    return {
        "Progress": lambda: Progress(file=Terminal()),
        "CSVLogger": lambda: CSVLogger(Path(tempfile.mkdtemp(dir=folder)) / "values.csv"),
        "Throughput": Throughput,
        "NonFiniteGuard": NonFiniteGuard,
    }


def blocks(loader: list[Any], plugins: Sequence[Plugin]) -> Iterator[float]:
    """Train by the engine, paused after each epoch; yield the seconds of each."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    components = Components(
        network=network,
        loader=loader,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4),
    )
    engine = Engine(components, RunConfig(epochs=10**9), plugins)
    marks: list[float] = []
    engine.on_exit("before_epoch")(lambda run: marks.append(time.perf_counter()))
    engine.on_exit("after_epoch")(lambda run: marks.append(time.perf_counter()))
    engine.on_exit("after_epoch")(lambda run: run.pause("end of the block"))
    while True:
        engine.run()
        yield marks[-1] - marks[-2]


def real_steps(rounds: int, steps: int, size: int) -> None:
    """Print what the set, and each of its plugins alone, adds to a step."""
    loader = [(torch.randn(size, 256), torch.randint(0, 10, (size,))) for _ in range(steps)]
    with tempfile.TemporaryDirectory() as folder:
        makers = observed(Path(folder))
        sets = {"all four": list(makers), **{name: [name] for name in makers}}
        driven = {kind: blocks(loader, [makers[name]() for name in names]) for kind, names in sets.items()}
        bare = blocks(loader, [])
        ratios: dict[str, list[float]] = {kind: [] for kind in driven}
        without: list[float] = []
        for number in range(rounds + 2):
            before = next(bare)
            for kind, block in driven.items():
                ours, after = next(block), next(bare)
                if number >= 2:  # the first ones warm up
                    ratios[kind].append(ours / ((before + after) / 2))
                    without.append(before)
                before = after
        itself = [second / first for first, second in itertools.pairwise(without)]
    step = statistics.median(without) / steps * 1e3
    print(f"MLP, batch {size}, {rounds} rounds of {steps} steps: {step:.3f} ms a step without plugins")
    for kind, values in {**ratios, "no plugins": itself}.items():
        low, middle, high = quartiles(values)
        bound = " (bound 1.050)" if kind == "all four" else ""
        micro = (middle - 1) * step * 1e3
        print(f"  {kind:24}{middle:8.3f}{bound}; quartiles {low:.3f} to {high:.3f}; {micro:+.1f} µs a step")


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the null step (default 15)")
    parser.add_argument("--steps", type=int, default=10_000, help="null steps a round (default 10,000)")
    parser.add_argument("--blocks", type=int, default=30, help="rounds of the real step (default 30)")
    parser.add_argument("--block", type=int, default=250, help="real steps a block (default 250)")
    parser.add_argument("--size", type=int, default=64, help="samples a real step, for about 1 ms (default 64)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"one pass of an empty for loop: {interpreter_speed():.0f} ns; torch {torch.__version__}, one thread")
    calls(asked.rounds, asked.steps)
    real_steps(asked.blocks, asked.block, asked.size)


if __name__ == "__main__":
    main()
