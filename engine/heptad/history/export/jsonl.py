"""A log as lines of JSON, and back: a header, then one object a transition.

The header holds what the lines do not say: the table, the facts, which windows held how many steps, and what was noted
or recorded in turns that have no line. Reading holds each line against what the table and the line before it allow, and
the whole against a checksum: a file that was cut or altered is refused.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from zlib import crc32

from heptad.errors import LogError, TableError
from heptad.history.decode import Decoder, by_seq, holding
from heptad.history.export.output import Target, written
from heptad.history.source import Source
from heptad.history.transition import Transition
from heptad.record.buffer import CHUNK, Packed
from heptad.record.chunk import Call, Effects, Failure, View
from heptad.record.counters import Counters
from heptad.record.events import Note
from heptad.record.values import Recorded
from heptad.table import Table

FORMAT = "heptad log"
VERSION = 1

_UNSUMMED = '"crc32": "00000000"'
"""Where the checksum of everything will stand, as it stands while it is taken."""

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_EVER = 1 << 62
_COUNTED = ("epoch", "batch_index", "step", "update")
_BAD = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, TableError)
"""What comes of reading something else than was written."""

Row = TypeVar("Row", Recorded, Call)


# -- writing


def write(source: Source, target: Target) -> None:
    """Writes a log, a chunk in memory at a time.

    Raises:
        OSError: If it cannot be written.
    """
    view = source.view()
    notes = by_seq(source.notes(view.first))
    with written(target) as file:
        header = _dumps(_header(source, view))
        file.write(header)
        checksum = crc32(header)
        for transition, values, calls in _turns(source, view):
            line = plain(transition)
            line["notes"] = [_note(note) for note in notes.get(transition.seq, ())]
            if values:
                line["values"] = [_value(value) for value in values]
            if calls:
                line["calls"] = [_call(call) for call in calls]
            data = _dumps(line)
            file.write(data)
            checksum = crc32(data, checksum)
        file.seek(header.index(_UNSUMMED.encode()))
        file.write(_UNSUMMED.replace("00000000", f"{checksum:08x}").encode())


def _header(source: Source, view: View) -> dict[str, Any]:
    first, end = view.first, view.end
    before, node = Counters(), source.table.start.name
    if end > first:
        chunk = holding(view, first)
        before = Decoder(source).counters(chunk, first - chunk.seq - 1)
        arc = int(chunk.arcs()[first - chunk.seq])
        node = source.table.states[int(source.effects.sources[arc])].name
    loose = [*source.values_between(-1, first), *source.values_between(end, _EVER)]
    return {
        "format": FORMAT,
        "version": VERSION,
        "crc32": "00000000",
        "first": first,
        "end": end,
        "node": node,
        "before": before,
        "table": source.table.to_plain(),
        "facts": _plain(dict(source.facts)),
        "windows": list(source.windows),
        "stops": sorted(set(source.stops)),
        "failure": None if source.failure is None else asdict(source.failure),
        "notes": [_note(note) | {"seq": note.seq} for note in source.notes(end)],
        "values": [_value(value) | {"seq": value.seq} for value in loose],
    }


def _turns(source: Source, view: View) -> Iterator[tuple[Transition, Sequence[Recorded], Sequence[Call]]]:
    """Yields the transitions, with what was recorded and who was called in the turn of each."""
    decoder = Decoder(source)
    for chunk in view.chunks:
        first, end = max(chunk.seq, view.first), chunk.seq + len(chunk)
        values = by_seq(source.values_between(first, end))
        calls = by_seq(source.calls(first, end))
        for transition in decoder.at(view, range(first, end)):
            yield transition, values.get(transition.seq, ()), calls.get(transition.seq, ())


def _dumps(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Returns plain data without the numbers that JSON lacks."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in cast("Sequence[Any]", value)]
    return value


def _number(value: float) -> float | str:
    """Returns a number; as a word where JSON has none for it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def plain(transition: Transition) -> dict[str, Any]:
    """Returns a transition as plain data: what a line holds, less its notes, values and calls."""
    return {
        "seq": transition.seq,
        "time_ns": transition.time_ns,
        "duration_ns": transition.duration_ns,
        "source": transition.source,
        "dest": transition.dest,
        "guards": dict(transition.guards),
        "epoch": transition.epoch,
        "batch_index": transition.batch_index,
        "step": transition.step,
        "update": transition.update,
    }


def _note(note: Note) -> dict[str, Any]:
    return {"kind": note.kind, "text": note.text, "time_ns": note.time_ns}


def _value(value: Recorded) -> dict[str, Any]:
    return {
        "name": value.name,
        "value": _number(value.value),
        "epoch": value.epoch,
        "step": value.step,
        "update": value.update,
    }


def _call(call: Call) -> dict[str, Any]:
    return {
        "who": call.who,
        "moment": call.moment,
        "state": call.state,
        "time_ns": call.time_ns,
        "duration_ns": call.duration_ns,
    }


# -- reading


@dataclass
class Lines:
    """What `write` wrote, read back: a `Source`. In memory 10 bytes a transition, beside notes, values and calls."""

    table: Table
    effects: Effects
    facts: Mapping[str, Any]
    windows: Sequence[tuple[int, int]]
    stops: Sequence[int]
    failure: Failure | None
    _view: View
    _notes: list[Note]
    _values: list[Recorded]
    _calls: list[Call]

    def view(self) -> View:
        """Returns the log as the file holds it."""
        return self._view

    def notes(self, first: int) -> list[Note]:
        """Returns the notes of the transitions from that number on."""
        return [note for note in self._notes if note.seq >= first]

    def values(self, first: int = 0) -> list[Recorded]:
        """Returns the recorded values from the one of that number on."""
        return self._values[max(first, 0) :]

    def values_between(self, first: int, end: int) -> list[Recorded]:
        """Returns the values recorded in the turns of these transitions."""
        return _between(self._values, first, end)

    def calls(self, first: int, end: int) -> list[Call]:
        """Returns the handlers' calls in the turns of these transitions."""
        return _between(self._calls, first, end)


def _between(rows: list[Row], first: int, end: int) -> list[Row]:
    return rows[bisect_left(rows, first, key=_seq) : bisect_left(rows, end, key=_seq)]


def _seq(row: Recorded | Call) -> int:
    return row.seq


def read(path: str | Path) -> Lines:
    """Reads a log that `write` wrote.

    Raises:
        LogError: If the file is none, was cut or altered, or was written by a newer version.
        OSError: If it cannot be read.
    """
    with Path(path).open("rb") as file:
        first = file.readline()
        reader = _Reader(path, first)
        checksum = crc32(first.replace(reader.checksum.encode(), b"00000000", 1))
        for line in file:
            reader.add(line)
            checksum = crc32(line, checksum)
    return reader.done(f"{checksum:08x}")


class _Reader:
    """Packs line after line into chunks."""

    def __init__(self, path: str | Path, first: bytes) -> None:
        self._path = path
        self._number = 1
        try:
            self._header = header = json.loads(first)
            if header["format"] != FORMAT:
                raise ValueError
            version = header["version"] + 0
        except _BAD:
            raise LogError(
                f"{path} is no log as to_jsonl writes it: its first line is not the header of one; "
                "export the log again, with to_jsonl or `heptad export`"
            ) from None
        if version > VERSION:
            raise LogError(
                f"{path} was written in version {version} of the format, this heptad reads up to {VERSION}; upgrade it"
            )
        try:
            self._begin(header)
        except _BAD as error:
            raise self._damaged(f"its header cannot be read ({error!r})") from None

    def _begin(self, header: Mapping[str, Any]) -> None:
        self.checksum = str(header["crc32"])
        self._table = table = Table.from_plain(header["table"])
        self._effects = Effects(table)
        self._arcs = {
            (table.index[arc.source], table.shown[arc.dest], tuple(table.asked(arc).items())): number
            for number, arc in enumerate(table.arcs)
        }
        failure = header["failure"]
        self._failure = None if failure is None else Failure(**failure | {"counters": Counters(*failure["counters"])})
        self._seq = self._first = int(header["first"])
        self._node = table.index[header["node"]]
        self._counters = Counters(*header["before"])
        self._clock: int | None = None
        self._packed: list[Packed] = []
        self._notes: list[Note] = []
        self._loose_notes = [Note(**note) for note in header["notes"]]
        loose = [Recorded(**value | {"value": _real(value["value"])}) for value in header["values"]]
        self._values = [value for value in loose if value.seq < self._first]
        self._late = [value for value in loose if value.seq >= self._first]
        self._calls: list[Call] = []
        self._windows = [(int(since), int(k)) for since, k in header["windows"]]
        self._stops = [int(seq) for seq in header["stops"]]
        self._facts = dict(header["facts"])
        self._end = int(header["end"])
        self._open()

    def _open(self) -> None:
        self._chunk_seq, self._chunk_clock = self._seq, self._clock
        self._taken, self._times = array("H"), array("q")
        self._skipped: list[int] = []
        self._gaps: list[tuple[int, int]] = []
        self._given: list[tuple[int, ...]] = []

    def add(self, line: bytes) -> None:
        """Takes a line."""
        self._number += 1
        try:
            self._take(json.loads(line))
        except _BAD as error:
            raise self._damaged(
                f"line {self._number} is not the transition that should stand there ({error!r})"
            ) from None
        if len(self._times) == CHUNK:
            self._pack()

    def _take(self, line: Mapping[str, Any]) -> None:
        seq, time, spent = self._seq, line["time_ns"], line["duration_ns"]
        if line["seq"] != seq:
            raise ValueError(f"number {line['seq']} in place of {seq}")
        if line["source"] != self._table.states[self._node].shown:
            raise ValueError(f"from {line['source']} in place of {self._table.states[self._node].shown}")
        arc = self._arc(line)
        place = len(self._times)
        if self._clock is None:
            self._clock = self._chunk_clock = time - spent
        if time - self._clock != spent:
            self._gaps.append((place, time - self._clock - spent))
        self._taken.append(arc)
        self._times.append(time)
        self._given.append(tuple(line[name] for name in _COUNTED))
        before = self._given[place - 1][3] if place else self._counters.update
        if self._effects.counts_update[arc] and line["update"] == before:
            self._skipped.append(place)
        self._notes += [Note(seq, note["kind"], note["text"], note["time_ns"]) for note in line["notes"]]
        for value in line.get("values", ()):
            self._values.append(Recorded(**value | {"value": _real(value["value"]), "seq": seq}))
        self._calls += [Call(**call | {"seq": seq}) for call in line.get("calls", ())]
        self._node, self._clock, self._seq = int(self._effects.dests[arc]), time, seq + 1

    def _arc(self, line: Mapping[str, Any]) -> int:
        if self._failure is not None and self._failure.seq == self._seq:
            return len(self._table.arcs) + self._node
        arc = self._arcs.get((self._node, line["dest"], tuple(line["guards"].items())))
        if arc is None:
            raise ValueError(f"no arc of the table leads to {line['dest']} with these answers")
        return arc

    def _pack(self) -> None:
        chunk = Packed(
            self._chunk_seq,
            self._chunk_clock or 0,
            0,
            self._counters,
            tuple(self._skipped),
            tuple(self._gaps),
            self._taken,
            self._times,
        )
        columns = self._effects.counters(chunk, self._failure)
        told = list(zip(*(columns[name].tolist() for name in _COUNTED), strict=True))
        for place, (given, follows) in enumerate(zip(self._given, told, strict=True)):
            if given != follows:
                number = self._number - len(told) + 1 + place
                raise self._damaged(f"line {number} has other counters than follow from the path before it")
        self._counters = Counters(**{name: int(column[-1]) for name, column in columns.items()})
        self._packed.append(chunk)
        self._open()

    def done(self, checksum: str) -> Lines:
        """Returns what was read.

        Raises:
            LogError: If it is not all, or not what was written.
        """
        if self._times:
            self._pack()
        if self._seq != self._end:
            raise self._damaged(
                f"it was cut: it ends with transition #{self._seq - 1}, #{self._end - 1} was written as the last"
            )
        if checksum != self.checksum:
            raise self._damaged("its checksum is not that of what was written")
        view = View(tuple(self._packed), self._first, self._seq)
        return Lines(
            self._table,
            self._effects,
            self._facts,
            self._windows,
            self._stops,
            self._failure,
            view,
            [*self._notes, *self._loose_notes],
            [*self._values, *self._late],
            self._calls,
        )

    def _damaged(self, what: str) -> LogError:
        return LogError(f"{self._path} is damaged: {what}; export the log again")


def _real(value: float | str) -> float:
    return _WORDS[value] if isinstance(value, str) else float(value)
