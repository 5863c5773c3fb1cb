"""What runs on a rank: the cases of a module one after another, each with what it returned or raised.

Torchrun starts this file, see `launching.launch`; the parent of `launching.outcomes` calls `run_alone`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rank:
    """This process, as a case sees it.

    Attributes:
        number: The rank.
        world: How many there are.
        folder: Where all of them may write; empty at first.
    """

    number: int
    world: int
    folder: Path

    def fault(self) -> None:
        """Note that something goes wrong now: the seconds of the outcomes count from here."""
        (self.folder / "fault").write_text(str(time.monotonic()))


Case = Callable[[Rank], Any]
"""Returns what JSON can hold."""


def this_rank(folder: Path) -> Rank:
    """Return this process, which writes its stacks into the folder when it gets SIGUSR1."""
    rank = Rank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), folder)
    faulthandler.register(signal.SIGUSR1, (folder / f"{rank.number}.stacks").open("w"), all_threads=True)
    (folder / f"{rank.number}.pid").write_text(str(os.getpid()))
    return rank


def run_cases(module: str, folder: Path) -> None:
    """Run all cases of a module; a line of JSON for each, so that those before a hang are not lost."""
    import torch

    torch.set_num_threads(1)
    run_on(this_rank(folder), import_module(module).CASES)


def run_forked(rank: Rank) -> None:
    """Run all cases of the module that the environment names, in ranks that a warm parent has forked."""
    run_on(rank, import_module(os.environ["CASES"]).CASES)


def run_on(rank: Rank, cases: Any) -> None:
    """Run cases on a rank: by name, or by the number of ranks and name."""
    import torch

    folder, cases = rank.folder, cases.get(rank.world, cases)
    with (folder / f"{rank.number}.results").open("w", buffering=1) as file:
        for name, case in cases.items():
            torch.manual_seed(0)
            (rank.folder / f"{rank.number}.at").write_text(name)
            try:
                told = {"result": case(rank)}
            except Exception:
                told = {"failed": traceback.format_exc()}
            file.write(json.dumps({"case": name, **told}) + "\n")


def run_alone(case: Case, folder: Path) -> None:
    """Run one case that may end this process; note what it returned or raised, and when, and raise it on."""
    rank = this_rank(folder)
    told: dict[str, Any] = {}
    try:
        told["result"] = case(rank)
    except BaseException as error:
        told["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        told |= {"at": time.monotonic(), "starved": starved()}
        (folder / f"{rank.number}.told").write_text(json.dumps(told))


def starved() -> float:
    """Return for how many seconds threads of this process could have run and had no processor; 0 where unknown."""
    rows = [path.read_text().split() for path in Path("/proc/self/task").glob("*/schedstat")]
    return sum(int(row[1]) for row in rows) / 1e9


if __name__ == "__main__":
    run_cases(sys.argv[1], Path(sys.argv[2]))
