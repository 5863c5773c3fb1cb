"""Kills runs at random times, again and again, and compares each with the run that nobody killed.

Where `kill_matrix.py` counts moments, this one takes the clock: a process is killed by SIGKILL some microseconds after
it began to start up, to load a checkpoint, to write one, to remove old ones, to open its journal, or at any time.

python tests/chains.py                     # 20 chains for each configuration, some ten minutes; `make chains`
python tests/chains.py --chains 1 --seed 7 # one chain each, the seventh
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from heptad.checkpoints.store import Store
from heptad.history.journal.file import JournalFile
from killing import MEMORY, differences, in_child, live

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "best kept": {"keep": {"keep_last": 2, "keep_best": 1, "monitor": "valid/loss"}},
    "stream": {"feed": "stream"},
    "loader": {"feed": "loader"},
    "workers": {"feed": "workers"},
    "flush": {"remainder": "flush"},
    "carry": {"remainder": "carry"},
    "again": {"again": True},
    "odd": {"odd": True},
    "closure": {"closure": True, "schedule": False},
}
"""Runs of the scenario, each with a journal."""

KILLS = 8
"""Kills of one chain; the process after the last of them lives."""

AIMS: dict[str, tuple[str, float]] = {
    "start-up": ("s", 0.02),
    "load": ("l", 0.01),
    "writing": ("w", 0.004),
    "rotation": ("r", 0.002),
    "journal": ("j", 0.005),
    "any time": ("s", 0.4),
}
"""After which announcement a process is killed, and within how many seconds."""


class Kill(NamedTuple):
    """A kill: what it is aimed at, how many announcements of that are waited for, and seconds after the last."""

    aim: str
    count: int
    delay: float

    @classmethod
    def drawn(cls, draw: random.Random) -> Kill:
        """Return a kill that was drawn; loading and starting happen once in a process, the rest often."""
        aim = draw.choice([*AIMS])
        often = aim in ("writing", "rotation")
        return cls(aim, draw.randint(1, 12) if often else 1, draw.uniform(0, AIMS[aim][1]))


def announcing(pipe: int, work: Callable[[], Any]) -> Any:
    """Call a function in this process, the child, and write a letter to a pipe as each part begins.

    The methods are replaced for good: the process is to be killed, or ends by itself.
    """

    def announced(letter: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            os.write(pipe, letter.encode())
            return method(*args, **kwargs)

        return call

    Store.load = announced("l", Store.load)  # type: ignore[method-assign]
    Store.save = announced("w", Store.save)  # type: ignore[method-assign]
    Store.rotate = announced("r", Store.rotate)  # type: ignore[method-assign]
    JournalFile.record = announced("j", JournalFile.record)  # type: ignore[method-assign]
    os.write(pipe, b"s")
    return work()


def strike(kill: Kill, pipe: int, child: int) -> None:
    """Kill a child when it is time; leave it alone if it ends before."""
    letter, _ = AIMS[kill.aim]
    ended = os.pidfd_open(child)
    left = kill.count
    try:
        while left:
            ready, _, _ = select.select([pipe, ended], [], [])
            if pipe not in ready:
                return
            left -= min(left, os.read(pipe, 1).count(letter.encode()))
        time.sleep(kill.delay)
        os.kill(child, signal.SIGKILL)  # a zombie if it has ended by itself
    finally:
        os.close(ended)


def lived(options: dict[str, Any]) -> Any:
    """Return what becomes of a run that nobody kills."""
    with tempfile.TemporaryDirectory(prefix="lived-", dir=MEMORY) as name:
        return in_child(lambda: live(Path(name) / "checkpoints", None, None, journal=True, **options))


def chain(seed: str, whole: Any, options: dict[str, Any], kills: int = KILLS) -> tuple[list[str], Counter[str]]:
    """Kill a run several times and let it end; return in what it differs, and how many kills hit what.

    Args:
        seed: What the kills are drawn by.
        whole: What became of the run that nobody killed.
        options: The configuration.
        kills: How many there are at most: a run that ends before its kill is compared then.
    """
    draw = random.Random(seed)
    hit: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="chain-", dir=MEMORY) as name:
        work = partial(live, Path(name) / "checkpoints", None, "auto", journal=True, **options)
        ended = None
        for _ in range(kills):
            kill = Kill.drawn(draw)
            receive, send = os.pipe()
            try:
                ended = in_child(lambda send=send: announcing(send, work), partial(strike, kill, receive))
            finally:
                os.close(receive)
                os.close(send)
            if ended is not None:
                break
            hit[kill.aim] += 1
        ended = ended or in_child(work)
    return differences(whole, ended, journal=True), hit


def main() -> int:
    """Return 0 if no chain ended as another run than the one that nobody killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=20, help="of each configuration (20)")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first chain (0)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong, total = 0, Counter[str]()
    for configuration, options in CONFIGURATIONS.items():
        whole = lived(options)
        for number in range(asked.seed, asked.seed + asked.chains):
            found, hit = chain(f"{configuration} {number}", whole, options)
            total += hit
            if found:
                wrong += 1
                print(f"{configuration}, chain {number}: {', '.join(found)} differ", flush=True)
        print(f"{configuration}: {asked.chains} chains", flush=True)
    kills = ", ".join(f"{count} at {aim}" for aim, count in total.items())
    print(f"{total.total()} kills ({kills}); {wrong} chains differ from the run that nobody killed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
