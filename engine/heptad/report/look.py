"""How states and runs are told apart: by colour and by a second sign, so that nobody needs to see the colour."""

from __future__ import annotations

from collections.abc import Sequence

COLOURS = ("#1f83c6", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b0a000", "#7f7f7f")
"""Of Okabe and Ito, https://jfly.uni-koeln.de/color/, some a little lighter: they are seen on white and on black."""

DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")

MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "plus", "x", "cross")

HATCHES = (" ", "/", ".", "-", "\\", "x", "|", "o", "+", "`")
"""Patterns of Bokeh; the first is none."""

USUAL = ("process_batch", "before_step", "optimizer_update", "after_step", "after_epoch", "before_epoch")
"""The states that take the first colours in every page."""


def places_of_states(names: Sequence[str]) -> dict[str, int]:
    """Return a number for each state, to pick its colour and signs by: the usual states have the same in every page."""
    ordered = [*(name for name in USUAL if name in names), *(name for name in names if name not in USUAL)]
    return {name: number for number, name in enumerate(ordered)}


def pick(signs: Sequence[str], number: int) -> str:
    """Return the sign of that number; they begin again after the last."""
    return signs[number % len(signs)]
