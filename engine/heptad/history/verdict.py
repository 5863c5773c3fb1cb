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
from heptad.record.events import Resume

Outcome = Literal["finished", "stopped", "failed", "paused", "running", "killed", "open", "empty"]
"""`"open"`: it has not ended, and whether somebody drives it cannot be seen from here."""

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
        resumes: Each time that it was resumed.
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
        """The ten lines: ended, when, took, resumed, again, values, speed, time, unusual, next."""
        return (
            Line("ended", self._ended()),
            Line("when", self._when()),
            Line("took", self._took()),
            Line("resumed", self._resumed()),
            Line("again", self._again()),
            Line("values", tuple(map(in_short, chosen(self.figures.values()))) or ("none was recorded",)),
            Line("speed", self._speed()),
            Line("time", self._time()),
            Line("unusual", self._unusual()),
            Line("next", tuple(command for command, _ in self.next)),
        )

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
            parts.append(f"on {newest.host}")
            parts.append(", ".join(f"{name} {word}" for name, word in newest.versions.items()))
        return tuple(parts)

    def _took(self) -> tuple[str, ...]:
        parts = [f"{long_time(self.driven_ns)} driven"]
        rest = self.ended_ns - self.began_ns - self.driven_ns
        if rest > max(self.driven_ns // 1000, 1_000_000):
            between = " or between sessions" if len(self.sessions) > 1 else ""
            parts.append(f"{long_time(rest)} paused{between}")
        if self.last is not None:
            parts.append(f"{self.transitions:,} transitions")
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
        if not found:
            return ("nothing" if self.sessions or not self.resumes else "not known: only a journal keeps it",)
        transitions = sum(one.transitions for one in found)
        updates = sum(one.updates for one in found)
        spent = long_time(sum(one.spent_ns for one in found))
        places = ", ".join(f"from #{one.first}" for one in found[-3:])
        return (
            f"{counted(transitions, 'transition')}, {counted(updates, 'update')} that an earlier process had made",
            f"{spent} of its work",
            places,
        )

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


def chosen(found: Iterable[Figure]) -> list[Figure]:
    """Return the recorded values by how much they say of a run: those measured on held-out data and losses first."""

    def place(figure: Figure) -> tuple[int, int]:
        held_out = figure.name.partition("/")[0] in ("valid", "val", "validation", "test", "eval")
        return 0 if held_out else 1 if figure.name == "train/epoch_loss" else 2 if figure.better else 3, -figure.count

    rows = list(found)
    per_epoch = any(figure.name == "train/epoch_loss" for figure in rows)
    rows = [figure for figure in rows if not (per_epoch and figure.name == "train/loss")]
    return sorted(rows, key=lambda figure: place(figure)[0])


def in_short(figure: Figure) -> str:
    """Return the last and the best value of a name with their epochs, in words."""
    last, best = figure.last, figure.best
    words = f"{figure.name} {short_value(last.value)}"
    if best is None:
        return f"{words} (epoch {last.epoch})"
    if best.value == last.value:
        return f"{words} (epoch {last.epoch}, its best)"
    return f"{words} (epoch {last.epoch}; best {short_value(best.value)}, epoch {best.epoch})"
