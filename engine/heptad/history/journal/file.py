"""`JournalFile`: the file that the log of a run is written to, and whether the run may have it."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from heptad.errors import LogError
from heptad.history.journal.family import discard_beyond, path_of_rank
from heptad.history.journal.head import check_owner, is_unmade, reason
from heptad.history.journal.lock import discard
from heptad.history.journal.reader import FileSource
from heptad.history.journal.recorder import JournalRecorder
from heptad.history.journal.writer import FileWriter
from heptad.record.buffer import LogBuffer
from heptad.record.events import Event

_Way = Literal["new", "resume", "restart", "continue"]


class JournaledRun(Protocol):
    """What a journal needs of a run; `Run` has it."""

    @property
    def id(self) -> str:
        """The run's unique id, the same on all ranks."""
        ...

    @property
    def rank(self) -> int:
        """The number of this process among those of the run."""
        ...

    @property
    def world(self) -> int:
        """How many processes the run has."""
        ...

    @property
    def resumed_from(self) -> str | None:
        """The checkpoint that it was resumed from."""
        ...

    @property
    def afresh(self) -> bool:
        """Whether it was to resume and there was no checkpoint yet."""
        ...

    @property
    def _buffer(self) -> LogBuffer:
        """The log while it is written."""
        ...


class JournalFile:
    """The file that the log of one run is written to, through all pauses of the run; on each rank one of its own.

    Args:
        path: The file of rank 0; rank 1 writes to the one beside it that ends in `.rank1`. Missing folders are made.
        overwrite: Whether to discard the log of another run in it.
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        self._given = self._path = Path(path)
        self._overwrite = overwrite
        self._run: str | None = None
        """The id of the run that this object has written to the file."""
        self._recorder: JournalRecorder | None = None
        """What wrote it last."""

    def record(self, run: JournaledRun, flush_every: int | None = None) -> JournalRecorder:
        """Open the file and write the log of a run to it until the recorder is closed.

        Args:
            run: The run, between two turns.
            flush_every: Transitions that the file may lack after a kill; `None` for those of the last second.

        Returns:
            The recorder. Call `check` now and then, `flush` where the file must not be behind, and `close` once.

        Raises:
            LogError: If the run may not have the file, or if it cannot be written.
        """
        self._path = path_of_rank(self._given, run.rank)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            way = self._way(run)
            if way == "new":
                discard(self._path)
                if self._overwrite and run.rank == 0:
                    discard_beyond(self._given, run.world)
            earlier = self._recorder if way == "continue" else None
            recorder = JournalRecorder(
                run._buffer, self._path, lambda: self._adopt(run, way, earlier), flush_every, earlier
            )
            recorder.start(run._buffer.view().chunks, self._events(run, way, earlier))
        except (sqlite3.Error, OSError, ValueError, zlib.error) as error:
            raise LogError(f"{self._path} cannot be written: {reason(self._path, error)}; name another file") from error
        self._recorder, self._run = recorder, run.id
        return recorder

    def _way(self, run: JournaledRun) -> _Way:
        """Return how to come by the file. Nothing is altered yet.

        Raises:
            LogError: If the run may not have the file.
        """
        if not self._path.exists():
            return "new"
        if self._path.is_dir():
            raise LogError(
                f"{self._path} is a directory, which cannot be a journal; name a file in it, such as log.journal"
            )
        if not self._path.is_file():
            check_owner(self._path)  # which refuses it
        if not self._path.stat().st_size:
            return "new"
        if self._run == run.id:
            return "continue"
        check_owner(self._path)
        if is_unmade(self._path):
            return "new"
        if run.resumed_from is not None and (held := FileSource(self._path)).run == run.id:
            return "resume" if self._reaches(held, run) else "restart"
        if self._overwrite:
            return "new"
        if run.afresh:
            FileSource(self._path)  # which refuses what is not as a run writes it
            return "restart"
        raise LogError(
            f"{self._path} holds the log of another run; name another file, remove this one, say overwrite=True, or "
            "resume that run: engine.run(resume=…)"
        )

    def _reaches(self, held: FileSource, run: JournaledRun) -> bool:
        """Return whether the log of a resumed run reaches the checkpoint. That of a further rank may end before it.

        The run may have had fewer ranks meanwhile: the rank then begins again where the run does.

        Raises:
            LogError: If rank 0 lacks transitions that the run made before the checkpoint.
        """
        end, seq = held.view().end, run._buffer.seq
        if end < seq and run.rank == 0:
            raise LogError(
                f"{self._path} ends before transition {end}, the run continues from {seq}: those between are missing; "
                "name another file"
            )
        return end >= seq

    def _adopt(self, run: JournaledRun, way: _Way, earlier: JournalRecorder | None) -> FileWriter:
        """Open the file, on the thread that writes."""
        log = run._buffer
        writer = FileWriter(self._path, log.table, run.id)
        try:
            if earlier is not None:
                if (writer.run, writer.end) != (run.id, earlier.end):
                    raise LogError(
                        f"{self._path} was changed while the run was paused: it is not the file that was written up to "
                        f"transition {earlier.end}; put that back, or remove this one, and a new one is begun"
                    )
                writer.continue_session(earlier.session)
            else:
                writer.begin(log.view().first, run.resumed_from)
            if way == "resume":
                writer.supersede(log.seq, len(log.recorded))
            elif way == "restart":
                writer.supersede(0, 0)
                writer.hand_over(run.id)
        except BaseException:
            writer.abandon()
            raise
        return writer

    def _events(self, run: JournaledRun, way: _Way, earlier: JournalRecorder | None) -> Sequence[Event]:
        """Return the events of the log that the file lacks."""
        if way == "resume":
            return run._buffer.events(run._buffer.seq)
        events = run._buffer.events(0)
        # By identity: two events may be equal. The log may have dropped the last one that was written.
        written = [number for number, event in enumerate(events) if earlier is not None and event is earlier.last_event]
        return events[written[0] + 1 :] if written else events
