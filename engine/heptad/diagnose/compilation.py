"""Advice on networks that torch cannot compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def compilation(blocks: Sequence[str], options: bool | dict[str, Any]) -> str:
    """Return the ways out where torch could not compile the network."""
    known: dict[str, Any] = options if isinstance(options, dict) else {}
    parts = [name for name in blocks if name]
    what = f"the {len(parts)} blocks {parts[0]!r} to {parts[-1]!r}" if len(parts) > 1 else "the network"
    ways = ["leave RunConfig.compile out", "let Components.blocks name the parts that can be compiled"]
    if known.get("fullgraph"):
        ways.append("give compile without fullgraph, which runs what cannot be compiled as it is")
    if known.get("backend", "inductor") == "inductor":
        ways.append("give compile={'backend': 'aot_eager'} to find out whether torch's C++ or Triton is at fault")
    return f"RunConfig.compile={options!r} asks torch to compile {what}, and torch could not: {'; or '.join(ways)}"
