"""A launch of which one rank hangs in its second case."""

from __future__ import annotations

import time

from rank_program import Case, Rank


def ends(rank: Rank) -> int:
    return rank.number


def hangs(rank: Rank) -> None:
    if rank.number == 1:
        time.sleep(100)


CASES: dict[str, Case] = {"ends": ends, "hangs": hangs}
