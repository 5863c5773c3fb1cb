"""A process that has imported torch and the engine, and forks ranks: a launch costs 0.1 s in place of 3 s a rank.

Reads one order a line, each a module, the name of a function in it, the environment of every rank, a folder and a
limit; writes the ids of the ranks, then a line for each that has ended. It ends when its input does.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from rank_program import run_alone

import heptad.ranks.ddp  # imported here, once, for all ranks
import heptad.ranks.fsdp  # noqa: F401 - as above
import heptad_plugins  # noqa: F401 - as above
from builders import small_engine


def say(told: object) -> None:
    print(json.dumps(told), flush=True)


def become(environment: dict[str, str], folder: Path) -> None:
    """Make this forked process a rank; where nobody ends it, the alarm does."""
    os.environ.update(environment)
    signal.alarm(int(environment["LIMIT"]) + 10)
    for number, name, how in ((0, os.devnull, "r"), (1, str(folder / f"{environment['RANK']}.output"), "a")):
        with open(name, how) as file:  # noqa: PTH123 - also the null device
            os.dup2(file.fileno(), number)
    os.dup2(1, 2)


def carry_out(order: dict[str, Any]) -> None:
    """Fork the ranks, and tell how each has ended; an order of a module alone imports that for later ones."""
    module = import_module(order["module"])
    if "function" not in order:
        return
    case = getattr(module, order["function"])
    folder = Path(order["folder"])
    living: dict[int, int] = {}
    for rank, environment in enumerate(order["ranks"]):
        child = os.fork()
        if child == 0:
            become(environment, folder)
            run_alone(case, folder)
            sys.exit()
        living[child] = rank
    say(list(living))
    while living:
        child, status = os.wait()
        say({"rank": living.pop(child), "code": os.waitstatus_to_exitcode(status), "at": time.monotonic()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    small_engine(1).run()  # torch imports more in its first step
    gc.collect()
    gc.freeze()  # a rank that ends would look at all that torch has imported: a second of its own for each
    for line in sys.stdin:
        carry_out(json.loads(line))
