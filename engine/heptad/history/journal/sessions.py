"""`Session`: each process that wrote the file of a log, and what it made again because it resumed from before it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from heptad.history.journal import schema


@dataclass(frozen=True, slots=True)
class Again:
    """Transitions that an earlier process had made and that a session made again.

    Attributes:
        transitions: How many.
        first: The number of the first.
        updates: How many updates are among them.
        spent_ns: How long the earlier process took for them.
    """

    transitions: int
    first: int
    updates: int
    spent_ns: int


@dataclass(frozen=True, slots=True)
class Session:
    """What one process wrote.

    Attributes:
        number: From 1 on.
        first: The number of its first transition.
        began_ns: When it began: nanoseconds since the Unix epoch.
        pid: The process.
        host: Its host.
        resumed_from: The checkpoint that it resumed from; `None` for a run that began at its start.
        versions: Those of heptad, torch, numpy and Python, as text.
        again: What it made again; `None` where nothing.
        origin: The command line, `argv`; of its program the `commit` and whether it was `clean`, where git says so.
            Journals written before have none.
    """

    number: int
    first: int
    began_ns: int
    pid: int
    host: str
    resumed_from: str | None
    versions: Mapping[str, str]
    again: Again | None = None
    origin: Mapping[str, str] = field(default_factory=dict[str, str])


def read_sessions(ask: sqlite3.Connection) -> list[Session]:
    """Return the sessions of a file, oldest first.

    Raises:
        ValueError: If a row is not one that a run stores.
    """
    again = dict(_again(ask))
    rows = ask.execute(
        "SELECT number, first_seq, began_ns, pid, host, resumed_from, versions FROM session ORDER BY number"
    )
    found: list[Session] = []
    for number, first, began, pid, host, source, versions in rows:
        schema.whole((number, first, began, pid), "a session")
        words = schema.parsed_json(versions)
        if not isinstance(words, dict):
            raise ValueError(f"the session {number} has {versions!r:.60} for versions")
        words = cast("dict[Any, Any]", words)
        origin = words.pop("origin", {})
        if not isinstance(origin, dict):
            raise ValueError(f"the session {number} has {origin!r:.60} for where it comes from")
        named, come = _texts(words), _texts(cast("dict[Any, Any]", origin))
        resumed = None if source is None else schema.read_text(source)
        host = schema.read_text(host)  # noqa: PLW2901 - the same, checked
        found.append(Session(number, first, began, pid, host, resumed, named, again.get(number), come))
    return found


def _texts(words: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name): str(word) for name, word in words.items()}


def _again(ask: sqlite3.Connection) -> Iterator[tuple[int, Again]]:
    """Yield what each session made again, by its number."""
    rows = ask.execute(
        'SELECT session, count(*), min(seq), min(time_ns), max(time_ns), min("update"), max("update") '
        "FROM superseded_transition GROUP BY session"
    ).fetchall()
    for row in rows:
        session, count, first, began, ended, before, after = schema.whole(row, "a transition that was made again")
        # what the last transition stood at that was kept; it may have been made again since, and then later
        kept = ask.execute('SELECT time_ns, "update" FROM transition WHERE seq = ?', (first - 1,)).fetchone()
        if kept is not None:
            at, update = schema.whole(kept, f"transition {first - 1}")
            began, before = min(began, at), min(before, update)
        yield session, Again(count, first, after - before, max(ended - began, 0))
