"""`Journal` observes the run: every transition, event and recorded value in an SQLite file, while the run is driven."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch

from heptad import LogError, Plugin, PluginError, Run
from heptad.plugin import JournalFile, JournalRecorder, Placing
from heptad_plugins._losses import Losses
from heptad_plugins._options import path_of, whole_number
from heptad_plugins._output_path import output_of
from heptad_plugins._stored import scalars_in


class Journal(Plugin):
    """Write the whole log of a run to a file that survives a kill and can be read meanwhile.

    `TransitionLog.load(path)` reads it, in any process, and so does SQL (`docs/journal.md`). A thread of its own writes
    it, four times a second and after some thousand transitions. A process that is killed leaves a file that can be read
    and lacks the last second at most, unless the disk is slower than the run, or `flush_every` transitions. The file is
    never behind a checkpoint, nor behind a run that is paused or has returned.

    A run that is resumed from a checkpoint continues its file. What the file held beyond the checkpoint moves to tables
    named `superseded_…`, and the path reads as one. If `resume="auto"` finds no checkpoint yet, because the attempt
    before was killed too early, everything in the file moves there. Any other file that is not empty is left alone.

    With several ranks each writes a file of its own: rank 0 the one that was named, rank 1 the one beside it that ends
    in `.rank1`, and so on. `TransitionLog.load(path)` reads them as one log. Each rank continues, replaces and refuses
    its own file as said above. With `overwrite=True` rank 0 also removes what an earlier run of more ranks left.

    For each update it records `train/loss`, the mean over its window, and `lr`, the learning rate of the update (with
    several parameter groups `lr/0`, `lr/1`, …, over all optimizers), unless a value of that name was recorded since the
    update before; and after each epoch `train/epoch_loss`, the mean over its steps. They are recorded values like all
    others: `Run.metrics` and other loggers have them too.

    It costs the run 0.1 µs a transition and, for the recorded values, 5 µs an update, or 20 where torch's operations
    have emptied the caches: a step of 100 µs becomes a quarter longer, one of 10 ms two thousandths; `values=False`
    spares that. The thread that writes takes 1 µs of another core for a transition, and as much for a value; it, not
    the run, syncs with the device for values there. Where transitions come faster than they can be written, up to 64 MB
    of them wait in memory: some six million. With more, the run waits, and an event `behind` says so; a pause, a
    checkpoint and the end wait for all. What a plugin records in `close`, if it is closed after this one, is not in the
    file.

    Args:
        path: The file, of rank 0 where there are several; missing folders are made. Or a `RunFolder`, for
            `log.journal` in it.
        flush_every: Transitions that the file may lack after a kill. The run waits after that many until they are
            written, about 0.3 ms. `None` for those of the last second.
        overwrite: Whether to discard another run's log in the file.
        values: Whether to record `train/loss`, `train/epoch_loss` and `lr`.
        on_error: With `"detach"` the run continues if the file cannot be written. What was written stays readable.

    Raises:
        PluginError: When built, for a wrong option. When the run is opened, for a file that it may not have: another
            run's, another program's, one that another process is writing, one that lacks transitions which the resumed
            run made.
        LogError: In the run, from the next step or `close`: after an error of the disk, if the file, or what SQLite
            keeps beside it, was removed, renamed, replaced or cut, or for something that cannot be written.
    """

    observes = True
    ranks = "all"  # each has times and values of its own, and a file for them
    own_state = True  # it counts the values, of which the first rank has more

    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")
    runs_before = ("Checkpoint", "CSVLogger", "TensorBoardLogger", "Progress")

    def __init__(
        self,
        path: str | os.PathLike[str] | Placing,
        flush_every: int | None = None,
        overwrite: bool = False,
        *,
        values: bool = True,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self.on_error = on_error
        self._output = output_of("Journal", "path", path, "log.journal", path_of)
        self._flush_every = None if flush_every is None else whole_number("Journal", "flush_every", flush_every)
        self._overwrite = overwrite
        self._values = self.needs_epoch_loss = values
        self._forget()

    def _forget(self) -> None:
        self._file = JournalFile(self._output.path, self._overwrite)
        self._recorder: JournalRecorder | None = None
        self._losses = Losses()
        self._rates: dict[str, float | torch.Tensor] = {}

    def on_begin(self, run: Run) -> None:
        """Forget the run before."""
        self._forget()

    def open(self, run: Run) -> None:
        """Open the file and start writing.

        Raises:
            PluginError: If the run may not have the file, or if it cannot be written.
        """
        self._losses.open(run)
        try:
            self._recorder = self._file.record(run, self._flush_every)
        except LogError as error:
            raise PluginError(f"Journal: {error}") from error.__cause__  # an OSError, or nothing

    def close(self, run: Run) -> None:
        """Write what is left and close the file.

        Raises:
            LogError: If it could not be written, and no handler has said so yet.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close(run.ended)
            _raise_error(recorder)

    def on_pause(self, run: Run) -> None:
        """Wait until the file holds everything up to now."""
        if self._recorder is not None:
            self._recorder.flush()
            _raise_error(self._recorder)

    on_enter_checkpoint = on_pause

    def on_exit_after_step(self, run: Run) -> None:
        """Raise what the thread that writes has met."""
        if self._recorder is not None and self._recorder.error is not None:
            _raise_error(self._recorder)

    def on_enter_optimizer_update(self, run: Run) -> None:
        """Read the learning rates: on exit they may be those of the next update."""
        if self._values:
            self._rates = run.learning_rates()

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the loss and the learning rates, unless somebody did since the update before."""
        if self._values:
            self._losses.record_update(run, self._rates)

    def on_exit_after_epoch(self, run: Run) -> None:
        """Record the loss of the epoch, unless somebody did."""
        if self._values:
            self._losses.record_epoch(run)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next update needs: how many values were recorded, and the rates if one is under way."""
        return {"losses": self._losses.state_dict(), "rates": dict(self._rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        # until 0.1.0 `seen` stood for the first of what `losses` holds, for every epoch too
        self._losses.load_state_dict(state.get("losses") or dict.fromkeys(("update", "epoch"), state.get("seen")))
        stored = isinstance(state.get("rates"), dict)  # version 0.1.0 stored a list, of no further use
        self._rates = scalars_in(state, "rates") if stored else {}


def _raise_error(recorder: JournalRecorder) -> None:
    """Raise what the thread that writes has met."""
    try:
        recorder.check()
    except LogError as error:
        raise LogError(
            f"Journal: {error}; with on_error='detach' a run continues without its journal"
        ) from error.__cause__
