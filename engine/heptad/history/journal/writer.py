"""`FileWriter`: write the file of a log, in one open transaction that holds the lock of the one who writes.

Nothing here knows threads or a live run. What is handed in can be read after `commit`. A process that is killed loses
what it had not committed, and its lock.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from heptad.errors import LogError, TableError
from heptad.history.journal import schema
from heptad.history.journal.inserting import WIDTH, insert, marks
from heptad.history.journal.meta import get_meta, put_meta
from heptad.history.journal.opening import open_to_write
from heptad.history.journal.origin import origin
from heptad.history.journal.packing import pack_turns
from heptad.history.journal.shortened import ShortenedChunk
from heptad.history.journal.versions import versions_here
from heptad.history.journal.watch import JournalWatch
from heptad.history.table_form import check_size, table_from_plain, table_to_plain
from heptad.record.chunk import Call, Chunk, Effects, Failure, durations
from heptad.record.counters import Counters
from heptad.record.event_codec import to_plain
from heptad.record.events import Event
from heptad.record.values import Columns
from heptad.table import Table

_COUNTERS = Counters._fields[:4]
"""Those in the rows. `window` is stored with chunks and failures only."""


class FileWriter:
    """Write one file. All methods belong to the thread that built the writer: it has the connection.

    Args:
        path: The file. It is made where it is missing or empty.
        table: The table of the run.
        run: The run's id.

    Attributes:
        run: The id of the run that the file is of.
        end: The number of the first transition that is not in the file; `None` where the file holds none.
        values: How many recorded values the file holds.
        new: Whether the file held no log before.
        session: The number of the session that writes.

    Raises:
        LogError: If the file is another program's, is being written, or holds a run with another table.
        sqlite3.Error: If it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], table: Table, run: str) -> None:
        self._path = Path(path)
        try:
            check_size(table.states, table.arcs)
        except TableError as error:
            raise LogError(f"{self._path} was not made: {error}") from None
        self._effects = Effects(table)
        self._written: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}
        self._first: int | None = None
        self.session = 0
        self._watch = JournalWatch(self._path)
        self._connection, self.new = open_to_write(self._path, table, run)
        self._watch.note()
        try:
            self._read_state(table)
        except BaseException:
            self._connection.close()
            raise

    def _read_state(self, table: Table) -> None:
        """Read what the file holds."""
        ask = self._connection
        self._upgrade()
        if not _holds(ask, table):
            raise LogError(f"{self._path} holds a run with another table of states (other detours); name another file")
        self.run = str(get_meta(ask, "run"))
        last = ask.execute("SELECT seq, count FROM chunk ORDER BY seq DESC LIMIT 1").fetchone()
        self.end: int | None = None if last is None else last[0] + last[1]
        self.values = int(_first(ask, "SELECT coalesce(max(number) + 1, 0) FROM value"))
        self._names: dict[str, int] = {
            schema.read_text(name): number for number, name in ask.execute("SELECT number, name FROM name").fetchall()
        }
        handlers = ask.execute("SELECT who, edge, state, number FROM handler").fetchall()
        self._handlers = {(who, edge, state): number for who, edge, state, number in handlers}

    def _upgrade(self) -> None:
        """Give a file of version 1 the column that version 2 added."""
        if _first(self._connection, "PRAGMA user_version") == 1:
            for table in ("note", "superseded_note"):
                self._connection.execute(f"ALTER TABLE {table} ADD COLUMN data TEXT")
            self._connection.execute(f"PRAGMA user_version = {schema.VERSION}")

    # -- sessions

    def begin(self, first: int, resumed_from: str | None) -> None:
        """Begin a session: what one process writes from one transition on.

        Args:
            first: The number of its first transition.
            resumed_from: The checkpoint that the run was resumed from.
        """
        self._sign()
        self._first = first
        self._facts = self._facts_before()
        built = {**versions_here(), "origin": origin()}
        text = _json(self._facts)
        source = None if resumed_from is None else schema.stored_text(resumed_from)
        row = (first, time.time_ns(), os.getpid(), platform.node(), source, _json(built), text)
        cursor = self._connection.execute(
            "INSERT INTO session (first_seq, began_ns, pid, host, resumed_from, versions, facts, crc) "
            f"VALUES ({marks(8)})",
            (*row, schema.crc(text)),
        )
        self.session = int(cursor.lastrowid or 0)

    def continue_session(self, session: int) -> None:
        """Continue a session whose file was closed while the run was paused."""
        self._sign()
        self._facts = self._facts_before()
        self.session = session

    def _sign(self) -> None:
        put_meta(self._connection, "writer", {"pid": os.getpid(), "host": platform.node()})

    def _facts_before(self) -> dict[str, Any]:
        text = _first(self._connection, "SELECT facts FROM session ORDER BY number DESC LIMIT 1")
        return cast("dict[str, Any]", json.loads(text)) if text else {}

    def supersede(self, seq: int, values: int) -> None:
        """Move what the run wrote after its checkpoint to the tables `superseded_…`, under this session.

        Args:
            seq: The first transition that the run makes again.
            values: How many recorded values the checkpoint holds.
        """
        ask = self._connection
        # A stop is stored at the transition whose guards see it first, its event at the one under way. A stop asked for
        # on entry to the state of the checkpoint (its event is at seq - 1) is seen at seq, and yet came before it.
        entered = _first(ask, "SELECT count(*) FROM note WHERE kind = 'stop' AND seq = ?", seq - 1)
        ask.execute("DELETE FROM stop WHERE seq >= ?", (seq + 1 if entered else seq,))
        for name in schema.SUPERSEDED:
            beyond, place = ("number >= ?", values) if name == "value" else ("seq >= ?", seq)
            ask.execute(f"INSERT INTO superseded_{name} SELECT ?, * FROM {name} WHERE {beyond}", (self.session, place))
            ask.execute(f"DELETE FROM {name} WHERE {beyond}", (place,))
        ask.execute("DELETE FROM stay WHERE seq >= ?", (seq,))
        ask.execute("DELETE FROM accumulation WHERE seq >= ?", (seq,))
        cut = ask.execute("SELECT * FROM chunk WHERE seq < ? ORDER BY seq DESC LIMIT 1", (seq,)).fetchone()
        ask.execute("DELETE FROM chunk WHERE seq >= ?", (seq,))
        if cut is not None and cut[0] + cut[1] > seq:
            self._put_chunk(ShortenedChunk(cut, seq - cut[0]))
        self.end = None if cut is None else min(seq, cut[0] + cut[1])
        self.values = min(self.values, values)

    def hand_over(self, run: str) -> None:
        """Give the file to a run that starts again because the one before was killed before its first checkpoint."""
        put_meta(self._connection, "run", run)

    # -- writing

    def transitions(self, chunks: Iterable[Chunk], failure: Failure | None = None) -> None:
        """Add those transitions of some chunks that the file lacks: as a chunk, for Python, and as rows, for SQL.

        The rows are written during the run, so that SQL can also read a run that has not ended, or was killed. On two
        cores this costs 2.6 µs of a step of 100 µs, which makes four transitions; the rest of the journal, without
        recorded values, costs 3.1 µs. A transition takes 45 bytes in the file, and 3 without its row.

        Args:
            chunks: In order, with no transition missing between the file and them. The last may still grow, and any
                may have grown since it was written: its row in `chunk` is replaced, its rows in `transition` are added.
            failure: Where the run failed, if it did.
        """
        rows: list[int] = []
        for chunk in chunks:
            begin = 0 if self.end is None else self.end - chunk.seq
            if begin >= len(chunk):
                continue
            self._put_chunk(chunk)
            counters = self._effects.counters(chunk, failure)
            seqs = np.arange(chunk.seq, chunk.seq + len(chunk))
            columns = [seqs, chunk.arcs(), chunk.times() + chunk.offset, *(counters[name] for name in _COUNTERS)]
            rows += np.column_stack(columns)[begin:].ravel().tolist()
            self._put_stays(chunk, begin)
            self.end = chunk.seq + len(chunk)
        insert(self._connection, "transition", rows)

    def events(self, events: Iterable[Event]) -> None:
        """Add events."""
        rows = [
            schema.signed(one.seq, one.kind, schema.stored_text(one.text), one.time_ns, json.dumps(to_plain(one)))
            for one in events
        ]
        self._connection.executemany(
            f"INSERT INTO note (seq, kind, text, time_ns, data, crc) VALUES ({marks(6)})", rows
        )

    def record(self, values: Columns) -> None:
        """Add recorded values. The first of them has the number `values`."""
        count = len(values)
        if not count:
            return
        numbers = self._numbers(values)
        flat: list[Any] = [None] * (WIDTH * count)
        flat[0::WIDTH] = range(self.values, self.values + count)
        flat[1::WIDTH] = [numbers[name] for name in values.name]
        flat[2::WIDTH] = values.value  # SQLite makes NULL of NaN, and 0.0 of -0.0
        for column in range(4):  # seq, epoch, step, update
            flat[3 + column :: WIDTH] = values.place[column::4]
        insert(self._connection, "value", flat)
        self.values += count

    def calls(self, calls: Sequence[Call]) -> None:
        """Add calls of handlers."""
        rows = [(one.seq, self._handler(one.who, one.moment, one.state), one.time_ns, one.duration_ns) for one in calls]
        self._connection.executemany("INSERT INTO call (seq, handler, time_ns, duration_ns) VALUES (?, ?, ?, ?)", rows)

    def state(
        self,
        facts: Mapping[str, Any],
        windows: Sequence[tuple[int, int]],
        stops: Sequence[int],
        failure: Failure | None,
    ) -> None:
        """Write what has changed of the run as a whole. Costs little where nothing has."""
        written = self._written
        if len(windows) != written.get("windows"):
            rows = [schema.signed(*window) for window in windows]
            written["windows"] = len(rows)
            self._connection.executemany("INSERT OR REPLACE INTO accumulation VALUES (?, ?, ?)", rows)
        if len(stops) != written.get("stops", 0):
            rows = [schema.signed(seq) for seq in stops]
            written["stops"] = len(rows)
            self._connection.executemany("INSERT OR IGNORE INTO stop VALUES (?, ?)", rows)
        if failure is not None and written.get("failure") is not failure:
            written["failure"] = failure
            error = schema.stored_text(failure.error)
            place = (failure.seq, failure.state, failure.moment, failure.who, failure.guard, error)
            row = schema.signed(*place, *failure.counters, json.dumps(failure.guards))
            self._connection.execute(f"INSERT INTO failure VALUES ({marks(len(row))})", row)
        now = dict(facts)
        if now != written.get("facts"):
            written["facts"] = now
            text = _json({**self._facts, **now})
            self._connection.execute(
                "UPDATE session SET facts = ?, crc = ? WHERE number = ?", (text, schema.crc(text), self.session)
            )

    def check_files(self) -> None:
        """Look whether the file is still the one that was opened; before anything is written.

        Raises:
            JournalChangedError: If it, or what SQLite keeps beside it, was removed, renamed, replaced or cut.
        """
        self._watch.check()

    def commit(self) -> None:
        """Make what was written visible to readers.

        It waits for the disk only when SQLite moves its write-ahead log into the file.

        Raises:
            sqlite3.Error: If it cannot be written.
        """
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")
        self._watch.note()

    def close(self, finished: bool = False) -> None:
        """Commit and close the file.

        Args:
            finished: Whether the run has ended. Then one plain file is left, unless a reader has it open.
        """
        ask = self._connection
        try:
            ask.execute("DELETE FROM meta WHERE key = 'writer'")
            ask.execute("COMMIT")
            if finished:
                ask.execute("PRAGMA busy_timeout = 0")
                try:
                    ask.execute("PRAGMA journal_mode = DELETE")
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error):
                        raise
        finally:
            ask.close()

    def abandon(self) -> None:
        """Close the file after an error; what was not committed is lost."""
        self._connection.close()

    # -- rows

    def _put_chunk(self, chunk: Chunk) -> None:
        head = [chunk.seq, len(chunk), chunk.clock, chunk.offset, *chunk.counters]
        head += [_encoded(chunk.skipped), _encoded(chunk.gaps)]
        body = pack_turns(chunk.arcs(), chunk.times(), chunk.clock)
        row = (*schema.signed(*head), body)
        self._connection.execute(f"INSERT OR REPLACE INTO chunk VALUES ({marks(len(row))})", row)

    def _put_stays(self, chunk: Chunk, begin: int) -> None:
        """Write the durations that do not follow from the times in the rows: after a pause, and first of a session."""
        places = {place for place, _ in chunk.gaps if place >= begin}
        if self._first is not None and chunk.seq + begin <= self._first < chunk.seq + len(chunk):
            places.add(self._first - chunk.seq)
        if places:
            spent = durations(chunk)
            rows = [(chunk.seq + place, int(spent[place])) for place in sorted(places)]
            self._connection.executemany("INSERT OR REPLACE INTO stay VALUES (?, ?)", rows)

    def _numbers(self, values: Columns) -> dict[int, int]:
        """Return the numbers in the file of the names that some values have; new names are added."""
        found: dict[int, int] = {}
        rows: list[Any] = []
        for place in dict.fromkeys(values.name):
            stored = schema.stored_text(values.names[place])
            number = self._names.get(stored)
            if number is None:
                number = self._names[stored] = len(self._names)
                rows += (number, stored)
            found[place] = number
        insert(self._connection, "name", rows, width=2)
        return found

    def _handler(self, *handler: str) -> int:
        who, edge, state = handler
        number = self._handlers.get((who, edge, state))
        if number is None:
            number = self._handlers[(who, edge, state)] = len(self._handlers)
            self._connection.execute("INSERT INTO handler VALUES (?, ?, ?, ?)", (number, *handler))
        return number


def _first(connection: sqlite3.Connection, statement: str, *values: Any) -> Any:
    """Return the first column of the first row."""
    row = connection.execute(statement, values).fetchone()
    return None if row is None else row[0]


def _holds(connection: sqlite3.Connection, table: Table) -> bool:
    """Return whether a file holds a run with this table; version 1 stored less of it."""
    try:
        return table_to_plain(table_from_plain(get_meta(connection, "table"))) == table_to_plain(table)
    except (TableError, KeyError, TypeError):
        return False


def _encoded(items: Sequence[Any]) -> str:
    """Return a list of the head of a chunk as text: no text where it is empty, as it mostly is."""
    return json.dumps(list(items)) if items else ""


def _json(value: Any) -> str:
    return json.dumps(value, default=str)
