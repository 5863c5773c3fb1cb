"""The file of a log: an SQLite database, version 2 of its schema, `application_id` 0x48505444 ("HPTD").

Transitions are stored twice, in the same transactions. Measured over 64,000 of them, for each:

- Packed in `chunk`: 5 bytes, and 0.25 µs of the thread that writes. The library reads these.
- A row in `transition`: 41 bytes, and 0.6 µs more. SQL cannot unpack a chunk, and with the rows anyone can ask in SQL,
  without this library (`docs/journal.md`). They also show where a damaged file lacks chunks at an end.

Views, for people. Times are nanoseconds since the Unix epoch, `at` is the same as text (UTC). A counter says how many
are complete; `update` is a word of SQL's own and stands in double quotes.

| view | a row for each |
|---|---|
| `transitions` | transition: `seq, time_ns, at, duration_ns, source, dest`, `guards` (JSON), and the counters `epoch, \
batch_index, step, "update"` |
| `notes` | note: `seq, time_ns, at, kind, text` |
| `recorded` | recorded value: `number, name, value, seq, epoch, step, "update"`; NaN is NULL |
| `calls` | call of a handler, where they were traced: `seq, who, edge, state, time_ns, duration_ns` |
| `superseded` | transition that the run made again, after it was resumed from before it: `session` and the \
columns of `transitions`, without `duration_ns` |

Tables behind them:

| table | holds |
|---|---|
| `meta` | `run`, the run's id, and `"table"`, its states and arcs: JSON, each with a CRC-32 |
| `session` | each process that wrote the file: when, who, from which transition on, what the run was asked for (JSON) |
| `transition` | a row for each transition; it spent in its source the time since the row before |
| `stay` | the exceptions: the first transition of a session, and the first after a pause |
| `arc` | what the numbers in `transition.arc` mean; the last ones are the failures, one for each state |
| `chunk` | up to 1,024 transitions, packed (`journal.packing`), what was true before the first of them, a CRC-32 |
| `note` | what the view `notes` shows, and the event as JSON (`data`), which version 1 did not store |
| `name`, `value`, `handler`, `call` | what the views show |
| `failure` | where the run failed |
| `accumulation` | from which transition on windows hold how many steps |
| `stop` | the transitions whose guards are the first to see that a stop was asked for |
| `superseded_…` | what the run had written beyond the checkpoint that it was resumed from, by session |

SQLite has no NaN, so NaN is NULL, and no -0.0, which is 0.0. Half a surrogate pair in a text, as in names of files that
are not UTF-8, is written out as an escape. The first writers of version 1 had blobs for -0.0 and for such texts; these
are read.

What has a column `crc` is guarded by it. Recorded values, their names, calls, their handlers, and what the views show
of transitions (`transition`, `stay`, `arc`) are not: a checksum for each value would cost as much as it does. Of these
the library reads values and calls, and refuses a row that names what is missing, and values that are not numbered one
after another.

A reader needs no lock: in write-ahead mode it sees the file as it was when its transaction began. The writer holds the
one lock for writing while it has the file open. `user_version` is the version of the schema. A newer one is refused.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from heptad.table import Table

_EVER = 1 << 62
"""What no whole number of a run reaches: sums of two fit into 64 bits."""

MOST_CONTAINERS = 1 << 20
"""Lists and objects in a text of JSON."""

APPLICATION_ID = 0x48505444
VERSION = 2

COUNTERS = 'epoch INTEGER NOT NULL, batch_index INTEGER NOT NULL, step INTEGER NOT NULL, "update" INTEGER NOT NULL'

SUPERSEDED = ("transition", "note", "value", "call", "failure")
"""The tables whose rows are kept when a run is resumed from before them."""

TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE session (
    number INTEGER PRIMARY KEY, first_seq INTEGER NOT NULL, began_ns INTEGER NOT NULL, pid INTEGER NOT NULL,
    host TEXT NOT NULL, resumed_from TEXT, versions TEXT NOT NULL, facts TEXT NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE arc (
    number INTEGER PRIMARY KEY, source TEXT NOT NULL, dest TEXT NOT NULL, guards TEXT NOT NULL, node TEXT NOT NULL
);
CREATE TABLE chunk (
    seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, clock INTEGER NOT NULL, "offset" INTEGER NOT NULL,
    {COUNTERS}, "window" INTEGER NOT NULL,
    skipped TEXT NOT NULL, gaps TEXT NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE TABLE transition (seq INTEGER PRIMARY KEY, arc INTEGER NOT NULL, time_ns INTEGER NOT NULL, {COUNTERS});
CREATE INDEX transition_update ON transition ("update");
CREATE TABLE stay (seq INTEGER PRIMARY KEY, duration_ns INTEGER NOT NULL);
CREATE TABLE note (
    number INTEGER PRIMARY KEY, seq INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, time_ns INTEGER NOT NULL,
    crc INTEGER NOT NULL, data TEXT
);
CREATE INDEX note_seq ON note (seq);
CREATE TABLE name (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE value (
    number INTEGER PRIMARY KEY, name INTEGER NOT NULL, value REAL, seq INTEGER NOT NULL, epoch INTEGER NOT NULL,
    step INTEGER NOT NULL, "update" INTEGER NOT NULL
);
CREATE TABLE handler (number INTEGER PRIMARY KEY, who TEXT NOT NULL, edge TEXT NOT NULL, state TEXT NOT NULL);
CREATE TABLE call (
    number INTEGER PRIMARY KEY, seq INTEGER NOT NULL, handler INTEGER NOT NULL, time_ns INTEGER NOT NULL,
    duration_ns INTEGER NOT NULL
);
CREATE INDEX call_seq ON call (seq);
CREATE TABLE failure (
    seq INTEGER PRIMARY KEY, state TEXT NOT NULL, edge TEXT NOT NULL, who TEXT NOT NULL, guard TEXT NOT NULL,
    error TEXT NOT NULL, {COUNTERS}, "window" INTEGER NOT NULL, guards TEXT NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE accumulation (seq INTEGER PRIMARY KEY, steps INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE stop (seq INTEGER PRIMARY KEY, crc INTEGER NOT NULL);
"""

_AT = "strftime('%Y-%m-%dT%H:%M:%fZ', time_ns / 1e9, 'unixepoch') AS at"

VIEWS = f"""
CREATE VIEW transitions AS
SELECT t.seq, t.time_ns, {_AT.replace("time_ns", "t.time_ns")},
    coalesce(s.duration_ns, t.time_ns - (SELECT b.time_ns FROM transition b WHERE b.seq = t.seq - 1)) AS duration_ns,
    a.source, a.dest, coalesce(f.guards, a.guards) AS guards, t.epoch, t.batch_index, t.step, t."update"
FROM transition t JOIN arc a ON a.number = t.arc LEFT JOIN stay s ON s.seq = t.seq LEFT JOIN failure f ON f.seq = t.seq;
CREATE VIEW notes AS SELECT seq, time_ns, {_AT}, kind, text FROM note;
CREATE VIEW recorded AS SELECT v.number, n.name, v.value, v.seq, v.epoch, v.step, v."update"
FROM value v JOIN name n ON n.number = v.name;
CREATE VIEW calls AS
SELECT c.seq, h.who, h.edge, h.state, c.time_ns, c.duration_ns FROM call c JOIN handler h ON h.number = c.handler;
CREATE VIEW superseded AS
SELECT t.session, t.seq, t.time_ns, {_AT.replace("time_ns", "t.time_ns")}, a.source, a.dest, t.epoch, t.batch_index,
    t.step, t."update"
FROM superseded_transition t JOIN arc a ON a.number = t.arc;
"""


def statements() -> Iterator[str]:
    """Yield the statements that build an empty file, in order."""
    yield from (part for part in TABLES.split(";") if part.strip())
    for name in SUPERSEDED:
        yield f"CREATE TABLE superseded_{name} AS SELECT 0 AS session, * FROM {name}"
    yield from (part for part in VIEWS.split(";") if part.strip())
    yield f"PRAGMA application_id = {APPLICATION_ID}"
    yield f"PRAGMA user_version = {VERSION}"


def arcs(table: Table) -> list[tuple[int, str, str, str, str]]:
    """Return the rows of `arc`: the table's arcs, then a failure for each state."""
    rows = [
        (number, table.shown[arc.source], table.shown[arc.dest], json.dumps(table.asked(arc)), arc.source)
        for number, arc in enumerate(table.arcs)
    ]
    failed = table.shown["failed"]
    for state in table.states:
        rows.append((len(rows), state.shown, failed, "{}", state.name))
    return rows


def stored_text(text: str) -> str:
    """Return a text as SQLite can hold it: half a surrogate pair is written out."""
    return text.encode(errors="backslashreplace").decode()


def read_text(stored: object) -> str:
    """Return a text from the file. A blob is one with half a surrogate pair, from an early writer of version 1.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(stored, bytes):
        return stored.decode("unicode_escape")
    if not isinstance(stored, str):
        raise ValueError(f"{stored!r} stands where a text should")
    return stored


def read_real(stored: object, number: int) -> float:
    """Return a recorded value from the file.

    Raises:
        ValueError: If it is not a number.
    """
    if isinstance(stored, float):
        return stored
    if stored is None:
        return math.nan
    if stored == b"\x80" + bytes(7):  # -0.0, from an early writer of version 1
        return -0.0
    raise ValueError(f"value {number} is {stored!r}, which is no number")


def parsed_json(stored: object) -> Any:
    """Return the value of JSON text from the file.

    Raises:
        ValueError: If the text is not JSON, or has too many lists and objects: each takes far more than its two bytes.
    """
    text = read_text(stored)
    if _containers(text) > MOST_CONTAINERS:  # perhaps in strings: they take no more than their length
        bare = re.sub(r'"[^"]*"', "", text.replace("\\\\", "").replace('\\"', ""))
        if _containers(bare) > MOST_CONTAINERS:
            raise ValueError(f"a text holds more than {MOST_CONTAINERS:,} lists and objects")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("a text of JSON is nested too deep") from error


def _containers(text: str) -> int:
    return text.count("[") + text.count("{")


def whole(fields: Sequence[Any], what: str) -> Sequence[int]:
    """Return fields that are whole numbers.

    Raises:
        ValueError: If they are not: SQLite accepts anything in any column.
    """
    if not all(isinstance(field, int) and -_EVER < field < _EVER for field in fields):
        raise ValueError(f"{what} has {fields!r} in place of whole numbers")
    return fields


def crc(*fields: Any) -> int:
    """Return the checksum of fields, which finds damage."""
    return zlib.crc32("\x1f".join(map(str, fields)).encode())


def signed(*fields: Any) -> tuple[Any, ...]:
    """Return a row with its checksum behind it."""
    return (*fields, crc(*fields))


def checked(row: Sequence[Any], what: str) -> Sequence[Any]:
    """Return a row without its checksum.

    Raises:
        ValueError: If the checksum does not fit.
    """
    *fields, found = row
    if crc(*fields) != found:
        raise ValueError(f"{what} does not fit its checksum")
    return fields
