"""A log in the Chrome trace format, which https://ui.perfetto.dev opens.

On one track lie epochs, in them windows, in these steps, states, and in those the handlers where they were traced.
Each span has an event for its beginning and one for its end: from a beginning and a length, both rounded, a reader may
work out an end beyond that of the span around it. Recorded values are counters, notes are marks. Times are microseconds
since the log begins; `otherData` says when that was. A run that failed or is paused in mid-epoch has its open spans
closed where the log ends; one that was resumed there has them opened where the log begins. Paused time lies within the
state in which the run was paused, whose `args` say how long.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from heptad.history.decode import Decoder, by_seq
from heptad.history.export.output import Target, replacing
from heptad.history.source import Source
from heptad.history.transition import Transition
from heptad.record.chunk import Call, Chunk, View
from heptad.record.counters import Counters
from heptad.record.events import Note
from heptad.record.values import Recorded

Event = dict[str, Any]

_NO_EPOCH = frozenset({"idle", "before_loop", "after_loop", "finished", "failed"})
_IN_STEP = frozenset({"before_step", "process_batch", "after_step"})
_TRACK = {"pid": 1, "tid": 1}
_EVER = 1 << 62


def write(source: Source, target: Target) -> None:
    """Writes a log in the Chrome trace format, a chunk in memory at a time.

    Raises:
        OSError: If it cannot be written.
    """
    view = source.view()
    track = _Track(source, view)
    head = {"displayTimeUnit": "ms", "otherData": {"begins_ns_since_1970": track.start}}
    with replacing(target) as file:
        file.write(json.dumps(head)[:-1].encode() + b', "traceEvents": [\n')
        for number, event in enumerate(track.events()):
            file.write((b",\n" if number else b"") + json.dumps(event, allow_nan=False).encode())
        file.write(b"\n]}\n")


class _Track:
    """The spans of a run, in the order in which they begin.

    Attributes:
        start: When the first state of the log was entered, in Unix nanoseconds.
    """

    def __init__(self, source: Source, view: View) -> None:
        self._source, self._view = source, view
        self._decoder = Decoder(source)
        self._names = [state.name for state in source.table.states]
        self.start = _start(view)
        self._entered = 0  # when the state that is open was entered: nanoseconds since the start
        self._arrivals: Sequence[Call] = ()  # the handlers that were called then
        self._notes = source.notes(view.first)
        self._open: list[str] = []  # the spans around it, outermost first

    def events(self) -> Iterator[Event]:
        """Yields all events."""
        yield {"ph": "M", "name": "process_name", "ts": 0, **_TRACK, "args": {"name": "heptad"}}
        yield {"ph": "M", "name": "thread_name", "ts": 0, **_TRACK, "args": {"name": "run"}}
        if not self._view.chunks:
            return
        yield from self._begin(self._view.chunks[0])
        for chunk in self._view.chunks:
            yield from self._chunk(chunk)
        yield from self._end()

    def _begin(self, chunk: Chunk) -> Iterator[Event]:
        """Opens the spans that were open when the first state was entered."""
        place = self._view.first - chunk.seq
        at = self._decoder.counters(chunk, place - 1)
        name = self._names[int(self._source.effects.sources[chunk.arcs()[place]])]
        detour, _, base = name.rpartition("@")
        if base in _NO_EPOCH or (detour and base == "after_epoch"):
            return
        yield self._opens("epoch", at.epoch)
        in_step = base in _IN_STEP and not (detour and base == "after_step")
        if in_step or (at.window and base != "after_epoch"):
            yield self._opens("window", at.update)
        if in_step:
            yield self._opens("step", at.step)

    def _chunk(self, chunk: Chunk) -> Iterator[Event]:
        first, end = max(chunk.seq, self._view.first), chunk.seq + len(chunk)
        calls = by_seq(self._source.calls(first, end))
        values = by_seq(self._source.values_between(first, end))
        notes = by_seq(self._notes[bisect_left(self._notes, first, key=_seq) : bisect_left(self._notes, end, key=_seq)])
        arcs = chunk.arcs()[first - chunk.seq :].tolist()
        for arc, turn in zip(arcs, self._decoder.at(self._view, range(first, end)), strict=True):
            ends = (
                self._names[int(self._source.effects.sources[arc])],
                self._names[int(self._source.effects.dests[arc])],
            )
            seq = turn.seq
            yield from self._turn(turn, *ends, calls.get(seq, []), values.get(seq, []), notes.get(seq, []))

    def _turn(
        self,
        turn: Transition,
        source: str,
        dest: str,
        calls: Sequence[Call],
        values: Sequence[Recorded],
        notes: Sequence[Note],
    ) -> Iterator[Event]:
        left = max(self._entered, turn.time_ns - self.start)
        args: Event = {"seq": turn.seq, "to": turn.dest, **turn.guards}
        if left - self._entered > turn.duration_ns:
            args["paused_us"] = (left - self._entered - turn.duration_ns) / 1e3
        handlers = [*self._arrivals, *(call for call in calls if call.moment == "exit")]
        yield from self._state(turn.source, left, args, handlers, notes)
        yield from (_counter(value, left) for value in values if math.isfinite(value.value))
        self._entered, self._arrivals = left, [call for call in calls if call.moment == "enter"]
        if dest == "failed":
            yield from self._closes("epoch")
        elif source == "after_step":
            yield from self._closes("step")
        elif source == "optimizer_update":
            yield from self._closes("window")
        elif source == "after_epoch":
            yield from self._closes("epoch")
        if dest == "after_epoch":
            yield from self._closes("window")  # what remainder="drop" left over
        at = Counters(turn.epoch, turn.batch_index, turn.step, turn.update)
        if dest == "before_epoch":
            yield self._opens("epoch", at.epoch)
        elif dest == "before_step":
            if "window" not in self._open:
                yield self._opens("window", at.update)
            yield self._opens("step", at.step)

    def _state(
        self, name: str, left: int, args: Event, handlers: Sequence[Call], notes: Sequence[Note]
    ) -> Iterator[Event]:
        """Yields the state that is being left, and what happened in it, in the order of time."""
        entered = self._entered

        def within(time_ns: int) -> int:
            return min(max(time_ns - self.start, entered), left)

        yield _opening("state", name, entered, args)
        inside: list[tuple[int, Event]] = []
        for call in handlers:
            begin, end = within(call.time_ns), within(call.time_ns + call.duration_ns)
            inside.append((begin, _opening("handler", call.who, begin, {"moment": call.moment})))
            inside.append((end, _closing("handler", end)))
        for note in notes:
            at = within(note.time_ns)
            mark = {"ph": "i", "cat": "note", "name": f"{note.kind}: {note.text}", "ts": at / 1e3, "s": "t", **_TRACK}
            inside.append((at, mark))
        yield from (event for _, event in sorted(inside, key=lambda pair: pair[0]))
        yield _closing("state", left)

    def _end(self) -> Iterator[Event]:
        """Tells of the state that the log ends in, which nobody has seen left, and closes all spans."""
        end = self._view.end
        last = self._decoder.at(self._view, [end - 1])[0]
        late = [note for note in self._notes if note.seq >= end]
        ends = [call.time_ns + call.duration_ns for call in self._arrivals] + [note.time_ns for note in late]
        until = max([self._entered, *(time - self.start for time in ends)])
        yield from self._state(last.dest, until, {"left": False}, self._arrivals, late)
        yield from (
            _counter(value, until) for value in self._source.values_between(end, _EVER) if math.isfinite(value.value)
        )
        self._entered = until
        yield from self._closes("epoch")

    def _opens(self, kind: str, number: int) -> Event:
        self._open.append(kind)
        return _opening(kind, f"{kind} {number}", self._entered, {})

    def _closes(self, kind: str) -> Iterator[Event]:
        """Closes a span, and those within it first, if it is open."""
        while kind in self._open:
            yield _closing(self._open.pop(), self._entered)


def _start(view: View) -> int:
    """Returns when the first state of a log was entered."""
    if not view.chunks:
        return 0
    chunk = view.chunks[0]
    place = view.first - chunk.seq
    return chunk.offset + (int(chunk.times()[place - 1]) if place else chunk.clock)


def _seq(note: Note) -> int:
    return note.seq


def _opening(kind: str, name: str, at: int, args: Event) -> Event:
    return {"ph": "B", "cat": kind, "name": name, "ts": at / 1e3, **_TRACK, "args": args}


def _closing(kind: str, at: int) -> Event:
    return {"ph": "E", "cat": kind, "ts": at / 1e3, **_TRACK}


def _counter(value: Recorded, at: int) -> Event:
    return {"ph": "C", "name": value.name, "ts": at / 1e3, **_TRACK, "args": {"value": value.value}}
