"""Kills one rank at every one of its moments, starts all anew, and compares them with the run that nobody killed.

A moment is an end of a state or of its body, a place in forward or backward, an operation on a file of a checkpoint, or
an end of an exchange with the others. The rank gets SIGKILL; the others find out and end by themselves.

PYTHONPATH=tests python tests/ranks/kill_matrix_ranks.py            # `make kill-matrix-ranks`: ddp and fsdp on 2 ranks
PYTHONPATH=tests python tests/ranks/kill_matrix_ranks.py --every 10 # every tenth moment; on 3 ranks every hundredth
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any

from launching import Outcome, outcomes

from heptad import TransitionLog
from killing import KINDS_LEFT_OUT, MEMORY
from scenario import path_of

STRATEGIES = ("ddp", "fsdp")
BACKGROUND = " in the background"
"""Behind the name of a strategy: a thread of each rank writes."""

BEYOND = 10
"""On three ranks every tenth of the moments is taken, of those that are on two."""


def launched(
    folder: Path, name: str, world: int, strategy: str, killed: tuple[int, int] | None = None
) -> list[Outcome]:
    """Return what becomes of ranks; one of them, given with the number of a moment, is killed."""
    (folder / name).mkdir()
    own = {"BACKGROUND": "1"} if strategy.endswith(BACKGROUND) else {}
    variables = [{"STRATEGY": strategy.removesuffix(BACKGROUND), **own} for _ in range(world)]
    if killed is not None:
        variables[killed[0]]["KILLED_AT"] = str(killed[1])
    return outcomes("killed_cases", "live", world, folder / name, limit=60, variables=variables)


def ending(folder: Path, ranks: Sequence[Outcome]) -> dict[str, Any]:
    """Return what ranks that came to their end have, and their log, which all attempts have written."""
    for rank, one in enumerate(ranks):
        assert one.code == 0, f"rank {rank} returned {one.code}: {one.error}\n{one.output[-3000:]}"
    log = TransitionLog.load(folder / "run.journal")
    notes = [[note.seq, note.kind, note.text] for note in log.notes() if note.kind not in KINDS_LEFT_OUT]
    return {
        "ranks": [one.result for one in ranks],
        "log": {
            "path": path_of(log),
            "notes": notes,
            "values": [list(map(str, astuple(value))) for value in log.values()],
            "ranks": [list(log.ranks), log.missing, log.diff_ranks()],
        },
    }


@cache
def lived(world: int, strategy: str) -> dict[str, Any]:
    """Return what becomes of ranks that nobody kills."""
    with tempfile.TemporaryDirectory(prefix="lived-", dir=MEMORY) as name:
        return ending(Path(name), launched(Path(name), "lived", world, strategy))


def moments(world: int, strategy: str, rank: int) -> list[str]:
    """Return what the moments of a rank are."""
    return lived(world, strategy)["ranks"][rank]["labels"]


def drawn(world: int, strategy: str, kind: str) -> tuple[int, int]:
    """Return a rank and the number of a moment of it, drawn from those whose label holds a text."""
    found = [
        (rank, at) for rank in range(world) for at, label in enumerate(moments(world, strategy, rank)) if kind in label
    ]
    return random.Random(f"{world} {strategy} {kind}").choice(found)


def trial(world: int, strategy: str, rank: int, at: int) -> list[str]:
    """Kill a rank at a moment, start all anew; return in what they differ from those that lived."""
    with tempfile.TemporaryDirectory(prefix="killed-", dir=MEMORY) as name:
        folder = Path(name)
        killed = launched(folder, "killed", world, strategy, (rank, at))
        if killed[rank].code != -9:
            return [f"rank {rank} was not killed at moment {at}: {killed[rank].error}"]
        others = [one for number, one in enumerate(killed) if number != rank]
        found = [
            f"another rank returned {one.code} and raised {one.error}: {one.output[-3000:]}"
            for one in others
            if not has_noticed(one)
        ]
        again = ending(folder, launched(folder, "again", world, strategy))
        return found + differences(lived(world, strategy), again)


def verdict(world: int, strategy: str, rank: int, at: int) -> list[str]:
    """Return what is wrong after a trial, and go on: ranks that hang or fail are one more line."""
    try:
        return trial(world, strategy, rank, at)
    except AssertionError as error:
        return [str(error)]


def has_noticed(one: Outcome) -> bool:
    """Return whether a rank ended because another was gone, or had no more to do."""
    return one.code == 0 if one.error is None else one.error.startswith("RankFailed: ")


def differences(lived: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """Return in what ranks that were started anew differ from those that lived."""
    found = [
        f"the {name} of rank {rank}"
        for rank, (one, other) in enumerate(zip(lived["ranks"], again["ranks"], strict=True))
        for name, digest in one["outcome"].items()
        if other["outcome"][name] != digest
    ]
    return found + [f"the {name} of the log" for name, rows in lived["log"].items() if again["log"][name] != rows]


def main(given: Sequence[str] | None = None) -> int:
    """Return 0 if none differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take each n-th moment of a rank (default: all)")
    parser.add_argument("--strategy", choices=STRATEGIES, nargs=1, help="one of them (default: both)")
    parser.add_argument("--background", action="store_true", help="write the checkpoints in the background")
    parser.add_argument("--world", type=int, choices=(2, 3), help="so many ranks (default: 2, and some on 3)")
    asked = parser.parse_args(given)
    wrong, kills, began = 0, 0, time.monotonic()
    for world in (asked.world,) if asked.world else (2, 3):
        for strategy in [f"{one}{BACKGROUND if asked.background else ''}" for one in asked.strategy or STRATEGIES]:
            for rank in range(world):
                labels = moments(world, strategy, rank)
                for at in range(0, len(labels), asked.every * (BEYOND if world == 3 else 1)):
                    kills += 1
                    if found := verdict(world, strategy, rank, at):
                        wrong += 1
                        print(f"{strategy}, rank {rank} of {world}, moment {at}, {labels[at]}: {found}", flush=True)
            print(f"{strategy} on {world} ranks: {kills} killed and begun anew so far, {wrong} differ", flush=True)
    print(f"{kills - wrong} of {kills}: a rank was killed, and the ranks begun anew are equal to those that were not")
    print(f"in {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
