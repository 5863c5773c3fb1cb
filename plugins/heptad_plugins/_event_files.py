"""`EventFiles`: the event files of a directory, and which points in them a resumed run must not write again.

Each checkpoint leaves a mark in the file. What stands behind it was written by a run that was killed later.
`purge_step` hides the points of later updates in it. The others stay, such as an evaluation at the update of the
checkpoint: they are counted here, and the resumed run leaves out as many of each.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from heptad_plugins._watched import WatchedFile

Point = tuple[int, tuple[str, ...]]
"""A step, and the tags of the values there."""

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.(.*)\.(\d+)\.(\d+)")
"""Seconds, host, process, and a number in the process."""
_HEAD, _TAIL = 12, 4
"""Bytes around those of an event: its length with a checksum, and a checksum."""
_LONGEST_WAIT = 1.5


class EventFiles:
    """The file that a logger writes, among those of its directory.

    Args:
        directory: Where they lie.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._watched: WatchedFile | None = None
        self._writer: Any = None
        self._known: Counter[Point] = Counter()
        self._last_known = -1
        self._left: WatchedFile | None = None
        self._failed = False

    def open(self, build: Callable[..., Any], resumed_at: int | None, mark: str, afresh: bool) -> Any:
        """Return a writer to a new file. It writes everything, until `leave_out_known` is called.

        Args:
            build: Torch's `SummaryWriter`.
            resumed_at: Complete updates, if the run was resumed from a checkpoint.
            mark: What `leave_mark` was given at that checkpoint.
            afresh: Whether it was to resume and there was no checkpoint yet: all that the directory holds is hidden.

        Raises:
            PluginError: If the file before, which was closed by a pause, was removed, renamed, replaced or cut since.
            OSError: If the directory cannot be written to.
        """
        left, self._left = self._left, None
        if left is not None:
            left.check(when="while the run was paused")
        before = self._files()
        self._known = Counter()
        if resumed_at is not None:
            self._known, self._last_known = self._written_since(mark, resumed_at), resumed_at
        if before and (afresh or resumed_at is not None):
            _wait_until_after(before)
        purge = 0 if before and afresh else None
        self._failed = False
        self._writer = build(str(self._directory), purge_step=purge if resumed_at is None else resumed_at + 1)
        self._writer.flush()
        mine = [path for path in self._files() if path not in before and f".{os.getpid()}." in path.name]
        self._watched = WatchedFile("TensorBoardLogger", mine[0]) if len(mine) == 1 else None
        self._count()
        return self._writer

    def _count(self) -> None:
        """Count the bytes of what is written."""
        target, watched = self._writer.file_writer.event_writer, self._watched
        if watched is not None:
            add = target.add_event

            def add_counted(event: Any) -> None:
                watched.refuse_fork()  # there is no thread in a forked child that would take it
                watched.size += event.ByteSize() + _HEAD + _TAIL
                try:
                    add(event)
                except OSError:  # met by the thread that writes
                    self._fail()
                    raise

            target.add_event = add_counted

    def leave_out_known(self) -> None:
        """Leave out of what is written from now on as many points of each kind as the files hold already."""
        if not self._known:
            return
        target = self._writer.file_writer.event_writer
        add = target.add_event

        def add_new(event: Any) -> None:
            point = _point(event) if event.step <= self._last_known else None
            if point is not None and self._known[point] > 0:
                self._known[point] -= 1
            else:
                add(event)

        target.add_event = add_new

    def flush(self) -> None:
        """Write what is buffered.

        Raises:
            PluginError: If the file was removed, renamed, replaced or cut: once.
            OSError: If it cannot be written, once; a full disk, or a directory that is gone.
        """
        if self._failed:
            return
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.refuse_fork()
            self._watched = watched
        try:
            self._writer.flush()
        except OSError:
            self._fail()
            raise
        self._check()

    def _fail(self) -> None:
        """Say what became of the file, after an error that the writer raises again and again.

        Raises:
            PluginError: If it was removed, renamed, replaced or cut.
        """
        self._failed = True
        self._check()
        self._watched = None

    def _check(self) -> None:
        """Look at the file, until that has raised once."""
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.check(grows=True)
            self._watched = watched

    def leave_mark(self, mark: str, update: int) -> None:
        """Say in the file that a checkpoint is taken here, and write what is buffered.

        Args:
            mark: A text that belongs to this checkpoint alone.
            update: Complete updates.

        Raises:
            PluginError: As for `flush`.
        """
        made = _protocol()
        log = made.SessionLog(status=made.SessionLog.CHECKPOINT, msg=mark)
        self._writer.file_writer.add_event(made.Event(session_log=log), update)
        self.flush()

    def close(self) -> None:
        """Write what is buffered and close the file.

        Raises:
            PluginError: As for `flush`.
        """
        try:
            self.flush()
        finally:
            with suppress(OSError) if self._failed else nullcontext():
                self._writer.close()
            self._writer = None
        self._left = self._watched

    def _files(self) -> list[Path]:
        """Return the event files, oldest first."""
        return sorted(self._directory.glob("events.out.tfevents.*"), key=_age)

    def _written_since(self, mark: str, resumed_at: int) -> Counter[Point]:
        """Return the points, up to an update, that were written after a mark, and how many of each."""
        starts = _protocol().SessionLog.START
        files = self._files()
        places = {path: _end_of_mark(path, mark) for path in files}
        marked = [number for number, path in enumerate(files) if places[path] is not None]
        found: Counter[Point] = Counter()
        for path in files[marked[-1] :] if marked else []:
            for event in _events(path, places[path] or 0):
                if event.session_log.status == starts:  # resumed from earlier: it hides what was before
                    found = Counter({point: count for point, count in found.items() if point[0] < event.step})
                point = _point(event)
                if point is not None and event.step <= resumed_at:
                    found[point] += 1
        return found


def _end_of_mark(path: Path, mark: str) -> int | None:
    """Return the place behind the last event with a mark, which is its last field; `None` if there is none."""
    sought = mark.encode()
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            begin = content.rfind(sought)
    return None if begin < 0 else begin + len(sought) + _TAIL


def _protocol() -> Any:
    """Return the module of the classes that event files consist of; it comes with tensorboard, an extra."""
    from tensorboard.compat.proto import event_pb2

    return event_pb2


def _point(event: Any) -> Point | None:
    """Return what an event is a point of; `None` if it holds no values."""
    return (event.step, tuple(value.tag for value in event.summary.value)) if event.HasField("summary") else None


def _events(path: Path, since: int) -> Iterator[Any]:
    """Yield the events of a file from a place on, up to one that is torn."""
    from google.protobuf.message import DecodeError

    event_class = _protocol().Event
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - since
        file.seek(since)
        while left >= _HEAD:
            (length,) = struct.unpack("<Q", file.read(_HEAD)[:8])
            left -= _HEAD + length + _TAIL
            if left < 0:
                return
            data = file.read(length)
            file.seek(_TAIL, os.SEEK_CUR)
            try:
                yield event_class.FromString(data)
            except DecodeError:
                return


def _age(path: Path) -> tuple[int, str, int, int]:
    """Return what event files are sorted by: the time in their names, then the process and its number."""
    found = _NAME.match(path.name)
    if found is None:
        return 0, path.name, 0, 0
    seconds, host, process, number = found.groups()
    return int(seconds), host, int(process), int(number)


def _wait_until_after(files: list[Path]) -> None:
    """Wait for the second after that of the newest file: TensorBoard reads files by name, and hides what was before."""
    last = max(_age(path)[0] for path in files)
    ends = time.monotonic() + _LONGEST_WAIT
    while int(time.time()) <= last and time.monotonic() < ends:
        time.sleep(0.02)
