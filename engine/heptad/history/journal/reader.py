"""`FileSource`: read the file of a log while it is written, after it was closed, or after its writer was killed.

Only what a question needs is read: the heads of the chunks, and the chunks that it looks into. The file is opened
read-only and never altered.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import numpy as np

from heptad.errors import LogError, TableError
from heptad.history.decode import BLOCK
from heptad.history.journal import schema
from heptad.history.journal.claims import read_facts, read_failure, read_writer
from heptad.history.journal.file_chunk import HEAD, FileChunk
from heptad.history.journal.head import check_head, reason, size_beside
from heptad.history.journal.lock import BUSY_MS
from heptad.history.journal.meta import get_meta
from heptad.history.journal.packing import unpack_turns
from heptad.history.journal.sessions import Session, read_sessions
from heptad.history.journal.stranger import Limits
from heptad.history.table_form import table_from_plain
from heptad.record.arrays import unpack_array
from heptad.record.chunk import Call, Effects, Failure, Ints, View
from heptad.record.event_codec import from_plain
from heptad.record.events import Event, RecordedArray
from heptad.record.format_1 import from_format_1
from heptad.record.values import Columns, Recorded
from heptad.table import Table

_UNPACKED = BLOCK
"""Chunks that are kept unpacked, 16 kB each: a question asks several things of a chunk, or of all chunks of a block."""

_EVER = 1 << 62
"""Beyond the number of every row."""

_LOWEST = -(1 << 63)
"""The lowest number that SQLite has."""

_ASTRAY = (LookupError, AttributeError, ArithmeticError, RecursionError)
"""What rows with right checksums and wrong contents may raise where they are taken apart."""


class FileSource:
    """The log in a file, as a `TransitionLog` reads it. Several threads may read it: they take turns, under a lock.

    Each `view` is the file at one moment. What is written later is in the next. It takes about 0.5 kB of memory for
    each 1,024 transitions, and what a question needs.

    Args:
        path: The file.

    Raises:
        LogError: Here and wherever the file is read: if it is missing, empty, of another program, damaged, or of a
            newer version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        check_head(self._path)
        self._lock = threading.RLock()
        self._bodies: OrderedDict[int, tuple[Ints, Ints]] = OrderedDict()  # least recently used first
        self._chunks: list[FileChunk] = []
        self._view = View((), 0, 0)
        self._limits: Limits | None = None
        self._version: int | None = None
        self._session: int | None = None
        self._failure: Failure | None = None
        self._windows: Sequence[tuple[int, int]] = ()
        self._stops: Sequence[int] = ()
        self._facts: Mapping[str, Any] = {}
        self._names: dict[int, str] = {}  # of values and handlers, as far as they were asked for
        self._handlers: dict[int, tuple[str, str, str]] = {}
        with self._reading():
            self._connection = self._connect()
            weakref.finalize(self, self._connection.close)
            self._table = table_from_plain(self._meta("table"))
            self._run = str(self._meta("run"))
        self._effects = Effects(self._table)
        self._arcs = len(self._table.arcs) + len(self._table.states)
        self.view()

    def __reduce__(self) -> NoReturn:
        raise LogError(
            f"the log in {self._path} can neither be pickled nor copied while it is open; hand on its path, "
            "TransitionLog.load(path) reads it again"
        )

    @property
    def run(self) -> str:
        """The id of the run."""
        return self._run

    @property
    def writer(self) -> tuple[int, str] | None:
        """The process that has the file open to write, or that died with it open: its id, and its host."""
        with self._reading():
            return read_writer(get_meta(self._connection, "writer"))

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def sessions(self) -> list[Session]:
        """Return the processes that wrote the file, oldest first, each with what it made again."""
        with self._reading():
            return read_sessions(self._connection)

    @property
    def table(self) -> Table:
        """The table of the run."""
        return self._table

    @property
    def effects(self) -> Effects:
        """What its arcs do to the counters."""
        self._effects.carries = self._facts.get("remainder") == "carry"
        return self._effects

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run was asked for and is made of: plain data, as the newest session has it."""
        return self._facts

    @property
    def windows(self) -> Sequence[tuple[int, int]]:
        """From which transition on windows hold how many steps."""
        return self._windows

    @property
    def stops(self) -> Sequence[int]:
        """The transitions whose guards are the first to see that a stop was asked for."""
        return self._stops

    @property
    def failure(self) -> Failure | None:
        """Where the run failed."""
        return self._failure

    def view(self) -> View:
        """Return the log as the file has it now."""
        with self._reading():
            # SQLite's count of the commits of other connections: where it stands still, the last view still holds.
            version = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
            if version != self._version:
                # One transaction for all tables, so that chunks, windows, stops and the failure are of one commit. The
                # version was read before it: a commit in between is read twice, never missed.
                with self._snapshot():
                    self._read()
                self._version = version
            return self._view

    def events(self, first: int) -> list[Event]:
        """Return the events of the transitions from that number on, oldest first."""
        with self._reading():
            ask = self._connection
            columns = [name for _, name, *_ in ask.execute("PRAGMA table_info(note)")]
            data = "data" if "data" in columns else "NULL"  # version 1 stored words only
            # Who asks for all gets all checked: a number that is damaged would keep its row from being selected by it.
            some = first > self._view.first
            since = ask.execute("SELECT min(number) FROM note WHERE seq >= ?", (first,)).fetchone() if some else ()
            rows = self._rows(
                f"SELECT number, seq, kind, text, time_ns, {data}, crc FROM note "
                f"{'WHERE number >= ?' if some else ''} ORDER BY number",
                since,
            )
            events = [_event(row) for _, *row in rows]
            return [event for event in events if event.seq >= first]

    def values(self, first: int = 0) -> list[Recorded]:
        """Return the recorded values from the one of that number on, oldest first."""
        with self._reading():
            return self._recorded(first, _EVER)

    def value_block(self, first: int, most: int) -> Columns:
        """Return at most so many recorded values by column, from the one of that number on, oldest first."""
        with self._reading():
            rows = self._connection.execute(
                'SELECT number, name, value, seq, epoch, step, "update" FROM value WHERE number >= ? '
                "ORDER BY number LIMIT ?",
                (first, most),
            ).fetchall()
            if not rows:
                return Columns([], array("I"), array("d"), array("q"))
            # by column: an array takes whole numbers only, and checks them as fast as it takes them
            numbers, names, values, *places = zip(*rows, strict=True)
            if np.any(np.array(array("q", numbers)) != np.arange(first, first + len(rows))):
                raise ValueError(f"recorded values between {first} and {numbers[-1]} are missing, or out of order")
            try:
                real = array("d", values)
            except TypeError:  # a NaN is NULL
                real = array("d", map(schema.read_real, values, numbers))
            known = {number: place for place, number in enumerate(dict.fromkeys(names))}
            stored = np.stack([np.array(array("q", column)) for column in places], axis=1)
            schema.whole((int(stored.min()), int(stored.max())), "a recorded value")
            return Columns(
                [self._name(number) for number in known],
                array("I", map(known.__getitem__, names)),
                real,
                array("q", stored.tobytes()),
            )

    def values_between(self, first: int, end: int) -> list[Recorded]:
        """Return the values recorded in the turns of the transitions from `first` to before `end`, oldest first."""
        with self._reading():
            return self._recorded(self._first_value(first), self._first_value(end))

    def _recorded(self, first: int, end: int) -> list[Recorded]:
        rows = self._rows(
            'SELECT number, name, value, seq, epoch, step, "update" FROM value WHERE number >= ? AND number < ? '
            "ORDER BY number",
            (first, end),
        )
        found: list[Recorded] = []
        for place, (number, name, value, *at) in enumerate(rows, first):
            if number != place:
                raise ValueError(f"the recorded values {place} to {number - 1} are missing")
            schema.whole((name, *at), f"value {number}")
            found.append(Recorded(self._name(name), schema.read_real(value, number), *at))
        return found

    def _name(self, number: int) -> str:
        """Return the name of that number.

        Raises:
            ValueError: If the file lacks it.
        """
        found = self._names.get(number)
        if found is None:
            (stored,) = self._named("SELECT name FROM name WHERE number = ?", number)
            found = self._names[number] = schema.read_text(stored)
        return found

    def _handler(self, number: int) -> tuple[str, str, str]:
        """Return the handler of that number, on which moment of which state.

        Raises:
            ValueError: If the file does not hold it, or what it holds is not a handler.
        """
        found = self._handlers.get(number)
        if found is None:
            who, edge, state = map(
                schema.read_text, self._named("SELECT who, edge, state FROM handler WHERE number = ?", number)
            )
            if edge not in ("enter", "exit") or state not in self._table.shown.values():
                raise ValueError(f"the handler {number} is called on {edge!r:.60} of {state!r:.60}")
            found = self._handlers[number] = who, edge, state
        return found

    def _named(self, statement: str, number: int) -> Sequence[Any]:
        row = self._connection.execute(statement, (number,)).fetchone()
        if row is None:
            raise ValueError(f"the name or the handler of number {number} is missing")
        return self._within(row)

    def _first_value(self, seq: int) -> int:
        """Return the number of the first value of a transition or a later one.

        A binary search: `seq` grows with `number`, and an index on it would cost the writer more than it saves here.
        """
        # each by itself: asked for both at once, SQLite reads all rows
        low, last = self._connection.execute(
            "SELECT (SELECT min(number) FROM value), (SELECT max(number) FROM value)"
        ).fetchone()
        if low is None:
            return 0
        schema.whole((low, last), "a recorded value")
        if low:
            raise ValueError(f"the recorded values 0 to {low - 1} are missing")
        high = last + 1
        while low < high:
            middle = (low + high) // 2
            at, number = self._connection.execute(
                "SELECT seq, number FROM value WHERE number >= ? ORDER BY number LIMIT 1", (middle,)
            ).fetchone()
            low, high = (number + 1, high) if at < seq else (low, middle)
        return low

    def calls(self, first: int, end: int) -> list[Call]:
        """Return the handlers' calls in the turns of these transitions, where they were traced."""
        with self._reading():
            rows = self._rows(
                "SELECT seq, number, handler, time_ns, duration_ns FROM call WHERE seq >= ? AND seq < ? "
                "ORDER BY seq, number",  # which is the order of the numbers, and that of an index
                (first, end),
                keys=2,
            )
            found: list[Call] = []
            for seq, _, handler, *times in rows:
                schema.whole((handler, *times), f"a call in the turn of transition {seq}")
                found.append(Call(seq, *self._handler(handler), *times))
            return found

    # -- chunks

    def _body(self, chunk: FileChunk) -> tuple[Ints, Ints]:
        """Return the arcs and the times of a chunk. Both may be kept for the next question, so neither is writable."""
        with self._reading():
            kept = self._bodies.get(chunk.seq)
            if kept is not None and len(kept[0]) == len(chunk):
                self._bodies.move_to_end(chunk.seq)
                return kept
            row = self._connection.execute("SELECT count, body FROM chunk WHERE seq = ?", (chunk.seq,)).fetchone()
            if row is None or row[0] != len(chunk):
                raise LogError(
                    f"{self._path}: the run was resumed from before transition {chunk.seq + len(chunk) - 1} while it "
                    "was being read; read it again"
                )
            body = self._bodies[chunk.seq] = self._unpack(row[1], chunk)
            if len(self._bodies) > _UNPACKED:
                self._bodies.popitem(last=False)
            return body

    def _unpack(self, blob: bytes, chunk: FileChunk) -> tuple[Ints, Ints]:
        """Unpack the body of a chunk.

        Raises:
            ValueError: If it names an arc that the table lacks.
        """
        arcs, times = unpack_turns(blob, len(chunk), chunk.clock)
        if not len(arcs) or arcs.max() >= self._arcs:
            raise ValueError(f"the chunk at transition {chunk.seq} is empty or names an arc that the table lacks")
        arcs.flags.writeable = times.flags.writeable = False
        return arcs, times

    def _last_chunk(self, row: Sequence[Any], blob: bytes) -> FileChunk:
        """Return the last chunk, whose body is read with its head: both may be replaced as soon as the chunk grows."""
        chunk = FileChunk(row, lambda chunk: body)
        body = self._unpack(blob, chunk)
        return chunk

    # -- the file

    def _connect(self) -> sqlite3.Connection:
        where = f"file://{quote(os.fsencode(self._path.absolute()))}?mode=ro"
        try:
            return self._open(where)
        except sqlite3.OperationalError as error:
            # To read a file in write-ahead mode SQLite makes a second one beside it. In a folder where it cannot,
            # nobody can be writing either, so the file may be read as one that never changes.
            if "unable to open" not in str(error) or size_beside(self._path, "-wal"):
                raise
        return self._open(f"{where}&immutable=1")

    def _open(self, where: str) -> sqlite3.Connection:
        connection = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False)
        try:
            limits = Limits(connection, self._path)
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            connection.execute("PRAGMA cache_size = -8000")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the first to read the file
            limits.admit()
        except BaseException:
            connection.close()
            raise
        self._limits = limits
        return connection

    def _read(self) -> None:
        """Read the heads of new chunks, and what the file says of the run as a whole."""
        ask = self._connection
        newest = ask.execute("SELECT number, facts, crc FROM session ORDER BY number DESC LIMIT 1").fetchone()
        number, facts, crc = newest or (None, "{}", schema.crc("{}"))
        if schema.crc(facts) != crc:
            raise ValueError("what the run was asked for does not fit its checksum")
        if number != self._session:  # a resumed run may have made the same transitions again
            self._session = number
            self._chunks = []
            self._bodies.clear()
        self._facts = read_facts(facts)
        failed = ask.execute("SELECT * FROM failure").fetchone()
        self._failure = None if failed is None else read_failure(failed, self._table)
        self._read_chunks()
        windows = self._rows("SELECT seq, steps, crc FROM accumulation ORDER BY seq")
        self._windows = [
            (seq, steps)
            for seq, steps in (schema.whole(schema.checked(row, "a window's size"), "a window") for row in windows)
        ]
        stops = self._rows("SELECT seq, crc FROM stop ORDER BY seq")
        self._stops = [schema.whole(schema.checked(row, "a stop"), "a stop")[0] for row in stops]

    def _read_chunks(self) -> None:
        chunks = self._chunks[:-1]  # the last one may have grown: it is read again
        since = self._chunks[-1].seq if self._chunks else _LOWEST  # one that is below 0 is refused, not passed over
        rows = [*self._rows(f"SELECT {HEAD} FROM chunk WHERE seq >= ? ORDER BY seq", (since,))]
        read = self._body
        chunks += [FileChunk(row, read) for row in rows[:-1]]
        if rows:
            blob = self._connection.execute("SELECT body FROM chunk WHERE seq = ?", (rows[-1][0],)).fetchone()[0]
            chunks.append(self._last_chunk(rows[-1], blob))
        for before, after in pairwise(chunks):
            if before.seq + len(before) != after.seq:
                raise ValueError(f"transitions between {before.seq + len(before)} and {after.seq} are missing")
        first, end = (chunks[0].seq, chunks[-1].seq + len(chunks[-1])) if chunks else (0, 0)
        self._check_ends(first, end)
        self._chunks = chunks
        self._view = View(tuple(chunks), first, end)

    def _check_ends(self, first: int, end: int) -> None:
        """Compare the ends of the chunks with those of the rows, which are written in the same transactions.

        Raises:
            ValueError: If chunks are missing at an end.
        """
        oldest, newest = self._connection.execute(
            "SELECT (SELECT min(seq) FROM transition), (SELECT max(seq) FROM transition)"
        ).fetchone()
        if oldest is None:  # the rows are for SQL: without them the log can be read too
            return
        if first == end:
            first = end = oldest
        for begin, stop in ((oldest, first), (end, newest + 1)):
            if begin < stop:
                raise ValueError(f"transitions between {begin} and {stop} are missing")

    def _meta(self, key: str) -> Any:
        found = get_meta(self._connection, key)
        if found is None:
            raise ValueError(f"its '{key}' is missing")
        return found

    def _rows(self, statement: str, values: Sequence[Any] = (), keys: int = 1) -> Iterator[Sequence[Any]]:
        """Yield the rows of a statement.

        Args:
            statement: The statement.
            values: Its values.
            keys: How many columns, from the first, the rows are sorted by.

        Raises:
            ValueError: If they are not: several pages may lead to one, so that a row is read again and again.
        """
        before: Sequence[Any] = ()  # lower than every key
        for row in self._connection.execute(statement, values):
            key = row[:keys]
            if key <= before:
                raise ValueError(f"its pages are out of order: {key} comes after {before}")
            before = key
            yield self._within(row)

    def _within(self, row: Sequence[Any]) -> Sequence[Any]:
        """Count what a row holds: together the rows that a question reads hold no more than the file.

        Raises:
            ValueError: If they do: several of them may share the pages of a text.
        """
        if self._limits is not None:
            self._limits.spend(row)
        return row

    @contextmanager
    def _snapshot(self) -> Generator[None]:
        """Read the file at one moment: what others commit meanwhile is not seen in the block."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Generator[None]:
        """Read in one thread at a time, and raise errors as a `LogError` that says what they mean."""
        with self._lock:
            try:
                if self._limits is not None:
                    self._limits.renew()
                yield
            except sqlite3.OperationalError as error:
                if str(error) == "interrupted":
                    if self._limits is not None and not self._limits.reached:
                        raise KeyboardInterrupt from None  # SQLite has swallowed it
                    raise self._damaged(
                        ValueError("reading it takes more steps than a file of its size has rows for")
                    ) from error
                if "malformed" in str(error) or "decode" in str(error) or "no such" in str(error):
                    raise self._damaged(error) from error
                raise LogError(f"{self._path} cannot be read: {reason(self._path, error)}") from error
            except (sqlite3.Error, zlib.error, ValueError, TypeError, *_ASTRAY, TableError) as error:
                raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> LogError:
        return LogError(
            f"{self._path} is damaged: {error}; take a copy that is not, or see what `sqlite3 … .recover` saves of it"
        )


def _event(row: Sequence[Any]) -> Event:
    """Return the event of a row of `note`.

    Raises:
        ValueError: If the row does not fit its checksum, or describes no event.
    """
    *words, data, crc = row
    what = f"an event of transition {row[0]}"
    if data is not None:
        schema.checked(row, what)
        event = from_plain(schema.parsed_json(data))
        schema.whole((event.seq, event.time_ns), what)
        if [event.seq, event.kind, event.time_ns] != [row[0], row[1], row[3]]:
            raise ValueError(f"{what} says that it is another one: {event!s:.60}")
        if isinstance(event, RecordedArray):
            unpack_array(event.data)  # the text of a stranger's may stand for no array, or for gigabytes
        return event
    seq, kind, text, time_ns = schema.checked((*words, crc), what)
    schema.whole((seq, time_ns), what)
    return from_format_1(seq, kind, schema.read_text(text), time_ns)
