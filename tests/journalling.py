"""Processes that write a journal, for tests that kill them, read beside them or take their disk away.

Started as `python journalling.py WHAT ARGUMENTS…`. It imports torch once and forks what it needs. Whatever becomes of
the one that started it, each process ends by itself: it has an alarm, which the system answers by ending it, and what
trains until it is killed looks in each turn whether its parent is still there.
"""

from __future__ import annotations

import heapq
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
from pathlib import Path
from typing import Any

import torch

from builders import STATES, batches, small_engine
from heptad import Plugin, Run, TransitionLog, on_enter
from heptad.errors import LogError
from heptad.log.reader import FileSource
from heptad_plugins import Journal

LONGEST = 100
"""Seconds after which a process is ended, 20 for one that was forked: several times what it needs on a busy machine."""
LONGEST_FORKED = 20


class Reporter(Plugin):
    """Appends every transition to a file as soon as it is made: its number, its arc, its time. Ends with its parent."""

    def __init__(self, path: Path, parent: int) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.parent = parent

    def report(self, run: Run) -> None:
        if os.getppid() != self.parent:
            os._exit(1)
        memory = run.memory
        os.write(self.file, b"%d %d %d\n" % (memory.seq - 1, memory.arcs[-1], memory.times[-1]))


for _state in STATES:
    on_enter(_state)(Reporter.report)


class Pace(Plugin):
    """Lets a step take a while, now and then a long while."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds, self.random = seconds, random.Random(seed)

    def on_exit_process_batch(self, run: Run) -> None:
        time.sleep(self.seconds * (100 if self.random.random() < 0.01 else 1))


def train(folder: Path, seed: int, parent: int) -> None:
    """Trains until it is killed: slowly, fast, or with a file that lacks at most 7 transitions."""
    flush_every = 7 if seed % 5 == 4 else None
    plugins: list[Plugin] = [Journal(folder / "run.journal", flush_every), Reporter(folder / "true path", parent)]
    if seed % 5 != 3:
        plugins.append(Pace(0.001, seed))
    small_engine(batches(50), plugins, epochs=2000, accumulation=1 + seed % 3).run()


def kill(folder: Path, seeds: int, together: int) -> None:
    """Trains in that many processes, some at a time, and kills each at a moment drawn by its number."""
    small_engine(2).run()  # the first step of a process imports for seconds; those that are forked have it done
    living: list[tuple[float, int, int]] = []
    for seed in range(seeds):
        if len(living) == together:
            kill_next(folder, living)
        child = begin(folder / str(seed), seed)
        heapq.heappush(living, (time.monotonic() + random.Random(seed).uniform(0, 1.8), seed, child))
    while living:
        kill_next(folder, living)


def kill_next(folder: Path, living: list[tuple[float, int, int]]) -> None:
    """Waits for the moment of the process whose turn is next, and kills it."""
    moment, seed, child = heapq.heappop(living)
    time.sleep(max(0, moment - time.monotonic()))
    os.kill(child, signal.SIGKILL)
    now = time.monotonic_ns()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"run {seed} had ended before it was killed"
    assert os.WTERMSIG(status) == signal.SIGKILL
    (folder / str(seed) / "killed at").write_text(str(now))


def begin(folder: Path, seed: int) -> int:
    """Forks a process that trains, and waits until it has made its first transition."""
    folder.mkdir()
    parent = os.getpid()
    child = os.fork()
    if not child:
        signal.alarm(LONGEST_FORKED)
        try:
            train(folder, seed, parent)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    report = folder / "true path"
    while not report.exists() or not report.stat().st_size:
        assert not os.waitpid(child, os.WNOHANG)[0], f"run {seed} ended at its beginning"
        time.sleep(0.001)
    return child


def read(folder: Path, steps: int) -> None:
    """Trains while another process reads the file in a loop, and a third has it open in one long transaction."""
    small_engine(2).run()
    path = folder / "run.journal"
    ready, done = os.pipe(), os.pipe()
    engine = small_engine(batches(steps), [Journal(path)], epochs=4)
    engine.on_enter("before_step", once=True)(lambda run: begin_readers())
    readers: list[int] = []

    def begin_readers() -> None:
        for reader in (loop, hold):
            child = os.fork()
            if not child:
                signal.alarm(LONGEST_FORKED * 2)
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


def finished(done: int) -> bool:
    """Tells whether the other end of a pipe was closed."""
    return bool(select.select([done], [], [], 0)[0])


def loop(path: Path, ready: int, done: int) -> None:
    """Reads all over and over, on one connection and on new ones; each time the log is a longer beginning."""
    kept = FileSource(path)
    os.write(ready, b"r")
    ends: list[int] = []
    while not finished(done) or not ends:
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
            assert names.count("loss") - names.count("lr") in (0, 1)
            ends.append(view.end)
    (path.parent / "loops").write_text(json.dumps({"loops": len(ends), "ends": len(set(ends))}))


def hold(path: Path, ready: int, done: int) -> None:
    """Has the file open in SQL, in one transaction, until the run is over."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    before = connection.execute("SELECT count(*) FROM transitions").fetchone()
    os.write(ready, b"r")
    while not finished(done):
        time.sleep(0.01)
    assert connection.execute("SELECT count(*) FROM transitions").fetchone() == before


def full(folder: Path) -> None:
    """Trains until a file may not grow any more, once with each answer to that."""
    small_engine(2).run()
    for on_error in ("raise", "detach"):
        child = os.fork()
        if not child:
            signal.alarm(LONGEST_FORKED * 2)
            try:
                told = without_room(folder / f"{on_error}.journal", on_error)
                (folder / f"{on_error}.json").write_text(json.dumps(told))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def without_room(path: Path, on_error: Any) -> dict[str, Any]:
    """Returns how a run ended, and what it said, whose journal may not grow beyond 600 kB."""
    engine = small_engine(batches(500), [Journal(path, on_error=on_error)], epochs=6)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    error = ""
    try:
        engine.run()
    except LogError as raised:
        error = str(raised)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run = engine.current
    notes = [note.text for note in run.log.notes() if note.kind == "detach"]
    return {"error": error, "state": run.state, "path": run.log.path(), "notes": notes}


def leave(folder: Path) -> None:
    """Makes some turns and ends without closing anything."""
    engine = small_engine(batches(5), [Journal(folder / "run.journal")])
    for _ in range(10):
        engine.advance()
    engine.current.memory  # noqa: B018 - the engine is alive until here


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.alarm(LONGEST)
    what, where, *rest = sys.argv[1:]
    numbers = [int(word) if word.isdigit() else word for word in rest]
    {"kill": kill, "read": read, "full": full, "leave": leave}[what](Path(where), *numbers)
