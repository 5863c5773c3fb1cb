"""Measure how long training stands still for a checkpoint that is written in the background. One thread of torch.

The state is 300 MB: 100 MB of float32 parameters, the weights and biases of 16 linear layers, and two averages of each
by AdamW, of a run that an engine drives.

- `background`: the state `checkpoint` of `Checkpoint(background=True)`, as the run's log times it: everything is
  captured, encoded and copied, and a thread is started;
- `foreground`: the same state of `Checkpoint()`, which writes and syncs the files;
- `copy`: a copy of the same tensors in the memory of the host, what the stall is held against: at most 1.3 times.

Rounds are interleaved, and each measurement is first in turn. The writer has ended and everything is synced before
each, so that none pays for another. The table shows medians over the rounds, and the median, lowest and highest of the
ratios within a round:

    python benchmarks/background.py

Measured on two shared virtual cores under a load of five, Python 3.11.7 and torch 2.13.0: 25 ms, where the copy takes
30 ms (0.92; 0.68 to 1.47) and a checkpoint in the foreground 427 ms. Capturing and encoding take 2 ms of it. The
lower the load, the more of the ratio is these.

With a network on an H100, torch 2.11: 11.5 ms by way of pinned memory, where the copy into ordinary memory of the host
takes 258 ms (0.04; 0.03 to 0.05) and a checkpoint in the foreground 477 ms.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from checkpoint import Times, measured
from heptad import Components, Engine, RunConfig
from heptad_plugins import Checkpoint

LAYERS = 16


def build_engine(megabytes: int, directory: Path, background: bool) -> Engine:
    """Return an engine of a network with that many megabytes of parameters, which stores every update."""
    width = int((megabytes * 1e6 / 4 / LAYERS) ** 0.5)
    network = nn.Sequential(*[nn.Linear(width, width) for _ in range(LAYERS)])
    parts = Components(
        network=network,
        loader=[(torch.randn(1, width), torch.randn(1, width))],
        criterion=nn.MSELoss(),
        optimizer=torch.optim.AdamW(network.parameters()),
    )
    plugins = [Checkpoint(directory, "optimizer_update", keep_last=1, background=background)]
    return Engine(parts, RunConfig(epochs=1_000_000), plugins)


def stall(engine: Engine) -> float:
    """Make the turn out of the state `checkpoint`; return its milliseconds."""
    turn = engine.advance()
    assert turn.source == "checkpoint"
    return turn.duration_ns / 1e6


def copy(engine: Engine) -> float:
    """Copy the parameters and what the optimizer keeps; return the milliseconds."""
    run = engine.current
    states = run.optimizer.state_dict()["state"].values()
    held = [*run.network.parameters(), *(tensor for state in states for tensor in state.values())]
    start = time.perf_counter()
    copies = [tensor.detach().to("cpu", copy=True) for tensor in held]
    spent = time.perf_counter() - start
    del copies
    return spent * 1e3


def measure(rounds: int, megabytes: int, directory: Path) -> Times:
    """Return, for each measurement, the milliseconds in each round."""
    behind, before = (
        build_engine(megabytes, directory / name, name == "background") for name in ("background", "foreground")
    )
    works: dict[str, Callable[[], float]] = {
        "background": lambda: stall(behind),
        "foreground": lambda: stall(before),
        "copy": lambda: copy(behind),
    }
    times: Times = {name: [] for name in works}
    names = list(works)
    for number in range(rounds + 1):  # the first is a warm-up
        for place in range(len(names)):
            for engine in (behind, before):  # returns when nothing is being written
                engine.run(until=lambda run: run.state == "checkpoint")
            os.sync()
            name = names[(place + number) % len(names)]
            times[name].append(works[name]())
    for engine in (behind, before):
        engine.close()
    return {name: spent[1:] for name, spent in times.items()}


def report(times: Times) -> str:
    """Return the table."""
    lines = [f"{name:<12}{statistics.median(spent):>9.1f} ms" for name, spent in times.items()]
    for one, other in (("background", "copy"), ("foreground", "copy")):
        ratios = sorted(own / base for own, base in zip(times[one], times[other], strict=True))
        lines.append(f"{one} / {other}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    times, _ = measured("The stall of a checkpoint: in the background, in the foreground, a copy.", measure)
    print(report(times))


if __name__ == "__main__":
    main()
