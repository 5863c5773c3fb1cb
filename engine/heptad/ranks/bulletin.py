"""`Bulletin`: what a rank that fails leaves for the others, on the store by which the ranks have met.

A collective that fails names no cause. So a rank posts why it fails before its connections are shut, and one whose
exchange has failed reads it there. A rank that only gives up waiting posts where it was.
"""

from __future__ import annotations

import json
import re
from time import monotonic, sleep
from typing import Any

from heptad.errors import in_a_line

READING = 2.0
"""Seconds that a failure is waited for, and that the others have to read it."""

_QUIET = 0.5
"""Seconds after which a rank that has posted nothing is taken for dead, or for hanging."""

_TOGETHER = 0.4
"""Seconds in which ranks that fail for one reason, as of the same data or weights, have all posted that."""

_LOOK = 0.01

_PLACE_IN_SOURCE = re.compile(r"\[\S*\.cc:\d+\] ")
"""Where in its own source gloo has noticed something; nobody else can look there."""


class Bulletin:
    """The notes of the ranks about a failure.

    Args:
        store: Where they stand.
        rank: The number of this process.
        world: How many there are.

    Attributes:
        last: What was heard last of each rank, in words.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self.last: dict[int, str] = {}
        self._page = 0

    def post(self, place: str, error: BaseException) -> None:
        """Say that this rank has failed."""
        self._set("place", place)
        self._set("failed", f"rank {self._rank} failed {place}: {in_a_line(error):.2000}".replace("  ", " "))

    def all_fail(self, place: str) -> bool:
        """Return whether the other ranks have failed too by now, and at the same place: the same on all of them."""
        others = [other for other in range(self._world) if other != self._rank]
        until = monotonic() + _TOGETHER
        while not all(self._get("failed", other) for other in others):
            if monotonic() > until:
                return self._decide("apart") == "together"
            sleep(_LOOK)
        alike = all(self._get("place", other) == place for other in others)
        return self._decide("together" if alike else "apart") == "together"

    def _decide(self, how: str) -> str:
        """Return how the ranks fail: what the first to decide says, for another may see less of them in time."""
        try:
            return self._store.compare_set(f"{self._page}/how", "", how).decode()
        except RuntimeError:  # the process that keeps the store is gone
            return "apart"

    def turn_page(self) -> None:
        """Begin anew: what was posted is settled."""
        self._page += 1

    def wait_for_readers(self) -> None:
        """Wait until the other ranks have read it, or fail too; those that are gone do not, so 2 s at most."""
        waiting = [other for other in range(self._world) if other != self._rank]
        until = monotonic() + READING
        while waiting and monotonic() < until:
            sleep(_LOOK)
            waiting = [other for other in waiting if self._get("read", other) is self._get("failed", other) is None]

    def read(self, place: str, error: str) -> str:
        """Return why an exchange of this rank has failed, in words: what a rank has posted, or which one is silent."""
        self._set("waits", f"rank {self._rank} waited {place}".rstrip())
        began, others = monotonic(), [other for other in range(self._world) if other != self._rank]
        silent = others
        while monotonic() < began + READING:
            if told := [text for other in others if (text := self._get("failed", other)) is not None]:
                self._set("read", "")
                first = [text for text in told if "RankFailed:" not in text]  # not those who have heard of it
                return "; ".join(first or told[:1])
            if (missed := self._get("missed", self._rank)) is not None:
                return f"this rank came too late, the others have given up: {missed}"
            silent = [other for other in others if self._get("waits", other) is None]
            if monotonic() > began + _QUIET:
                break
            sleep(_LOOK)
        return self._gave_up(others, silent, error)

    def _gave_up(self, others: list[int], silent: list[int], error: str) -> str:
        error = _PLACE_IN_SOURCE.sub("", error).partition(" This is typically")[0]
        where = [self._get("waits", other) for other in sorted({*others, self._rank}) if other not in silent]
        known = "".join(f"; {text}" for text in where if text)
        if not silent:
            if len({text.partition(" waited ")[2] for text in where if text}) == 1:
                return (
                    "the ranks have given up waiting for each other at one place: one came too late, or exchanges what "
                    "the others do not, as a handler does that evaluates, or calls a network that ranks share, on one "
                    f"rank alone{known} ({error})"
                )
            return f"the ranks wait for different things, and have given up{known} ({error})"
        if earlier := [text for one in silent if (text := self._get("missed", one)) is not None]:
            return earlier[0]  # of a rank that has hung up since, which looks here as if it had been cut off
        names = ", ".join(map(str, silent))
        last = "".join(f"; rank {one} was last heard {self.last[one]}" for one in silent if one in self.last)
        if "timed out" in error.lower() or "timeout" in error.lower():
            why = "did not come: it hangs, or is so far behind that RunConfig.patience is too short"
        else:
            lost = "it was killed, its script ended before those of the others, or its machine is lost"
            why = f"is gone without a word: {lost}"
        text = f"rank {names} {why}{last}{known} ({error})"
        for one in silent:
            self._set("missed", text, one)
        return text

    def _name(self, what: str, rank: int) -> str:
        return f"{self._page}/{what}/{rank}"

    def _set(self, what: str, text: str, rank: int | None = None) -> None:
        try:
            self._store.set(self._name(what, self._rank if rank is None else rank), json.dumps(text))
        except RuntimeError:  # the process that keeps the store is gone
            return

    def _get(self, what: str, rank: int) -> str | None:
        try:
            if not self._store.check([self._name(what, rank)]):
                return None
            found: Any = json.loads(self._store.get(self._name(what, rank)))
        except (RuntimeError, ValueError):
            return None
        return str(found)
