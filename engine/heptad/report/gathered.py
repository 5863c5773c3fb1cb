"""All that a page shows of one run, read from its log at one moment: curves, the walk over its turns, events, verdict.

It owns the reading; `sections` and `figures` show what is here. `page` gathers for a file, `server` again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from heptad.history.decode import Decoder
from heptad.history.figures import figures
from heptad.history.judge import judge
from heptad.history.query import TransitionLog
from heptad.history.transition import Transition
from heptad.history.verdict import Verdict
from heptad.record.chunk import View
from heptad.record.events import Event
from heptad.report.series import Curve, curves
from heptad.report.walk import Walk, walk
from heptad.report.words import harmless

MARKS = 300
"""Checkpoints, and events, that are marked in the curves at most."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the page shows of one run.

    Attributes:
        label: What it is called in the page.
        log: Its log.
        view: The part of it that is shown: one moment of a run that goes on.
        curves: Its recorded values.
        walk: Its turns.
        events: Its events, of all ranks.
        verdict: How it went.
        marks: Checkpoints and events with their places.
    """

    label: str
    log: TransitionLog
    view: View
    curves: Sequence[Curve]
    walk: Walk
    events: Sequence[Event]
    verdict: Verdict
    marks: Sequence[tuple[tuple[int, int, int, int], str, str]] = field(default=())

    @property
    def samples(self) -> int:
        """Samples in a step over all ranks; 0 where that is not known."""
        size = self.log.facts.get("batch_size")
        return size * self.log.world if type(size) is int and size > 0 else 0


def gathered(log: TransitionLog, label: str) -> Gathered:
    """Return what the page shows of a run, as its log is now."""
    source = log.source
    view = source.view()
    events = [event for event in log.notes() if event.seq < view.end]
    found = curves(source, view)
    seqs = _to_mark(log, view, events)
    wanted = [curve.place[:, 0] for curve in found] + [curve.smooth_place[:, 0] for curve in found]
    wanted += [np.array([row.seq for row in curve.odd]) for curve in found]
    wanted.append(np.array([seq for seq, _, _ in seqs]))
    marked = np.unique(np.concatenate(wanted).astype(np.int64)) if wanted else np.zeros(0, np.int64)
    walked = walk(source, view, marked[(marked >= view.first) & (marked < view.end)])
    at = {turn.seq: turn for turn in Decoder(source).at(view, sorted({seq for seq, _, _ in seqs}))}
    marks = [((seq, at[seq].epoch, at[seq].step, at[seq].update), kind, words) for seq, kind, words in seqs]
    known = figures(source, (curve.found for curve in found))
    verdict = judge(source, log.all_ranks, found=known, stays=walked.durations)
    return Gathered(label, log, view, found, walked, events, verdict, marks)


def _to_mark(log: TransitionLog, view: View, events: Sequence[Event]) -> list[tuple[int, str, str]]:
    """Return the turns that are marked in the curves: of checkpoints, and of events; the last where there are many."""
    saved: list[Transition] = []
    if any(state.shown == "checkpoint" for state in log.source.table.states):
        saved = log.where(source="checkpoint", limit=-MARKS)
    rows = [(turn.seq, "checkpoint", "checkpoint") for turn in saved if turn.seq < view.end]
    told = [event for event in events if view.first <= event.seq][-MARKS:]
    return rows + [(event.seq, "event", f"{event.kind}: {harmless(event.text, 200)}") for event in told]
