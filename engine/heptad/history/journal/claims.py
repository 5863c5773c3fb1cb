"""What a file says of a run as a whole, checked: right checksums do not make a right form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from heptad.history.journal import schema
from heptad.record.chunk import Failure
from heptad.record.counters import Counters
from heptad.table import Table

_WORDS_OF_A_HANDLER = (4, 5)
"""How many there are: state, moment, name and filter, then the plugin, which version 1 did not store."""


def read_facts(text: str) -> Mapping[str, Any]:
    """Return what a run was asked for and is made of.

    Raises:
        ValueError: If the text is not that of an object, or what questions look at in it is of another kind.
    """
    found = json.loads(text)
    facts = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    handlers = facts.get("handlers", [])
    if not isinstance(found, dict) or type(facts.get("accumulation", 1)) is not int or not isinstance(handlers, list):
        raise ValueError(f"what the run was asked for is not what a run stores: {text:.60}")
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
    found = json.loads(guards)
    answers = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    error = schema.read_text(error)
    texts = all(isinstance(text, str) for text in (state, moment, who, guard, error))
    bools = isinstance(found, dict) and all(type(answer) is bool for answer in answers.values())
    if not (texts and bools) or state not in table.shown.values():
        raise ValueError(f"the failure is not one of this run: state {state!r:.60}, guards {guards!r:.60}")
    return Failure(seq, state, moment, who, guard, error, Counters(*counters), answers)
