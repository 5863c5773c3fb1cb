"""Starting ranks: all cases of a file in one launch of torchrun, or one case that fails in processes of its own.

Groups belong to the process, so cases that go well run one after another on the same ranks: `launch`. A case that ends
a rank, stops it, or makes it fail needs fresh ones: `outcomes`, which forks them from a parent that is warm.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed

from programs import environment

HERE = Path(__file__).parent
STARTING = 60
"""Seconds that ranks may take until they run their first case."""


def rank_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process with ranks in it, which finds the modules of this folder too."""
    given = environment(OMP_NUM_THREADS="1", **variables)
    given["PYTHONPATH"] = os.pathsep.join([str(HERE), given["PYTHONPATH"]])
    return {name: value for name, value in given.items() if name not in ("RANK", "WORLD_SIZE")}


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def torchrun(world: int, *arguments: str, **options: Any) -> list[str]:
    """Return the command that starts a script on several ranks of this machine; options as `max_restarts=3`."""
    named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    meeting = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", *meeting, *named, *arguments]


# -- cases that go well


class Launch:
    """What the cases of one launch have given.

    Args:
        folder: What the ranks have written.
        world: How many they are.
        ended: How the launch ended, in words, with what it printed and, after a hang, the stacks of the ranks.
    """

    def __init__(self, folder: Path, world: int, ended: str) -> None:
        self.folder, self.world, self._ended = folder, world, ended
        self._told = [self._read(rank) for rank in range(world)]

    def of(self, case: str) -> list[Any]:
        """Return what a case returned, by rank.

        Raises:
            AssertionError: If it raised on a rank, with the tracebacks; or if it never came to its end.
        """
        told = [rows.get(case) for rows in self._told]
        failed = [f"rank {rank}: {row['failed']}" for rank, row in enumerate(told) if row and "failed" in row]
        assert not failed, "\n".join(failed)
        missing = [rank for rank, row in enumerate(told) if row is None]
        assert not missing, f"{case} did not end on ranks {missing}: {self._ended}"
        return [row["result"] for row in told if row is not None]

    def _read(self, rank: int) -> dict[str, Any]:
        rows = [json.loads(line) for line in read(self.folder / f"{rank}.results").splitlines()]
        return {row["case"]: row for row in rows}


def launch(module: str, world: int, folder: Path, *, limit: float = 30) -> Launch:
    """Run all `CASES` of a module, once, on ranks that torchrun starts.

    Args:
        module: Its name; it lies in this folder.
        world: How many ranks.
        folder: An empty one, for what they write.
        limit: Seconds a case may take, after which all ranks are ended.
    """
    output = folder / "output"
    command = torchrun(world, str(HERE / "rank_program.py"), module, str(folder))
    with output.open("w") as file:
        started = subprocess.Popen(command, env=rank_environment(), stdout=file, stderr=file, start_new_session=True)
        try:
            hung = watch(started, folder, world, limit)
        finally:
            if started.poll() is None:
                end([int(read(folder / f"{rank}.pid") or 0) for rank in range(world)])
                started.terminate()  # it reaps the ranks
                started.wait(40)
    ended = hung or f"torchrun returned {started.returncode}"
    return Launch(folder, world, f"{ended}\n{read(output)[-4000:]}")


def launch_warm(module: str, world: int, folder: Path, *, limit: float = 60) -> Launch:
    """Run all `CASES` of a module, once, on ranks that the warm parent forks: that costs 0.1 s in place of 3 s a rank.

    Args:
        module: Its name; its cases are by name, or by the number of ranks and name. It is imported in the parent.
        world: How many ranks.
        folder: A new one, for what they write.
        limit: Seconds they may all take, after which they are ended.
    """
    folder.mkdir(exist_ok=True)
    warm_parent().order({"module": module})
    try:
        ends = outcomes("rank_program", "run_forked", world, folder, limit=limit, variables=[{"CASES": module}] * world)
        ended = "\n".join(f"rank {rank} returned {end.code}\n{end.output[-3000:]}" for rank, end in enumerate(ends))
    except AssertionError as error:
        ended = str(error)
    return Launch(folder, world, ended)


def watch(started: subprocess.Popen[bytes], folder: Path, world: int, limit: float) -> str:
    """Wait for the end of a launch, which is "", or until a case takes too long: then return the stacks."""
    places, since = [""] * world, time.monotonic() + STARTING
    while started.poll() is None:
        time.sleep(0.05)
        now = [read(folder / f"{rank}.at") for rank in range(world)]
        if now != places:
            places, since = now, time.monotonic()
        elif time.monotonic() > since + limit:
            return f"ended, as it took more than {limit} s\n{stacks_of(folder, world)}"
    return ""


def stacks_of(folder: Path, world: int) -> str:
    """Return where each living rank is, with the case that it runs."""
    for rank in range(world):
        if pid := int(read(folder / f"{rank}.pid") or 0):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
    time.sleep(0.5)
    return "\n".join(
        f"rank {rank}, {read(folder / f'{rank}.at')}:\n{read(folder / f'{rank}.stacks')}" for rank in range(world)
    )


def end(pids: Sequence[int]) -> None:
    """End processes that were started here, whatever they do."""
    for pid in pids:
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def read(path: Path) -> str:
    """Return what a file holds; nothing where it is not there yet, or a process that it is of is no more."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


# -- cases that fail


@dataclass(frozen=True)
class Outcome:
    """What became of a rank.

    Attributes:
        code: Its exit code; -9 of one that was killed.
        error: What the case raised, with its class; `None` where it raised nothing or was killed.
        result: What the case returned.
        seconds: From the fault to the end of the case, of one that was killed to its death; `None` without a fault.
        starved: Seconds for which it could have run and had no processor, on a machine that does other things too.
        output: What it printed.
    """

    code: int
    error: str | None
    result: Any
    seconds: float | None
    starved: float
    output: str


class WarmParent:
    """The process that forks ranks; started once for all tests of this process, ended with it."""

    def __init__(self) -> None:
        command = [sys.executable, str(HERE / "warm_parent.py")]
        self._process = subprocess.Popen(
            command, env=rank_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        atexit.register(self.close)

    def order(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def answer(self, within: float) -> Any:
        """Return its next line; `None` where none came in time."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(within, 0))[0]:
            return None
        line = self._process.stdout.readline()
        assert line, "the parent of the ranks has ended; what it printed says why"
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@cache
def warm_parent() -> WarmParent:
    return WarmParent()


def outcomes(
    module: str,
    function: str,
    world: int,
    folder: Path,
    *,
    limit: float = 20,
    meanwhile: Callable[[Sequence[int]], object] | None = None,
    variables: Sequence[dict[str, str]] | None = None,
    hanging: Collection[int] = (),
) -> list[Outcome]:
    """Return what becomes of ranks that each run one function, by rank.

    A rank that has stopped itself is ended once all others have.

    Args:
        module: Where the function is.
        function: Its name.
        world: How many ranks.
        folder: An empty one, for what they write.
        limit: Seconds after which those that are left are ended.
        meanwhile: Called here with the ids of the ranks' processes, when all of them are started.
        variables: What the environment of each rank has beside.
        hanging: Ranks that never end by themselves, and are ended once all others have, as by torchrun.

    Raises:
        AssertionError: If a rank had to be ended, with its stacks.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    own = variables or [{}] * world
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world)}
    # as under torchrun: the store outlives the ranks
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "LIMIT": str(int(limit))}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **own[rank]} for rank in range(world)]
    parent = warm_parent()
    parent.order({"module": module, "function": function, "ranks": ranks, "folder": str(folder)})
    pids = parent.answer(60)
    until = time.monotonic() + limit
    ends: dict[int, dict[str, Any]] = {}
    hung = ""
    try:
        if meanwhile is not None:
            meanwhile(pids)
        while len(ends) < world:
            if (row := parent.answer(0.1)) is not None:
                ends[row["rank"]] = row
                continue
            left = [rank for rank in range(world) if rank not in ends]
            if all(rank in hanging or is_stopped(pids[rank]) for rank in left):
                end([pids[rank] for rank in left])
            elif not hung and time.monotonic() > until:
                hung = stacks_of(folder, world)
                end([pids[rank] for rank in left])
    finally:
        for _ in range(world - len(ends)):  # where `meanwhile` has raised
            end([pid for rank, pid in enumerate(pids) if rank not in ends])
            row = parent.answer(60)
            ends[row["rank"]] = row
    assert not hung, f"the ranks had not ended after {limit} s:\n{hung}"
    return [outcome_of(folder, rank, ends[rank]) for rank in range(world)]


def outcome_of(folder: Path, rank: int, ended: dict[str, Any]) -> Outcome:
    told = json.loads(read(folder / f"{rank}.told") or "{}")
    fault = read(folder / "fault")
    seconds = told.get("at", ended["at"]) - float(fault) if fault else None
    output = read(folder / f"{rank}.output")
    return Outcome(ended["code"], told.get("error"), told.get("result"), seconds, told.get("starved", 0.0), output)


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal."""
    return read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[:1] == ["T"]
