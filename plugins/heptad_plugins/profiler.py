"""`Profiler` observes the run: a trace of some updates in which all that torch does stands in the states of the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.profiler import profile, record_function

from heptad import Plugin, PluginError, Run, on_enter
from heptad.plugin import Placing
from heptad_plugins._device import AllocationHistory, history_of
from heptad_plugins._options import path_of
from heptad_plugins._output_path import output_of

MOST_ENTRIES = 100_000
"""Allocations that the device remembers for the snapshot."""


class Profiler(Plugin):
    """Trace some updates with torch's profiler, and store where the memory was if the device runs out of it.

    The trace is a file that https://ui.perfetto.dev and `chrome://tracing` open. Each state of the run is a range in
    it, from its entry to that of the next, named as in the log: operators and kernels stand in the state that called
    them. A plugin's detour that is neither `evaluate` nor `checkpoint` stands in the state it leaves from.

    `updates` are those under way while `run.update` is one of these numbers, so counted from 0: `range(3)` are the
    first three, and it is well to leave these out, as they are slower. The profiler starts on entry to the first
    `before_step` of the first one and stops after the last, where it waits for the device. If the run is paused in
    between, the trace ends there; the rest, as that of a resumed run, goes to a file of its own, with `-2` behind the
    name, then `-3`, and so on. Outside of these updates it costs four calls a step (no device sync).

    With several ranks each writes a file of its own: that of rank 1 has `.rank1` behind its stem, as in
    `trace.rank1.json`.

    On a device whose allocator can (CUDA), allocations are recorded from the beginning on, about 2 µs for each. If the
    run fails for lack of memory, its newest 100,000 are stored beside the trace, with `.oom.pickle` at the end of the
    name, for https://pytorch.org/memory_viz, and a note on the exception says so.

    Args:
        path: The file of the trace; its folders are made. With `.gz` at its end it is compressed. Or a `RunFolder`,
            for `trace.json` in it.
        updates: Which updates, such as `range(10, 13)`.
        memory: Whether allocations are recorded.
        record_shapes: Whether the trace has the shapes of operators' inputs.
        profile_memory: Whether it has what each operator allocates.
        with_stack: Whether it has the lines of Python that called them; slow.
        overwrite: Whether a file of an earlier run is replaced.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `updates` is no range of neighbours from 0 on, or `path` is no path or that of a directory; when
            the run is opened, if there is such a file; in the run, if another profiler of torch is running.
    """

    observes = True
    ranks = "all"  # who waits for whom shows only beside the others, and memory may run out on any

    runs_before = (Plugin,)  # all others: what they do on entry to a state belongs to it

    def __init__(
        self,
        path: str | os.PathLike[str] | Placing,
        updates: range,
        *,
        memory: bool = True,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        overwrite: bool = False,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self.on_error = on_error
        self._output = output_of("Profiler", "path", path, "trace.json", path_of)
        self._path = self._output.path
        if self._output.place is None and self._path.is_dir():
            raise PluginError(f"Profiler(path=…): {self._path} is a directory; name a file, such as trace.json in it")
        if not isinstance(updates, range) or not updates or updates.step != 1 or updates.start < 0:  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(
                f"Profiler(updates=…) must be a range of neighbouring updates from 0 on, such as range(10, 13), got "
                f"{updates!r}"
            )
        self._updates = updates
        self._memory = memory
        self._options: dict[str, Any] = {
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
        }
        self._overwrite = overwrite
        self._profile: profile | None = None
        self._range: record_function | None = None
        self._history: AllocationHistory | None = None
        self._files = self._names(overwrite)

    def on_begin(self, run: Run) -> None:
        """Forget the files of an earlier run."""
        self._files = self._names(self._overwrite)

    def open(self, run: Run) -> None:
        """Record allocations; start the profiler, if the run continues within the updates.

        Raises:
            PluginError: If the file is there already, and the run is not one that continues.
        """
        self._path = _of_rank(self._output.path, run.rank)
        if run.state != "idle" or run.afresh:
            self._files = self._names(overwrite=False)  # what is there is of this run, or of an attempt at it
        elif self._path.exists() and not self._overwrite:
            raise PluginError(
                f"Profiler: {self._path} is there already; name another file, remove this one, or say overwrite=True"
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._history = history_of(run.device, MOST_ENTRIES) if self._memory else None
        if run.step and run.state in _WITHIN and run.update in self._updates:
            self._start(run)

    def close(self, run: Run) -> None:
        """Write the trace of a run that ends or pauses, and the snapshot if there was not enough memory."""
        self._stop()
        history, self._history = self._history, None
        if history is None:
            return
        try:
            error = sys.exception()
            if run.state == "failed" and _is_out_of_memory(error):
                name = self._path.name.removesuffix(".gz").removesuffix(".json") + ".oom.pickle"
                snapshot = self._path.with_name(name)
                history.store(snapshot)
                cast("BaseException", error).add_note(f"Profiler: where the memory was stands in {snapshot}")
        finally:
            history.end()

    def on_enter_before_step(self, run: Run) -> None:
        """Start the profiler where its first update begins; end the range of the state before, and begin this one's."""
        if self._profile is not None:
            self.change_state(run)
        elif run.update in self._updates:
            self._start(run)

    @on_enter("before_epoch")
    @on_enter("process_batch")
    @on_enter("redo_window")
    @on_enter("after_step")
    @on_enter("optimizer_update")
    @on_enter("evaluate")
    @on_enter("checkpoint")
    @on_enter("after_epoch")
    @on_enter("after_loop")
    def change_state(self, run: Run) -> None:
        """End the range of the state before, and begin this one's; stop the profiler after its last update."""
        if self._profile is None:
            return
        self._leave()
        if run.update in self._updates:
            self._range = record_function(run.state)
            self._range.__enter__()
        else:
            self._stop()

    def _start(self, run: Run) -> None:
        if torch.autograd.profiler._is_profiler_enabled:  # pyright: ignore[reportPrivateUsage] - nothing public says it
            raise PluginError(f"Profiler: at update {run.update} another profiler of torch is running; stop it first")
        started = profile(**self._options)
        started.start()
        self._profile = started  # only now: `close` stops it, and torch refuses to stop what does not run
        self.change_state(run)

    def _leave(self) -> None:
        inner, self._range = self._range, None
        if inner is not None:
            inner.__exit__(None, None, None)

    def _stop(self) -> None:
        """Stop the profiler and write its trace."""
        self._leave()
        stopped, self._profile = self._profile, None
        if stopped is not None:
            stopped.stop()
            stopped.export_chrome_trace(str(next(self._files)))

    def _names(self, overwrite: bool) -> Iterator[Path]:
        """Yield the files to write: the path, then those with a number; without `overwrite` those that are free."""
        stem, dot, ends = self._path.name.partition(".")
        for number in count(1):
            path = self._path if number == 1 else self._path.with_name(f"{stem}-{number}{dot}{ends}")
            if overwrite or not path.exists():
                yield path


def _of_rank(path: Path, rank: int) -> Path:
    """Return the path of a rank's file, which differs from all others: ranks of one machine write side by side."""
    stem, dot, ends = path.name.partition(".")
    return path.with_name(f"{stem}.rank{rank}{dot}{ends}") if rank else path


_WITHIN = ("before_step", "process_batch", "redo_window", "after_step", "optimizer_update", "evaluate", "checkpoint")
"""States of which one may be a part of an update that is traced."""


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an exception, or what it was raised from, says that a device has not enough memory."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error is not None
