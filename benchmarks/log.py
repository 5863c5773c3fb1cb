"""Measure what the log costs: in memory, in a journal, and to query. One thread trains, rounds are interleaved.

Five measurements:

1. In memory: what the machine does for each transition, which is two appends and a clock, and the packing, less an
   empty loop.
2. `Journal`: the null step of `overhead.py` (here with a loss that torch does not intercept, and a learning rate), with
   a journal, with one that records no values, and without. Opening and closing are included. Printed are medians over
   the rounds of the difference to the engine without a journal, per transition: of the processor time of the training
   thread (bound 2 µs), and of wall time. A null step makes a transition every 0.6 µs, faster than rows can be written
   (about 1 µs each, and 0.8 µs a value). Closing waits for the writer, so the wall time is that of both together, the
   highest cost that a run can have. Four transitions of a null step are one update and two values.
3. The size of these files in bytes a transition.
4. The MLP step of `overhead.py`, with each journal and without: medians of the differences and of the ratios. Between
   torch's operations our few lines run from cold caches and take several times what they take in a null step. The goal
   is a ratio of 1.05. On two quiet cores, a step of 104 µs: 1.05 without values; 1.26 with two values an update, 23 µs
   of the training thread, of which the sums of the epoch's loss take 6, the rates 2, the loss 1, and recording 11. All
   of them together take 6 µs where nothing has emptied the caches, so that no part of it is worth its own code.
5. A file of 10 million transitions, made by the writer that `Journal` uses: the time to open it, to call `counts()` and
   `durations()`, to find an update in the middle by `where(update=…)`, and the peak memory of the process that queries
   it, torch included.

Run it on an idle machine. The file takes about 500 MB in the folder for temporary files, or in `--folder`:

    python benchmarks/log.py
    python benchmarks/log.py --transitions 1000000

"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from heptad import Plugin, TransitionLog
from heptad.history.journal.writer import FileWriter
from heptad.record.buffer import CHUNK, LogBuffer, PackedChunk
from heptad.record.counters import Counters
from heptad.table import Table, training_table
from heptad_plugins import Journal
from overhead import Batch, NullLoss, build_mlp_engine, build_null_engine, interpreter_speed

PER_STEP = 4
STEP = (
    ("before_step", "process_batch"),
    ("process_batch", "after_step"),
    ("after_step", "optimizer_update"),
    ("optimizer_update", "before_step"),
)
"""The transitions of a step that makes an update."""


class QuickLoss(NullLoss):
    """A loss that torch handles like any tensor: intercepting its functions for a subclass costs more than all else."""

    __torch_function__ = torch._C._disabled_torch_function_impl


LOSS = torch.zeros((), requires_grad=True).as_subclass(QuickLoss)


def quick_criterion(output, target):
    """Return the same loss in each call."""
    return LOSS


def step_arcs(table: Table) -> list[int]:
    """Return the arcs of a step."""
    numbers = {(arc.source, arc.dest): number for number, arc in enumerate(table.arcs)}
    return [numbers[ends] for ends in STEP]


def in_memory(transitions: int) -> float:
    """Return the processor time of the log for a transition, in microseconds."""
    table = training_table()
    memory = LogBuffer(table, 1_000_000)
    memory.go()
    arc = step_arcs(table)[0]
    clock = time.monotonic_ns
    counters = Counters()
    began = time.thread_time()
    for _ in range(transitions // CHUNK):
        arcs, times = memory.arcs, memory.times
        for _ in range(memory.room):
            arcs.append(arc)
            times.append(clock())
        memory.settle(lambda: counters)
    middle = time.thread_time()
    for _ in range(transitions // CHUNK):
        for _ in range(CHUNK):
            pass
    return (middle - began - (time.thread_time() - middle)) / transitions * 1e6


def time_run(steps: int, plugins: list[Plugin]) -> tuple[float, float]:
    """Return wall time and processor time of the training thread, in microseconds a transition."""
    engine = build_null_engine(steps, 0, plugins=plugins, criterion=quick_criterion)
    engine.on_exit("before_loop")(lambda run: run.optimizer.param_groups[0].update(lr=0.1))
    began, busy = time.perf_counter(), time.thread_time()
    engine.run()
    passed, busy = time.perf_counter() - began, time.thread_time() - busy
    return passed / (steps * PER_STEP) * 1e6, busy / (steps * PER_STEP) * 1e6


def journalling(rounds: int, steps: int, folder: Path) -> None:
    """Print what a journal adds to a transition, and the size of its file."""
    paths = {"Journal": folder / "values", "Journal, values=False": folder / "no values"}
    kinds: dict[str, Callable[[], list[Plugin]]] = {
        "without": list,
        "Journal": lambda: [Journal(paths["Journal"], overwrite=True)],
        "Journal, values=False": lambda: [Journal(paths["Journal, values=False"], overwrite=True, values=False)],
    }
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, plugins in kinds.items():
            taken[kind].append(time_run(steps, plugins()))
    print(f"null step, {rounds} rounds of {steps:,} steps, µs a transition   thread         time   bytes on disk")
    for kind, each in taken.items():
        less = [
            statistics.median(one[column] - bare[column] for one, bare in zip(each, taken["without"], strict=True))
            for column in (1, 0)
        ]
        if kind == "without":
            less = [statistics.median(one[column] for one in each) for column in (1, 0)]
        size = f"{paths[kind].stat().st_size / (steps * PER_STEP):12.1f}" if kind in paths else ""
        print(f"  {kind:28}{'' if kind == 'without' else 'more':>14}{less[0]:17.2f}{less[1]:13.2f}{size:>16}")


def time_mlp(loader: list[Batch], steps: int, plugins: list[Plugin]) -> tuple[float, float]:
    """Return wall time and processor time of the training thread, in microseconds a step."""
    engine = build_mlp_engine(loader, 1, steps // len(loader), plugins)
    began, busy = time.perf_counter(), time.thread_time()
    engine.run()
    passed, busy = time.perf_counter() - began, time.thread_time() - busy
    return passed / steps * 1e6, busy / steps * 1e6


def real_steps(rounds: int, folder: Path, steps: int = 10_000) -> None:
    """Print what a journal adds to a step of an MLP."""
    loader = [(torch.randn(32, 32), torch.randint(0, 10, (32,))) for _ in range(100)]
    print(f"MLP 32-64-10, {rounds} rounds of {steps:,} steps, µs a step   thread         time   ratio of times")
    for kind, values in (("Journal", True), ("Journal, values=False", False)):
        each: list[list[float]] = []
        for _ in range(rounds):
            bare = time_mlp(loader, steps, [])
            ours = time_mlp(loader, steps, [Journal(folder / "mlp", overwrite=True, values=values)])
            each.append([ours[1] - bare[1], ours[0] - bare[0], ours[0] / bare[0]])
        thread, wall, ratio = (statistics.median(column) for column in zip(*each, strict=True))
        print(f"  {kind:28}{'more':>14}{thread:16.1f}{wall:13.1f}{ratio:17.3f}")


def write_synthetic(path: Path, transitions: int) -> float:
    """Write a file of steps with durations like those of training; return the seconds that it took."""
    table = training_table()
    arcs = array("H", step_arcs(table) * (CHUNK // PER_STEP))
    random = np.random.default_rng(0)
    writer = FileWriter(path, table, "synthetic")
    writer.begin(0, None)
    began = time.perf_counter()
    clock = 10**12
    for number in range(transitions // CHUNK):
        times = clock + np.cumsum(random.lognormal(11, 1.5, CHUNK).astype(np.int64))
        steps = number * CHUNK // PER_STEP
        at = Counters(0, steps, steps, steps, 0)
        packed = PackedChunk(number * CHUNK, clock, 1_700_000_000 * 10**9, at, (), (), arcs, array("q", times.tolist()))
        writer.transitions([packed])
        clock = int(times[-1])
        if number % 8 == 7:
            writer.commit()
    writer.commit()
    writer.close(finished=True)
    return time.perf_counter() - began


def ask(path: str) -> None:
    """Query a file, in a process of its own, and print the measurements as JSON."""
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    log = TransitionLog.load(path)
    opened = time.perf_counter()
    count = len(log)
    found = log.where(update=count // 2 // PER_STEP)
    where, busy = time.perf_counter(), time.process_time()
    counts = log.counts()
    durations = log.durations()
    stats, busy = time.perf_counter(), time.process_time() - busy
    assert len(found) == PER_STEP
    assert sum(counts.values()) == sum(stays.count for stays in durations.values()) == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    asked = {
        "open": opened - began,
        "where": where - opened,
        "stats": stats - where,
        "busy": busy,
        "imported": imported,
        "peak": peak,
    }
    print(json.dumps({**asked, "count": count}))


def asking(transitions: int, folder: Path) -> None:
    """Print what queries of a large file cost."""
    path = folder / "synthetic"
    took = write_synthetic(path, transitions)
    done = subprocess.run([sys.executable, __file__, "--ask", str(path)], capture_output=True, text=True, check=True)
    asked = json.loads(done.stdout)
    size = path.stat().st_size
    print(f"{asked['count']:,} transitions, written in {took:.1f} s, {size / asked['count']:.1f} bytes each (bound 60)")
    print(f"  open {asked['open'] * 1e3:.0f} ms; where(update=…) {asked['where'] * 1e3:.1f} ms (bound 50)")
    print(f"  counts() and durations() {asked['stats']:.2f} s (bound 5), {asked['busy']:.2f} s of processor time")
    print(f"  peak memory {asked['peak']:.0f} MB (bound 500), of which {asked['imported']:.0f} MB were there before")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the null step (default 7)")
    parser.add_argument("--steps", type=int, default=50_000, help="null steps a round (default 50,000)")
    parser.add_argument("--transitions", type=int, default=10_000_000, help="of the large file (default 10 million)")
    parser.add_argument("--folder", type=Path, help="folder of the files (default: that for temporary files)")
    parser.add_argument("--ask", metavar="FILE", help="only query this file (internal)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.ask:
        ask(asked.ask)
        return
    print(f"one pass of an empty for loop: {interpreter_speed():.0f} ns; torch {torch.__version__}, one thread")
    each = [in_memory(1_000_000) for _ in range(asked.rounds)]
    print(f"in memory: {statistics.median(each):.3f} µs a transition (bound 0.25)")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        journalling(asked.rounds, asked.steps, Path(folder))
        real_steps(asked.rounds, Path(folder))
        asking(asked.transitions, Path(folder))


if __name__ == "__main__":
    main()
