"""Cases that try the harness itself, against plain torch.distributed."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist
from rank_program import Case, Rank


def joined() -> None:
    """Join the others, once a process."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def adds(rank: Rank) -> float:
    joined()
    number = torch.tensor(float(rank.number + 1))
    dist.all_reduce(number)
    return number.item()


def raises_on_one(rank: Rank) -> str:
    if rank.number == 1:
        raise ValueError("only here")
    return "well"


def adds_again(rank: Rank) -> float:
    return adds(rank)


CASES: dict[str, Case] = {case.__name__: case for case in (adds, raises_on_one, adds_again)}


def dies(rank: Rank) -> None:
    adds(rank)
    if rank.number == 1:
        rank.fault()
        os.kill(os.getpid(), signal.SIGKILL)
    adds(rank)


def stops(rank: Rank) -> str:
    adds(rank)
    if rank.number == 1:
        rank.fault()
        os.kill(os.getpid(), signal.SIGSTOP)
    return "well"


def waits(rank: Rank) -> None:
    if rank.number == 1:
        time.sleep(60)
