"""Taking down everything that the rest of a run depends on, and bringing a run to it.

`capture` is called between two turns or in a detour's body, where no graph is alive; `restore` on a run in `idle`, by
the engine. Neither knows of files: what they exchange is a `Snapshot` of plain data and tensors, a section a part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import time
from typing import Any

from heptad.checkpoints import learned
from heptad.checkpoints.codec import encode
from heptad.checkpoints.identity import check_optimizers, check_run, environment, identity, unlike
from heptad.data import generators as seeding
from heptad.data.placement import place
from heptad.errors import CheckpointError, EngineError, in_a_line, kind
from heptad.plugin.contract import Plugin
from heptad.plugin.detour_state import DetourState
from heptad.plugin.manager import PluginManager, state_of
from heptad.plugin.subscription import Subscription
from heptad.record.counters import Counters
from heptad.record.event_codec import from_format_1, from_plain, to_plain
from heptad.record.events import Detach, Event, Remark, StillDetached
from heptad.run.guards import MID_STEP, is_update_due
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot

_PLACED = (
    "epoch",
    "batch_index",
    "step",
    "update",
    "samples",
    "epoch_open",
    "pass_index",
    "remaining",
    "sized",
    "extending",
    "samples_now",
    "skipped",
)
"""Fields of `RunState` that are stored as they are."""


Finding = Callable[[int, int], Event]
"""Makes an event, given its transition and its time."""


@dataclass(frozen=True)
class Holders:
    """What holds state of a run beside the run itself."""

    roster: PluginManager
    visits: Sequence[DetourState]
    subscriptions: Sequence[Subscription]
    first: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the modules were before the first turn: handlers may change their options, the run began with these."""
    options: dict[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    """What the parts of each module were when the checkpoint was taken that the run was resumed from."""


def begin(run: Run, holders: Holders) -> None:
    """Takes down what only the beginning of a run can tell: called before plugins are opened."""
    holders.first.update((name, learned.described(module)) for name, module in learned.modules_of(run).items())


def capture(run: Run, holders: Holders) -> Snapshot:
    """Returns everything that the rest of the run depends on.

    The tensors are those of the run, not copies: they are to be written before it goes on.

    Raises:
        EngineError: If the run is neither between two turns nor in a detour's body, or if it is in mid-step.
    """
    _check_place(run)
    at = run.position
    summary = {
        "run": run.id,
        "seq": run.buffer.seq,
        "state": run.state,
        "epoch": at.epoch,
        "step": at.step,
        "update": at.update,
        "time": time(),
    }
    states = holders.roster.states(run)  # first: a plugin that cannot tell it may be detached, and that is state too
    learned_now = learned.capture(run)
    for name, first in holders.first.items():
        learned_now[name]["first"] = first
    sections = {
        **learned_now,
        "plugins": {
            plugin.name: {"class": kind(plugin), "observes": plugin.observes, "state": states[plugin.name]}
            for plugin in holders.roster.plugins
            if plugin.name in states
        },
        "run": {
            "identity": identity(run),
            "environment": environment(run.runtime.device),
            "position": _capture_position(run, holders),
            "detached": holders.roster.detached(),
            "data": _capture_data(run),
            "values": run.buffer.recorded.state(),
            "random": seeding.capture(),
        },
    }
    return Snapshot(summary, sections)


def restore(run: Run, holders: Holders, snapshot: Snapshot, build: Callable[[Run], object]) -> list[Finding]:
    """Brings a run in `idle` to where a snapshot was taken; all but the global random generators.

    These come last, before the first turn: opening plugins may still draw from them.

    Returns:
        What the log must hold of it, as events but for their place: detached plugins, data that had to be walked,
        differences that may change bits.

    Raises:
        CheckpointError: If the run is not the one that the snapshot is of, with every difference, one a line. Nothing
            has been changed then.
    """
    sections, state = snapshot.sections, snapshot.sections["run"]
    position = state["position"]
    check_run(run, holders.roster.plugins, sections)
    _check_node(run, holders, position)
    if position["node"] != "before_loop":  # whose body builds the optimizers
        build(run)
        check_optimizers(run, sections["optimizers"], position["optimizers"])
    run.runtime.feed.seed = position["seed"]
    findings = _remarks(*unlike(state["environment"], environment(run.runtime.device)))
    walked = run.runtime.feed.restore(state["data"])
    _restore_plugins(run, holders.roster, sections["plugins"], state.get("detached", ()), findings)
    learned.restore(run, sections)
    for name in learned.modules_of(run):
        holders.first[name], holders.options[name] = sections[name].get("first"), sections[name]["parts"]
    run.buffer.recorded.restore(state["values"])
    _restore_position(run, holders, position)
    cut = _cut_short(run, state["identity"]["config"].get("max_updates"))
    return [*findings, *_remarks(walked, cut)]


def _remarks(*texts: str | None) -> list[Finding]:
    return [partial(Remark, text=text) for text in texts if text]


def _check_node(run: Run, holders: Holders, position: Mapping[str, Any]) -> None:
    """Refuses a position that no run of this table was ever in; the table was compared."""
    node, visits = position["node"], position["visits"]
    number = run.table.index.get(node)
    if number is None or run.table.states[number].kind in ("end", "failed") or node == run.table.start.name:
        raise CheckpointError(f"the checkpoint says that the run was in {node!r}, from where no run goes on")
    if len(visits) != len(holders.visits):
        raise CheckpointError(f"the checkpoint counts {len(visits)} detours, and there are {len(holders.visits)}")


def _check_place(run: Run) -> None:
    name = run.table.states[run.position.node].name
    if run.state == "idle" or run.ended:
        raise EngineError(f"there is nothing to store of a run that is {run.state}")
    if run.position.visit is None and run.paused is None:
        raise EngineError(
            f"a snapshot is taken between two turns or in the body of a detour, not on a moment of {run.state}: take "
            "it in on_pause, while the run is paused, or in a detour of your own"
        )
    if name in MID_STEP or name.endswith("@process_batch"):
        raise EngineError(f"no snapshot is taken in {run.state}: a step or an update is under way there")


def _capture_data(run: Run) -> dict[str, Any]:
    """Returns the place in the data. A batch that was read ahead and cannot be stored is left out: it is read again.

    Raises:
        CheckpointError: If the loader tells its place, which is past that batch, so that it would not give it again.
    """
    state = run.runtime.feed.state()
    for batch in state.get("ahead", ()):
        try:
            encode(batch, "the batch that was read ahead")
        except CheckpointError as error:
            if state["walk"].get("own") is not None:
                raise CheckpointError(
                    f"the batch that was read ahead (a {kind(batch)}) cannot be stored, and the loader's state_dict is "
                    "past it, so that it would be lost; let the loader yield tuples, lists or dicts of tensors"
                ) from error
            state["ahead"] = []
    return state


def _capture_position(run: Run, holders: Holders) -> dict[str, Any]:
    at, memory = run.position, run.buffer
    return {
        "id": run.id,
        "seq": memory.seq,
        "node": run.table.states[at.node].name,
        "body_done": at.visit is not None,
        "placed": {name: getattr(at, name) for name in _PLACED},
        "window": at.window.state(),
        "loss": run.loss,
        "batch": [] if at.batch is None else [at.batch],
        "stopped": bool(memory.stops),
        "reason": run.reason,
        "seed": run.runtime.feed.seed,
        "optimizers": memory.facts.get("optimizers", []),
        "visits": [visit.last_now(run) for visit in holders.visits],
        "filters": [[*_key(row), *row.filter.state()] for row in holders.subscriptions],
        "notes": [],  # where format 1 stored the words of its events
        "events": [to_plain(event) for event in memory.events(memory.seq)],
    }


def _restore_position(run: Run, holders: Holders, state: Mapping[str, Any]) -> None:
    at, memory, config = run.position, run.buffer, run.config
    run.id, at.reason = state["id"], state["reason"]
    for name, value in state["placed"].items():
        setattr(at, name, value)
    at.window.restore(state["window"])
    at.node, at.body_done = run.table.index[state["node"]], state["body_done"]
    at.loss = state["loss"]
    at.batch = place(state["batch"][0], run.runtime.device) if state["batch"] else None
    reached = config.max_updates is not None and at.update >= config.max_updates
    at.ending = state["stopped"] or reached
    if not at.ending:
        at.reason = None
    elif not state["stopped"]:
        at.reason = f"max_updates={config.max_updates} reached"
    for visit, last in zip(holders.visits, state["visits"], strict=True):
        visit.last = last
    counted = {tuple(key): (count, done) for *key, count, done in state["filters"]}
    for row in holders.subscriptions:
        row.filter.restore(*counted.get(_key(row), (0, False)))
    at.update_due = is_update_due(at)
    run.plan_windows()
    memory.facts["optimizers"] = state["optimizers"]
    memory.windows[:] = [(state["seq"], at.window.size)]
    memory.stops[:] = [state["seq"]] if state["stopped"] else []
    window = at.window.steps
    memory.restore(state["seq"], at.node, Counters(at.epoch, at.batch_index, at.step, at.update, window))
    old = [from_format_1(*row) for row in state["notes"]]
    for event in (*old, *(from_plain(row) for row in state.get("events", ()))):
        memory.put(event)


def _cut_short(run: Run, limit: int | None) -> str:
    """Tells of an epoch that `max_updates` ended in its middle, where it is raised now: the epoch is counted."""
    at, batches = run.position, run.runtime.feed.batches
    over = run.state == "after_epoch" or not at.epoch_open
    if limit is None or at.update < limit or at.ending or not over or not at.batch_index:
        return ""
    if batches is not None and batches - at.batch_index < at.needed:
        return ""
    epoch = at.epoch if at.epoch_open else at.epoch - 1
    cut, of = ("may have been cut", "") if batches is None else ("was cut", f" of its {batches}")
    return (
        f"epoch {epoch} {cut} short by max_updates={limit}, after {at.batch_index}{of} batches, and is counted; a run "
        "asked for more updates at once would have gone on in it"
    )


def _key(subscription: Subscription) -> tuple[str, str, str, int, bool]:
    mark = subscription.mark
    return subscription.who, mark.moment, mark.state, mark.every, mark.once


def _restore_plugins(
    run: Run, roster: PluginManager, states: Mapping[str, Any], detached: Collection[str], findings: list[Finding]
) -> None:
    """Begin each plugin and give it its state; where one refuses that the run needs, those before it get theirs back.

    One that was detached stays so, and one that the run can do without is detached where it refuses: else the run would
    not be the one that was never paused, or would not be there at all.
    """
    done: list[tuple[Plugin, dict[str, Any]]] = []
    failed: list[str] = []
    for plugin in roster.plugins:
        may_fail = plugin.on_error == "detach"
        if plugin.name in detached and may_fail:
            failed.append(plugin.name)
            findings.append(partial(StillDetached, plugin=plugin.name))
            continue
        if plugin.name not in states:
            plugin.on_begin(run)
            findings += _remarks(f"the plugin {plugin.name} has no state in the checkpoint: it begins here")
            continue
        try:
            before = state_of(plugin)
        except Exception:
            if not may_fail:
                raise
        else:
            done.append((plugin, before))
        try:
            plugin.on_begin(run)
            plugin.load_state_dict(states[plugin.name]["state"])
        except Exception as error:
            if may_fail:
                failed.append(plugin.name)
                who = f"{plugin.name}.load_state_dict"
                findings.append(partial(Detach, plugin=plugin.name, handler=who, error=in_a_line(error)))
                continue
            for other, before in done[:-1]:
                other.load_state_dict(before)
            raise CheckpointError(f"the plugin {plugin.name} cannot take back its state: {in_a_line(error)}") from error
    for name in failed:
        roster.detach(name)
    here = {plugin.name for plugin in roster.plugins}
    absent = [name for name in states if name not in here]
    findings += _remarks(*(f"the plugin {name} of the checkpoint is not here: its state is left" for name in absent))
