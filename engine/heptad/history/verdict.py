"""How a run went, in ten lines: what a terminal shows for a journal, and the first section of a report.

`judge` works out the data. Their `lines` are the same in words, each a title and parts, so that whoever shows them can
wrap, or leave out parts from the end, without cutting a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from heptad.errors import counted
from heptad.history.figures import Figure
from heptad.history.journal.sessions import Session
from heptad.history.summary import Duration
from heptad.history.transition import Transition
from heptad.history.wording import date_and_time, long_time, rate, short_value, shown_share
from heptad.record.checkpoint_events import Resume

Outcome = Literal["finished", "stopped", "failed", "paused", "running", "killed", "open", "empty"]
"""`"open"`: it has not ended, and whether somebody drives it cannot be seen from here."""

HELD_OUT = frozenset({"valid", "val", "validation", "test", "eval"})
"""The first words of names of values that are measured on data that was held out."""

MOST_STATES = 8
"""States that are named in the line of times."""


@dataclass(frozen=True, slots=True)
class Line:
    """One of the ten.

    Attributes:
        title: What it is about, in a word.
        parts: What is said, the most important part first; each is whole by itself.
    """

    title: str
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """All parts, one after the other."""
        return "; ".join(self.parts)

    def __str__(self) -> str:
        return f"{self.title:8} {self.text}"


@dataclass(frozen=True, slots=True)
class Unusual:
    """What happened and does not in an ordinary run.

    Attributes:
        what: The kind of the event, or `"not finite"`.
        count: How often.
        seq: The transition where it happened first.
        text: That event, in words.
    """

    what: str
    count: int
    seq: int
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run went.

    Attributes:
        name: What the run is called: the path of its journal, or empty.
        outcome: How it ended, in a word.
        why: Why, in words.
        transitions: How many the log holds.
        last: The last of them; `None` where there is none.
        began_ns: When the run began, or the part of it that is kept: nanoseconds since the Unix epoch.
        ended_ns: When the last transition was made.
        driven_ns: How long it was driven: paused time and that between two sessions left out.
        updates: Updates in that time.
        steps: Steps in that time.
        sessions: The processes that wrote the journal; empty for the log of a live run.
        resumes: Each time that it was resumed, or begun again since there was no checkpoint yet.
        figures: The recorded values by name. With several ranks those of rank 0.
        states: How long it stayed in each state, the one with the most time first.
        unusual: What was unusual, the most frequent first.
        next: Commands that are worth trying next, with what each answers.
        ranks: The ranks whose logs are here.
        versions: Of heptad, torch, numpy and Python in the newest session; empty for the log of a live run.
    """

    name: str
    outcome: Outcome
    why: str
    transitions: int
    last: Transition | None
    began_ns: int
    ended_ns: int
    driven_ns: int
    updates: int
    steps: int
    sessions: tuple[Session, ...]
    resumes: tuple[Resume, ...]
    figures: Mapping[str, Figure]
    states: Mapping[str, Duration]
    unusual: tuple[Unusual, ...]
    next: tuple[tuple[str, str], ...]
    ranks: tuple[int, ...]

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions in the newest session."""
        return self.sessions[-1].versions if self.sessions else {}

    @property
    def updates_per_second(self) -> float:
        """Updates in a second of driven time, all states included; 0 where nothing was timed."""
        return self.updates * 1e9 / self.driven_ns if self.driven_ns else 0.0

    @property
    def steps_per_second(self) -> float:
        """Steps likewise."""
        return self.steps * 1e9 / self.driven_ns if self.driven_ns else 0.0

    @property
    def lines(self) -> tuple[Line, ...]:
        """The ten lines: ended, when, took, resumed, last, best, speed, time, unusual, next."""
        parts = {
            "ended": self._ended(),
            "when": self._when(),
            "took": self._took(),
            "resumed": (*self._resumed(), *self._again()),
            "last": self._values("last") or ("no value was recorded",),
            "best": self._values("best") or ("no value of which a name says what is better",),
            "speed": self._speed(),
            "time": self._time(),
            "unusual": self._unusual(),
            "next": tuple(command for command, _ in self.next),
        }
        # an exception, or a name, may hold line ends
        return tuple(Line(title, tuple(part.replace("\n", " ") for part in some)) for title, some in parts.items())

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))

    def _ended(self) -> tuple[str, ...]:
        words = f"{self.outcome}: {self.why}" if self.why else self.outcome
        if self.last is None:
            return (words,)
        at = self.last
        where = "" if self.outcome in ("finished", "stopped", "failed") else f"in {at.dest}, "
        return words, f"{where}epoch {at.epoch}, step {at.step:,}, update {at.update:,}"

    def _when(self) -> tuple[str, ...]:
        if self.last is None:
            return ("-",)
        begin, end = date_and_time(self.began_ns), date_and_time(self.ended_ns)
        same_day = begin[:10] == end[:10]
        parts = [f"{begin} to {end[11:] if same_day else end}"]
        if self.sessions:
            newest = self.sessions[-1]
            shown = [f"{name} {newest.versions[name]}" for name in ("heptad", "torch") if name in newest.versions]
            parts += [f"on {newest.host}", ", ".join(shown)]
        return tuple(parts)

    def _took(self) -> tuple[str, ...]:
        parts = [f"{long_time(self.driven_ns)} driven"]
        rest = self.ended_ns - self.began_ns - self.driven_ns
        if rest > max(self.driven_ns // 1000, 1_000_000):
            between = " or between sessions" if len(self.sessions) > 1 else ""
            parts.append(f"{long_time(rest)} paused{between}")
        if self.last is not None:
            parts.append(counted(self.transitions, "transition"))
        if len(self.ranks) > 1:
            parts.append(f"{len(self.ranks)} ranks; the times are those of rank {self.ranks[0]}")
        return tuple(parts)

    def _resumed(self) -> tuple[str, ...]:
        if not self.resumes:
            return ("never",)
        times = {1: "once", 2: "twice"}.get(len(self.resumes), f"{len(self.resumes)} times")
        newest = reversed(self.resumes)
        froms = [f"{one.checkpoint or 'its start'} before #{one.seq}" for one in newest]
        return f"{times}, {'last ' if len(froms) > 1 else ''}from {froms[0]}", *(f"from {one}" for one in froms[1:])

    def _again(self) -> tuple[str, ...]:
        found = [session.again for session in self.sessions if session.again is not None]
        if not self.resumes:
            return ()
        if not found:
            return ("nothing made again" if self.sessions else "its journal says what was made again",)
        transitions, updates = (
            sum(counts) for counts in zip(*((a.transitions, a.updates) for a in found), strict=True)
        )
        spent = long_time(sum(one.spent_ns for one in found))
        again = f"{counted(updates, 'update')} made again, {counted(transitions, 'transition')}"
        return f"{again} of {spent}", f"from {', '.join(f'#{one.first}' for one in found)} on"

    def _values(self, which: Literal["last", "best"]) -> tuple[str, ...]:
        """Return the last, or the best, value of each name with its epoch, in words."""
        rows = [(figure.name, getattr(figure, which)) for figure in by_weight(self.figures.values())]
        return tuple(f"{name} {short_value(at.value)} (epoch {at.epoch})" for name, at in rows if at is not None)

    def _speed(self) -> tuple[str, ...]:
        if not self.updates and not self.steps:
            return ("no update yet",)
        return (
            rate(self.updates_per_second, "updates"),
            rate(self.steps_per_second, "steps"),
            "averaged over all states",
        )

    def _time(self) -> tuple[str, ...]:
        total = sum(stay.total_ns for stay in self.states.values())
        rows = list(self.states.items())[:MOST_STATES]
        return tuple(f"{name} {shown_share(stay.total_ns, total)}" for name, stay in rows) or ("-",)

    def _unusual(self) -> tuple[str, ...]:
        if not self.unusual:
            return ("nothing",)
        return tuple(
            f"{one.count} × {one.what}{', first' if one.count > 1 else ''} at #{one.seq} ({one.text})"
            for one in self.unusual
        )

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "why": self.why,
            "transitions": self.transitions,
            "epoch": self.last.epoch if self.last else 0,
            "step": self.last.step if self.last else 0,
            "update": self.last.update if self.last else 0,
            "state": self.last.dest if self.last else None,
            "began_ns": self.began_ns,
            "ended_ns": self.ended_ns,
            "driven_ns": self.driven_ns,
            "updates_per_second": self.updates_per_second,
            "steps_per_second": self.steps_per_second,
            "sessions": [asdict(session) for session in self.sessions],
            "resumes": [{"seq": one.seq, "checkpoint": one.checkpoint, "state": one.state} for one in self.resumes],
            "values": {name: asdict(figure) | {"best": _plain_point(figure)} for name, figure in self.figures.items()},
            "states": {name: asdict(stay) for name, stay in self.states.items()},
            "unusual": [asdict(one) for one in self.unusual],
            "next": [{"command": command, "answers": answers} for command, answers in self.next],
            "ranks": list(self.ranks),
            "lines": {line.title: line.text for line in self.lines},
        }


def _plain_point(figure: Figure) -> dict[str, Any] | None:
    return None if figure.best is None else asdict(figure.best)


def by_weight(figures: Iterable[Figure]) -> list[Figure]:
    """Return recorded values by how much they say of a run: those of held-out data first, then losses and metrics.

    The loss of each update is left out where that of each epoch is there.
    """
    rows = list(figures)
    if any(figure.name == "train/epoch_loss" for figure in rows):
        rows = [figure for figure in rows if figure.name != "train/loss"]
    return sorted(rows, key=_weight)


def _weight(figure: Figure) -> int:
    if figure.name.partition("/")[0] in HELD_OUT:
        return 0
    if figure.name == "train/epoch_loss":
        return 1
    return 2 if figure.better else 3
