"""Why a transition went where it went, and who was called: arcs tried, guards asked, values seen, handlers, events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from heptad.history.decode import Decoder, holding
from heptad.history.html import table
from heptad.history.source import Source
from heptad.history.summary import traced
from heptad.history.transition import Transition
from heptad.record.checkpoint_events import StillDetached
from heptad.record.chunk import Call, Failure, View
from heptad.record.counters import Counters
from heptad.record.events import Detach, Event, Skip
from heptad.record.values import Recorded

Outcome = Literal["called", "raised", "held back", "open", "detached"]

OWN = "the engine's own correction of the gradients"
"""How the first subscriber on entry to `optimizer_update` is named."""


@dataclass(frozen=True, slots=True)
class Tried:
    """An arc that was tried.

    Attributes:
        dest: Where it leads.
        guard: The guard that was asked, `None` for an unguarded arc.
        answer: What it said; `None` for a guard that raised.
        values: What the engine's own guard looked at, by name; empty for a plugin's.
    """

    dest: str
    guard: str | None
    answer: bool | None
    values: Mapping[str, Any]

    @property
    def said(self) -> str:
        """What the guard answered, and what it looked at, in words."""
        if self.guard is None:
            return "always"
        answer = {True: "yes", False: "no", None: "it raised"}[self.answer]
        seen = ", ".join(f"{name} {value}" for name, value in self.values.items())
        return f"{answer} ({seen})" if seen else answer

    def __str__(self) -> str:
        return f"to {self.dest}{f' if {self.guard}' if self.guard else ''}: {self.said}"


@dataclass(frozen=True, slots=True)
class Called:
    """A handler on one of the two moments of a turn.

    Attributes:
        moment: `"exit"` of the source or `"enter"` of the destination.
        state: That state.
        who: Plugin and method, the function, or the engine itself.
        filter: Which of the moment's events it is called at, in words; empty for all.
        outcome: `"called"`; `"raised"`, which ended the run or detached the plugin; `"held back"` by its filter;
            `"open"` where its filter decided and the log does not say how (`RunConfig(trace_handlers=True)` does);
            `"detached"` before.
        duration_ns: How long the call took, where handlers were traced.
    """

    moment: str
    state: str
    who: str
    filter: str
    outcome: Outcome
    duration_ns: int | None = None

    def __str__(self) -> str:
        more = [self.filter] if self.filter else []
        if self.outcome == "open":
            more.append("not recorded whether it was due")
        elif self.outcome != "called":
            more.append(self.outcome)
        if self.duration_ns is not None:
            more.append(f"{self.duration_ns / 1e3:,.1f} µs")
        moment = "on exit of" if self.moment == "exit" else "on entry to"
        words = f" ({', '.join(more)})" if more else ""
        return f"{moment} {self.state}: {self.who}{words}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened in a turn, and why.

    Attributes:
        transition: The transition.
        tried: The arcs that were tried for it, from top to bottom.
        notes: The events of its turn.
        calls: The exit handlers of the source, then the entry handlers of the destination, in order.
        values: The values recorded in its turn.
        skipped: Why this update was skipped, so that weights and `update` did not change; `None` for one that was not.
    """

    transition: Transition
    tried: tuple[Tried, ...]
    notes: tuple[Event, ...]
    calls: tuple[Called, ...] = ()
    values: tuple[Recorded, ...] = ()
    skipped: str | None = None

    def __str__(self) -> str:
        lines = [str(self.transition)]
        if self.skipped is not None:
            lines.append(f"    the update was skipped, the weights and `update` did not change: {self.skipped}")
        lines += [f"    {part}" for part in (*self.tried, *self.calls)]
        lines += [f"    recorded {value.name} = {value.value:.6g}" for value in self.values]
        lines += [f"    {f'rank {note.rank} ' if note.rank else ''}{note.kind}: {note.text}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [("tried", part) for part in self.tried] + [("called", part) for part in self.calls]
        skipped = [] if self.skipped is None else [("skipped", self.skipped)]
        values = [("recorded", f"{value.name} = {value.value:.6g}") for value in self.values]
        notes = [(note.kind, f"{f'rank {note.rank} ' if note.rank else ''}{note.text}") for note in self.notes]
        return table(str(self.transition), (), [*skipped, *rows, *values, *notes])


def explain(source: Source, view: View, seq: int) -> Explanation:
    """Return why a transition, which must be in the view, took its arc."""
    chunk = holding(view, seq)
    place = seq - chunk.seq
    decoder = Decoder(source)
    transition = decoder.at(view, [seq])[0]
    arc = int(chunk.arcs()[place])
    return Explanation(
        transition,
        tuple(_tried(source, transition, arc, decoder.counters(chunk, place))),
        tuple(note for note in source.events(seq) if note.seq == seq),
        tuple(_called(source, transition)),
        tuple(source.values_between(seq, seq + 1)),
        _reason(source, seq) if place in chunk.skipped else None,
    )


def _reason(source: Source, seq: int) -> str:
    """Return why an update was skipped: the event was emitted on entry to it, in the turn before."""
    skips = (event for event in source.events(seq - 1) if event.seq == seq - 1 and isinstance(event, Skip))
    return next((skip.reason for skip in skips), "the log no longer holds the reason")


def _tried(source: Source, transition: Transition, number: int, at: Counters) -> Iterator[Tried]:
    table, failed = source.table, source.failure
    if failed is None or number < len(table.arcs):
        failed = None
    accumulation = next(
        (k for since, k in reversed(source.windows) if since <= transition.seq), source.facts.get("accumulation", 1)
    )
    stopped = any(asked <= transition.seq for asked in source.stops)
    for arc in table.leaving[table.states[int(source.effects.sources[number])].name]:
        if failed is not None and (failed.moment != "guard" or (arc.guard or "") not in (*failed.guards, failed.guard)):
            return
        values = values_seen(arc.guard or "", at, source.facts, accumulation, stopped)
        answer = None if arc.guard is None else transition.guards.get(arc.guard)
        yield Tried(table.shown[arc.dest], arc.guard, answer, values)
        if failed is None and table.arcs[number : number + 1] == (arc,):  # none for a failure that the file lacks
            return


class Handles(NamedTuple):
    """A handler, as the facts of a run name it.

    Attributes:
        state: The state.
        moment: `"enter"` or `"exit"`.
        who: Plugin and method, or the function.
        filter: Which events it is called at, in words; empty for all.
        plugin: The plugin's name; empty for a function.
    """

    state: str
    moment: str
    who: str
    filter: str
    plugin: str


def handlers_of(facts: Mapping[str, Any]) -> list[Handles]:
    """Return the handlers of a run in the order in which they are called."""
    handlers: list[Handles] = []
    for state, moment, who, words, *plugin in facts.get("handlers", ()):
        # format 1 did not store the plugin: it is what stands before the name of its method
        handlers.append(Handles(state, moment, who, words, plugin[0] if plugin else who.rpartition(".")[0]))
    return handlers


class _Roll:
    """The handlers of a turn in order, with what became of each.

    A plugin that was detached is not called again: `_gone` holds those that were detached before, `_going` by its event
    each that is detached in this turn.
    """

    def __init__(self, source: Source, seq: int) -> None:
        self._facts = source.facts
        self._made: dict[tuple[str, str, str], list[Call]] = {}
        for call in source.calls(seq, seq + 1):
            self._made.setdefault((call.moment, call.state, call.who), []).append(call)
        self._gone: set[str] = set()
        self._going: list[Detach] = []
        for event in source.events(0):
            match event:
                case Detach() if event.seq == seq:
                    self._going.append(event)
                case Detach() | StillDetached() if event.seq <= seq:
                    self._gone.add(event.plugin)
                case _:
                    pass
        self._handlers = handlers_of(source.facts)
        handlers = {handler.who for handler in self._handlers}
        # the body of a detour, and what is called while the run is paused, come before the handlers of a turn
        self._leave(lambda event: event.handler not in handlers and event.moment != "guard")

    def moment(self, moment: str, state: str, failed: Failure | None) -> Iterator[Called]:
        """Yield the handlers of a moment, up to the one that ended the run if one did."""
        raising = failed.who if failed is not None and failed.moment == moment else None
        if (moment, state) == ("enter", "optimizer_update"):
            yield Called(moment, state, OWN, "", "raised" if raising == "" else "called")
            if raising == "":
                return
        for handler in self._handlers:
            who = handler.who
            if (handler.moment, handler.state) == (moment, state):
                made = self._made.get((moment, state, who))
                call = made.pop(0) if made else None
                outcome = "raised" if who == raising or self._detaches(who, moment) else self._outcome(handler, call)
                yield Called(moment, state, who, handler.filter, outcome, None if call is None else call.duration_ns)
                if who == raising:
                    return
                self._leave(lambda event, who=who: _raised(event, who, moment))

    def chosen(self) -> None:
        """Take into account what was detached while the guards were asked."""
        self._leave(lambda event: event.moment == "guard")

    def _outcome(self, handler: Handles, call: Call | None) -> Outcome:
        if call is not None:
            return "called"
        if handler.plugin in self._gone:
            return "detached"
        if handler.filter:
            return "held back" if traced(self._facts) else "open"
        return "called"

    def _detaches(self, who: str, moment: str) -> bool:
        return any(_raised(event, who, moment) for event in self._going)

    def _leave(self, which: Callable[[Detach], bool]) -> None:
        self._gone.update(event.plugin for event in self._going if which(event))
        self._going = [event for event in self._going if not which(event)]


def _raised(event: Detach, who: str, moment: str) -> bool:
    """Return whether a handler is the one that was detached: one of both moments has one name."""
    return event.handler == who and event.moment in (moment, "")


def _called(source: Source, transition: Transition) -> Iterator[Called]:
    """Yield the handlers of the two moments, with what became of each; a failure cuts them off."""
    seq, failed = transition.seq, source.failure
    roll = _Roll(source, seq)
    if failed is not None and failed.seq == seq:
        if failed.moment in ("exit", "guard"):
            yield from roll.moment("exit", transition.source, failed)
        return
    yield from roll.moment("exit", transition.source, None)
    roll.chosen()
    ends = failed if failed is not None and failed.seq == seq + 1 and failed.moment == "enter" else None
    yield from roll.moment("enter", transition.dest, ends)


def values_seen(guard: str, at: Counters, facts: Mapping[str, Any], accumulation: int, stopped: bool) -> dict[str, Any]:
    """Return what one of the engine's guards looked at, as the counters at that moment say.

    Args:
        guard: The guard's name; for another than the engine's own the result is empty.
        at: The counters after the body of the state that was being left.
        facts: What the run was asked for, and the number of batches in a pass where it is known.
        accumulation: The steps that the window holds when it is full.
        stopped: Whether a stop had been asked for.
    """
    limits: dict[str, Any] = {"stop asked for": stopped}
    if facts.get("max_updates") is not None:
        limits |= {"updates": at.update, "max_updates": facts["max_updates"]}
    match guard:
        case "update_due":
            return {
                "steps in the window": at.window,
                "accumulation": accumulation,
                "remainder": facts.get("remainder"),
                **_batches(at, facts),
                **({"epochs": at.epoch, "of": facts.get("epochs")} if facts.get("remainder") == "carry" else {}),
            }
        case "batches_remain":
            return {"steps in the window": at.window, **_batches(at, facts), **limits}
        case "epochs_remain":
            return {"epochs": at.epoch, "of": facts.get("epochs"), **limits}
        case _:
            return {}


def _batches(at: Counters, facts: Mapping[str, Any]) -> dict[str, Any]:
    batches = facts.get("batches")
    return {"batches": at.batch_index, "in a pass": "unknown" if batches is None else batches}
