"""`compare_ranks`: whether the ranks were started as one run, asked before any of them waits for another in vain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from heptad.config import short
from heptad.errors import RankFailed
from heptad.run.peers import Peers

_MOST_NAMED = 10


def compare_ranks(peers: Peers, facts: Mapping[str, Any]) -> None:
    """Compare facts over the ranks: one exchange.

    Args:
        peers: The ranks.
        facts: Plain data by what they are called.

    Raises:
        RankFailed: With what differs and on which rank; the same on all ranks.
    """
    told: list[Any] = [json.loads(text) for text in peers.gather(json.dumps(facts, default=str).encode())]
    found = [
        line for rank, other in enumerate(told[1:], 1) for line in differences(told[0], other, f"on rank {rank}", "")
    ]
    if found:
        more = f"; and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise RankFailed(
            f"the ranks differ: {'; '.join(found[:_MOST_NAMED])}{more}. All ranks run the same script with the same "
            "data, plugins and versions"
        )


def differences(first: object, other: object, where: str, name: str) -> list[str]:
    """Return in which parts two values differ, in words."""
    if first == other:
        return []
    shown = f"{name} is {short(first)} on rank 0 and {short(other)} {where}"
    if isinstance(first, dict) and isinstance(other, dict):
        one, two = cast("dict[str, Any]", first), cast("dict[str, Any]", other)
        return [
            line
            for key in [*one, *(key for key in two if key not in one)]
            for line in differences(one.get(key), two.get(key), where, f"{name}.{key}" if name else key)
        ]
    if isinstance(first, list) and isinstance(other, list):
        one, two = cast("list[Any]", first), cast("list[Any]", other)
        if len(one) != len(two):
            odd = [row for row in one if row not in two] or [row for row in two if row not in one]
            which = f", of which {short(odd[0])} is not on both" if odd else ""
            return [f"{name}: {len(one)} on rank 0 and {len(two)} {where}{which}"]
        return [
            line
            for place, (a, b) in enumerate(zip(one, two, strict=True))
            for line in differences(a, b, where, f"{name}[{place}]")
        ]
    return [shown]
