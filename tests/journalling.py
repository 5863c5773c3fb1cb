"""Processes that write a journal, for tests that kill them, read beside them or take their disk away.

Started as `python journalling.py WHAT ARGUMENTS…`. It imports torch once and forks what it needs.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import sqlite3
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch

from builders import STATES, batches, small_engine
from heptad import Plugin, Run, TransitionLog, on_enter
from heptad.errors import LogError
from heptad.history.journal.reader import FileSource
from heptad_plugins import Journal

SECOND = 1_000_000_000


class Reporter(Plugin):
    """Append every transition to a file as soon as it is made: its number, its arc, its time."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def report(self, run: Run) -> None:
        memory = run._buffer
        os.write(self.file, b"%d %d %d\n" % (memory.seq - 1, memory.arcs[-1], memory.times[-1]))


for _state in STATES:
    on_enter(_state)(Reporter.report)


class Pace(Plugin):
    """Make each step take a while, and one in a hundred a long while."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds, self.random = seconds, random.Random(seed)

    def on_exit_process_batch(self, run: Run) -> None:
        time.sleep(self.seconds * (100 if self.random.random() < 0.01 else 1))


def train(folder: Path, seed: int) -> None:
    """Train until it is killed: slowly, fast, or with a file that lacks at most 7 transitions."""
    flush_every = 7 if seed % 5 == 4 else None
    plugins: list[Plugin] = [Journal(folder / "run.journal", flush_every), Reporter(folder / "true path")]
    if seed % 5 != 3:
        plugins.append(Pace(0.001, seed))
    small_engine(batches(50), plugins, epochs=100_000, accumulation=1 + seed % 3).run()


def kill(folder: Path, seeds: int, together: int) -> None:
    """Train in that many processes, some at a time, and kill each at a moment drawn by its number."""
    small_engine(2).run()  # the first step of a process imports for seconds; those that are forked have it done
    for first in range(0, seeds, together):
        begun = {seed: begin(folder / str(seed), seed) for seed in range(first, min(first + together, seeds))}
        moments = sorted((random.Random(seed).uniform(0.05, 1.5), seed) for seed in begun)
        started = time.monotonic()
        for moment, seed in moments:
            time.sleep(max(0, started + moment - time.monotonic()))
            os.kill(begun[seed], signal.SIGKILL)
            now = time.monotonic_ns()
            os.waitpid(begun[seed], 0)
            (folder / str(seed) / "killed at").write_text(str(now))


def begin(folder: Path, seed: int) -> int:
    """Fork a process that trains, and wait until it has made its first transition."""
    folder.mkdir()
    child = os.fork()
    if not child:
        signal.alarm(30)  # in case the process that should kill it does not
        try:
            train(folder, seed)
        finally:
            os._exit(1)
    while not (folder / "true path").exists() or not (folder / "true path").stat().st_size:
        time.sleep(0.001)
    return child


def read(folder: Path, steps: int) -> None:
    """Train while another process reads the file in a loop, and a third keeps it open in one long transaction.

    Each epoch ends with a wait until the first of them has seen the file grow once more, however slow the machine is.
    """
    small_engine(2).run()
    path = folder / "run.journal"
    ready, grown, done = os.pipe(), os.pipe(), os.pipe()
    engine = small_engine(batches(steps), [Journal(path)], epochs=8)
    engine.on_enter("before_step", once=True)(lambda run: begin_readers())
    engine.on_exit("after_epoch")(lambda run: wait_for_growth())
    readers: list[int] = []

    def wait_for_growth() -> None:
        assert readable(grown[0], 60), "the reader has ended, or sees nothing"
        os.read(grown[0], 1)

    def begin_readers() -> None:
        for reader in (partial(loop, grown=grown[1]), hold):
            child = os.fork()
            if not child:
                code = 1
                try:
                    os.close(done[1])
                    reader(path, ready[1], done[0])
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            readers.append(child)
        assert os.read(ready[0], 1) + os.read(ready[0], 1) == b"rr"

    run = engine.run()
    os.close(done[1])
    codes = [os.waitpid(reader, 0)[1] for reader in readers]
    loops = json.loads((folder / "loops").read_text())
    log = TransitionLog.load(path)
    print(json.dumps({"codes": codes, **loops, "end": len(log), "same": list(log) == list(run.log)}))


def readable(pipe: int, seconds: float = 0) -> bool:
    """Return whether something can be read from a pipe, or its other end was closed."""
    return bool(select.select([pipe], [], [], seconds)[0])


def loop(path: Path, ready: int, done: int, grown: int) -> None:
    """Read the whole log again and again, on one connection and on new ones: each time a longer beginning."""
    kept = FileSource(path)
    os.write(ready, b"r")
    ends: list[int] = []
    while not readable(done) or not ends:
        for source in (kept, FileSource(path)):
            view = source.view()
            dest = None
            seqs: list[int] = []
            for transition in TransitionLog(source):
                assert dest is None or transition.source == dest, "a torn read"
                dest = transition.dest
                seqs.append(transition.seq)
            assert seqs == list(range(len(seqs)))
            assert len(seqs) >= view.end >= (ends[-1] if ends else 0)
            values = source.values()
            names = [value.name for value in values]  # one may have come without the other yet
            assert names.count("train/loss") - names.count("lr") in (0, 1)
            if not ends or view.end > ends[-1]:
                os.write(grown, b"g")
            ends.append(view.end)
    (path.parent / "loops").write_text(json.dumps({"loops": len(ends), "ends": len(set(ends))}))


def hold(path: Path, ready: int, done: int) -> None:
    """Keep the file open in SQL, in one transaction, until the run is over."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    before = connection.execute("SELECT count(*) FROM transitions").fetchone()
    os.write(ready, b"r")
    while not readable(done):
        time.sleep(0.01)
    assert connection.execute("SELECT count(*) FROM transitions").fetchone() == before


def full(folder: Path, on_error: Any) -> None:
    """Train until the file may not grow any more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    journal = Journal(folder / "run.journal", flush_every=50, on_error=on_error)
    engine = small_engine(batches(300), [journal], epochs=6)
    try:
        engine.run()
        error = ""
    except LogError as raised:
        error = str(raised)
    run = engine.current
    notes = [note.text for note in run.log.notes() if note.kind == "detach"]
    print(json.dumps({"error": error, "state": run.state, "path": run.log.path(), "notes": notes}))


def leave(folder: Path) -> None:
    """Make some turns and end without closing anything."""
    engine = small_engine(batches(5), [Journal(folder / "run.journal")])
    for _ in range(10):
        engine.advance()
    engine.current._buffer  # noqa: B018 - the engine is alive until here


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where, *rest = sys.argv[1:]
    numbers = [int(word) if word.isdigit() else word for word in rest]
    {"kill": kill, "read": read, "full": full, "leave": leave}[what](Path(where), *numbers)
