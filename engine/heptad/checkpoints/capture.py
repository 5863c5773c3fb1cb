"""`capture`: take a `Snapshot` of everything that the rest of a run depends on. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from heptad.checkpoints.encoding import encode
from heptad.checkpoints.form import (
    StoredAgreed,
    StoredBeginning,
    StoredCounters,
    StoredKept,
    StoredOptions,
    StoredPlugin,
    StoredPosition,
    StoredRedo,
    StoredRun,
    StoredScaler,
    StoredSections,
    StoredSummary,
    StoredValues,
    StoredWindow,
)
from heptad.checkpoints.identity import environment, identity
from heptad.checkpoints.modules import capture_module, modules_of
from heptad.checkpoints.own import own_places
from heptad.checkpoints.parameters import capture_optimizers
from heptad.data.generators import global_states
from heptad.errors import CheckpointError, EngineError, a_kind, counted, kind
from heptad.plugin.detour_state import DetourState
from heptad.plugin.manager import PluginManager
from heptad.plugin.subscription import Subscription
from heptad.record.event_codec import to_plain
from heptad.run.guards import in_mid_step
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot


def capture(
    run: Run,
    manager: PluginManager,
    detours: Sequence[DetourState],
    subscriptions: Sequence[Subscription],
    first: Mapping[str, StoredBeginning | None],
) -> Snapshot:
    """Return everything that the rest of the run depends on.

    The tensors are those of the run, not copies: write them before the run continues.

    Args:
        run: The run, paused between two turns, or in the body of a detour: no autograd graph is alive there.
        manager: Its plugins.
        detours: What the guards of its detours count.
        subscriptions: The handlers, with what their filters count.
        first: What each module was before the first turn.

    Raises:
        EngineError: If the run is neither between two turns nor in a detour's body, or if it is in mid-step.
    """
    _check_place(run)
    run._buffer.check(run.counters())
    plugins = _capture_plugins(run, manager)  # first: one whose state_dict fails may be detached, which is state too
    modules = {name: capture_module(module, first.get(name)) for name, module in modules_of(run).items()}
    sections = StoredSections(
        **modules,
        optimizers=capture_optimizers(run),
        plugins=plugins,
        run=StoredRun(
            identity=identity(run),
            environment=environment(run._runtime.device),
            position=_capture_position(run, detours, subscriptions),
            detached=manager.detached(),
            data=_capture_data(run),
            scaler=_capture_scaler(run),
            values=StoredValues.of(run._buffer.columns(0)),  # all of the run: one device sync, and a copy
            random=global_states(),  # last: what a state_dict above drew, the run that continues has drawn as well
        ),
    )
    plain = sections.plain()
    own = own_places(run, manager.plugins, plain)
    return Snapshot(_summarize_run(run).plain(), plain, own, run._runtime.peers.world)


def filter_key(subscription: Subscription) -> tuple[Any, ...]:
    """Return what a handler is found by in the run that is resumed: its name and its mark."""
    mark = subscription.mark
    first = () if mark.first is None else (mark.first,)
    return subscription.who, mark.moment, mark.state, mark.every, mark.once, *first


def _check_place(run: Run) -> None:
    if run.state == "idle" or run.ended:
        raise EngineError(f"there is nothing to store of a run that is {run.state}")
    if run._position.visit is None and run.paused is None:
        raise EngineError(
            f"a snapshot is taken between two turns or in the body of a detour, not on a moment of {run.state}: take "
            "it in on_pause, while the run is paused, or in a detour of your own"
        )
    window = run._position.window
    if run._runtime.shards.any and 0 < window.steps < window.size:
        raise CheckpointError(
            f"no checkpoint is taken in the middle of a window with strategy='fsdp', after {window.steps} of "
            f"{window.size} steps: FSDP2 hides its gradients; take it where windows are closed, as "
            "Checkpoint(at='optimizer_update') and 'after_epoch' do, or use strategy='ddp'"
        )
    if window.steps and (lacking := run._runtime.shards.lacking()):
        raise CheckpointError(
            f"no checkpoint is taken before the update of a window that has not used {counted(lacking, 'parameter')} "
            "of the network on this rank, with strategy='fsdp': nothing stored would say so, and an optimizer would "
            "take them for used; say Checkpoint(at='optimizer_update')"
        )
    if in_mid_step(run.table.states[run._position.node]):
        raise EngineError(f"no snapshot is taken in {run.state}: a step or an update is under way there")


def _summarize_run(run: Run) -> StoredSummary:
    at = run._position
    return StoredSummary(
        run=run.id, seq=run._buffer.seq, state=run.state, epoch=at.epoch, step=at.step, update=at.update, time=time()
    )


def _capture_plugins(run: Run, manager: PluginManager) -> dict[str, StoredPlugin]:
    states = manager.states(run)
    return {
        plugin.name: StoredPlugin(kind=kind(plugin), observes=plugin.observes, state=states[plugin.name])
        for plugin in manager.plugins
        if plugin.name in states
    }


def _capture_position(
    run: Run, detours: Sequence[DetourState], subscriptions: Sequence[Subscription]
) -> StoredPosition:
    at, buffer = run._position, run._buffer
    built: list[dict[str, Any]] = buffer.facts.get("optimizers", [])
    beside: dict[str, Any] = buffer.facts.get("side_optimizers", {})
    return StoredPosition(
        id=run.id,
        seq=buffer.seq,
        node=run.table.states[at.node].name,
        body_done=at.visit is not None,
        placed=StoredCounters.model_validate(at, from_attributes=True),
        window=StoredWindow.model_validate(at.window, from_attributes=True),
        loss=run.loss,
        batch=[] if at.batch is None else [at.batch],
        kept=_capture_kept(run),
        redo=_capture_redo(run),
        stopped=bool(buffer.stops),
        reason=run.reason,
        seed=run._runtime.feed.seed,
        optimizers=[StoredOptions.model_validate(options) for options in built],
        side_optimizers={name: StoredOptions.model_validate(options) for name, options in beside.items()},
        visits=[detour.last_now(run) for detour in detours],
        filters=[[*filter_key(row), *row.filter.state()] for row in subscriptions],
        notes=[],  # where format 1 stored the words of its events
        epoch_loss=at.epoch_loss.state(),
        asked=sorted(at.asked),
        agreed=_capture_agreed(run),
        frozen=list(run._runtime.frozen),
        events=[to_plain(event) for event in buffer.events(buffer.seq)],
    )


def _capture_agreed(run: Run) -> StoredAgreed | None:
    agreed = run._position.agreed
    if agreed is None:
        return None
    epoch, mean = agreed.epoch_loss or (None, None)
    return StoredAgreed(
        samples=agreed.samples,
        names=sorted(agreed.names),
        stop=agreed.wanted.get("stop"),
        mean_loss=agreed.mean_loss,
        epoch=epoch,
        epoch_loss=mean,
    )


def _capture_scaler(run: Run) -> StoredScaler | None:
    if run._runtime.scaling is None:
        return None
    scale, growth = run._runtime.scaling.state()
    return StoredScaler(scale=scale, growth=growth)


def _capture_kept(run: Run) -> StoredKept | None:
    at, kept = run._position, run._position.kept
    if kept is None or not at.window.steps:
        return None
    if run._runtime.recomputation is None and at.redo is not None and not at.redo.is_whole(at.window.steps):
        return None  # its first steps were made without redo
    return StoredKept(batches=list(kept.batches), loss=kept.loss, idle=list(kept.idle))


def _capture_redo(run: Run) -> StoredRedo | None:
    at, redo = run._position, run._position.redo
    if redo is None:
        return None
    if not at.window.steps or not redo.is_whole(at.window.steps):
        return StoredRedo(halvings=redo.halvings, random=[], buffers={})
    return StoredRedo(halvings=redo.halvings, random=[dict(one) for one in redo.random], buffers=redo.changed())


def _capture_data(run: Run) -> dict[str, Any]:
    """Return the place in the data. A batch read ahead that cannot be stored is left out: it is read again.

    Raises:
        CheckpointError: If the loader has a `state_dict`: that is past the batch, and would not yield it again.
    """
    state = run._runtime.feed.state()
    for batch in state.get("ahead", ()):
        try:
            encode(batch, "the batch that was read ahead")
        except CheckpointError as error:
            if state["walk"].get("own") is not None:
                raise CheckpointError(
                    f"the batch that was read ahead ({a_kind(batch)}) cannot be stored, and the loader's state_dict is "
                    "past it, so that it would be lost; make the loader yield tuples, lists or dicts of tensors"
                ) from error
            state["ahead"] = []
    return state
