"""`Journal` observes the run: every transition, note and recorded value in an SQLite file, while the run goes on."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

import torch

from heptad import Plugin, PluginError, Run
from heptad.errors import LogError
from heptad.history.journal.head import check_owner
from heptad.history.journal.reader import FileSource
from heptad.history.journal.writer import FileWriter, discard
from heptad.record.events import Event
from heptad_plugins._options import path_of, whole
from heptad_plugins._recorder import Recorder

OF_THE_DISK = (OSError, sqlite3.OperationalError)
"""What the disk is to blame for, beside what SQLite calls a DatabaseError and nothing narrower: a damaged file."""


class Journal(Plugin):
    """Writes the whole log of a run to a file that survives a kill and can be read while the run goes on.

    `TransitionLog.load(path)` reads it back, from any process; so does SQL (`docs/journal.md`). It is written by a
    thread of its own, four times a second and whenever some thousand transitions have come: a process that is killed
    leaves a file that opens and lacks at most the last second, or `flush_every` transitions. The file is never behind
    a checkpoint, nor behind a run that was paused or has returned.

    A run that is resumed from a checkpoint goes on in its file: what the file held beyond the checkpoint is kept apart,
    in tables named `superseded_…`, and the path reads as one. So is all that it held where `resume="auto"` finds no
    checkpoint yet, because the attempt before was killed too early. Any other file that is not empty is left alone.

    For each update it records `loss`, the loss of the newest step, and `lr`, the learning rate that the update was made
    with, of several parameter groups `lr/0`, `lr/1`, … over all optimizers, unless somebody recorded these names since
    the update before. These are recorded values as all others are: `Run.metrics` and other loggers have them too.

    Costs the run 0.1 µs a transition and, for the recorded values, 4 µs an update; the thread that writes takes 1 µs of
    another core for a transition and as much for a value. Values that are on a device are waited for by that thread,
    not by the run. Where transitions come faster than they can be written for long, the run waits. What a plugin
    records or notes in `close`, where it is closed after this one, is not in the file.

    Args:
        path: The file; its folders are made.
        flush_every: Transitions that may be missing after a kill; the run waits after so many until they are written,
            about 0.3 ms. `None` leaves it at the last second.
        overwrite: Lets go of another run's log in the file.
        values: Whether to record `loss` and `lr`.
        on_error: `"detach"` lets the run go on if the file cannot be written; what was written stays readable.

    Raises:
        PluginError: When built, for an option that does not fit; when the run is opened, for a file that it may not
            write to: another run's, another program's, one that another process is writing, one that lacks transitions
            which the resumed run has made.
        LogError: In the run, from the next step or `close`, after an error of the disk, if the file was removed, or for
            something that cannot be written.
    """

    observes = True

    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")
    runs_before = ("Checkpoint", "CSVLogger", "TensorBoardLogger", "Progress")

    def __init__(
        self,
        path: str | os.PathLike[str],
        flush_every: int | None = None,
        overwrite: bool = False,
        *,
        values: bool = True,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self.on_error = on_error
        self._path = path_of("Journal", "path", path)
        self._flush_every = None if flush_every is None else whole("Journal", "flush_every", flush_every)
        self._overwrite = overwrite
        self._values = values
        self._recorder: Recorder | None = None
        self._begin()

    def _begin(self) -> None:
        """Forgets the run before."""
        self._run: str | None = None  # the id of the run whose log this object has written
        self._session = 0
        self._last_note: Event | None = None
        self._calls = 0
        self._told = False
        self._seen = 0  # recorded values at the update before
        self._rates: list[float | torch.Tensor] = []

    def open(self, run: Run) -> None:
        """Opens the file and begins to write.

        Raises:
            PluginError: If the file may not be written to.
        """
        if run.state == "idle" and run.id != self._run:
            self._begin()
        self._told = False
        memory, notes = run.buffer, run.buffer.events(0)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            way = self._way(run)
            if way == "new":
                discard(self._path)
            elif way == "resume":
                notes = [note for note in notes if note.seq >= run.seq]
            elif way == "mine":
                notes = _after(self._last_note, notes)
            recorder = Recorder(memory, lambda: self._adopt(run, way), self._flush_every)
            recorder.last_note, recorder.calls = self._last_note, self._calls
            recorder.start(memory.view().chunks, notes)
        except LogError as error:
            raise PluginError(f"Journal: {error}") from error
        except (sqlite3.Error, OSError) as error:
            raise PluginError(f"Journal: {self._path} cannot be written: {error}; name another file") from error
        self._recorder, self._run = recorder, run.id

    def close(self, run: Run) -> None:
        """Writes what is left and closes the file.

        Raises:
            LogError: If it could not be written, and no handler has said so yet.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close(run.ended)
            self._last_note, self._calls = recorder.last_note, recorder.calls
            self._check(run, recorder)

    def on_pause(self, run: Run) -> None:
        """Lets the file catch up."""
        if self._recorder is not None:
            self._recorder.flush()
            self._check(run, self._recorder)

    on_enter_checkpoint = on_pause

    def on_exit_after_step(self, run: Run) -> None:
        """Raises what the thread that writes has met."""
        if self._recorder is not None and self._recorder.error is not None:
            self._check(run, self._recorder)

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Reads the learning rates; after the update they may be those of the next one."""
        if self._values:
            self._rates = [
                _copied(group["lr"])
                for optimizer in run.optimizers
                for group in optimizer.param_groups
                if "lr" in group
            ]

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Records the loss and the learning rates."""
        recorded = run.buffer.recorded
        if self._values and not run.update_skipped:
            names, seq, at = recorded.names(self._seen), run.seq, run.counters()
            loss = None if "loss" in names else run.loss
            if loss is not None:
                recorded.record("loss", loss, seq, at)
            several = len(self._rates) > 1
            for number, rate in enumerate(self._rates):
                name = f"lr/{number}" if several else "lr"
                if name not in names:
                    recorded.record(name, rate, seq, at)
        self._seen = len(recorded)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the next update needs: the number of recorded values, and the rates if one is under way."""
        return {"seen": self._seen, "rates": list(self._rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._begin()
        self._seen = state["seen"]
        self._rates = list(state["rates"])

    def _way(self, run: Run) -> Literal["new", "resume", "afresh", "mine"]:
        """Tells how to come by the file, without altering what is there.

        Raises:
            PluginError: If there is no way.
        """
        if not self._path.exists() or not self._path.stat().st_size:
            return "new"
        if self._run == run.id:
            return "mine"
        check_owner(self._path)
        if run.resumed_from is not None:
            held = FileSource(self._path)
            if held.run == run.id:
                end = held.view().end
                if end < run.seq:
                    raise PluginError(
                        f"Journal: {self._path} ends before transition {end}, the run goes on from {run.seq}: those "
                        "between are missing; name another file"
                    )
                return "resume"
        if self._overwrite:
            return "new"
        if run.afresh:
            return "afresh"
        raise PluginError(
            f"Journal: {self._path} holds the log of another run; name another file, remove this one, say "
            "overwrite=True, or go on with that run: engine.run(resume=…)"
        )

    def _adopt(self, run: Run, way: str) -> FileWriter:
        """Opens the file, on the thread that writes."""
        writer = FileWriter(self._path, run.table, run.id)
        try:
            if way == "mine":
                writer.go_on(self._session)
            else:
                writer.begin(run.buffer.view().first, run.resumed_from)
            if way == "resume":
                writer.supersede(run.seq, len(run.buffer.recorded))
            elif way == "afresh":
                writer.supersede(0, 0)
                writer.hand_over(run.id)
        except BaseException:
            writer.abandon()
            raise
        self._session = writer.session
        return writer

    def _check(self, run: Run, recorder: Recorder) -> None:
        """Raises, once, what the thread that writes has met."""
        error = recorder.error
        if error is None or self._told:
            return
        self._told = True
        run.buffer.leave(recorder)
        raise LogError(
            f"Journal: {self._path} {self._said(error, recorder.end)}; with on_error='detach' a run goes on without "
            "its journal"
        ) from error

    def _said(self, error: BaseException, end: int | None) -> str:
        """Says what became of the file, and what to do."""
        if not self._path.exists():
            return (
                f"is gone: it was removed or renamed while the run was writing it ({error}). Leave a journal in its "
                "place until its run has ended"
            )
        held = f"the transitions before {end} are in it and can be read" if end else "it holds nothing"
        if not isinstance(error, OF_THE_DISK) and type(error) is not sqlite3.DatabaseError:
            return (
                f"cannot be written any more: {type(error).__name__}: {error}; {held}. This is a fault in what was to "
                "be written, not of the disk: look at what is noted and recorded"
            )
        return f"cannot be written any more: {error}; {held}. Make room or name another disk"


def _after(last: Event | None, notes: Sequence[Event]) -> Sequence[Event]:
    """Returns the notes after one of them; all where it is not among them any more."""
    taken = [number for number, note in enumerate(notes) if note is last]
    return notes[taken[0] + 1 :] if taken else notes


def _copied(rate: float | torch.Tensor) -> float | torch.Tensor:
    """Returns a learning rate; one that is a tensor may be written into."""
    return rate.detach().clone() if isinstance(rate, torch.Tensor) else rate
