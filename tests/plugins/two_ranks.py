"""What `test_plugins_on_two_ranks` runs on each rank: its cases, and what came of them as a line of JSON."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from builders import Clock, small_engine
from heptad import Plugin, Run
from heptad_plugins import (
    CSVLogger,
    EarlyStopping,
    GracefulStop,
    ModelSummary,
    Profiler,
    Progress,
    TensorBoardLogger,
    Throughput,
    TimeLimit,
    TrainingMetrics,
)

RANK = int(os.environ["RANK"])


class Skips(Plugin):
    """Is called on the first rank only, and skips an update there."""

    observes = True
    ranks = "first"

    def on_enter_optimizer_update(self, run: Run) -> None:
        if run.update == 1:
            run.skip_update("here alone")


def limited(action: Any, second_a_step: float) -> Any:
    """Return an engine whose time is up after 2.5 s, of which each step takes so many."""
    limit = TimeLimit(2.5, action)
    clock = limit._watch.clock = Clock()
    engine = small_engine(16, [limit])
    engine.on_exit("process_batch")(lambda run: setattr(clock, "now", clock.now + second_a_step))
    return engine


def stopped_by_the_clock_of_rank_1() -> Any:
    engine = limited("stop", 1.0 if RANK else 0.1)
    run = engine.run()
    return [run.update, run.seq, run.reason]


def paused_by_the_clock_of_rank_1() -> Any:
    engine = limited("pause", 1.0 if RANK else 0.7)
    updates: list[int] = []
    while not engine.current.ended:
        updates.append(engine.run().update)
    return updates


def sigterm_on_rank_1() -> Any:
    engine = small_engine(16, [GracefulStop()])

    def kill(run: Run) -> None:
        if RANK == 1 and run.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    engine.on_exit("after_step")(kill)
    try:
        engine.run()
    except SystemExit as ended:
        return [ended.code, engine.current.update, engine.current.paused, engine.run().state]
    return None


def loggers(folder: Path) -> Any:
    out = io.StringIO()
    plugins = [
        *(CSVLogger(folder / "a.csv"), TensorBoardLogger(folder / "events"), Progress(file=out)),
        *(ModelSummary(file=out), Throughput(), TrainingMetrics(), EarlyStopping("train/epoch_loss", patience=9)),
        Profiler(folder / "trace.json", range(1, 2)),
    ]
    run = small_engine(6, plugins, epochs=2).run()
    found = run.metrics
    per_step = found["samples_per_second"] / found["steps_per_second"] if RANK == 0 else None
    return [run.seq, found["train/epoch_loss"], bool(out.getvalue()), per_step]


def steered_by_a_first_only_plugin() -> Any:
    try:
        small_engine(4, [Skips()]).run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = Path(sys.argv[1])
    results = {
        "stop": stopped_by_the_clock_of_rank_1(),
        "pause": paused_by_the_clock_of_rank_1(),
        "sigterm": sigterm_on_rank_1(),
        "loggers": loggers(given / "files"),
        "steered": steered_by_a_first_only_plugin(),  # last: it ends what the ranks have in common
    }
    (given / f"{RANK}.json").write_text(json.dumps(results))
