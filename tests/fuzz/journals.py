"""Journals as inputs: originals, what damage and strangers make of them, and those who read them."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import chdir, closing, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from builders import batches, small_engine
from fuzz.damage import damaged
from fuzz.values import NUMBERS, RAW, dumped, mutated, odd
from fuzz.verdict import Outcome, WrongAnswer, expect_equal
from heptad import EngineError, LogError, Plugin, Run, TransitionLog
from heptad.cli.main import main
from heptad.history.journal import schema
from heptad.history.journal.file_chunk import HEAD
from heptad.history.journal.packing import unpack_turns
from heptad_plugins import Checkpoint, Evaluate, Journal
from scenario import Guesses

FORMAT_1 = Path(__file__).parent.parent / "journal" / "format_1"
NAME = "run.journal"

Parts = dict[str, bytes]
"""A journal, and what SQLite keeps beside it, by the ends of their names."""


class Marks(Plugin):
    """Leave a mark of every kind in the log."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken

    def on_enter_optimizer_update(self, run: Run) -> None:
        if run.update == 1:
            run.skip_update("the second is skipped")

    def on_exit_after_step(self, run: Run) -> None:
        run.record("half", run.step / 2)
        if run.step == 2:
            run.note("caf\udce9 \u6f22")
        if run.step == 5:
            run.pause("by hand")
        if run.step == 9 and self.broken:
            raise ValueError("caf\udce9 \u6f22")

    def on_exit_after_epoch(self, run: Run) -> None:
        run.record("nan", float("nan"))
        if run.epoch == 1:
            run.set_accumulation(2)
        if run.epoch == 3:
            run.stop("enough")


class Copied(Plugin):
    """Copy the journal while it is written: what is left of a run that was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exit_after_epoch(self, run: Run) -> None:
        if run.epoch == 2:
            shutil.copyfile(self.path, self.path.with_name("killed"))
            shutil.copyfile(f"{self.path}-wal", self.path.with_name("killed-wal"))


def _written(folder: Path, *, broken: bool, again: bool = False) -> Path:
    """Train a run that writes a journal; return its path."""
    path = folder / ("failed" if broken else "finished")
    for resume in [None, "auto"][: 1 + again]:
        plugins = [
            Marks(broken),
            Evaluate(batches(2), {"guesses": Guesses()}),
            Checkpoint(folder / f"{path.name}.checkpoints", at="after_epoch"),
            Copied(path),
            Journal(path),
        ]
        engine = small_engine(4, plugins, epochs=5, accumulation=3, trace_handlers=True)
        with engine, suppress(ValueError):  # of `Marks`
            engine.run(resume=resume)
            while not engine.current.ended:
                engine.run()
    return path


@cache
def originals() -> dict[str, Parts]:
    """Return journals by name: of runs that failed and were resumed, finished, or were killed, and old ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        failed, finished = _written(folder, broken=True, again=True), _written(folder, broken=False)
        paths = {"failed": failed, "finished": finished, "killed": folder / "killed"}
        paths |= {f"{path.stem} of format 1": path for path in sorted(FORMAT_1.glob("*.journal"))}
        return {name: _parts(path) for name, path in paths.items()}


def _parts(path: Path) -> Parts:
    """Return the content of a journal, and of its write-ahead log where it has one."""
    return {end: Path(f"{path}{end}").read_bytes() for end in ("", "-wal") if Path(f"{path}{end}").exists()}


def original_of(number: int) -> Parts:
    """Return the journal that an input is made from."""
    found = originals()
    return found[[*found][number % len(found)]]


def _write(folder: Path, parts: Parts) -> Path:
    for end, content in parts.items():
        (folder / f"{NAME}{end}").write_bytes(content)
    return folder / NAME


class Truth(NamedTuple):
    """What is right for an original: the answer to each question, and what each command prints."""

    answers: dict[str, str]
    printed: dict[str, str]


@cache
def truth_of(original: tuple[tuple[str, bytes], ...]) -> Truth:
    """Return what is right for an original, given its parts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = _write(folder, dict(original))
        _write_other(folder)
        answers = {question: answer(TransitionLog.load(path), folder) for question, answer in QUESTIONS.items()}
        printed = {" ".join(words): _command(folder, words)[1] for words in COMMANDS}
    return Truth(answers, printed)


def prepare() -> None:
    """Write all originals and answer for them, before processes are forked."""
    for original in originals().values():
        truth_of((*original.items(),))


# -- inputs


def make_damaged(folder: Path, number: int, draw: Random) -> None:
    """Write a journal with damage in one of its files."""
    parts = dict(original_of(number))
    end = draw.choice([*parts])
    parts[end] = damaged(parts[end], draw)
    if draw.random() < 0.02:
        parts[draw.choice(["-wal", "-journal", "-shm"])] = draw.randbytes(4096)
    _write(folder, parts)
    (folder / ORIGINAL).mkdir()
    _write(folder / ORIGINAL, original_of(number))


ORIGINAL = "original"
"""The folder in which the original lies beside what was damaged: those of another process have other times."""


def make_crafted(folder: Path, number: int, draw: Random) -> None:
    """Write a journal of which one or two things were changed, with right checksums."""
    path = _write(folder, original_of(number))
    if draw.random() < 0.02:
        _make_special(path, draw)
        return
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        with suppress(sqlite3.Error):  # what SQLite itself refuses to write is no input
            draw.choice(CRAFTS)(file, draw)
        if draw.random() < 0.25:
            with suppress(Exception):  # what the first change has left may be of another form
                draw.choice(CRAFTS)(file, draw)
        with suppress(sqlite3.Error):
            file.execute("PRAGMA journal_mode = DELETE")


SIGNED = {
    "meta": ["value"],
    "session": ["facts"],
    "chunk": [part.strip(' "') for part in HEAD.split(",")][:-1],
    "note": ["seq", "kind", "text", "time_ns", "data"],
    "failure": None,
    "accumulation": None,
    "stop": None,
}
"""The columns that the checksum of a row is taken over, by table; `None` for all but itself."""

TEXTS_OF_JSON = {"meta": "value", "session": "facts", "note": "data", "failure": "guards", "chunk": "skipped"}

Row = dict[str, Any]


def _change_cell(file: sqlite3.Connection, draw: Random) -> None:
    """Change a field of a row."""
    table, row = _some_row(file, draw)
    column = draw.choice([*row])
    before = row[column]
    value = draw.choice(NUMBERS) if draw.random() < 0.7 else odd(draw)
    if isinstance(before, int) and draw.random() < 0.5:
        value = before + draw.choice([1, -1, 2**40, -(2**40)])
    if column == "body" and draw.random() < 0.5:
        value = zlib.compress(damaged(zlib.decompress(before), draw))
    _put(file, table, row, {column: value})


def _change_json(file: sqlite3.Connection, draw: Random) -> None:
    """Change a place in a field that holds JSON."""
    table, row = _some_row(file, draw, [*TEXTS_OF_JSON])
    column = TEXTS_OF_JSON[table]
    value = json.loads(row[column]) if row.get(column) else [0, 1]
    _put(file, table, row, {column: dumped(mutated(value, draw)).decode()})


def _change_chunk(file: sqlite3.Connection, draw: Random) -> None:
    """Change arcs or times of a chunk, which is packed again."""
    _, row = _some_row(file, draw, ["chunk"])
    arcs, times = unpack_turns(row["body"], row["count"], row["clock"])
    since = np.diff(times, prepend=row["clock"])
    at = draw.randrange(len(arcs))
    match draw.randrange(6):
        case 0:
            arcs[at] = draw.choice([0, 1, len(arcs), 255, 65_535])
        case 1:
            arcs[at:] = arcs[at:][::-1].copy()
        case 2:
            since[at] = draw.choice([0, -1, 2**62, -(2**62), 2**63 - 1])
        case 3:
            arcs, since = arcs[:at], since[:at]
        case 4:
            arcs, since = np.append(arcs, arcs[at:]), np.append(since, since[at:])
        case _:
            size = draw.choice([10_000, 1_000_000, 20_000_000])
            body = zlib.compress(bytes(10 * size))
            _put(file, "chunk", row, {"body": body, "count": draw.choice([size, row["count"]])})
            return
    planes = np.column_stack(
        [arcs.astype("<u2").view(np.uint8).reshape(-1, 2), since.astype("<i8").view(np.uint8).reshape(-1, 8)]
    )
    count = draw.choice([len(arcs), len(arcs), row["count"]])
    _put(file, "chunk", row, {"body": zlib.compress(planes.T.tobytes()), "count": count})


def _change_rows(file: sqlite3.Connection, draw: Random) -> None:
    """Remove a row, write it twice under another number, or give it another's number."""
    table, row = _some_row(file, draw)
    key = next(iter(row))
    match draw.randrange(3):
        case 0:
            file.execute(f'DELETE FROM {table} WHERE "{key}" IS ?', (row[key],))
        case 1:
            again = {
                **row,
                key: draw.choice(NUMBERS) if draw.random() < 0.5 else _some_row(file, draw, [table])[1][key],
            }
            _insert(file, table, _signed(table, again))
        case _:
            file.execute(f"DELETE FROM {table}")


SCHEMES = [
    "DROP TABLE {table}",
    "DROP TABLE {table}; CREATE VIEW {table} AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
    "SELECT x AS number, x AS seq, 'note' AS kind, '' AS text, 0 AS time_ns, 0 AS crc, NULL AS data, x AS name, "
    '1.0 AS value, 0 AS epoch, 0 AS step, 0 AS "update" FROM n',
    "ALTER TABLE {table} RENAME TO old_{table}; CREATE VIEW {table} AS SELECT a.* FROM old_{table} a, old_{table} b",
    "CREATE TRIGGER harm AFTER INSERT ON {table} BEGIN DELETE FROM {table}; END",
    "ALTER TABLE {table} ADD COLUMN more",
    "CREATE TABLE more AS SELECT * FROM {table}",
    "CREATE INDEX odd_{table} ON {table} (1)",
    "DELETE FROM {table}",
    "PRAGMA user_version = {number}",
    "PRAGMA application_id = {number}",
    "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = {number} WHERE name = '{table}'",
    "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'INTEGER', 'TEXT')",
    "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = '{{' WHERE name = '{table}'",
    "DROP VIEW transitions; CREATE VIEW transitions AS SELECT * FROM {table}",
    "PRAGMA journal_mode = WAL; UPDATE meta SET crc = crc",
]


def _change_schema(file: sqlite3.Connection, draw: Random) -> None:
    """Change tables, views, triggers or what the head of the file says."""
    number = draw.choice([0, 1, 2, 3, 4, 99, 2**31 - 1, -1])
    file.executescript(draw.choice(SCHEMES).format(table=draw.choice(_tables(file)), number=number))


CRAFTS: list[Callable[[sqlite3.Connection, Random], None]] = [
    *[_change_cell] * 5,
    *[_change_json] * 4,
    *[_change_chunk] * 2,
    _change_rows,
    _change_schema,
]


def _tables(file: sqlite3.Connection) -> list[str]:
    """Return the tables that hold rows, sorted."""
    names = [name for (name,) in file.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    return [name for name in names if file.execute(f"SELECT 1 FROM {name}").fetchone()]


def _some_row(file: sqlite3.Connection, draw: Random, among: Sequence[str] = ()) -> tuple[str, Row]:
    """Return a row by its columns, of one of those tables or of any."""
    table = draw.choice([name for name in _tables(file) if not among or name in among])
    rows = file.execute(f"SELECT * FROM {table}")
    columns = [name for name, *_ in rows.description]
    return table, dict(zip(columns, draw.choice(rows.fetchall()), strict=True))


def _put(file: sqlite3.Connection, table: str, row: Row, change: Row) -> None:
    """Put other fields in a row, whose first column is its key, and sign it."""
    changed = _signed(table, {**row, **change})
    key = next(iter(row))
    names = ", ".join(f'"{name}" = ?' for name in changed)
    values = [_storable(value) for value in changed.values()]
    file.execute(f'UPDATE {table} SET {names} WHERE "{key}" IS ?', (*values, row[key]))


def _insert(file: sqlite3.Connection, table: str, row: Row) -> None:
    marks = ", ".join("?" * len(row))
    file.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", [_storable(value) for value in row.values()])


def _signed(table: str, row: Row) -> Row:
    """Return a row with the checksum of what it now holds, where rows of the table have one."""
    if table not in SIGNED or "crc" not in row:
        return row
    columns = [name for name in SIGNED[table] or row if name in row and name != "crc"]
    return {**row, "crc": schema.crc(*(_storable(row[name]) for name in columns))}


def _storable(value: Any) -> Any:
    """Return a value that SQLite holds."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    if isinstance(value, str):
        return schema.stored_text(RAW.get(value, value))
    if isinstance(value, list | dict):
        return schema.stored_text(dumped(value).decode())
    return value


def _make_special(path: Path, draw: Random) -> None:
    """Put something in place of a journal that is no file, or is another's."""
    content = path.read_bytes()
    path.unlink()
    match draw.randrange(6):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(draw.choice(["/dev/zero", "/dev/full", NAME, "/nowhere"]))
        case 3:
            path.write_bytes(b"")
        case 4:
            path.write_text(draw.choice(['{"format": 1}', "[" * 1000, "SQLite format 3"]))
        case _:
            path.write_bytes(content)
            beside = Path(f"{path}{draw.choice(['-wal', '-shm', '-journal'])}")
            beside.unlink(missing_ok=True)
            os.mkfifo(beside)


# -- readers


def _explained(log: TransitionLog, folder: Path) -> str:
    """Return why the first, the middle and the last transition were made."""
    held = [transition.seq for transition in log]
    return "\n".join(str(log.explain(held[place])) for place in (0, len(held) // 2, -1)) if held else ""


def _exported(log: TransitionLog, folder: Path) -> str:
    return log.to_jsonl(folder / "out.jsonl").read_text()


def _traced(log: TransitionLog, folder: Path) -> str:
    return log.to_trace(folder / "out.trace").read_text()


Answer = Callable[[TransitionLog, Path], str]

QUESTIONS: dict[str, Answer] = {
    "transitions": lambda log, folder: repr(list(log)),
    "path": lambda log, folder: repr(log.path()),
    "counts": lambda log, folder: repr(log.counts()),
    "durations": lambda log, folder: repr(log.durations()),
    "call durations": lambda log, folder: repr(log.call_durations()),
    "notes": lambda log, folder: "\n".join(f"{note.seq} {note.time_ns} {note!r}" for note in log.notes()),
    "values": lambda log, folder: repr(log.values()),
    "arrays": lambda log, folder: repr([(one.seq, one.name, str(one.array)) for one in log.arrays()]),
    "calls": lambda log, folder: repr(log.calls()),
    "where": lambda log, folder: repr([log.where(epoch=1, dest="after_step"), log.where(update=2, limit=-1)]),
    "tail": lambda log, folder: repr([log.tail(3), log[:2]]),
    "repr": lambda log, folder: f"{log!r} {len(log)} {log._repr_html_()}",
    "explain": _explained,
    "diff": lambda log, folder: str(log.diff(TransitionLog.load(folder / OTHER))),
    "diff with itself": lambda log, folder: str(TransitionLog.load(folder / OTHER).diff(log)),
    "jsonl": _exported,
    "trace": _traced,
    "frame": lambda log, folder: log.to_dataframe().to_csv(),
}
"""Each question to a log, with its answer as text."""

COMMANDS: list[list[str]] = [
    ["show", NAME, "--all"],
    ["show", NAME, "--notes"],
    ["show", NAME, "--values"],
    ["show", NAME, "--json", "--tail", "5"],
    ["show", NAME, "--epoch", "1", "--dest", "after_step"],
    ["stats", NAME],
    ["stats", NAME, "--json"],
    ["explain", NAME, "-1"],
    ["explain", NAME, "--tail", "3", "--json"],
    ["diff", NAME, "other.journal"],
    ["diff", "other.journal", NAME, "--json"],
    ["diagram", NAME],
    ["export", NAME, "--output", "out"],
    ["export", NAME, "--format", "trace", "--output", "out"],
    ["export", NAME, "--format", "csv", "--output", "out"],
]

GUARDED = {"transitions", "path", "counts", "durations", "where", "tail", "repr", "frame"}
"""The questions to what has checksums: `docs/journal.md` says that recorded values and calls have none."""

GUARDED_COMMANDS = [["diagram", NAME], ["show", NAME, "--all"], ["show", NAME, "--epoch", "1", "--dest", "after_step"]]

OTHER = "other.journal"


def _write_other(folder: Path) -> None:
    """Write the journal that an input is compared with."""
    (folder / OTHER).write_bytes(originals()["finished"][""])


def ask_damaged(folder: Path, number: int, draw: Random) -> Outcome:
    """Read a damaged journal: it is refused, or the damage changed nothing.

    What is damaged in a write-ahead log ends it, by the rules of SQLite: then the log is that of an earlier moment.
    """
    original = _parts(folder / ORIGINAL / NAME)
    beside = ("-wal", "-journal", "-shm")
    whole = all(_content(folder / f"{NAME}{end}") == original.get(end) for end in beside)
    return _ask(folder, truth_of((*original.items(),)) if whole else None, draw)


def ask_crafted(folder: Path, number: int, draw: Random) -> Outcome:
    """Read a crafted journal: it is refused, or all that is asked has an answer."""
    return _ask(folder, None, draw)


def _ask(folder: Path, truth: Truth | None, draw: Random) -> Outcome:
    """Ask a journal some questions, and give one command; afterwards the file is what it was."""
    _write_other(folder)
    before = _content(folder / NAME)
    refused = _question(folder, truth, draw) if draw.random() < 0.6 else _order(folder, truth, draw)
    expect_equal(_content(folder / NAME) == before, True, "whether the file that was read is what it was")
    return "refused" if refused else "answered"


def _question(folder: Path, truth: Truth | None, draw: Random) -> bool:
    """Ask some questions; return whether one was refused."""
    try:
        log = TransitionLog.load(folder / NAME)
    except LogError:
        return True
    refused = False
    for question in draw.sample([*QUESTIONS], 4):
        try:
            found = QUESTIONS[question](log, folder)
        except LogError:
            refused = True
            continue
        except EngineError as error:  # the table has other states than the question names
            expect_equal(str(error)[:17], "there is no state", f"what {question} says")
            continue
        if truth is not None and question in GUARDED:
            expect_equal(found, truth.answers[question], f"the answer of {question}")
        elif truth is not None and question == "notes":  # each that is there is right; a lost page loses some
            expect_equal({*found.splitlines()} - {*truth.answers[question].splitlines()}, set(), "a note")
    return refused


def _order(folder: Path, truth: Truth | None, draw: Random) -> bool:
    """Give a command; return whether it was refused."""
    words = draw.choice(COMMANDS)
    code, out, err = _command(folder, words)
    name = " ".join(words)
    if code == 2:
        if not err.startswith("heptad: "):
            raise WrongAnswer(f"{name} ended with 2 and said {err!r}")
        return True
    if code not in (0, 1) or (code == 1 and words[0] != "diff"):
        raise WrongAnswer(f"{name} ended with {code} and said {err!r}")
    if truth is not None and words in GUARDED_COMMANDS:
        expect_equal(out, truth.printed[name], f"what {name} printed")
    return False


def _command(folder: Path, words: list[str]) -> tuple[int, str, str]:
    """Return the exit code of a command, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def _content(path: Path) -> bytes | None:
    """Return the bytes of a file; nothing where there is none."""
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None
