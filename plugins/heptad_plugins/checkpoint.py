"""`Checkpoint` observes the run: stores all that the rest of it depends on, so that it can be killed anywhere."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from heptad import CheckpointError, Detour, Plugin, PluginError, Run
from heptad.plugin import BackgroundWriter, Placing, Snapshot, Store, refuse_unrecorded
from heptad_plugins._options import directory_of, number, one_of, places_of, selection, text_of, whole_number, yes_or_no
from heptad_plugins._output_path import output_of
from heptad_plugins._stored import flag_in, mapping

Place = Literal["after_step", "optimizer_update", "after_epoch"]
PLACES: tuple[Place, ...] = ("after_step", "optimizer_update", "after_epoch")


class Checkpoint(Plugin):
    """Write checkpoints; `Engine.run(resume=…)` continues from any of them at once, bit for bit.

    A checkpoint is a state, `checkpoint`, reached from the states in `at`; one is also stored when the run pauses
    because of Ctrl-C, a signal (`GracefulStop`) or `Run.pause`. It is whole or not there, whenever the process is
    killed, and the one before it is removed only when it is durable. While it is written training stands still.

    With `background=True` it stands still only while a copy is made in the memory of the host, pinned where the tensors
    are on a device: a thread writes it, under the same rules, to the same bytes. The event `written` says in the log
    when it was durable and how long that took. There is one copy at most: the next checkpoint waits for the one before,
    and so do a pause, which writes its own before it returns, `Engine.close`, and the end of the run. What writing
    fails with ends the run after the turn under way.

    A recorded value counts for the checkpoints that hold the weights it was measured of: those written after it and
    before the next update. Where the network has buffers, which move in each step, they must be of the same step. With
    `EMA`, an evaluation measures the average: `load_weights(…, which="best", average=True)` loads it. Means of the
    training, such as `train/loss`, are of the weights before their updates; an evaluation is of those that are stored.

    Where the data are a loader that may carry random states from pass to pass out of sight (a `DataLoader` with
    `persistent_workers=True`, a sampler or a loader of one's own without `state_dict`), a note at the start says that
    a resumed run may see other data.

    A directory belongs to one run: a resumed run may write to it, any other is refused, as is a second process at the
    same time. The ranks of one run write one checkpoint together, to a directory that all of them share: all succeed,
    or all raise the same error. In the background a thread of each rank writes its part; the ranks make a checkpoint of
    the parts, all in the same turn, at the first end of a window (see `RunConfig.agree_every`) at which every rank has
    written. What one could not write, all raise there. Where a rank dies or fails of something else before, the parts
    are no checkpoint; the next start sweeps them away. With `strategy="fsdp"` none is taken where a window may be open:
    not at `"after_step"` if it has several steps, and with `remainder="carry"` not at `"after_epoch"`.

    With `mirror=` each checkpoint that is durable is copied to another file system; of several ranks the first one
    copies. In the background a thread does, for which neither training nor the next checkpoint waits: what is written
    meanwhile is copied after it, if it is still to be kept then; a pause, `Engine.close` and the end of the run wait.
    Otherwise training stands still, on all ranks. The mirror keeps what `keep_last` and `keep_best` say, and belongs to
    one plugin. `resume="auto"` fetches the newest sound checkpoint from there where the directory is empty, and
    compares every digest; a mirror that cannot be asked is an error then. Later on it ends no run: the event `mirror`
    says that it failed, and what is missing is copied at a later save: the 1st, 2nd, 4th, … after it has failed once,
    twice, three times in a row, and once more where the run pauses or ends. An operation that makes no progress for two
    minutes counts as failed.

    Args:
        directory: Where they are kept; made where it is missing. Or a `RunFolder`, for `checkpoints` in it; without
            `mirror`.
        at: After which state or states: `"after_epoch"`, `"optimizer_update"`, `"after_step"`.
        every: At each epoch, update or step, whichever ends there, whose number is a multiple of this.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        seconds: At those places, but only when this long has passed since the last one: with several ranks on one of
            them, which asks the others, so that it is taken at the first such place after the window under way.
        keep_last: How many of the newest stay.
        keep_best: How many of those with the best value of `monitor` stay beside these.
        monitor: The name of a recorded value, such as `"valid/loss"`; `load_weights(which="best")` looks at it.
        mode: Whether lower values (`"min"`) or higher ones (`"max"`) are better.
        overwrite: Removes the checkpoints of another run from the directory when a run begins.
        background: Whether a thread writes the checkpoints while the run continues.
        mirror: The URL of a folder that fsspec understands, such as `"s3://bucket/run"`, for copies of the checkpoints.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: For an option that does not fit; where fsspec, or what that needs for the mirror, is not installed;
            when built, for a place that does not go with the strategy.
        CheckpointError: When the run is opened, for a directory or a mirror that is another run's, or a directory that
            is in use; when storing, if something cannot be stored or written: the earlier checkpoints stay. In the
            background, what cannot be stored is refused at once; what cannot be written raises after the turn under
            way, or when the run pauses or ends.
        EngineError: When an epoch ends, nothing was recorded under the name in `monitor`, and no `Evaluate` is to.
    """

    observes = True
    ranks = "all"  # a checkpoint has parts of each rank, and they write it together
    requests = ("save", "writing")

    def __init__(
        self,
        directory: str | os.PathLike[str] | Placing,
        at: Place | Sequence[Place] = "after_epoch",
        every: int = 1,
        seconds: float | None = None,
        keep_last: int = 2,
        keep_best: int = 0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        overwrite: bool = False,
        *,
        first: int | None = None,
        background: bool = False,
        mirror: str | None = None,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self._at = places_of("Checkpoint", at, PLACES)
        self._numbers = selection("Checkpoint", every, first)
        self._seconds = None if seconds is None else number("Checkpoint", "seconds", seconds, above=0)
        self._keep_last = whole_number("Checkpoint", "keep_last", keep_last)
        self._keep_best = whole_number("Checkpoint", "keep_best", keep_best, least=0)
        if monitor is not None:
            text_of("Checkpoint", "monitor", monitor, "the name of a recorded value")
        if keep_best and monitor is None:
            raise PluginError(f"Checkpoint(keep_best={keep_best}) needs monitor=…, the recorded value to go by")
        self._monitor = self._watched = monitor
        self._mode = one_of("Checkpoint", "mode", mode, ("min", "max"))
        self._overwrite = overwrite
        self._background = yes_or_no("Checkpoint", "background", background)
        self._writer: BackgroundWriter | None = None
        self.on_error = on_error
        self._output = output_of("Checkpoint", "directory", directory, "checkpoints", directory_of)
        if mirror is not None and self._output.place is not None:
            raise PluginError(
                "Checkpoint(mirror=…) needs a directory of its own: a new machine would not know which of the numbered "
                "runs to fetch; give a path in place of the folder, or leave mirror out"
            )
        self._store = Store(self._output.path, mirror=mirror)
        self._saved_at = 0.0
        self._claimed = False
        self._has_valued = False

    @property
    def store(self) -> Store:
        """The checkpoints; in a run folder those of the run that began last."""
        place = self._output.place
        if place is not None and place.is_placed and self._store.directory != self._output.path:
            self._store = Store(self._output.path)
        return self._store

    @store.setter
    def store(self, store: Store) -> None:
        self._store = store

    def detours(self) -> Iterable[Detour]:
        """Return the state `checkpoint`, once for each place, which counts what ends there."""
        every, first = self._numbers.every, self._numbers.first
        return [Detour("checkpoint", place, self._is_due, self.save, every=every, first=first) for place in self._at]

    def on_build(self, run: Run) -> None:
        """Refuse places where the gradients of an open window would have to be stored, and cannot be."""
        if run.config.strategy != "fsdp" or run.accumulation == 1:
            return
        places = {"after_step": "", "after_epoch": " with remainder='carry'"}
        for place, why in places.items():
            if place in self._at and (not why or run.config.remainder == "carry"):
                raise PluginError(
                    f"Checkpoint(at='{place}'){why} and strategy='fsdp': a window may be open there, and FSDP2 hides "
                    "its gradients, so that they cannot be stored; say at='optimizer_update', or use strategy='ddp'"
                )

    def on_begin(self, run: Run) -> None:
        """Forget that the directory was an earlier run's."""
        self._finish()
        self._claimed = False
        self._has_valued = False

    def open(self, run: Run) -> None:
        """Lock the directory, and claim it for this run.

        Raises:
            CheckpointError: If it is another run's, or in use.
        """
        self._finish()
        self.store.join(run)
        # the first rank writes which one is best: what it goes by may be the record of a first-only plugin
        self._watched = None if run.rank else self._monitor
        self.store.lock()
        if self._background:
            raises = self.on_error == "raise"
            self._writer = BackgroundWriter(self.store, f"{self.name}.save", raises, f"{self.name}.writing")
        if not self._claimed:
            self.store.on_first(partial(self._claim, run))
            self._claimed = True
            if run.state == "idle" and run.config.epochs != 1:
                _warn_of_data(run)
        self._saved_at = monotonic()
        if self._seconds is not None:
            run.ask(self._request, wanted=False)

    def close(self, run: Run) -> None:
        """Unlock the directory, when nothing is being written there any more.

        Raises:
            CheckpointError: If writing failed, and no turn has said so yet.
        """
        if self._writer is None:
            self.store.unlock()
        else:
            self._writer.close()

    def on_exit_after_step(self, run: Run) -> None:
        """Read the clock, which the guard must not; with `on_error="detach"`, raise what writing failed with."""
        if self._writer is not None:
            self._writer.poll()
        if self._seconds is not None and monotonic() - self._saved_at >= self._seconds:
            run.ask(self._request)

    def on_exit_after_loop(self, run: Run) -> None:
        """Wait for the last checkpoint, and say so if none held weights that the monitored value was measured of."""
        self._finish()
        self.store.end_copies(run)
        if not self._keep_best or self._has_valued or self._watched is None:
            return
        why = "nothing was recorded under that name"
        if run.newest(self._monitor or "") is not None:
            why = "none was taken between a value and the next update; evaluate and store at the same place and numbers"
        run.note(f"Checkpoint(monitor='{self._monitor}'): no checkpoint is the best: {why}")

    def state_dict(self) -> dict[str, Any]:
        """Return whether a checkpoint had a value of the monitor."""
        return {"has_valued": self._has_valued}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; older checkpoints lack it."""
        self._has_valued = flag_in(mapping(state), "has_valued", False)

    def on_pause(self, run: Run) -> None:
        """Store a checkpoint where the run has paused."""
        try:
            self._finish()
        except Exception:  # store this one first: the one before is not there
            self.save(run)
            raise
        self.save(run)
        self.store.end_copies(run)

    def save(self, run: Run) -> None:
        """Store a checkpoint and remove those that need not be kept: the body of `checkpoint`.

        In the background only a copy is made here, but for a run that is paused: it may not continue.
        """
        take = partial(self._taken, run)
        if self._writer is not None and run.paused is None:
            self._writer.save(run, take, self._keep_last, self._keep_best)
        else:
            self._finish()
            self.store.save(take)
            self.store.rotate(self._keep_last, self._keep_best)
            self.store.copies.tell(run)
        self._saved_at = monotonic()
        if self._seconds is not None:
            run.ask(self._request, wanted=False)

    def _taken(self, run: Run) -> Snapshot:
        """Return a snapshot of the run, with the value that is monitored."""
        value = None if self._watched is None else self._value(run, self._watched)
        self._has_valued = self._has_valued or value is not None
        snapshot = run.snapshot()
        if value is not None:
            snapshot.summary["monitor"] = {"name": self._monitor, "mode": self._mode, "value": value}
        return snapshot

    def _finish(self) -> None:
        """Wait for what is being written, and raise what that failed with."""
        if self._writer is not None:
            self._writer.finish()

    def _is_due(self, run: Run) -> bool:
        return self._seconds is None or run.agreed(self._request)

    @property
    def _request(self) -> str:
        return f"{self.name}.save"

    def _value(self, run: Run, monitor: str) -> float | None:
        """Return the monitored value if it was recorded for the weights that are stored now."""
        newest = run.newest(monitor)
        if newest is None:
            if not run.epoch_open and run.paused is None:  # in the middle of an epoch there may be none yet
                refuse_unrecorded(run, monitor, "Checkpoint")
            return None
        updated = newest.update != run.update
        stepped = newest.step != run.step and _moves_in_steps(run)
        return None if updated or stepped else newest.value

    def _summary(self, path: Path) -> dict[str, Any] | None:
        """Return the summary of a checkpoint; `None` of a damaged one, which is removed when the next is durable."""
        try:
            return self.store.summary(path)
        except CheckpointError:
            return None

    def _claim(self, run: Run) -> None:
        entries = self.store.entries()
        own = [entry for entry in entries if self._is_of(run, entry.path)] if run.resumed_from else []
        if len(own) != len(entries):
            if own or not self._overwrite:
                raise CheckpointError(
                    f"{self.store.directory} holds checkpoints of another run ({entries[-1].path.name} is the newest); "
                    "resume from them with Engine.run(resume='auto'), name another directory, remove them, or say "
                    "overwrite=True"
                )
            self.store.clear()
        self.store.copies.claim(run.id, run.resumed_from is not None, self._overwrite)

    def _is_of(self, run: Run, path: Path) -> bool:
        summary = self._summary(path)
        return summary is None or summary.get("run") == run.id


def _warn_of_data(run: Run) -> None:
    """Say at the start what a resumed run could only say too late."""
    doubt = run.data_doubt
    if not doubt:
        return
    text = (
        f"Checkpoint: {doubt}. From a checkpoint of a later pass a run may not continue with the same data; with "
        "Components(dataset=…), or a loader whose state is seen, it does"
    )
    run.note(text)
    loader = run.components.loader
    if getattr(loader, "persistent_workers", False) and not hasattr(loader, "state_dict"):
        warnings.warn(f"{text}. For a DataLoader say persistent_workers=False", stacklevel=2)


def _moves_in_steps(run: Run) -> bool:
    """Return whether a step may change the network before the update: its buffers, or what side optimizers hold."""
    buffers = next(run.network.buffers(), None) is not None
    return buffers or bool(getattr(run.components, "side_optimizers", None))
