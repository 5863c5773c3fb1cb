"""`WindowRedo`: computes the open window again, in the state `redo_window`, after memory ran out or a fault was seen.

The engine builds it where `RunConfig.redo` names a cause, and puts its parts into the machine: what is done around the
body of `process_batch`, a detour, a look at the gradients when a window is full. Nobody else calls it.

All steps of the window so far are computed again, each from the states of the random generators that it began with,
the first one from the buffers that the window began with: gradients are added up, and which of them the failed attempt
had added is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from heptad.checkpoints.modules import modules_of
from heptad.data.generators import global_states, restore_states
from heptad.data.placement import count_samples
from heptad.errors import ConfigError, TableError, add_note, in_a_line
from heptad.plugin.detour import Detour
from heptad.plugin.detour_state import DetourState
from heptad.plugin.manager import PluginManager
from heptad.plugin.marks import Handler
from heptad.plugin.subscription import Subscription
from heptad.ranks.strategy import Strategy
from heptad.record.events import Halved, Repeated
from heptad.run.epoch_loss import add_step
from heptad.run.kept import KeptWindow
from heptad.run.loss_mean import weighed
from heptad.run.redoing import Redoing
from heptad.run.run import Run
from heptad.run.weight import adds_nothing
from heptad.step.finite import are_finite, same_bits
from heptad.step.parts import (
    LeftOutLateError,
    Logs,
    UncuttableError,
    announcer,
    compute,
    has_batch_norm,
    least_in,
    parts_in,
)
from heptad.table import REDO, REDO_DUE

_Body = Callable[[Run], object]

SOURCES = {"out_of_memory": "process_batch", "non_finite": "after_step"}
"""After which state a cause leads to the redo."""


class WindowRedo:
    """The redo of windows in one run.

    Args:
        causes: Those of `RunConfig.redo`.
        strategy: Asked before each forward pass whether the window closes.
        sums: Whether the mean loss of the epoch is kept.
    """

    def __init__(self, causes: Sequence[str], strategy: Strategy, *, sums: bool) -> None:
        self._causes = causes
        self._strategy = strategy
        self._sums = sums
        self._had_gradients: set[int] = set()
        """Which parameters that only side optimizers hold had a gradient before the step under way, by their ids."""

    # -- what the engine puts into the machine

    def detour(self) -> Detour:
        """Return the state `redo_window`; its arcs are tried before those of plugins' detours."""
        return Detour(REDO, [SOURCES[cause] for cause in self._causes], when=_is_due, body=self._redo)

    def beside(self, detours: Sequence[DetourState]) -> Sequence[DetourState]:
        """Return the detours without the own one, of which a checkpoint holds nothing."""
        return detours[1:] if self._causes else detours

    def around(self, body: _Body, run: Run) -> _Body:
        """Return what is done in `process_batch`; have the run keep its windows if they may be computed again."""
        if not self._causes:
            return body
        run._position.kept = KeptWindow(every=True)
        run._position.redo = Redoing()
        return partial(self._process_batch, body)

    def split(self, *subscriptions: Subscription) -> list[Subscription]:
        """Return handlers as the machine gets them.

        One on exit of `process_batch` is called on exit of the redo in place of that, where the step ran out of memory.
        """
        if "out_of_memory" not in self._causes:
            return list(subscriptions)
        return [part for one in subscriptions for part in _split(one)]

    def last_handlers(self) -> list[tuple[str, Handler]]:
        """Return what is called last on exit of a state, after a batch was read ahead."""
        return [("after_step", self._look)] if "non_finite" in self._causes else []

    # -- process_batch

    def _process_batch(self, body: _Body, run: Run) -> None:
        at, redo, kept = run._position, _redoing(run), _kept_window(run)
        if not at.window.steps:
            kept.clear()  # before the forward pass, which may need their memory
            redo.open(modules_of(run))
        if not redo.is_whole(at.window.steps):
            self._without_redo(body, run)
            return
        redo.random.append(global_states())
        recorded = run.record_count
        self._had_gradients = {id(one) for one in _held_beside(run) if one.grad is not None}
        try:
            if redo.halvings:
                self._in_parts(run)
            else:
                body(run)
        except torch.OutOfMemoryError as error:
            if "out_of_memory" not in self._causes:
                raise
            redo.due, redo.error = "out_of_memory", _freed(error)
            redo.recorded = run.record_count > recorded
            at.loss = at.output = at.weight = None

    def _without_redo(self, body: _Body, run: Run) -> None:
        """Compute a step of a window that was opened without redo, and so cannot be computed again."""
        try:
            body(run)
        except torch.OutOfMemoryError as error:
            if "out_of_memory" in self._causes:
                add_note(
                    error,
                    "this window was opened by a run without redo, so its first batches are not known any more; resume "
                    "from a checkpoint between two windows",
                )
            raise

    def _in_parts(self, run: Run) -> None:
        """Compute a step in parts, in a run that has run out of memory before."""
        at, redo = run._position, _redoing(run)
        try:
            announce = announcer(self._strategy, closes=_closes(run, self._strategy))
            logs = compute(run, at.window, redo.halvings, least_in(run), announce, judge=True)
        except LeftOutLateError:
            self._again(run, [*_kept_window(run).batches, at.batch], left_out=True)
            return
        for name, value in logs.items():
            run.record(name, value)

    # -- after_step

    def _look(self, run: Run) -> None:
        """See whether loss and gradients of a full window are finite (waits for the device)."""
        at = run._position
        whole = at.update_due and not at.window.empty and _redoing(run).is_whole(at.window.steps)
        if whole and not are_finite(_window_losses(run), _judged_gradients(run)):
            _redoing(run).due = "non_finite"

    # -- redo_window

    def _redo(self, run: Run) -> None:
        redo = _redoing(run)
        if redo.due == "out_of_memory":
            self._halve(run)
        else:
            self._repeat(run)
        redo.due, redo.error, redo.recorded = "", None, False

    def _halve(self, run: Run) -> None:
        """Compute the window again with batches cut in halves, once more each time that memory runs out."""
        at, redo, least = run._position, _redoing(run), least_in(run)
        batches = [*_kept_window(run).batches, at.batch]
        samples = max(map(count_samples, batches))
        before, tried = redo.halvings, [_largest(samples, redo.halvings, least)]
        left_out = False
        while True:
            finer = redo.halvings + 1
            if parts_in(samples, finer, least) == parts_in(samples, redo.halvings, least):
                raise _given_up(redo.error, f"tried with {', '.join(map(str, tried))} samples at a time", least)
            redo.halvings = finer
            tried.append(_largest(samples, finer, least))
            _empty_cache(run)
            try:
                left_out = self._leaving_out(run, batches, left_out)
                break
            except UncuttableError as error:
                why = str(error)
            except torch.OutOfMemoryError as error:
                redo.error = _freed(error)
                continue
            raise _given_up(redo.error, why)
        run.emit(
            Halved,
            step=at.step,
            before=before,
            halvings=redo.halvings,
            samples=tried[-1],
            error="" if redo.error is None else f"{in_a_line(redo.error):.200}",
            unequal=_why_unequal(run),
        )

    def _leaving_out(self, run: Run, batches: Sequence[Any], left_out: bool) -> bool:
        """Compute the window again, without its last step where a plugin leaves that out; return whether it does."""
        try:
            self._again(run, batches, left_out=left_out)
        except LeftOutLateError:
            left_out = True
        else:
            return left_out
        self._again(run, batches, left_out=True)
        return True

    def _repeat(self, run: Run) -> None:
        """Compute a window again of which something was not finite, and compare the two."""
        at, losses = run._position, _window_losses(run)
        parameters = run._runtime.optimizers.held()
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None  # taken away: what drops gradients may write zeros into them
        drawn = global_states()  # handlers may have drawn since the forward pass of the last step
        found = self._again(run, _kept_window(run).batches, look=True)
        restore_states(drawn)
        if are_finite(_window_losses(run), _judged_gradients(run)):
            run.emit(Repeated, outcome="finite")
            return
        before, after = [*losses, *gradients], [*_window_losses(run), *(parameter.grad for parameter in parameters)]
        outcome = "equal" if all(map(same_bits, before, after)) else "unequal"
        step = None if found is None else at.step - at.window.steps + found
        run.emit(Repeated, outcome=outcome, micro_batch=found, step=step)

    def _again(self, run: Run, batches: Sequence[Any], *, left_out: bool = False, look: bool = False) -> int | None:
        """Compute the steps of the window again.

        Args:
            run: The run.
            batches: Those of its complete steps, and the one under way.
            left_out: The step under way adds nothing.
            look: See after each step whether everything is finite (waits for the device).

        Returns:
            The first step after which something is not; `None` where nobody looked, or it is.
        """
        at, redo, kept = run._position, _redoing(run), _kept_window(run)
        window, steps, under_way, closes = at.window, at.window.steps, at.batch, _closes(run, self._strategy)
        found: int | None = None
        logs: Logs = {}
        beside = [(one, one.grad) for one in _held_beside(run)]
        for one, _ in beside:
            one.grad = None
        for buffer in redo.buffers.values():
            buffer.restore()
        run._runtime.optimizers.clear()
        kept.loss = None
        if self._sums:
            at.epoch_loss.window = at.epoch_loss.window_weight = 0.0
        window.steps = 0
        try:
            for number, batch in enumerate(batches):
                complete = number < steps
                restore_states(redo.random[number])
                at.batch = batch
                adds = number not in kept.idle if complete else not left_out
                announce = announcer(self._strategy, closes=closes and number == len(batches) - 1)
                judge = adds and not complete
                logs = compute(run, window, redo.halvings, least_in(run), announce, adds=adds, judge=judge)
                if complete:
                    self._sum(run, within_epoch=steps - number <= at.batch_index)
                window.steps += 1
                if look and found is None and not are_finite(_window_losses(run), _judged_gradients(run)):
                    found = number
        except BaseException:
            for one, gradient in beside:
                one.grad = gradient
            raise
        finally:
            window.steps, at.batch = steps, under_way
        self._put_back(run, beside)
        if len(batches) == steps:  # no step is under way: as `after_step` leaves it
            at.output = at.weight = None
        elif not redo.recorded:
            for name, value in logs.items():
                run.record(name, value)
        return found

    def _put_back(self, run: Run, beside: Sequence[tuple[nn.Parameter, Tensor | None]]) -> None:
        """Put back the gradients of what side optimizers alone hold: plugins may have added them in this window.

        Raises:
            UncuttableError: If the loss of the window reaches such a parameter too: what plugins added to its gradient
                is not known then.
        """
        repeats = _redoing(run).due != "out_of_memory"
        for parameter, gradient in beside:
            if gradient is not None and (parameter.grad is None or repeats):
                parameter.grad = gradient
            elif gradient is not None and (run._position.window.steps or id(parameter) in self._had_gradients):
                raise UncuttableError(
                    "a parameter that only a side optimizer holds has a gradient of the loss, and of a plugin before"
                )

    def _sum(self, run: Run, *, within_epoch: bool) -> None:
        """Add the loss of a complete step to the sums that it was in."""
        at = run._position
        if at.loss is not None and not adds_nothing(at.weight):
            _kept_window(run).add_loss(at.loss, at.weight, at.window)
        if self._sums and within_epoch:
            add_step(run)


def build_redo(causes: Sequence[str], strategy: Strategy, manager: PluginManager) -> WindowRedo:
    """Return the redo of a run's windows, and put its detour before those of the plugins.

    Raises:
        ConfigError: If there are several ranks: the others would wait for the one that computes its window again.
        TableError: If a detour of a plugin has its name, or its guard's.
    """
    redo = WindowRedo(causes, strategy, sums=any(plugin.needs_epoch_loss for plugin in manager.plugins))
    if not causes:
        return redo
    ranks = strategy.share()[1]
    if ranks > 1:
        raise ConfigError(
            f"RunConfig.redo is {tuple(causes)}, and the run has {ranks} ranks: the others would wait for the one that "
            "computes its window again; leave redo out"
        )
    for _, detour in manager.detours_given:
        if detour.state == REDO or f"{detour.state}_due" == REDO_DUE:
            raise TableError(f"detour '{detour.state}' has the name of what RunConfig.redo adds; choose another")
    manager.detours_given.insert(0, (None, redo.detour()))
    return redo


def _split(subscription: Subscription) -> list[Subscription]:
    mark = subscription.mark
    if (mark.moment, mark.state) != ("exit", "process_batch"):
        return [subscription]
    first, second = copy(subscription), copy(subscription)
    first.call = _unless_due(subscription.call)
    second.mark = replace(mark, state=f"{REDO}@process_batch")
    return [first, second]


def _is_due(run: Run) -> bool:
    redo = run._position.redo
    return redo is not None and bool(redo.due)


def _unless_due(call: Handler) -> Handler:
    """Return a handler that is called only where the attempt did not fail."""

    def called(run: Run) -> None:
        if not _is_due(run):
            call(run)

    return called


def _redoing(run: Run) -> Redoing:
    if run._position.redo is None:
        raise AssertionError("the engine prepares a run whose windows may be computed again")
    return run._position.redo


def _kept_window(run: Run) -> KeptWindow:
    if run._position.kept is None:
        raise AssertionError("a run whose windows may be computed again keeps them")
    return run._position.kept


def _judged_gradients(run: Run) -> list[Tensor]:
    """Return the gradients of the main optimizers; none in fp16, where an overflow is no fault: it is skipped."""
    if run._runtime.scaling is not None:
        return []
    return [parameter.grad for parameter in run._runtime.optimizers.held() if parameter.grad is not None]


def _window_losses(run: Run) -> list[Tensor]:
    """Return what the losses of the window add to their mean: nothing where one weighs 0, for it may be NaN."""
    at = run._position
    if at.window.losses is not None:
        return [weighed(loss, relative) for loss, relative in at.window.losses]
    return [] if at.loss is None else [at.loss.detach().double()]


def _held_beside(run: Run) -> list[nn.Parameter]:
    """Return the parameters that only side optimizers hold: plugins add to their gradients."""
    optimizers = run._runtime.optimizers
    if not optimizers.side:
        return []
    own = {id(parameter) for parameter in optimizers.held()}
    return [parameter for parameter in optimizers.beside().held() if id(parameter) not in own]


def _closes(run: Run, strategy: Strategy) -> bool:
    """Return whether the step under way closes the window, as far as that is known, or the newest one has done so."""
    at = run._position
    if at.update_due or at.window.steps + 1 == at.window.size:
        return True
    if not at.flushes:
        return False
    # where ranks must know it, data of unknown length were read a batch further before the step
    return at.remaining == 1 if at.sized else strategy.announces and not run._runtime.feed.more()


def _freed(error: Exception) -> Exception:
    """Return an error without the frames of its traceback, which keep the graph and its memory alive."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def _given_up(error: Exception | None, why: str, least: int = 1) -> Exception:
    """Return the error to raise, with what was tried."""
    found = error or torch.OutOfMemoryError("out of memory")
    smallest = "; BatchNorm needs two of them" if least > 1 else ""
    add_note(found, f"the redo of the window is given up: {why}{smallest}")
    return found


def _largest(samples: int, halvings: int, least: int) -> int:
    """Return how many samples the largest part of a batch holds."""
    return -(-samples // parts_in(samples, halvings, least))


def _why_unequal(run: Run) -> str:
    """Return what keeps the update of parts from being that of whole batches; nothing where only rounding does."""
    found = ["BatchNorm takes its mean over the samples of a part"] if has_batch_norm(run.network) else []
    before, after, kind = _redoing(run).random[-1], global_states(), run.device.type
    states = [(before["torch"], after["torch"]), *zip(before.get(kind, ()), after.get(kind, ()), strict=False)]
    if not all(same_bits(*pair) for pair in states):
        found.append("each part draws random numbers of its own (dropout)")
    return ", and ".join(found)


def _empty_cache(run: Run) -> None:
    """Give back what torch has cached: blocks of other sizes than are needed now."""
    if run.device.type != "cpu":
        getattr(torch.get_device_module(run.device), "empty_cache", lambda: None)()
