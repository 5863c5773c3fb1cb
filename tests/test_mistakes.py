"""Mistakes that people make: the message says what was found, where, and what to do; their own frame is near."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

import heptad
import heptad_plugins
import mistakes
from mistakes import MISTAKES

PACKAGES = tuple(Path(package.__file__).parent for package in (heptad, heptad_plugins))
BETWEEN = 9
"""So many of our frames may stand in a row between one of the user's, or of torch, and the next.

The longest row is that of a metric: run, loop, dispatch, detour, plugin, `run.evaluate`, and three of the evaluation.
"""


def ours(frame: traceback.FrameSummary) -> bool:
    """Return whether a frame is one of the engine's or of a shipped plugin's, wherever the checkout lies."""
    return any(Path(frame.filename).is_relative_to(package) for package in PACKAGES)


def longest_row(frames: list[traceback.FrameSummary]) -> int:
    """Return how many of our frames stand in a row at most."""
    longest = row = 0
    for frame in frames:
        row = row + 1 if ours(frame) else 0
        longest = max(longest, row)
    return longest


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_a_message_that_helps(name, tmp_path):
    """The error is of its kind, the message or its notes hold what was found and what to do, and no more comes with it.

    What the user's code or torch raised comes out as it was; and whoever reads the traceback finds the own line.
    """
    mistake = MISTAKES[name]
    with pytest.raises(BaseException) as caught:
        mistake.code(tmp_path)
    error = caught.value
    text = "".join(traceback.format_exception_only(error))
    assert (type(error), [part for part in mistake.parts if part not in text]) == (mistake.error, []), text
    frames = traceback.extract_tb(error.__traceback__)
    assert name in [frame.name for frame in frames if frame.filename == mistakes.__file__]
    assert longest_row(frames) <= BETWEEN
    shown = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert shown is None or isinstance(shown, OSError)  # nothing of our own was met on the way


def test_there_are_many_of_them_and_each_says_something():
    """At least eighty, and none without words to look for."""
    assert len(MISTAKES) >= 80
    assert [name for name, mistake in MISTAKES.items() if not any(len(part) > 8 for part in mistake.parts)] == []
