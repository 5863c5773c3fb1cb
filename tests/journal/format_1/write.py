"""Wrote the journals in this folder, with the version of Heptad before format 2, and what that version read in them.

Kept to say what they hold; its API is the old one. `python write.py FOLDER`.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from heptad.log.reader import FileSource
from torch import nn

from heptad import Components, Engine, Plugin, Run, RunConfig, TransitionLog
from heptad_plugins import Checkpoint, Evaluate, Journal


class Watch(Plugin):
    """Is detached in the eighth step."""

    on_error = "detach"

    def on_exit_process_batch(self, run: Run) -> None:
        if run.step == 7:
            raise ValueError("the watch broke")


class Odd(Plugin):
    """Leaves a mark of every kind."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken

    def on_enter_optimizer_update(self, run: Run) -> None:
        if run.update == 1:
            run.skip_update("the second is skipped")

    def on_exit_after_step(self, run: Run) -> None:
        if run.step == 2:
            run.note("caf\udce9 \u6f22")
        if run.step == 5:
            run.interrupt("by hand")
        if run.step == 9 and self.broken:
            raise ValueError("caf\udce9 \u6f22")

    def on_exit_after_epoch(self, run: Run) -> None:
        run.note(f"epoch {run.epoch} is over")
        run.record("nan", float("nan"))
        run.record("minus zero", -0.0)
        if run.epoch == 1:
            run.set_accumulation(2)
        if run.epoch == 2:
            run.stop("enough")


def build(name: str, broken: bool) -> Engine:
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    data = [(torch.randn(2, 4), torch.randint(0, 3, (2,))) for _ in range(4)]
    parts = Components(
        network=network,
        loader=data,
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    )
    plugins = [Watch(), Odd(broken), Evaluate(data), Checkpoint(f"{name}.checkpoints", at="after_epoch"), Journal(name)]
    return Engine(parts, RunConfig(epochs=5, accumulation=3, trace_handlers=True), plugins)


def drive(engine: Engine) -> None:
    with suppress(ValueError):  # of Odd
        while not engine.current.ended:
            engine.run(resume="auto" if engine.current.state == "idle" else None)


def read(name: str) -> dict[str, Any]:
    """Return all that a journal holds."""
    log, source = TransitionLog.load(name), FileSource(name)
    failure = source.failure
    return {
        "run": source.run,
        "path": log.path(),
        "transitions": [
            [
                t.seq,
                t.time_ns,
                t.duration_ns,
                t.source,
                t.dest,
                dict(t.guards),
                t.epoch,
                t.batch_index,
                t.step,
                t.update,
            ]
            for t in log
        ],
        "values": [[v.name, v.value.hex(), v.seq, v.epoch, v.step, v.update] for v in source.values()],
        "calls": [[c.seq, c.who, c.edge, c.state, c.time_ns, c.duration_ns] for c in source.calls(0, len(log))],
        "notes": [[n.seq, n.kind, n.text, n.time_ns] for n in log.notes()],
        "windows": [list(window) for window in source.windows],
        "stops": list(source.stops),
        "facts": dict(source.facts),
        "failure": failure
        and [
            *(failure.seq, failure.state, failure.edge, failure.who, failure.guard, failure.error),
            list(failure.counters),
            failure.guards,
        ],
    }


def main(folder: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    platform.node = lambda: "host"
    drive(build("finished.journal", broken=False))
    for _ in range(2):
        drive(build("failed.journal", broken=True))
    for name in ("finished", "failed"):
        connection = sqlite3.connect(f"{name}.journal")  # the path of a folder on the machine
        connection.execute("UPDATE session SET resumed_from = 'checkpoint' WHERE resumed_from IS NOT NULL")
        connection.commit()
        connection.execute("VACUUM")
        connection.close()
        text = json.dumps(read(f"{name}.journal"), separators=(",", ":"))
        Path(f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
