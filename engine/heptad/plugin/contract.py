"""`Plugin`: the base of all plugins. How a method becomes a handler is in `marks.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from heptad.plugin.detour import Detour
from heptad.run.run import Run


class Plugin:
    """Base of all plugins. A method named `on_enter_<state>` or `on_exit_<state>`, or marked, is a handler.

    Handlers take the `Run` and nothing else. They may read it and use its verbs; only the machine advances it. The
    methods below may be overridden; none of them has to be. Their order: `detours` and `on_build` when the engine is
    built; `on_begin`, and `load_state_dict` if the run is resumed; then for each `Engine.run()` call `open`, handlers,
    `on_pause` if it pauses because that was requested, `close`.

    Attributes:
        name: Unique among the plugins of an engine; by default the class's name.
        observes: Whether the run does the same without this plugin; a resumed run may then lack it.
        keeps_window: Whether the plugin calls `Run.recompute`: the batches of each window are kept for it, until its
            update is made.
        changes_gradients: Whether it changes the gradients on entry to `optimizer_update`. An optimizer whose step
            needs a closure computes them again, without the change, and is refused beside it.
        on_error: `"raise"`: an exception of the plugin ends the run. `"detach"`, for an observer: after an Exception
            the plugin is called no more, the log says so, and the run continues.
        ranks: `"all"`, or `"first"`: an observer that writes or shows something. On the other ranks of a run nothing of
            it is called, so it may not steer; what it records, the first rank has alone.
        requests: What it asks all ranks for, as `run.ask(f"{self.name}.save")` does with `requests = ("save",)`.
        own_state: Whether ranks may differ in `state_dict`, and each stores its own; or the keys to what may differ.
        summed_state: Keys of an own state that hold sums over steps, which another number of ranks takes over.
        needs_epoch_loss: Whether `Run.epoch_loss` is kept: costs a few microseconds a step.
        runs_after: Plugins, by class or by name, that are called before this one where both are there.
        runs_before: Plugins that are called after this one.
    """

    name: str = "Plugin"
    observes: bool = False
    keeps_window: bool = False
    changes_gradients: bool = False
    on_error: Literal["raise", "detach"] = "raise"
    ranks: Literal["all", "first"] = "all"
    requests: Sequence[str] = ()
    own_state: bool | Sequence[Sequence[str]] = False
    summed_state: Sequence[str] = ()
    needs_epoch_loss: bool = False
    runs_after: Sequence[type[Plugin] | str] = ()
    runs_before: Sequence[type[Plugin] | str] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def detours(self) -> Iterable[Detour]:
        """Return the states that this plugin adds. Called once, when the engine is built."""
        return ()

    def on_build(self, run: Run) -> None:
        """Check what can be checked before the run begins: called when the engine is built. Change nothing.

        What it raises ends the building, whatever `on_error` says.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what the rest of the run depends on: plain data and tensors, which a checkpoint can hold.

        Plain data are None, numbers, text, bytes, and lists, tuples, dicts, Counters and OrderedDicts of these. A
        plugin that has it needs `load_state_dict` too, and the reverse: an engine refuses one half.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned, in a plugin that was just built or has just begun (`on_begin`)."""

    def on_begin(self, run: Run) -> None:
        """Forget what an earlier run left in this object.

        Called once for each engine that the plugin is given to, before the first `open`. In a run that resumes,
        `load_state_dict` follows, so it need not forget anything itself; the run still stands in `idle` then.
        """

    def open(self, run: Run) -> None:
        """Open files, start a display. Called before the first turn of each `Engine.run()`."""

    def close(self, run: Run) -> None:
        """Release what `open` took. Called once when `Engine.run()` returns or raises, `open` called or not."""

    def on_loss(self, run: Run) -> None:
        """Look at `run.loss`, `run.output` and `run.batch` before the backward pass of a step.

        Called in the body of `process_batch`, for each step that gave a loss and does not weigh 0. The only place where
        `run.skip_batch(reason)` is legal. A plugin that does not define it costs nothing.
        """

    def on_pause(self, run: Run) -> None:
        """Save what must survive. Called when `Run.pause`, Ctrl-C or a signal has paused the run, between two turns."""
