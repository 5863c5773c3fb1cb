"""`restore`: put a run in `idle` where a checkpoint was taken. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from heptad.checkpoints.capture import filter_key
from heptad.checkpoints.fitting import check_fit, check_tensors_of_optimizers
from heptad.checkpoints.form import (
    StoredCounters,
    StoredPlugin,
    StoredPosition,
    StoredSections,
    StoredWindow,
)
from heptad.checkpoints.frozen import frozen_as_then
from heptad.checkpoints.identity import check_run, environment, environment_differences, refuse
from heptad.checkpoints.modules import modules_of, rehearse_extra_states, restore_module
from heptad.checkpoints.options import ChangedOption, check_optimizers
from heptad.checkpoints.parameters import rehearse_optimizers, restore_optimizers
from heptad.checkpoints.undo import Remembered
from heptad.checkpoints.worlds import adapt_to_world
from heptad.data.generators import cpu_states, generator_state, restore_states, set_generator_state
from heptad.data.loader import data_generators
from heptad.errors import CheckpointError, in_a_line
from heptad.plugin.contract import Plugin
from heptad.plugin.detour_state import DetourState
from heptad.plugin.manager import PluginManager, plugin_state
from heptad.plugin.subscription import Subscription
from heptad.record.checkpoint_events import Remark, StillDetached
from heptad.record.counters import Counters
from heptad.record.event_codec import from_plain
from heptad.record.events import Detach, Event
from heptad.record.format_1 import from_format_1
from heptad.run.guards import is_update_due
from heptad.run.run import Run

Finding = Callable[[int, int], Event]
"""Makes an event, given its transition and its time."""

Build = Callable[[Run], object]
"""What places the network and builds the optimizers and the step function: what `before_loop` does in any case."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found out before anything changed.

    Attributes:
        changed: The options of optimizers that differ, and may.
        batch: The batch of the step, placed, or nothing.
        kept: The batches of the open window, placed, and its loss; `None` where nothing was kept.
    """

    changed: Sequence[ChangedOption]
    batch: Sequence[Any]
    kept: tuple[list[Any], Tensor | None] | None


def check(
    run: Run,
    sections: StoredSections,
    manager: PluginManager,
    detours: Sequence[DetourState],
    build: Build,
    allow_changes: Collection[str] = (),
) -> Checked:
    """Compare everything that is stored with the live objects of a run in `idle`.

    The network is placed for that, and the optimizers are built; nothing else of them changes. Only an optimizer knows
    which states it can load, so each loads what is stored, and its own state again; so does a submodule with an extra
    state.

    Args:
        run: The run.
        sections: What is stored.
        manager: The plugins.
        detours: What the guards of the detours count.
        build: Builds the optimizers and places the network.
        allow_changes: What may differ from the checkpoint, see `Engine.run`.

    Raises:
        CheckpointError: If the run is not the one that the checkpoint is of, with every difference, one a line.
    """
    stored = sections.run
    check_run(run, manager.plugins, sections)
    _check_position(run, len(detours), stored.position)
    check_fit(run, sections)
    changed: list[ChangedOption] = []
    if stored.position.node != "before_loop":  # whose body builds the optimizers
        with frozen_as_then(run, stored.position.frozen):
            build(run)
        _check_kept(run, stored.position)
        check_tensors_of_optimizers(run, sections)
        may_change = "optimizer" in allow_changes
        reshared = (stored.identity.config.get("strategy") == "fsdp") is not run._runtime.shards.any
        changed = check_optimizers(run, sections.optimizers, stored.position, may_change=may_change, reshared=reshared)
        rehearse_optimizers(run, sections.optimizers)
    else:
        check_tensors_of_optimizers(run, sections)
    for name, module in modules_of(run).items():
        if (state := sections.module(name)) is not None:
            rehearse_extra_states(name, module, state)
    return Checked(changed, *_placed(run, stored.position))


def _placed(run: Run, stored: StoredPosition) -> tuple[list[Any], tuple[list[Any], Tensor | None] | None]:
    """Place the batches of a checkpoint where the run has its own."""
    runtime, kept = run._runtime, stored.kept
    try:
        batch = [runtime.step.place(one, runtime.place) for one in stored.batch]
        if kept is None:
            return batch, None
        loss = None if kept.loss is None else kept.loss.to(runtime.device)
        return batch, ([runtime.place(one) for one in kept.batches], loss)
    except Exception as error:
        raise CheckpointError(f"a batch of the checkpoint cannot be placed: {in_a_line(error)}") from error


def restore(
    run: Run,
    sections: StoredSections,
    checked: Checked,
    manager: PluginManager,
    detours: Sequence[DetourState],
    subscriptions: Sequence[Subscription],
) -> list[Finding]:
    """Restore a run in `idle` from what was checked; all but the global random generators.

    The order matters:

    1. The data: a place that is found by reading may fail, and draws what the data draw. Where ranks of another number
       resume, it says how many steps of theirs it is.
    2. Plugins, before the modules: one that refuses its state is given back its own, as the others are, and the weights
       are still what they were; and what a plugin does to a module while it loads its state is overwritten by what is
       stored.
    3. Modules, then the optimizers, whose parameters they are, then the options that may differ, then the gradients.
    4. The position and the log: a run that failed to be restored is still in `idle`.

    The generators come after plugins were opened, which may draw from them: `Resumption.restore_generators` does that.

    Args:
        run: The run.
        sections: What is stored.
        checked: What `check` returned for these.
        manager: The plugins.
        detours: What the guards of the detours count.
        subscriptions: The handlers.

    Returns:
        What the log is to say, as events but for their place: detached plugins, data that were read, options that were
        changed, differences that may change bits.

    Raises:
        CheckpointError: If a plugin or the data refuse their state. Weights, position and log are then what they were;
            plugins and generators are put back.
        DataError: If the data end before their place.
    """
    stored, feed = sections.run, run._runtime.feed
    findings = _findings(*environment_differences(stored.environment, environment(run._runtime.device)))
    with ExitStack() as undo:
        undo.callback(restore_states, cpu_states())
        for generator in data_generators(run._runtime.components):
            undo.callback(set_generator_state, generator, generator_state(generator))
        undo.callback(setattr, feed, "seed", feed.seed)
        feed.seed = stored.position.seed
        read = feed.restore(stored.data)
        world = adapt_to_world(run, sections, detours)
        _restore_plugins(run, manager, sections.plugins, stored.detached, findings, undo)
        _restore_tensors(run, sections, checked.changed)
        undo.pop_all()
    run._buffer.recorded.restore(stored.values.columns())
    _restore_position(run, detours, subscriptions, stored.position, checked)
    if run._runtime.scaling is not None and stored.scaler is not None:
        run._runtime.scaling.restore(stored.scaler.scale, stored.scaler.growth, run._position.window)
    cut = _cut_short(run, stored.identity.config.get("max_updates"))
    return [*(option.event() for option in checked.changed), *findings, *_findings(world, read, cut, _left_open(run))]


def _restore_tensors(run: Run, sections: StoredSections, changed: Sequence[ChangedOption]) -> None:
    """Restore modules, optimizers and gradients, which were compared with what is stored."""
    try:
        for name, module in modules_of(run).items():
            if (state := sections.module(name)) is not None:
                restore_module(module, state, run._runtime.device, run._runtime.shards)
        for option in changed:
            option.prepare()
        restore_optimizers(run, sections.optimizers)
        for option in changed:
            option.apply(run)
    except Exception as error:
        raise CheckpointError(
            f"restoring the network and the optimizers failed half-way: {in_a_line(error)}; build them anew"
        ) from error


def _findings(*texts: str | None) -> list[Finding]:
    return [partial(Remark, text=text) for text in texts if text]


def _check_position(run: Run, detours: int, position: StoredPosition) -> None:
    """Refuse a position that no run of this table has; the tables were compared."""
    node, counted = position.node, len(position.visits)
    number = run.table.index.get(node)
    if number is None or run.table.states[number].kind in ("end", "failed") or node == run.table.start.name:
        raise CheckpointError(f"the checkpoint says that the run was in {node!r}, where no run can be resumed")
    if counted != detours:
        raise CheckpointError(f"the checkpoint counts {counted} detours, and there are {detours}")


def _check_kept(run: Run, position: StoredPosition) -> None:
    """Refuse an open window whose batches are needed and were not kept: what needs them came since."""
    if run._position.redo is not None and position.redo is not None:
        wrong = run._position.redo.misfits(modules_of(run), position.redo.buffers)
        refuse(
            [
                f"the buffer {name} of the open window does not exist here, or has another shape or dtype"
                for name in wrong
            ]
        )
    if run._runtime.recomputation is not None and position.window.steps and position.kept is None:
        raise CheckpointError(
            f"the checkpoint is of a window of which {position.window.steps} steps are done, and their batches were "
            "not kept, which the optimizer or a plugin with keeps_window = True needs here; nothing was changed. "
            "Resume from a checkpoint that was taken between two windows"
        )


def _restore_position(
    run: Run,
    detours: Sequence[DetourState],
    subscriptions: Sequence[Subscription],
    stored: StoredPosition,
    checked: Checked,
) -> None:
    at = run._position
    run._id = stored.id
    for name in StoredCounters.model_fields:
        setattr(at, name, getattr(stored.placed, name))
    for name in StoredWindow.model_fields:
        setattr(at.window, name, getattr(stored.window, name))
    at.node, at.body_done = run.table.index[stored.node], stored.body_done
    at.loss = stored.loss
    at.epoch_loss.restore(stored.epoch_loss)
    _restore_agreed(run, stored)
    at.batch = checked.batch[0] if checked.batch else None
    if at.kept is not None and stored.kept is not None and checked.kept is not None:
        at.kept.batches, at.kept.loss = checked.kept
        at.kept.idle = list(stored.kept.idle)
    if at.redo is not None and stored.redo is not None:
        at.redo.halvings, at.redo.random = stored.redo.halvings, list(stored.redo.random)
        if at.window.steps:
            at.redo.reopen(modules_of(run), stored.redo.buffers)
    _restore_ending(run, stored)
    at.settle_carry()  # the number of epochs may be another now
    for detour, last in zip(detours, stored.visits, strict=True):
        detour.last = last
    counted = {tuple(key): (count, done) for *key, count, done in stored.filters}
    for row in subscriptions:
        key = filter_key(row)
        row.filter.restore(*counted.get(key, counted.get(key[:5], (0, False))))  # `first` may have been given since
    at.update_due = is_update_due(at)
    run.plan_windows()
    _restore_log(run, stored)


def _restore_agreed(run: Run, stored: StoredPosition) -> None:
    """Restore what was asked for and agreed on; what no plugin declares any more is left out.

    A process that was alone has agreed on all its samples, and so have ranks of which that was not stored.
    """
    at, known, agreed = run._position, run._runtime.requests, run._position.agreed
    at.asked = {name for name in stored.asked if name in known}
    if agreed is None:
        return
    agreed.samples = at.samples
    if (then := stored.agreed) is None:
        return
    agreed.samples, agreed.mean_loss = then.samples, then.mean_loss
    agreed.names = {name for name in then.names if name in known}
    agreed.epoch_loss = None if then.epoch is None else (then.epoch, then.epoch_loss)
    if then.stop is not None:
        agreed.wanted["stop"] = then.stop


def _restore_ending(run: Run, stored: StoredPosition) -> None:
    """Work out whether the run is ending: `max_updates` may be another now, a stop that was asked for stays."""
    at, limit = run._position, run.config.max_updates
    at.ending, at.reason = False, None
    if stored.stopped:
        at.end(stored.reason or "")
    elif limit is not None and at.update >= limit:
        at.end(f"max_updates={limit} reached")


def _restore_log(run: Run, stored: StoredPosition) -> None:
    """Start the log at the position; from there on it knows window sizes and requested stops."""
    at, buffer = run._position, run._buffer
    buffer.windows[:] = [(stored.seq, at.window.size)]
    buffer.stops[:] = [stored.seq] if stored.stopped else []
    buffer.restore(stored.seq, at.node, Counters(at.epoch, at.batch_index, at.step, at.update, at.window.steps))
    for event in (*(from_format_1(*row) for row in stored.notes), *map(from_plain, stored.events)):
        buffer.put(event)


def _cut_short(run: Run, limit: int | None) -> str:
    """Return a note if `max_updates`, raised since, ended an epoch in its middle: that epoch is counted."""
    at, batches = run._position, run._runtime.feed.batches
    over = run.state == "after_epoch" or not at.epoch_open
    if limit is None or at.update < limit or at.ending or not over or not at.batch_index:
        return ""
    if batches is not None and batches - at.batch_index < at.needed:
        return ""
    epoch = at.epoch if at.epoch_open else at.epoch - 1
    cut, of = ("may have been cut", "") if batches is None else ("was cut", f" of its {batches}")
    return (
        f"epoch {epoch} {cut} short by max_updates={limit}, after {at.batch_index}{of} batches, and is counted; a run "
        "asked for more updates at once would have continued it"
    )


def _left_open(run: Run) -> str:
    """Return a note if fewer epochs leave no further one to a window that was carried over."""
    at, last = run._position, run._position.last_epoch
    steps, over = at.window.steps, run.state == "after_epoch" or not at.epoch_open
    complete = at.epoch + at.epoch_open
    if not at.carries or not steps or not over or last is None or complete < last:
        return ""
    return f"{steps} steps of the window that epoch {complete - 1} left open make no update: epochs={last} adds no step"


def _restore_plugins(
    run: Run,
    manager: PluginManager,
    states: Mapping[str, StoredPlugin],
    detached: Collection[str],
    findings: list[Finding],
    undo: ExitStack,
) -> None:
    """Begin each plugin and restore it; if one that the run needs refuses, all of them are put back.

    One that was detached stays so, and one with `on_error="detach"` that refuses is detached: else the run would not be
    the one that was never paused, or could not be resumed at all.
    """
    failed: list[str] = []
    for plugin in manager.called:
        if plugin.name in detached and plugin.on_error == "detach":
            failed.append(plugin.name)
            findings.append(partial(StillDetached, plugin=plugin.name))
        elif not _restore_plugin(run, plugin, states.get(plugin.name), findings, undo):
            failed.append(plugin.name)
    for name in failed:
        manager.detach(name)
    here = {plugin.name for plugin in manager.plugins}
    absent = [name for name in states if name not in here]
    findings += _findings(
        *(
            f"the plugin {name} of the checkpoint is not here: its state is left out"
            if states[name].observes
            else f"the plugin {name} of the checkpoint, which changes the run, is not here: what follows may differ"
            for name in absent
        )
    )


def _restore_plugin(
    run: Run, plugin: Plugin, stored: StoredPlugin | None, findings: list[Finding], undo: ExitStack
) -> bool:
    """Begin a plugin and restore it; return whether it takes part.

    Args:
        run: The run.
        plugin: The plugin.
        stored: Its state; `None` if the checkpoint has none of it.
        findings: What the log is to say, which is added to.
        undo: Gets what puts the plugin back.
    """
    remembered = Remembered(plugin, None if stored is None else _own_state(plugin))
    undo.callback(remembered.put_back)
    method = "on_begin"
    try:
        plugin.on_begin(run)
        if stored is not None:
            method = "load_state_dict"
            plugin.load_state_dict(stored.state)
    except Exception as error:
        line = in_a_line(error)
        if plugin.on_error == "detach":
            remembered.put_back()
            findings.append(partial(Detach, plugin=plugin.name, handler=f"{plugin.name}.{method}", error=line))
            return False
        refused = "cannot begin" if method == "on_begin" else "cannot load its state"
        raise CheckpointError(f"the plugin {plugin.name} {refused}: {line}") from error
    if stored is None:
        findings += _findings(f"the plugin {plugin.name} has no state in the checkpoint: it begins here")
    return True


def _own_state(plugin: Plugin) -> dict[str, Any] | None:
    """Return the state that a plugin has now; `None` if it cannot give it and may fail."""
    try:
        return plugin_state(plugin)
    except Exception:
        if plugin.on_error != "detach":
            raise
        return None
