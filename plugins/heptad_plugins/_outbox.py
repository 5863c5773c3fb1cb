"""`Outbox`: what is to be sent to a tracker, and the thread that sends it, so that no server ends or stalls a run."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from heptad import PluginError

T = TypeVar("T")

MOST = 200_000
"""How many items may wait to be sent during a run, some 30 MB. Further values stay with the run until there is room."""

_BATCH = 500
"""Points that are sent at once: MLflow takes 1,000."""
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds between an attempt that failed and the next one; the last is repeated."""
_LONG = 30.0
"""Seconds that a call may last before the log says so: a server that accepts and is silent, or one that is slow."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """A value of a metric.

    Attributes:
        name: Its name.
        value: The value.
        update: Complete updates.
        time_ms: When it was handed over, in milliseconds since 1970.
        place: Its number among all that the run has recorded, from 0 on: the same in a run that is resumed.
    """

    name: str
    value: float
    update: int
    time_ms: int
    place: int


class Tracking(Protocol):
    """A run in a tracker. All methods are called by the thread of the outbox, in the order of the items."""

    def begin(self) -> Iterable[str]:
        """Create or continue the run; called again until it succeeds. Returns what the log shall say."""
        ...

    def write(self, points: Sequence[MetricPoint]) -> None:
        """Write points; those that the tracker has already are left out."""
        ...

    def describe(self, parameters: Mapping[str, str | float]) -> Iterable[str]:
        """Write parameters. Returns what the log shall say."""
        ...

    def upload(self, folder: Path) -> str | None:
        """Upload a checkpoint. Returns what the log shall say."""
        ...

    def end(self, how: str) -> None:
        """Say how the run ended: `"finished"`, `"failed"`, `"killed"` or `"paused"`."""
        ...

    def is_unreachable(self, error: Exception) -> bool:
        """Return whether an error may be gone later, so that the same is tried again."""
        ...


Item = MetricPoint | Path | Mapping[str, str | float]
"""A point, a checkpoint, or parameters."""


class Outbox:
    """Sends what it is given, in order, on a thread of its own.

    Args:
        make: Returns the run in the tracker; called on the thread.
        name: Of the plugin, for messages.
        most: Items beyond which there is no room.
        before: An earlier one, which was closed but may still be in a call: it is waited for, on the thread.
    """

    def __init__(self, make: Callable[[], Tracking], name: str, most: int = MOST, before: Outbox | None = None) -> None:
        self._make = make
        self._before = before and before.thread
        self._name = name
        self._most = most
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ending: str | None = None
        self._given_up = self._ended = False
        self._remarks: list[str] = []
        self._error: Exception | None = None
        self._process = os.getpid()
        self._since: float | None = None  # when the call began that is under way
        self.refused = False  # the run itself was, not single items: the thread has ended
        self.trouble = ""
        self.thread = threading.Thread(target=self._run, name=f"heptad {name}", daemon=True)
        self.thread.start()

    # -- on the thread that drives the run

    def room(self, count: int) -> int:
        """Return for how many of so many items there is room: for all, for half of the most that wait, or for none.

        So a run that has far more to hand over looks through it a few times, and not in each update.
        """
        room = max(0, self._most - len(self._items))
        return min(count, room) if room >= min(count, self._most // 2) else 0

    def put(self, items: Sequence[Item]) -> None:
        """Hand over items, whether there is room or not; returns at once.

        Raises:
            PluginError: In a forked child, which has no thread that would send them.
            Exception: What the tracker refused an earlier item with, once.
        """
        if os.getpid() != self._process:
            raise PluginError(
                f"{self._name}: this process is a fork of the one that the run began in, {self._process}, which alone "
                "sends to the tracker; build an engine of its own there"
            )
        self._raise_refusal()
        with self._changed:
            self._items.extend(items)
            self._changed.notify()

    def remarks(self) -> list[str]:
        """Return what the log shall say since the last call."""
        self._look_for_silence(_LONG)
        with self._changed:
            found, self._remarks = self._remarks, []
        return found

    def close(self, how: str, seconds: float) -> int:
        """Send what waits, end the run in the tracker and the thread.

        Args:
            how: How the run ended.
            seconds: How long to wait at most.

        Returns:
            How many items could not be sent; -1 if only the end could not.

        Raises:
            Exception: What the tracker refused, as for `put`.
        """
        if os.getpid() != self._process:
            return 0
        with self._changed:
            self._ending = how
            self._changed.notify()
        self.thread.join(seconds)
        self.stop()
        self.thread.join(_PAUSES[0])  # it may have slept between two attempts
        self._look_for_silence(0.0)
        self._raise_refusal()
        return len(self._items) or (0 if self._ended else -1)

    def stop(self) -> None:
        """Make the thread end without waiting for it."""
        with self._changed:
            self._given_up = True
            self._changed.notify()

    def _look_for_silence(self, least: float) -> None:
        since = self._since
        if since is None or self.trouble or (lasted := time.monotonic() - since) < least:
            return
        self.trouble = f"no answer for {lasted:.0f} s"
        if least:
            self._tell([f"has not answered for {lasted:.0f} s: what is recorded waits, and is sent later"])

    def _raise_refusal(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    # -- on its own thread

    def _run(self) -> None:
        try:
            self._send_all()
        except _Stopped:
            pass
        except Exception as error:  # raised on the other thread, at the next item or in `close`
            self.refused, self.trouble = True, _in_brief(error)
            self._refused(error)

    def _send_all(self) -> None:
        while self._before is not None and self._before.is_alive():  # what it still sends is not sent twice
            self._before.join(_PAUSES[0])
            if self._given_up:
                raise _Stopped
        tracking = self._make()
        self._tell(self._insist(tracking, tracking.begin))
        while batch := self._next():
            try:
                self._tell(self._insist(tracking, lambda batch=batch: self._send(tracking, batch)))
            except _Stopped:
                raise
            except Exception as error:  # of these items alone: how the run ends is still said
                self._refused(error)
            with self._changed:
                for _ in batch:
                    self._items.popleft()
        how = self._ending or "paused"
        self._insist(tracking, lambda: tracking.end(how))
        self._ended = True

    def _refused(self, error: Exception) -> None:
        self._error = self._error or error

    def _next(self) -> list[Item]:
        """Return what is sent next: several points, or one other item; nothing when the run has ended."""
        with self._changed:
            while not self._items and self._ending is None and not self._given_up:
                self._changed.wait()
            if self._given_up:
                raise _Stopped
            batch: list[Item] = []
            for item in self._items:
                if batch and not (isinstance(item, MetricPoint) and isinstance(batch[0], MetricPoint)):
                    break
                batch.append(item)
                if len(batch) == _BATCH:
                    break
            return batch

    def _send(self, tracking: Tracking, batch: list[Item]) -> Iterable[str]:
        first = batch[0]
        if isinstance(first, Path):
            said = tracking.upload(first)
            return [said] if said else []
        if isinstance(first, MetricPoint):
            tracking.write([item for item in batch if isinstance(item, MetricPoint)])
            return []
        return tracking.describe(first)

    def _insist(self, tracking: Tracking, call: Callable[[], T]) -> T:
        """Call something until it succeeds or is refused."""
        failed = 0
        while not self._given_up:
            self._since = time.monotonic()
            try:
                said = call()
            except Exception as error:
                if not tracking.is_unreachable(error):
                    raise
                if not self.trouble:
                    self._tell([f"cannot be reached: what is recorded waits, and is sent later ({_in_brief(error)})"])
                self.trouble = _in_brief(error)
                self._sleep(_PAUSES[min(failed, len(_PAUSES) - 1)])
                failed += 1
            else:
                if self.trouble:
                    self._tell(["can be reached again"])
                self.trouble = ""
                return said
            finally:
                self._since = None
        raise _Stopped

    def _sleep(self, seconds: float) -> None:
        """Wait before the next attempt; when the run ends, the next one is made at once, and others soon."""
        ending = self._ending
        with self._changed:
            self._changed.wait_for(
                lambda: self._given_up or self._ending is not ending, min(seconds, _PAUSES[0]) if ending else seconds
            )

    def _tell(self, said: Iterable[str]) -> None:
        with self._changed:
            self._remarks.extend(said)


class _Stopped(Exception):
    """The outbox was stopped before all was sent."""


def _in_brief(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:199]}…"
