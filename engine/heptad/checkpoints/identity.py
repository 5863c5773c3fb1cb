"""Which run a checkpoint is of: compared with the run that is to be resumed before anything changes."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from heptad.checkpoints.damage import AnotherRunError
from heptad.checkpoints.form import (
    StoredBeginning,
    StoredIdentity,
    StoredModule,
    StoredPlugin,
    StoredSections,
)
from heptad.checkpoints.modules import (
    describe_module,
    describe_part,
    modules_of,
    parts_of,
    tensor_differences,
    tensors_of,
)
from heptad.config import RunConfig
from heptad.errors import CheckpointError, kind, with_article
from heptad.plugin.contract import Plugin
from heptad.run.run import Run
from heptad.run.verified import card_name
from heptad.table import REDO, Arc, Table

_MOST_NAMED = 50
"""Differences that a message lists."""

FREE_FIELDS = frozenset(
    (
        "epochs",
        "max_updates",
        "device",
        "prefetch",
        "data_on_device",
        "num_workers",
        "persistent_workers",
        "log_capacity",
        "trace_handlers",
        "deterministic",
        "redo",
        "strategy",
        "accumulation",
        "window",
        "agree_every",
        "patience",
    )
)
"""Fields of `RunConfig` that may differ when a run is resumed: they change where it ends or how it is driven, not what
it does in between. `redo` does so after a fault, and may be why a run is resumed; the table is compared without it. Of
`accumulation` and `window` the number of batches in a window of all ranks is compared."""


def identity(run: Run) -> StoredIdentity:
    """Return what a run must be to be resumed from a checkpoint."""
    return StoredIdentity(
        world=run._runtime.peers.world,
        config=run.config.model_dump(),
        arcs=[[arc.source, arc.dest, arc.guard] for arc in run.table.arcs if not _is_of_redo(run.table, arc)],
        data=run._runtime.feed.identity(),
    )


def _is_of_redo(table: Table, arc: Arc) -> bool:
    return REDO in (table.shown[arc.source], table.shown[arc.dest])


def environment(device: torch.device) -> dict[str, Any]:
    """Return what changes bits and is no part of a run: versions, threads, device, settings of torch."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device.type if device.type == "cpu" else card_name(device),
        "threads": torch.get_num_threads(),
        "default dtype": str(torch.get_default_dtype()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn benchmark": torch.backends.cudnn.benchmark,
    }


def environment_differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return a note that bits may differ, if something that changes them does."""
    found = [
        f"{name} {stored.get(name)} in the checkpoint, {value} here"
        for name, value in here.items()
        if stored.get(name) != value
    ]
    return [f"bits may differ from those of the run that was never paused: {'; '.join(found)}"] if found else []


def check_run(run: Run, plugins: Sequence[Plugin], sections: StoredSections) -> None:
    """Compare configuration, data, table, modules and plugins.

    Raises:
        CheckpointError: With every difference, one a line; an `AnotherRunError` if the modules are those of it.
    """
    stored, here = sections.run.identity, identity(run)
    modules = _modules_differences(modules_of(run), sections)
    refuse(
        [
            *_config_differences(stored.config, here.config),
            *_window_differences(stored, here),
            *_data_differences(stored.data, here.data),
            *_table_differences(stored.arcs, here.arcs),
            *modules,
            *_plugin_differences(plugins, sections.plugins),
        ],
        CheckpointError if modules else AnotherRunError,
    )


def changed_options(run: Run, options: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a note for each submodule whose options changed during the run and were not changed again.

    A handler changed them, and only its plugin knows how.

    Args:
        run: The run, resumed, with its plugins open.
        options: The parts of each module when the checkpoint was taken.
    """
    return [
        f"{_dotted(name, part)} was {stored} when the checkpoint was taken and is {describe_part(here)} here: bits may "
        "differ unless what changed it does so again; change it in the plugin's open() too"
        for name, module in modules_of(run).items()
        for part, here in parts_of(module).items()
        if (stored := options[name].get(part, describe_part(here))) != describe_part(here)
    ]


def refuse(wrong: list[str], error: type[CheckpointError] = CheckpointError) -> None:
    """Raise an error if there are differences, with all of them."""
    if wrong:
        more = [f"and {len(wrong) - _MOST_NAMED} more"] if len(wrong) > _MOST_NAMED else []
        listed = "\n".join(f"  {line:.500}" for line in (*wrong[:_MOST_NAMED], *more))
        raise error(
            "this is not the run that the checkpoint is of; nothing was changed:\n"
            f"{listed}\nBuild the engine as it was built then, or begin a new run from the weights with load_weights."
        )


def _config_differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    # A field that came after the checkpoint was written had its default then.
    then = {name: field.default for name, field in RunConfig.model_fields.items()} | dict(stored)
    return [
        f"RunConfig.{name}: {then[name]!r} in the checkpoint, {value!r} here"
        for name, value in here.items()
        if name not in FREE_FIELDS and then[name] != value
    ]


def _window_differences(stored: StoredIdentity, here: StoredIdentity) -> list[str]:
    """Return in words how the batches in a window of all ranks differ."""
    then, now = (one.config.get("accumulation", 1) for one in (stored, here))
    if stored.world == here.world == 1:
        return [] if then == now else [f"RunConfig.accumulation: {then!r} in the checkpoint, {now!r} here"]
    if then * stored.world == now * here.world:
        return []
    was, is_here = (f"{one.world} x {k} = {one.world * k}" for one, k in ((stored, then), (here, now)))
    batches = then * stored.world
    able = [str(world) for world in range(1, batches + 1) if batches % world == 0]
    advice = f"set RunConfig.window={batches}"
    if batches % here.world:
        shared = f"{here.world} ranks cannot share {batches} batches equally"
        advice = f"{shared}: {advice} and resume by one of {', '.join(able)}"
    return [f"batches in a window, ranks x accumulation: {was} in the checkpoint, {is_here} here; {advice}"]


def _data_differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    # A dataset that had changed by then may be here as the run was built with it, or as it was when it was stored.
    names = [name for name in dict.fromkeys((*stored, *here)) if not name.endswith(" now")]
    grown = any(name.endswith(" now") for name in stored)
    if grown and all(stored.get(f"{name} now", stored.get(name)) == here.get(name) for name in names):
        return []
    return [
        f"data: {name} {stored.get(name)} in the checkpoint, {here.get(name)} here"
        for name in names
        if stored.get(name) != here.get(name)
    ]


def _table_differences(stored: Sequence[Sequence[Any]], here: Sequence[Sequence[Any]]) -> list[str]:
    then, now = ([Arc(*row) for row in rows] for rows in (stored, here))
    wrong = [f"table: the arc {_arc_text(arc)} is in the checkpoint only" for arc in then if arc not in now]
    wrong += [f"table: the arc {_arc_text(arc)} is here only" for arc in now if arc not in then]
    if not wrong and then != now:
        wrong.append("table: the arcs are tried in another order; give the plugins in the order that they had")
    return wrong


def _arc_text(arc: Arc) -> str:
    return f"{arc.source} -> {arc.dest}{f' if {arc.guard}' if arc.guard else ''}"


def _modules_differences(modules: Mapping[str, nn.Module], sections: StoredSections) -> list[str]:
    wrong: list[str] = []
    for name in ("network", "criterion", "compute_loss"):
        stored, here = sections.module(name), modules.get(name)
        if stored is not None and here is not None:
            wrong += _module_differences(name, stored, here)
        elif stored is not here:
            where, other = ("here", "in the checkpoint") if stored is None else ("in the checkpoint", "here")
            wrong.append(f"Components.{name}: a module {where}, and none {other}")
    return wrong


def _module_differences(name: str, stored: StoredModule, module: nn.Module) -> list[str]:
    """Return in which tensors and submodules two modules differ: an activation has no tensor that would show it.

    A buffer that the run made may be missing here. The options of a submodule may be those that it began with or those
    that it has in the checkpoint; its class must be the one in the checkpoint.
    """
    here = describe_module(module)
    first = stored.first or StoredBeginning(parts=stored.parts, awaited=[])
    awaited = set(first.awaited) & set(here.awaited)
    tensors = {key: tensor for key, tensor in stored.tensors.items() if key not in awaited}
    wrong = tensor_differences(name, tensors, tensors_of(module))
    classes = {part: kind(submodule) for part, submodule in parts_of(module).items()}
    for part in dict.fromkeys((*stored.parts, *here.parts)):
        then, now, began = (parts.get(part, "none") for parts in (stored.parts, here.parts, first.parts))
        if now != then and (now != began or classes.get(part) != stored.classes.get(part)):
            was = f" ({began} when the run began)" if began != then else ""
            wrong.append(f"{_dotted(name, part)}: {then} in the checkpoint{was}, {now} here")
    return wrong


def _dotted(name: str, part: str) -> str:
    return ".".join(filter(None, (name, part)))


def _plugin_differences(plugins: Sequence[Plugin], stored: Mapping[str, StoredPlugin]) -> list[str]:
    here = {plugin.name for plugin in plugins}
    wrong = [
        f"plugins: {name} ({with_article(one.kind)}) changes the run and is in the checkpoint only"
        for name, one in stored.items()
        if name not in here and one.state and not one.observes
    ]
    wrong += [
        f"plugins: {plugin.name} has a state in the checkpoint, and no load_state_dict that would restore it"
        for plugin in plugins
        if type(plugin).load_state_dict is Plugin.load_state_dict
        and plugin.name in stored
        and stored[plugin.name].state
    ]
    return wrong
