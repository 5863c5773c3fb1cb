"""The kinds of input: how one is made, and who reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from fuzz import checkpoints, journals
from fuzz.verdict import Outcome


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        prepare: Makes what is needed once, before processes are forked.
        make: Writes an input into an empty folder, given its number.
        ask: Reads it, and raises if what comes of it is neither the right answer nor a refusal.
    """

    prepare: Callable[[], None]
    make: Callable[[Path, int, Random], None]
    ask: Callable[[Path, int, Random], Outcome]


KINDS = {
    "checkpoint-damaged": Kind(checkpoints.prepare, checkpoints.make_damaged, checkpoints.ask_damaged),
    "checkpoint-crafted": Kind(checkpoints.prepare, checkpoints.make_crafted, checkpoints.ask_crafted),
    "journal-damaged": Kind(journals.prepare, journals.make_damaged, journals.ask_damaged),
    "journal-crafted": Kind(journals.prepare, journals.make_crafted, journals.ask_crafted),
}
