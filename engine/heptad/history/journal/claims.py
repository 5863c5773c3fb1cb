"""What a file says of a run as a whole, checked: right checksums do not make a right form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from heptad.history.journal import schema
from heptad.record.chunk import MOMENTS, Failure
from heptad.record.counters import Counters
from heptad.table import Table

_MOST_PROCESSES = 1 << 31
"""What the number of a process is below: more than the system accepts is no number of one."""

_MOST_RANKS = 1 << 20
"""More are refused: a list of those that are missing is made."""

_DEEPEST = 100
"""Levels of lists and objects within each other."""

_COUNTS = ("epochs", "max_updates", "batches", "batch_size", "samples")
"""Facts that questions calculate with; `None` where the run has none."""

_WORDS_OF_A_HANDLER = (4, 5)
"""How many there are: state, moment, name and filter, then the plugin, which version 1 did not store."""


def read_facts(text: str) -> Mapping[str, Any]:
    """Return what a run was asked for and is made of.

    Raises:
        ValueError: If the text is not that of an object, or what questions look at in it is of another kind.
    """
    found = schema.parsed_json(text)
    facts = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    handlers = facts.get("handlers", [])
    if _is_deep(cast("Any", found)):
        raise ValueError(f"what the run was asked for is nested in more than {_DEEPEST} levels")
    if not isinstance(found, dict) or type(facts.get("accumulation", 1)) is not int or not isinstance(handlers, list):
        raise ValueError(f"what the run was asked for is not what a run stores: {text:.60}")
    counts = [number for number in map(facts.get, _COUNTS) if number is not None]
    if not all(type(number) is int and number >= 0 for number in counts) or facts.get("accumulation", 1) < 1:
        raise ValueError(f"the run has {counts!r:.60} for {', '.join(_COUNTS)}: expected whole numbers")
    schema.whole([*counts, facts.get("accumulation", 1)], "what the run was asked for")
    rank, world = facts.get("rank", 0), facts.get("world", 1)
    if type(rank) is not int or type(world) is not int or not 0 <= rank < world <= _MOST_RANKS:
        raise ValueError(f"it says that it is of rank {rank!r:.60} of {world!r:.60}")
    for row in cast("list[Any]", handlers):
        words = cast("list[Any]", row) if isinstance(row, list) else []
        if len(words) not in _WORDS_OF_A_HANDLER or not all(isinstance(word, str) for word in words):
            raise ValueError(f"the run has {row!r:.60} for a handler")
    return facts


def read_failure(row: Sequence[Any], table: Table) -> Failure:
    """Return where a run failed, from a row of `failure`.

    Raises:
        ValueError: If the row does not fit its checksum, or describes no failure of a run with this table.
    """
    seq, state, moment, who, guard, error, *counters, guards = schema.checked(row, "the failure")
    schema.whole([seq, *counters], "the failure")
    found = schema.parsed_json(guards)
    answers = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    error = schema.read_text(error)
    texts = all(isinstance(text, str) for text in (state, moment, who, guard, error))
    bools = isinstance(found, dict) and all(type(answer) is bool for answer in answers.values())
    if not (texts and bools) or moment not in MOMENTS or state not in table.shown.values():
        raise ValueError(
            f"the failure is not one of this run: state {state!r:.60}, moment {moment!r:.60}, guards {guards!r:.60}"
        )
    return Failure(seq, state, moment, who, guard, error, Counters(*counters), answers)


def read_writer(found: object) -> tuple[int, str] | None:
    """Return the process that writes a file, and its host; `None` where none does.

    Raises:
        ValueError: If it is described in another way.
    """
    if found is None:
        return None
    writer = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    pid, host = writer.get("pid"), writer.get("host")
    if type(pid) is not int or not 0 < pid < _MOST_PROCESSES or not isinstance(host, str):
        raise ValueError(f"what it says of the process that writes it is not what a run stores: {found!r:.60}")
    return pid, host


def _is_deep(value: object) -> bool:
    """Return whether plain data are nested in more levels than are read: those who take them apart call themselves."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [part for whole in level if isinstance(whole, dict | list) for part in _parts(whole)]
    return bool(level)


def _parts(whole: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return whole.values() if isinstance(whole, dict) else whole
