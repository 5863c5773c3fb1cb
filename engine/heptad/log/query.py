"""Reading a log: every question is answered from the arcs, a chunk at a time."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt

from heptad.errors import EngineError, nearest
from heptad.log.chunk import Chunk, Ints, Source, View, durations
from heptad.log.explain import Explanation, Tried, values_seen
from heptad.log.reader import FileSource
from heptad.log.record import Counters, Note, Transition


@dataclass(frozen=True, slots=True)
class Duration:
    """How long a run stayed in a state: nanoseconds over its `count` stays, parked time left out."""

    count: int
    total_ns: int
    mean_ns: float
    median_ns: float
    p99_ns: float
    max_ns: int

    def __str__(self) -> str:
        return f"{self.count:,} × {self.median_ns / 1e3:,.1f} µs (median), {self.total_ns / 1e9:,.3f} s in all"


class TransitionLog(Sequence[Transition]):
    """The transitions of a run, oldest first: iterate, index, and ask.

    Only the newest `RunConfig.log_capacity` transitions are kept; `log[0]` is the oldest of them and says so by its
    `seq`. Reading takes a snapshot and may be done at any time, in a handler or from another thread.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @classmethod
    def load(cls, path: str | Path) -> TransitionLog:
        """Returns the log in a file that `Journal` wrote, or is writing: all questions work on it as on `run.log`.

        Nothing is read whole: each question reads what it needs, at the moment it is asked. The file is not altered.

        Raises:
            LogError: If the file is missing, empty, of another program, damaged, or of a newer version. One that is
                damaged further in says so when a question comes to that place.
        """
        return cls(FileSource(path))

    def __len__(self) -> int:
        view = self._source.view()
        return view.end - view.first

    @overload
    def __getitem__(self, index: int) -> Transition: ...
    @overload
    def __getitem__(self, index: slice) -> list[Transition]: ...
    def __getitem__(self, index: int | slice) -> Transition | list[Transition]:
        view = self._source.view()
        seqs = range(view.first, view.end)[index]  # raises IndexError as a list does
        if isinstance(seqs, int):
            return self._at(view, [seqs])[0]
        return self._at(view, list(seqs))

    def __iter__(self) -> Iterator[Transition]:
        for chunk, keep in self._chunks():
            yield from self._decode(chunk, np.flatnonzero(keep))

    def __repr__(self) -> str:
        view = self._source.view()
        last = ""
        if view.end > view.first:
            newest = self._at(view, [view.end - 1])[0]
            last = f", last {newest.source} -> {newest.dest}"
        return f"<TransitionLog: {view.end - view.first:,} transitions from #{view.first}{last}>"

    def tail(self, n: int = 10) -> list[Transition]:
        """Returns the last `n` transitions, oldest first."""
        return self[-n:] if n > 0 else []

    def where(
        self,
        *,
        source: str | None = None,
        dest: str | None = None,
        epoch: int | range | None = None,
        batch_index: int | range | None = None,
        step: int | range | None = None,
        update: int | range | None = None,
    ) -> list[Transition]:
        """Returns the transitions that match all of what is given; counters match a number or a `range`.

        Raises:
            EngineError: If a state is not one of the table's.
        """
        nodes = {"source": self._nodes(source), "dest": self._nodes(dest)}
        counters = {"epoch": epoch, "batch_index": batch_index, "step": step, "update": update}
        asked = {name: value for name, value in counters.items() if value is not None}
        effects = self._source.effects
        found: list[Transition] = []
        for chunk, kept in self._chunks():
            keep = kept
            arcs = chunk.arcs()
            for ends, name in ((effects.sources, "source"), (effects.dests, "dest")):
                if nodes[name] is not None:
                    keep = keep & np.isin(ends[arcs], nodes[name] or [])
            if asked and keep.any():
                columns = self._counters(chunk)
                for name, value in asked.items():
                    keep = keep & _matches(columns[name], value)
            found += self._decode(chunk, np.flatnonzero(keep))
        return found

    def path(self) -> list[str]:
        """Returns the states in the order in which the run was in them, the first source included."""
        states = self._source.table.states
        effects = self._source.effects
        names: list[str] = []
        for chunk, keep in self._chunks():
            arcs = chunk.arcs()[keep]
            if not names and len(arcs):
                names.append(states[effects.sources[arcs[0]]].shown)
            names += [states[node].shown for node in effects.dests[arcs]]
        return names

    def counts(self) -> Counter[str]:
        """Returns how often each state was entered; one that never was counts 0."""
        table, effects = self._source.table, self._source.effects
        entries = np.zeros(len(table.states), dtype=np.int64)
        for chunk, keep in self._chunks():
            entries += np.bincount(effects.dests[chunk.arcs()[keep]], minlength=len(entries))
        counts: Counter[str] = Counter()
        for state, number in zip(table.states, entries, strict=True):
            if number:
                counts[state.shown] += int(number)
        return counts

    def durations(self) -> dict[str, Duration]:
        """Returns for each state how long the run stayed in it, for every stay that has ended."""
        table, effects = self._source.table, self._source.effects
        stays: dict[str, list[Ints]] = {}
        for chunk, keep in self._chunks():
            sources = effects.sources[chunk.arcs()]
            spent = durations(chunk)
            for node in cast("list[int]", np.unique(sources[keep]).tolist()):
                stays.setdefault(table.states[node].shown, []).append(spent[keep & (sources == node)])
        summary: dict[str, Duration] = {}
        for name in dict.fromkeys(state.shown for state in table.states):
            if name in stays:
                summary[name] = _summary(np.concatenate(stays[name]))
        return summary

    def notes(self, kind: str | None = None) -> list[Note]:
        """Returns the notes of the transitions that are kept, or those of one kind."""
        notes = self._source.notes(self._source.view().first)
        return [note for note in notes if kind is None or note.kind == kind]

    def explain(self, seq: int) -> Explanation:
        """Says why a transition went where it went.

        Args:
            seq: The transition's number.

        Returns:
            The arcs tried from top to bottom, the guards asked and what they said, with the values that the engine's
            own guards looked at, and the notes of that turn.

        Raises:
            EngineError: If the log does not hold this transition.
        """
        view = self._source.view()
        if not view.first <= seq < view.end:
            held = f"#{view.first} to #{view.end - 1}" if view.end > view.first else "none yet"
            raise EngineError(f"the log does not hold transition #{seq}; it holds {held}")
        transition = self._at(view, [seq])[0]
        notes = tuple(note for note in self._source.notes(seq) if note.seq == seq)
        return Explanation(transition, tuple(self._tried(_holding(view, seq), transition)), notes)

    def to_jsonl(self, path: str | Path) -> Path:
        """Writes one JSON object a line and transition, with its notes, and returns the path.

        Raises:
            OSError: If the file cannot be written.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        notes: dict[int, list[dict[str, str]]] = {}
        for note in self.notes():
            notes.setdefault(note.seq, []).append({"kind": note.kind, "text": note.text})
        with target.open("w", encoding="utf-8") as file:
            for transition in self:
                line: dict[str, Any] = asdict(transition)
                line["notes"] = notes.get(transition.seq, [])
                file.write(json.dumps(line) + "\n")
        return target

    def _tried(self, chunk: Chunk, transition: Transition) -> Iterator[Tried]:
        log, table = self._source, self._source.table
        place = transition.seq - chunk.seq
        at = Counters(**{name: int(column[place]) for name, column in self._counters(chunk).items()})
        number = int(chunk.arcs()[place])
        state = table.states[int(log.effects.sources[number])].name
        accumulation = next(
            (k for since, k in reversed(log.windows) if since <= transition.seq), log.facts.get("accumulation", 1)
        )
        stopped = any(asked <= transition.seq for asked in log.stops)
        failed = log.failure if number >= len(table.arcs) else None
        for arc in table.leaving[state]:
            if failed is not None and (
                failed.edge != "guard" or (arc.guard or "") not in (*failed.guards, failed.guard)
            ):
                return
            values = values_seen(arc.guard or "", at, log.facts, accumulation, stopped)
            answer = None if arc.guard is None else transition.guards.get(arc.guard)
            yield Tried(table.shown[arc.dest], arc.guard, answer, values)
            if failed is None and arc is table.arcs[number]:
                return

    def _nodes(self, shown: str | None) -> list[int] | None:
        if shown is None:
            return None
        table = self._source.table
        nodes = [table.index[state.name] for state in table.named(shown)]
        if not nodes:
            raise EngineError(f"there is no state '{shown}'{nearest(shown, table.shown.values())}")
        return nodes

    def _chunks(self) -> Iterator[tuple[Chunk, npt.NDArray[np.bool_]]]:
        """Yields every chunk, with a mask of what of it is kept."""
        view = self._source.view()
        for chunk in view.chunks:
            yield chunk, np.arange(chunk.seq, chunk.seq + len(chunk)) >= view.first

    def _at(self, view: View, seqs: list[int]) -> list[Transition]:
        """Returns the transitions of these numbers, in this order."""
        wanted: dict[int, tuple[Chunk, list[int]]] = {}
        for seq in seqs:
            chunk = _holding(view, seq)
            wanted.setdefault(chunk.seq, (chunk, []))[1].append(seq - chunk.seq)
        read = {t.seq: t for chunk, places in wanted.values() for t in self._decode(chunk, np.array(places))}
        return [read[seq] for seq in seqs]

    def _decode(self, chunk: Chunk, places: Ints) -> list[Transition]:
        if not len(places):
            return []
        effects, states = self._source.effects, self._source.table.states
        arcs = chunk.arcs()[places]
        columns = self._counters(chunk)
        rows: Any = zip(
            (places + chunk.seq).tolist(),
            (chunk.times()[places] + chunk.offset).tolist(),
            durations(chunk)[places].tolist(),
            effects.sources[arcs].tolist(),
            effects.dests[arcs].tolist(),
            arcs.tolist(),
            *(columns[name][places].tolist() for name in ("epoch", "batch_index", "step", "update")),
            strict=True,
        )
        return [
            Transition(
                seq, time, spent, states[int(source)].shown, states[int(dest)].shown, self._guards(arc), *counters
            )
            for seq, time, spent, source, dest, arc, *counters in rows
        ]

    def _counters(self, chunk: Chunk) -> dict[str, Ints]:
        return self._source.effects.counters(chunk, self._source.failure)

    def _guards(self, number: int) -> dict[str, bool]:
        table, failure = self._source.table, self._source.failure
        if number < len(table.arcs):
            return table.asked(table.arcs[number])
        return dict(failure.guards) if failure else {}


def _holding(view: View, seq: int) -> Chunk:
    """Returns the chunk that holds a transition."""
    return view.chunks[bisect_right(view.chunks, seq, key=lambda chunk: chunk.seq) - 1]


def _matches(column: Ints, value: int | range) -> npt.NDArray[np.bool_]:
    if isinstance(value, range):
        return np.isin(column, np.arange(value.start, value.stop, value.step))
    return column == value


def _summary(stays: Ints) -> Duration:
    return Duration(
        count=len(stays),
        total_ns=int(stays.sum()),
        mean_ns=float(stays.mean()),
        median_ns=float(np.median(stays)),
        p99_ns=float(np.percentile(stays, 99)),
        max_ns=int(stays.max()),
    )
