"""A log in the Chrome trace format, which https://ui.perfetto.dev opens.

Each rank is a process with one track. On it lie epochs, in them windows, in those steps, states, and traced handlers.
Each span is two events, a beginning and an end: from a beginning and a length, both rounded, a viewer may compute an
end that is later than that of the span around it. Recorded values are counters, notes are marks. Times are microseconds
since the log begins; `otherData` holds when that was. Spans that are open when the log begins or ends, because the run
was resumed or has not finished, begin or end there. Paused time lies in the state in which the run paused; its `args`
say how long.
"""

from __future__ import annotations

import json
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from heptad.history.decode import Decoder, by_seq, start_of
from heptad.history.export.output import Target, replacing
from heptad.history.source import Source
from heptad.history.transition import Transition
from heptad.record.chunk import Call, Chunk, View
from heptad.record.events import Event
from heptad.record.values import Recorded

Entry = dict[str, Any]

_NO_EPOCH = frozenset({"idle", "before_loop", "after_loop", "finished", "failed"})
_IN_STEP = frozenset({"before_step", "process_batch", "after_step"})
_ENDS = {"after_step": "step", "optimizer_update": "window", "after_epoch": "epoch"}
"""The span that ends when a state is left."""


def write(logs: Mapping[int, Source], target: Target) -> None:
    """Write the logs of ranks in the Chrome trace format, with one chunk in memory at a time.

    Raises:
        OSError: If the target cannot be written.
    """
    _write_entries(logs, target, lambda entry: True)


def write_values_trace(logs: Mapping[int, Source], target: Target) -> None:
    """Write the recorded values alone, as counters.

    Raises:
        OSError: If the target cannot be written.
    """
    _write_entries(logs, target, lambda entry: entry["ph"] in ("M", "C"))


def _write_entries(logs: Mapping[int, Source], target: Target, wanted: Callable[[Entry], bool]) -> None:
    views = {rank: source.view() for rank, source in logs.items()}
    start = min((start_of(view) for view in views.values() if view.chunks), default=0)
    head = {"displayTimeUnit": "ms", "otherData": {"begins_ns_since_1970": start}}
    with replacing(target) as file:
        file.write(json.dumps(head)[:-1].encode() + b', "traceEvents": [\n')
        for number, event in enumerate(filter(wanted, _spans_of_ranks(logs, views, start))):
            file.write((b",\n" if number else b"") + json.dumps(event, allow_nan=False).encode())
        file.write(b"\n]}\n")


def _spans_of_ranks(logs: Mapping[int, Source], views: Mapping[int, View], start: int) -> Iterator[Entry]:
    """Yield the events of all ranks, each with the process that stands for its rank."""
    for rank, source in logs.items():
        place = {"pid": rank + 1, "tid": 1}
        name = f"heptad rank {rank}" if len(logs) > 1 else "heptad"
        yield {"ph": "M", "name": "process_name", "ts": 0, **place, "args": {"name": name}}
        if len(logs) > 1:
            yield {"ph": "M", "name": "process_sort_index", "ts": 0, **place, "args": {"sort_index": rank}}
        yield {"ph": "M", "name": "thread_name", "ts": 0, **place, "args": {"name": "run"}}
        for event in _Track(source, views[rank], start).events():
            yield event | place


class _Track:
    """The spans of a log, in the order in which they begin.

    Args:
        source: The log.
        view: The part of it to show.
        start: Where the time line begins, in nanoseconds since the Unix epoch.
    """

    def __init__(self, source: Source, view: View, start: int) -> None:
        self._source, self._view = source, view
        self._decoder = Decoder(source)
        self._start = start
        self._entered = start_of(view) - start  # when the current state was entered: nanoseconds since the start
        self._arrivals: Sequence[Call] = ()  # its entry handlers
        self._notes = source.events(self._view.first)
        self._open: list[str] = []  # the spans around it, outermost first

    def events(self) -> Iterator[Entry]:
        """Yield all events."""
        if not self._view.chunks:
            return
        yield from self._begin(self._view.chunks[0])
        for chunk in self._view.chunks:
            yield from self._chunk(chunk)
        yield from self._end()

    def _begin(self, chunk: Chunk) -> Iterator[Entry]:
        """Open the spans that were open when the first state was entered."""
        place = self._view.first - chunk.seq
        at = self._decoder.counters(chunk, place - 1)
        node = self._source.table.states[int(self._source.effects.sources[chunk.arcs()[place]])]
        scope, left = node.after or node.name, bool(node.after)  # a detour comes after the work of the scope it leaves
        if scope in _NO_EPOCH or (left and scope == "after_epoch"):
            return
        yield self._opens("epoch", at.epoch)
        in_step = scope in _IN_STEP and not (left and scope == "after_step")
        if in_step or (at.window and scope != "after_epoch"):
            yield self._opens("window", at.update)
        if in_step:
            yield self._opens("step", at.step)

    def _chunk(self, chunk: Chunk) -> Iterator[Entry]:
        first, end = max(chunk.seq, self._view.first), chunk.seq + len(chunk)
        calls = by_seq(self._source.calls(first, end))
        values = by_seq(self._source.values_between(first, end))
        notes = by_seq(self._notes[bisect_left(self._notes, first, key=_seq) : bisect_left(self._notes, end, key=_seq)])
        for turn in self._decoder.at(self._view, range(first, end)):
            seq = turn.seq
            yield from self._turn(turn, calls.get(seq, ()), values.get(seq, ()), notes.get(seq, ()))

    def _turn(
        self, turn: Transition, calls: Sequence[Call], values: Iterable[Recorded], notes: Iterable[Event]
    ) -> Iterator[Entry]:
        """Yield the state that was left, and the spans that end and begin with the transition."""
        left = max(self._entered, turn.time_ns - self._start)
        args: Entry = {"seq": turn.seq, "to": turn.dest, **turn.guards}
        if left - self._entered > turn.duration_ns:
            args["paused_us"] = (left - self._entered - turn.duration_ns) / 1e3
        handlers = [*self._arrivals, *(call for call in calls if call.moment == "exit")]
        yield from self._state(turn.source, left, args, handlers, notes)
        yield from _counters(values, left)
        self._entered, self._arrivals = left, [call for call in calls if call.moment == "enter"]
        if turn.dest == "failed":
            yield from self._closes("epoch")
        elif turn.source in _ENDS:
            yield from self._closes(_ENDS[turn.source])
        if turn.dest == "after_epoch":
            yield from self._closes("window")  # one that is left unfilled, or continued in the next epoch
        elif turn.dest == "before_epoch":
            yield self._opens("epoch", turn.epoch)
        elif turn.dest == "before_step":
            if "window" not in self._open:
                yield self._opens("window", turn.update)
            yield self._opens("step", turn.step)

    def _state(
        self, name: str, left: int, args: Entry, handlers: Iterable[Call], notes: Iterable[Event]
    ) -> Iterator[Entry]:
        """Yield the state that is being left, and what happened in it, in order of time."""
        entered = self._entered

        def within(time_ns: int) -> int:
            return min(max(time_ns - self._start, entered), left)

        yield _opening("state", name, entered, args)
        inside: list[tuple[int, Entry]] = []
        for call in handlers:
            begin, end = within(call.time_ns), within(call.time_ns + call.duration_ns)
            inside.append((begin, _opening("handler", call.who, begin, {"moment": call.moment})))
            inside.append((end, _closing("handler", end)))
        for note in notes:
            at = within(note.time_ns)
            mark = {"ph": "i", "cat": "note", "name": f"{note.kind}: {note.text}", "ts": at / 1e3, "s": "t"}
            inside.append((at, mark))
        yield from (event for _, event in sorted(inside, key=lambda pair: pair[0]))  # stable: a handler begins first
        yield _closing("state", left)

    def _end(self) -> Iterator[Entry]:
        """Yield the state in which the log ends, up to the last thing known of it, and close all spans."""
        end = self._view.end
        last = self._decoder.at(self._view, [end - 1])[0]
        late = [note for note in self._notes if note.seq >= end]
        known = [call.time_ns + call.duration_ns for call in self._arrivals] + [note.time_ns for note in late]
        until = max([self._entered, *(time - self._start for time in known)])
        yield from self._state(last.dest, until, {"left": False}, self._arrivals, late)
        yield from _counters(self._source.values_between(end, sys.maxsize), until)
        self._entered = until
        yield from self._closes("epoch")

    def _opens(self, kind: str, number: int) -> Entry:
        self._open.append(kind)
        return _opening(kind, f"{kind} {number}", self._entered, {})

    def _closes(self, kind: str) -> Iterator[Entry]:
        """Close a span if it is open, and those within it first."""
        while kind in self._open:
            yield _closing(self._open.pop(), self._entered)


def _seq(note: Event) -> int:
    return note.seq


def _opening(kind: str, name: str, at: int, args: Entry) -> Entry:
    return {"ph": "B", "cat": kind, "name": name, "ts": at / 1e3, "args": args}


def _closing(kind: str, at: int) -> Entry:
    return {"ph": "E", "cat": kind, "ts": at / 1e3}


def _counters(values: Iterable[Recorded], at: int) -> Iterator[Entry]:
    """Yield the values that the format can hold: finite ones."""
    for value in values:
        if math.isfinite(value.value):
            yield {"ph": "C", "name": value.name, "ts": at / 1e3, "args": {"value": value.value}}
