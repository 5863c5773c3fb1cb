"""Measure what the engine adds to a step of a transformer, against a loop written by hand. One thread, interleaved.

The network is two pre-norm blocks of attention and MLP over a batch of sequences, trained by AdamW: a step of 5 to 20
ms. Each way of running it is measured against the same way in the loop:

- `fp32`: as it is;
- `compiled`: `RunConfig(compile=True)` against `block.compile()` for each block;
- `bf16`: `RunConfig(precision="bf16-mixed")` against `torch.autocast` around forward and loss;
- `bf16, compiled`: both.

Printed are medians of paired ratios over blocks of 10 steps; the loop is measured before and after each block. The
ratio of the loop to itself shows the noise. The goal is 1.02 at most.

Where there is an accelerator, three more lines: a transformer of 10 million parameters and the MLP of `overhead.py`
against the loop there (the loop copies from memory that is not pinned, as textbooks do), and the transformer with
`prefetch=1` against `prefetch=0`. The goal is 1 / 0.99 at most. On an H100 with torch 2.11, 40 blocks: transformer 0.99
at 12.5 ms a step, `prefetch` 1.01, which is none; MLP 1.28 at 1.3 ms a step, which does not meet the goal. Of its 0.28
ms, 0.1 are pinning, gathering and the engine (a loop that pins: 0.08), and 0.18 the side stream of `prefetch=1`, which
costs that much whatever a batch weighs.

Run it on an idle machine; the first time, compiling takes a minute:

    python benchmarks/device.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from heptad import Components, Engine, RunConfig
from heptad.run.verified import card_name
from overhead import build_mlp

WIDTH, HEADS, LENGTH, BATCH, BLOCKS = 64, 4, 32, 16, 2
STEPS = 10
"""Steps of a block of the measurement."""
WARM = 3
"""Blocks that are not counted: torch compiles in the first."""
LARGE = {"width": 384, "blocks": 6}
"""10.6 million parameters."""

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, length, width) for the same."""
        parts = self.mixed(self.before_attention(x)).unflatten(-1, (3, HEADS, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.joined(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.before_mlp(x))


class Network(nn.Module):
    """Blocks, and a score for each sequence."""

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

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
    print_ratios(name, blocks, by_hand(batches, **how), by_engine(batches, **how), by_hand(batches, **how))


def print_ratios(
    name: str, blocks: int, before: Iterator[float], engine: Iterator[float], after: Iterator[float], steps: int = STEPS
) -> None:
    """Print the ratio of what is measured in the middle to the mean of what is measured around it."""
    ratios: list[float] = []
    itself: list[float] = []
    plain: list[float] = []
    for number in range(blocks + WARM):
        first, ours, second = next(before), next(engine), next(after)
        if number >= WARM:
            ratios.append(ours / ((first + second) / 2))
            itself.append(second / first)
            plain.append(first / steps * 1e3)
    quarters = statistics.quantiles(ratios, n=4)
    print(
        f"{name:20} step {statistics.median(plain):5.2f} ms   engine / loop {statistics.median(ratios):.3f} "
        f"(quartiles {quarters[0]:.3f} to {quarters[2]:.3f}); loop / loop {statistics.median(itself):.3f}",
        flush=True,
    )


def loop_on(device: torch.device, build: Callable[[], nn.Module], batches: Batches) -> Iterator[float]:
    """Train by the loop on a device; yield the seconds of each pass, until the device is done."""
    torch.manual_seed(0)
    network = build().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    while True:
        began = time.perf_counter()
        for data, target in batches:
            optimizer.zero_grad()
            criterion(network(data.to(device)), target.to(device)).backward()
            optimizer.step()
        finish(device)
        yield time.perf_counter() - began


def engine_on(
    device: torch.device, build: Callable[[], nn.Module], batches: Batches, prefetch: int = 1
) -> Iterator[float]:
    """Train by the engine on a device, over the rows of the batches as a dataset, in their order; as above."""
    rows, targets = (torch.cat(column) for column in zip(*batches, strict=True))
    torch.manual_seed(0)
    engine = Engine(
        Components(
            network=build(),
            dataset=TensorDataset(rows, targets),
            criterion=nn.CrossEntropyLoss(),
            optimizer=lambda network: torch.optim.AdamW(network.parameters(), lr=1e-3),
        ),
        RunConfig(epochs=10**9, batch_size=BATCH, shuffle=False, device=device, prefetch=prefetch),
    )
    engine.on_exit("after_epoch")(lambda run: run.pause("end of the block"))
    while True:
        began = time.perf_counter()
        engine.run()
        finish(device)
        yield time.perf_counter() - began


def finish(device: torch.device) -> None:
    """Wait for a device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def compare_on(device: torch.device, blocks: int) -> None:
    """Print the ratios on a device."""
    long = [(torch.randn(BATCH, 256, LARGE["width"]), torch.randint(0, 10, (BATCH,))) for _ in range(STEPS)]
    short = [(torch.randn(BATCH, 32), torch.randint(0, 10, (BATCH,))) for _ in range(STEPS * 10)]
    for name, build, batches in (("transformer, 10 M", lambda: Network(**LARGE), long), ("MLP", build_mlp, short)):
        loops = loop_on(device, build, batches), loop_on(device, build, batches)
        print_ratios(name, blocks, loops[0], engine_on(device, build, batches), loops[1], len(batches))
    without = [engine_on(device, lambda: Network(**LARGE), long, prefetch=0) for _ in range(2)]
    print_ratios("prefetch 1 / 0", blocks, without[0], engine_on(device, lambda: Network(**LARGE), long), without[1])


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
        compare(name, asked.blocks, **how)
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        assert device is not None
        print(f"on {card_name(device)}, {asked.blocks} blocks:")
        compare_on(device, asked.blocks)


if __name__ == "__main__":
    main()
