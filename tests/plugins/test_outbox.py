"""`Outbox`: what waits, for how much there is room, and a call that a pause leaves behind; the test holds the place."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from heptad_plugins._outbox import MetricPoint, Outbox


class Place:
    """Keeps points in a list that several share; a gate that is shut holds each call."""

    def __init__(self, points: list[int]) -> None:
        self.points = points
        self.gate, self.entered = threading.Event(), threading.Event()

    def begin(self) -> Iterable[str]:
        return [f"{len(self.points)} were there"]

    def write(self, points: Sequence[MetricPoint]) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        self.points += [point.update for point in points]

    def describe(self, parameters: Mapping[str, str | float]) -> Iterable[str]:
        return []

    def upload(self, folder: Path) -> str | None:
        return None

    def end(self, how: str) -> None:
        self.points.append(-1)

    def is_unreachable(self, error: Exception) -> bool:
        return False


def point(update: int) -> MetricPoint:
    return MetricPoint("a", 1.0, update, 0, update)


def test_what_follows_a_pause_waits_for_the_call_that_the_pause_left():
    """Else it would ask what is there before that call has written it, and send it once more."""
    held, after = Place([]), Place([])
    after.points = held.points
    after.gate.set()
    first = Outbox(lambda: held, "A")
    first.put([point(1)])
    assert held.entered.wait(30)
    assert first.close("paused", 0.01) == 1
    second = Outbox(lambda: after, "A", before=first)
    second.put([point(2)])
    assert not after.entered.wait(0.3)
    held.gate.set()
    assert second.close("finished", 30) == 0
    assert held.points == [1, 2, -1]
    assert second.remarks() == ["1 were there"]


def test_a_call_that_lasts_is_named_once_and_its_end_too(monkeypatch: pytest.MonkeyPatch):
    held = Place([])
    outbox = Outbox(lambda: held, "A")
    outbox.put([point(1)])
    assert held.entered.wait(30)
    assert outbox.remarks() == ["0 were there"]
    monkeypatch.setattr("heptad_plugins._outbox._LONG", 1e-9)
    assert outbox.remarks() == ["has not answered for 0 s: what is recorded waits, and is sent later"]
    assert outbox.remarks() == []
    held.gate.set()
    assert outbox.close("finished", 30) == 0
    assert outbox.remarks() == ["can be reached again"]


def test_where_much_waits_there_is_room_for_half_of_it_or_for_none():
    """What is put all the same, as at the end of a run, waits too."""
    held = Place([])
    outbox = Outbox(lambda: held, "A", most=4)
    assert [outbox.room(count) for count in (0, 1, 4, 9)] == [0, 1, 4, 4]
    outbox.put([point(1), point(2)])
    assert [outbox.room(count) for count in (0, 1, 2, 9)] == [0, 1, 2, 2]
    outbox.put([point(3)])
    assert [outbox.room(count) for count in (0, 1, 2, 9)] == [0, 1, 0, 0]
    outbox.put([point(4), point(5)])
    assert [outbox.room(count) for count in (0, 1)] == [0, 0]
    held.gate.set()
    assert outbox.close("finished", 30) == 0
    assert held.points == [1, 2, 3, 4, 5, -1]


def test_a_run_that_is_refused_is_not_an_outage_that_was_waited_for():
    """The error is raised once; what is unsent has its reason."""

    class Refusing(Place):
        def begin(self) -> Iterable[str]:
            raise ValueError("no such scheme")

    outbox = Outbox(lambda: Refusing([]), "A")
    outbox.thread.join(30)
    with pytest.raises(ValueError, match="no such scheme"):
        outbox.put([point(1)])
    outbox.put([point(1)])
    assert outbox.close("failed", 30) == 1
    assert (outbox.refused, outbox.trouble) == (True, "ValueError: no such scheme")
