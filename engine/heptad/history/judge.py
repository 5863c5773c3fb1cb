"""Judging a run by its log: works out the `Verdict` that `TransitionLog.verdict` returns."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from heptad.history import summary
from heptad.history.decode import Decoder, start_of
from heptad.history.figures import Figure, figures
from heptad.history.journal.presence import absence, presence
from heptad.history.journal.reader import FileSource
from heptad.history.journal.sessions import Session
from heptad.history.ranks import Ranks
from heptad.history.select import Conditions, selected
from heptad.history.source import Source
from heptad.history.transition import Transition
from heptad.history.verdict import Outcome, Unusual, Verdict
from heptad.history.wording import first_words, short_value
from heptad.record.checkpoint_events import Resume
from heptad.record.chunk import View
from heptad.record.counters import Counters
from heptad.record.events import Compilation, Event, Pause, Stop

ORDINARY = frozenset({"stop", "pause", "resume", "extend", "accumulation", "written", "array", "unverified", "failure"})
"""Kinds of events that are nothing unusual, or have a line of their own."""

MOST_WORDS = 100
"""Characters of an event's text."""

MOST_OF_ERROR = 300
"""Characters of the exception that ended a run; `heptad explain RUN -1` has all."""


def judge(
    source: Source,
    ranks: Ranks | None = None,
    name: str | None = None,
    found: Mapping[str, Figure] | None = None,
    stays: Mapping[str, summary.Duration] | None = None,
) -> Verdict:
    """Return how a run went, as its log says now.

    Args:
        source: The log; with several ranks that of rank 0.
        ranks: The logs of all ranks, whose events are looked at too; by default the one.
        name: What the run is called; by default the path of its journal.
        found: What `figures` returns, and
        stays: what `durations` returns, if somebody has worked it out already.
    """
    ranks = ranks or Ranks(source)
    view = source.view()
    # The turn under way belongs to it, and so do events that came after the view was taken.
    events = ranks.events(view.first)
    own = [event for event in events if event.rank == ranks.rank]
    last = Decoder(source).at(view, [view.end - 1])[0] if view.end > view.first else None
    name = name if name is not None else str(source.path) if isinstance(source, FileSource) else ""
    outcome, why = _outcome(source, view, last, own)
    stays = summary.stays(source, view) if stays is None else stays
    stays = dict(sorted(stays.items(), key=lambda row: -row[1].total_ns))
    found = figures(source) if found is None else found
    unusual = _unusual(events, found)
    before = _counted_before(source, view)
    sessions = tuple(source.sessions()) if isinstance(source, FileSource) else ()
    return Verdict(
        name=name,
        outcome=outcome,
        why=why,
        transitions=view.end - view.first,
        last=last,
        began_ns=start_of(view),
        ended_ns=last.time_ns if last else 0,
        driven_ns=sum(stay.total_ns for stay in stays.values()),
        updates=last.update - before.update if last else 0,
        steps=last.step - before.step if last else 0,
        sessions=sessions,
        resumes=_resumes(own, sessions),
        figures=found,
        states=stays,
        unusual=unusual,
        next=tuple(_next(name, outcome, unusual, found)),
        ranks=tuple(ranks.sources()),
    )


def _resumes(events: Iterable[Event], sessions: Sequence[Session]) -> tuple[Resume, ...]:
    """Return each time that the run was resumed. Of starts without a checkpoint the first does not count."""
    again = any(session.resumed_from is None for session in sessions[1:])
    return tuple(event for event in events if isinstance(event, Resume) and (event.checkpoint is not None or again))


def _counted_before(source: Source, view: View) -> Counters:
    """Return what the counters stood at before the first transition that is kept."""
    if not view.chunks:
        return Counters()
    return Decoder(source).counters(view.chunks[0], view.first - view.chunks[0].seq - 1)


def _outcome(source: Source, view: View, last: Transition | None, events: Sequence[Event]) -> tuple[Outcome, str]:
    """Return how a run ended, and why."""
    if last is None:
        return "empty", "no transition yet"
    failure = source.failure
    if failure is not None:
        return "failed", f"{first_words(failure.error, MOST_OF_ERROR)} {failure}"
    kinds = {state.shown: state.kind for state in source.table.states}
    if kinds.get(last.dest) == "failed":
        return "failed", "the log does not hold the exception"
    if kinds.get(last.dest) == "end":
        return _ended_in_order(source, view, last, events)
    pauses = [event for event in events if isinstance(event, Pause) and event.seq >= view.end - 1]
    if not isinstance(source, FileSource):
        return ("paused", pauses[-1].reason) if pauses else ("running", "")
    writer = source.writer
    match presence(writer):
        case "there":
            return "running", f"process {writer[0] if writer else ''} writes it"
        case "gone":
            return "killed", f"{absence(writer)}, and the run had not ended"
        case "closed" if pauses:
            return "paused", pauses[-1].reason
        case _:
            return "open", f"it has not ended, and {absence(writer)}"


def _ended_in_order(source: Source, view: View, last: Transition, events: Sequence[Event]) -> tuple[Outcome, str]:
    """Return why a run has ended in order: of a stop and `max_updates` whichever came first, else its epochs."""
    limit = source.facts.get("max_updates")
    stop = next((event for event in events if isinstance(event, Stop)), None)
    reached = limit is not None and last.update >= limit
    if stop is not None and not (reached and stop.seq > _last_update(source, view)):
        return "stopped", stop.reason
    return "finished", f"max_updates={limit} reached" if reached else f"epochs={last.epoch} complete"


def _last_update(source: Source, view: View) -> int:
    """Return the number of the transition that left the last update."""
    asked = Conditions("optimizer_update", None, {})
    for chunk, places in selected(source, view, asked, backwards=True):
        return chunk.seq + int(places[-1])
    return view.end


def _unusual(events: Sequence[Event], found: Mapping[str, Figure]) -> tuple[Unusual, ...]:
    """Return what does not happen in an ordinary run, failures apart: events by kind, values that are not finite."""
    by_kind: dict[str, list[Event]] = {}
    for event in events:
        if event.kind not in ORDINARY and not isinstance(event, Compilation):
            by_kind.setdefault(event.kind, []).append(event)
    rows = [
        Unusual(kind, len(some), some[0].seq, first_words(some[0].text, MOST_WORDS)) for kind, some in by_kind.items()
    ]
    for name, figure in found.items():
        if (first := figure.first_not_finite) is not None:
            text = f"{name} is {short_value(first.value)} in update {first.update}"
            rows.append(Unusual("not finite", figure.not_finite, first.seq, text))
    return tuple(sorted(rows, key=lambda row: (row.what == "note", -row.count)))


def _next(
    name: str, outcome: Outcome, unusual: Sequence[Unusual], found: Mapping[str, Figure]
) -> Iterator[tuple[str, str]]:
    """Yield commands that are worth trying next, and what each answers."""
    path = shlex.quote(name) if name else "RUN"
    if outcome == "running":
        yield f"heptad watch {path}", "what it does now"
    if outcome == "failed":
        yield f"heptad explain {path} -1", "where it failed, and who was called"
        yield f"heptad show {path}", "what happened before"
    elif outcome in ("killed", "open"):
        yield f"heptad show {path}", "the last transitions"
    if unusual:
        yield f"heptad explain {path} {unusual[0].seq}", f"what was unusual: {unusual[0].what}"
    yield f"heptad stats {path}", "where the time went"
    if found:
        yield f"heptad show {path} --values", "the recorded values"
