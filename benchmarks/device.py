"""Measure what the engine adds to a step of a transformer, against a loop written by hand. One thread, interleaved.

The network is two pre-norm blocks of attention and MLP over a batch of sequences, trained by AdamW: a step of 5 to 20
ms. Each way of running it is measured against the same way in the loop:

- `fp32`: as it is;
- `compiled`: `RunConfig(compile=True)` against `block.compile()` for each block;
- `bf16`: `RunConfig(precision="bf16-mixed")` against `torch.autocast` around forward and loss;
- `bf16, compiled`: both.

Printed are medians of paired ratios over blocks of 10 steps; the loop is measured before and after each block. The
ratio of the loop to itself shows the noise. The goal is 1.02 at most. Run it on an idle machine; the first time,
compiling takes a minute:

    python benchmarks/device.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from heptad import Components, Engine, RunConfig

WIDTH, HEADS, LENGTH, BATCH, BLOCKS = 64, 4, 32, 16, 2
STEPS = 10
"""Steps of a block of the measurement."""
WARM = 3
"""Blocks that are not counted: torch compiles in the first."""

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mixed, self.joined = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, length, width) for the same."""
        parts = self.mixed(self.before_attention(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.joined(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.before_mlp(x))


class Network(nn.Module):
    """Blocks, and a score for each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10) for (batch, length, width)."""
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network and its optimizer, with the same weights each time."""
    torch.manual_seed(0)
    network = Network()
    return network, torch.optim.AdamW(network.parameters(), lr=1e-3)


def by_hand(batches: Batches, *, compiled: bool, bf16: bool) -> Iterator[float]:
    """Train by the loop; yield the seconds of each pass over the batches."""
    network, optimizer = parts()
    criterion = nn.CrossEntropyLoss()
    if compiled:
        for block in network.get_submodule("blocks").children():
            block.compile()
    while True:
        began = time.perf_counter()
        for data, target in batches:
            optimizer.zero_grad()
            context: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
            with context:
                loss = criterion(network(data), target)
            loss.backward()
            optimizer.step()
        yield time.perf_counter() - began


def by_engine(batches: Batches, *, compiled: bool, bf16: bool) -> Iterator[float]:
    """Train by the engine, paused after each epoch; yield the seconds of each, pause and restart included."""
    network, optimizer = parts()
    precision: dict[str, Any] = {"precision": "bf16-mixed"} if bf16 else {}
    engine = Engine(
        Components(network=network, loader=batches, criterion=nn.CrossEntropyLoss(), optimizer=optimizer),
        RunConfig(epochs=10**9, device="cpu", compile=compiled, **precision),
    )
    engine.on_exit("after_epoch")(lambda run: run.pause("end of the block"))
    while True:
        began = time.perf_counter()
        engine.run()
        yield time.perf_counter() - began


def compare(name: str, blocks: int, **how: bool) -> None:
    """Print the ratio of the engine to the loop, run in one way."""
    batches = [(torch.randn(BATCH, LENGTH, WIDTH), torch.randint(0, 10, (BATCH,))) for _ in range(STEPS)]
    before, engine, after = by_hand(batches, **how), by_engine(batches, **how), by_hand(batches, **how)
    ratios: list[float] = []
    itself: list[float] = []
    steps: list[float] = []
    for number in range(blocks + WARM):
        first, ours, second = next(before), next(engine), next(after)
        if number >= WARM:
            ratios.append(ours / ((first + second) / 2))
            itself.append(second / first)
            steps.append(first / STEPS * 1e3)
    quarters = statistics.quantiles(ratios, n=4)
    print(
        f"{name:16} step {statistics.median(steps):5.1f} ms   engine / loop {statistics.median(ratios):.3f} "
        f"(quartiles {quarters[0]:.3f} to {quarters[2]:.3f}); loop / loop {statistics.median(itself):.3f}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=60, help="blocks of the measurement (default 60)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, CPU; {asked.blocks} blocks of {STEPS} steps")
    ways = {
        "fp32": {"compiled": False, "bf16": False},
        "compiled": {"compiled": True, "bf16": False},
        "bf16": {"compiled": False, "bf16": True},
        "bf16, compiled": {"compiled": True, "bf16": True},
    }
    for name, how in ways.items():
        if how["bf16"] and "precision" not in RunConfig.model_fields:
            print(f"{name:16} not measured: RunConfig.precision is not there yet")
            continue
        compare(name, asked.blocks, **how)


if __name__ == "__main__":
    main()
