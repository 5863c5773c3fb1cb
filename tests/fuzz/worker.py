"""Trying inputs in forked processes, under limits that the kernel enforces.

One process tries many inputs, one after the other, and says before and after each what it does. If it dies, the input
at which it died has failed; another process continues with the next. After any failure it ends, since the input may
have left something behind.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import IO, NamedTuple

import torch

from fuzz.kinds import KINDS, Kind
from killing import MEMORY

SECONDS = 5
"""Of the processor, for one input."""

PATIENCE = 60
"""Seconds by the clock for one input, which a reader that waits for something never ends."""

MEGABYTES = 256
"""That one input may take beyond what the process had."""

DISK = 64
"""Megabytes that a file may grow to."""

TOGETHER = 200
"""Inputs that one process tries."""


class Case(NamedTuple):
    """An input: its kind, and the number that it is drawn by."""

    kind: str
    number: int

    @property
    def name(self) -> str:
        """The name, from which it can be made again: `journal-crafted-17`."""
        return f"{self.kind}-{self.number}"

    @classmethod
    def named(cls, name: str) -> Case:
        """Return the case of a name."""
        kind, _, number = name.rpartition("-")
        return cls(kind, int(number))


class Trial(NamedTuple):
    """What came of an input.

    Attributes:
        case: The input.
        outcome: `answered` or `refused`; `failed` for all else.
        text: Of a failure, the traceback, or what ended the process.
    """

    case: Case
    outcome: str
    text: str = ""


def try_all(cases: Sequence[Case], keep: Path, kinds: dict[str, Kind] = KINDS) -> Iterator[Trial]:
    """Try inputs and yield what comes of each; those that fail are kept.

    Args:
        cases: The inputs.
        keep: The folder in which each that fails is kept, under its name. What lies there already is tried as it is.
        kinds: How inputs of each kind are made and read.
    """
    for kind in {case.kind for case in cases}:
        kinds[kind].prepare()
    cases = list(cases)
    while cases:
        for trial in _in_process(cases[:TOGETHER], keep, kinds):
            cases.pop(0)
            yield trial


def _in_process(cases: Sequence[Case], keep: Path, kinds: dict[str, Kind]) -> Iterator[Trial]:
    """Try inputs in a forked process until one fails."""
    receive, send = os.pipe()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY) as name:
        child = os.fork()
        if child == 0:
            os.close(receive)
            with os.fdopen(send, "w", buffering=1) as report:
                _work(cases, Path(name), keep, kinds, report)
            os._exit(0)
        os.close(send)
        trials: list[Trial] = []
        with os.fdopen(receive) as lines:
            for case, line in zip(cases, lines, strict=False):
                trials.append(Trial(case, *json.loads(line)))
                yield trials[-1]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status and len(trials) < len(cases):
        trials.append(Trial(cases[len(trials)], "failed", _ended_by(status)))
        yield trials[-1]
    if trials[-1].outcome == "failed":
        _make(trials[-1].case, keep, kinds)


def _make(case: Case, folder: Path, kinds: dict[str, Kind]) -> Path:
    """Write an input into a folder under its name, unless it lies there; return where it is."""
    path = folder / case.name
    if not path.exists():
        path.mkdir(parents=True)
        kinds[case.kind].make(path, case.number, Random(f"make {case.name}"))
    return path


def _work(cases: Sequence[Case], folder: Path, keep: Path, kinds: dict[str, Kind], report: IO[str]) -> None:
    """Try inputs in this process, and report each in a line; end after the first that fails."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _limit_memory()
    for case in cases:
        _limit_time()
        outcome, text = _try(case, folder, keep, kinds)
        report.write(json.dumps([outcome, text]) + "\n")
        if outcome == "failed":
            return
        shutil.rmtree(folder / case.name)


def _try(case: Case, folder: Path, keep: Path, kinds: dict[str, Kind]) -> tuple[str, str]:
    """Return what comes of one input, and of a failure what happened."""
    before = _most_memory()
    try:
        if (keep / case.name).exists():
            _copy_tree(keep / case.name, folder / case.name)
        made = _make(case, folder, kinds)
        outcome = kinds[case.kind].ask(made, case.number, Random(f"ask {case.name}"))
    except BaseException:
        return "failed", traceback.format_exc()
    taken = _most_memory() - before
    if taken > MEGABYTES:
        return "failed", f"it took {taken} MB of memory, and {MEGABYTES} are allowed"
    return outcome, ""


def _copy_tree(source: Path, target: Path) -> None:
    """Copy an input that was kept: files, links and pipes."""

    def copy(path: str, to: str) -> None:
        if Path(path).is_fifo():
            os.mkfifo(to)
        else:
            shutil.copyfile(path, to)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


# -- limits


def _limit_memory() -> None:
    """Limit what this process may take, beyond what it has, and the size of what it writes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (4 * MEGABYTES << 20)  # of addresses: threads reserve more than they use
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK << 20, DISK << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time() -> None:
    """Begin the time of an input anew. Both signals end the process, whatever it does or waits for."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    for number in (signal.SIGXCPU, signal.SIGALRM, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(PATIENCE)


def _most_memory() -> int:
    """Return the most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _ended_by(status: int) -> str:
    """Return what ended a process, in words."""
    if status >= 0:
        return f"the process ended with status {status}"
    number = signal.Signals(-status)
    means = {
        signal.SIGXCPU: f": it took more than {SECONDS} s of the processor",
        signal.SIGALRM: f": it took more than {PATIENCE} s by the clock",
        signal.SIGXFSZ: f": it wrote more than {DISK} MB",
    }
    return f"the process was ended by {number.name}{means.get(number, '')}"
