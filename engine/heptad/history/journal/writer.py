"""Writing the file of a log: one connection, one open transaction, which holds the lock that only a writer needs.

Nothing here knows of threads or of a live run: what is to be written is handed in, and stands in the file for readers
after `commit`. A process that is killed loses what it had not committed, and its lock.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from heptad.errors import LogError
from heptad.history.journal import schema
from heptad.history.journal.head import check_head, check_owner
from heptad.history.journal.packing import pack, unpack
from heptad.history.journal.versions import installed
from heptad.record.chunk import Call, Chunk, Effects, Failure, Ints, durations
from heptad.record.counters import Counters
from heptad.record.event_codec import to_plain
from heptad.record.events import Event
from heptad.record.values import Columns
from heptad.table import Table

BUSY_MS = 30_000
"""How long a writer waits for a lock that is held for an instant only."""

_COUNTERS = ("epoch", "batch_index", "step", "update")
_WIDTH = 7
_BLOCKS = (4096, 512, 64, 8, 1)
"""Rows that are inserted with one statement; the largest stays below SQLite's limit of 32,766 values."""

_ROUNDS = 3
_PAUSE = 0.2


class FileWriter:
    """Writes one file. All methods belong to the thread that built it.

    Args:
        path: The file. Where there is none it is made; an empty one is taken.
        table: The table of the run.
        run: The run's id.

    Attributes:
        end: The number of the transition that comes next; `None` where the file holds none.
        values: How many recorded values the file holds.
        new: The file held no log before.
        session: The number of the session that writes.

    Raises:
        LogError: If the file is another program's, is being written, or holds a run with another table.
        sqlite3.Error: If it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], table: Table, run: str) -> None:
        self._path = Path(path)
        self._effects = Effects(table)
        self._written: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}
        self._first: int | None = None
        self.session = 0
        if self._path.exists() and self._path.stat().st_size:
            check_head(self._path)
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            self.new = self._make(table, run)
            self._to_write_ahead()
            lock(self._connection, self._path)
            self._read_state(table)
        except BaseException:
            self._connection.close()
            raise

    def _make(self, table: Table, run: str) -> bool:
        """Makes an empty log where there is nothing; tells whether it did."""
        ask = self._connection
        ask.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        # The schema is written before the file is put into write-ahead mode, so that its head is always in its place.
        if _first(ask, "PRAGMA application_id") == schema.APPLICATION_ID:
            return False
        ask.execute("PRAGMA synchronous = OFF")  # nothing is to be lost yet, and it takes most of the time of opening
        ask.execute("BEGIN IMMEDIATE")
        if _first(ask, "PRAGMA application_id") == schema.APPLICATION_ID:  # another process was faster
            ask.execute("ROLLBACK")
            return False
        for statement in schema.statements():
            ask.execute(statement)
        self._put_meta("run", run)
        self._put_meta("table", table.to_plain())
        ask.executemany("INSERT INTO arc VALUES (?, ?, ?, ?, ?)", schema.arcs(table))
        ask.execute("COMMIT")
        return True

    def _to_write_ahead(self) -> None:
        mode = _first(self._connection, "PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise LogError(
                f"{self._path} lies in a file system in which SQLite cannot write ahead (it stays in mode '{mode}'); "
                "write the log to a local disk and copy it afterwards"
            )
        self._connection.execute("PRAGMA synchronous = NORMAL")  # a kill costs nothing, a power cut the newest commits
        self._connection.execute("PRAGMA secure_delete = OFF")
        self._connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")

    def _read_state(self, table: Table) -> None:
        """Reads where the file stands."""
        ask = self._connection
        self._upgrade()
        if _meta(ask, "table") != _plain(table):
            raise LogError(f"{self._path} holds a run with another table of states (other detours); name another file")
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
        """Begins a session: what one process writes from one transition on.

        Args:
            first: The number of its first transition.
            resumed_from: The checkpoint that the run went on from.
        """
        self._sign()
        self._first = first
        self._facts = self._facts_before()
        versions = {name: installed(name) for name in ("heptad", "torch", "numpy")}
        versions["python"] = platform.python_version()
        text = _json(self._facts)
        row = (first, time.time_ns(), os.getpid(), platform.node(), resumed_from, _json(versions), text)
        cursor = self._connection.execute(
            "INSERT INTO session (first_seq, began_ns, pid, host, resumed_from, versions, facts, crc) "
            f"VALUES ({_marks(8)})",
            (*row, schema.crc(text)),
        )
        self.session = int(cursor.lastrowid or 0)

    def go_on(self, session: int) -> None:
        """Goes on with a session after the file was closed for a while."""
        self._sign()
        self._facts = self._facts_before()
        self.session = session

    def _sign(self) -> None:
        self._put_meta("writer", {"pid": os.getpid(), "host": platform.node()})

    def _facts_before(self) -> dict[str, Any]:
        text = _first(self._connection, "SELECT facts FROM session ORDER BY number DESC LIMIT 1")
        return cast("dict[str, Any]", json.loads(text)) if text else {}

    def supersede(self, seq: int, values: int) -> None:
        """Lets what a run wrote after the checkpoint that it now goes on from stand apart, under this session.

        Args:
            seq: The first transition that is to be made again.
            values: How many recorded values the run has kept.
        """
        ask = self._connection
        # A stop asked for on entry to the state that the checkpoint was taken in came before it: so says its note.
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
            self._put_chunk(_Cut(cut, seq - cut[0]))
        self.end = None if cut is None else min(seq, cut[0] + cut[1])
        self.values = min(self.values, values)

    def hand_over(self, run: str) -> None:
        """Gives the file to a run that begins anew where one before it was killed too early to be resumed."""
        self._put_meta("run", run)

    # -- writing

    def transitions(self, chunks: Iterable[Chunk], failure: Failure | None = None) -> None:
        """Adds those transitions of some chunks that the file does not hold.

        Args:
            chunks: In order, and with no transition missing between the file and them; the last may be one that is
                still to grow, and any may be one that has grown.
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
        self._insert("transition", rows)

    def events(self, events: Iterable[Event]) -> None:
        """Add events."""
        rows: list[tuple[Any, ...]] = []
        for one in events:
            data = json.dumps(to_plain(one), ensure_ascii=False)  # half a surrogate pair stays what it is
            texts = schema.stored_text(one.text), one.time_ns, schema.stored_text(data)
            rows.append(schema.signed(one.seq, one.kind, *texts))
        self._connection.executemany(
            f"INSERT INTO note (seq, kind, text, time_ns, data, crc) VALUES ({_marks(6)})", rows
        )

    def record(self, values: Columns) -> None:
        """Adds recorded values, the first of which has the number `values`."""
        count = len(values)
        if not count:
            return
        numbers = [self._name(name) for name in values.names]
        flat: list[Any] = [None] * (7 * count)
        flat[0::7] = range(self.values, self.values + count)
        flat[1::7] = [numbers[name] for name in values.name]
        flat[2::7] = values.value  # NaN becomes NULL
        reals = np.frombuffer(values.value, dtype=np.float64)
        for place in np.flatnonzero((reals == 0) & np.signbit(reals)).tolist():
            flat[7 * place + 2] = schema.MINUS_ZERO
        for column in range(4):
            flat[3 + column :: 7] = values.place[column::4]
        self._insert("value", flat)
        self.values += count

    def calls(self, calls: Sequence[Call]) -> None:
        """Adds calls of handlers."""
        rows = [(one.seq, self._handler(one.who, one.moment, one.state), one.time_ns, one.duration_ns) for one in calls]
        self._connection.executemany("INSERT INTO call (seq, handler, time_ns, duration_ns) VALUES (?, ?, ?, ?)", rows)

    def state(
        self,
        facts: Mapping[str, Any],
        windows: Sequence[tuple[int, int]],
        stops: Sequence[int],
        failure: Failure | None,
    ) -> None:
        """Brings up to date what the run as a whole says of itself. Costs little where nothing has changed."""
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
            self._connection.execute(f"INSERT INTO failure VALUES ({_marks(len(row))})", row)
        now = dict(facts)
        if now != written.get("facts"):
            written["facts"] = now
            text = _json({**self._facts, **now})
            self._connection.execute(
                "UPDATE session SET facts = ?, crc = ? WHERE number = ?", (text, schema.crc(text), self.session)
            )

    def commit(self) -> None:
        """Lets readers see all that was written. It does not wait for the disk, but where the log is put in its place.

        Raises:
            sqlite3.Error: If it cannot be written.
        """
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")

    def close(self, finished: bool = False) -> None:
        """Commits and lets go of the file.

        Args:
            finished: Nothing more is to come, so that the file is left as one plain file if no reader has it open.
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
        """Lets go of the file after an error; what was not committed is lost."""
        self._connection.close()

    # -- rows

    def _put_meta(self, key: str, value: Any) -> None:
        text = _json(value)
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, schema.crc(text)))

    def _put_chunk(self, chunk: Chunk) -> None:
        head = [chunk.seq, len(chunk), chunk.clock, chunk.offset, *chunk.counters]
        head += [_few(chunk.skipped), _few(chunk.gaps)]
        body = pack(chunk.arcs(), chunk.times(), chunk.clock)
        row = (*schema.signed(*head), body)
        self._connection.execute(f"INSERT OR REPLACE INTO chunk VALUES ({_marks(len(row))})", row)

    def _put_stays(self, chunk: Chunk, begin: int) -> None:
        """Writes how long the stays were of which the times in the rows do not tell."""
        places = {place for place, _ in chunk.gaps if place >= begin}
        if self._first is not None and chunk.seq + begin <= self._first < chunk.seq + len(chunk):
            places.add(self._first - chunk.seq)
        if places:
            spent = durations(chunk)
            rows = [(chunk.seq + place, int(spent[place])) for place in sorted(places)]
            self._connection.executemany("INSERT OR REPLACE INTO stay VALUES (?, ?)", rows)

    def _insert(self, table: str, flat: list[Any]) -> None:
        """Inserts rows of seven columns, as many as may be with one statement.

        A statement gives the interpreter lock away once, and where training keeps the interpreter busy it waits 5 ms to
        have it back: `executemany`, which does so for each row, would take a second for some hundred of them.
        """
        at = 0
        for size in _BLOCKS:
            while len(flat) - at >= size * _WIDTH:
                values = flat if len(flat) == size * _WIDTH else flat[at : at + size * _WIDTH]
                self._connection.execute(_statement(table, size), values)
                at += size * _WIDTH

    def _name(self, name: str) -> int:
        number = self._names.get(name)
        if number is None:
            number = self._names[name] = len(self._names)
            self._connection.execute("INSERT INTO name VALUES (?, ?)", (number, schema.stored_text(name)))
        return number

    def _handler(self, *handler: str) -> int:
        who, edge, state = handler
        number = self._handlers.get((who, edge, state))
        if number is None:
            number = self._handlers[(who, edge, state)] = len(self._handlers)
            self._connection.execute("INSERT INTO handler VALUES (?, ?, ?, ?)", (number, *handler))
        return number


class _Cut:
    """The beginning of a chunk that stands in the file."""

    def __init__(self, row: Sequence[Any], count: int) -> None:
        self.seq, held, self.clock, self.offset = cast("tuple[int, int, int, int]", tuple(row[:4]))
        self.counters = Counters(*row[4:9])
        self.skipped = [place for place in _many(row[9]) if place < count]
        self.gaps = [(place, paused) for place, paused in _many(row[10]) if place < count]
        arcs, times = unpack(row[12], held, self.clock)
        self._arcs, self._times = arcs[:count], times[:count]

    def __len__(self) -> int:
        return len(self._times)

    def arcs(self) -> Ints:
        """Returns the number of the arc taken, for each transition."""
        return self._arcs

    def times(self) -> Ints:
        """Returns monotonic nanoseconds, for each transition."""
        return self._times


def lock(connection: sqlite3.Connection, path: Path) -> None:
    """Begins the transaction that a writer has open for as long as it writes, but for an instant in each commit.

    A live writer could be met in that instant. It would come back at once and wait for us, so we step aside, and look
    again after a while: that this meets the instant each time will not happen.

    Raises:
        LogError: If another process is writing the file.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        for again in reversed(range(_ROUNDS)):
            connection.execute("BEGIN IMMEDIATE")
            if not again or _meta(connection, "writer") is None:
                break
            connection.execute("ROLLBACK")
            time.sleep(_PAUSE)
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        writer = _meta(connection, "writer")
        who = f" (process {writer['pid']} on {writer['host']})" if writer else ""
        raise LogError(
            f"{path} is being written{who}; let that run end, or close() the engine that was advanced by hand, or name "
            "another file"
        ) from None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")


def discard(path: Path) -> None:
    """Removes the file of a log, whole or damaged.

    Raises:
        LogError: If it is being written, or is another program's.
        OSError: If it cannot be removed.
    """
    if not path.exists():
        return
    if path.stat().st_size:
        check_owner(path)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        with suppress(sqlite3.Error):  # nobody can be writing a file that is so damaged
            lock(connection, path)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    finally:
        connection.close()


def _first(connection: sqlite3.Connection, statement: str, *values: Any) -> Any:
    """Returns the first column of the first row."""
    row = connection.execute(statement, values).fetchone()
    return None if row is None else row[0]


def _meta(connection: sqlite3.Connection, key: str) -> Any:
    text = _first(connection, "SELECT value FROM meta WHERE key = ?", key)
    return None if text is None else json.loads(text)


def _plain(table: Table) -> Any:
    return json.loads(_json(table.to_plain()))


def _few(items: Sequence[Any]) -> str:
    """Returns a list that is mostly empty as text."""
    return json.dumps(list(items)) if items else ""


def _many(text: str) -> list[Any]:
    return cast("list[Any]", json.loads(text)) if text else []


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _marks(count: int) -> str:
    return ", ".join("?" * count)


@cache
def _statement(table: str, rows: int) -> str:
    """Returns the text of an INSERT of many rows; a connection keeps the compiled statement for it."""
    row = f"({_marks(_WIDTH)})"
    return f"INSERT INTO {table} VALUES {', '.join([row] * rows)}"
