"""Which run a checkpoint is of, and whether this is that run: compared field by field before anything is changed."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from heptad.checkpoints.learned import (
    described,
    held_parameters,
    modules_of,
    parameter_names,
    parts_of,
    shape_differences,
    tensors_of,
    told,
)
from heptad.config import RunConfig
from heptad.errors import CheckpointError, kind
from heptad.plugin.contract import Plugin
from heptad.run.run import Run
from heptad.table import Arc

_FREE = frozenset(("epochs", "max_updates", "device", "num_workers", "log_capacity", "trace_handlers", "deterministic"))
"""What a run may be resumed with another value of: it changes where the run ends or how it is driven, not what it does
in between."""


def identity(run: Run) -> dict[str, Any]:
    """Returns what a run must be to go on from a checkpoint, as plain data."""
    return {
        "config": run.config.model_dump(),
        "arcs": [[arc.source, arc.dest, arc.guard] for arc in run.table.arcs],
        "data": run.runtime.feed.identity(),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Returns what changes bits and is no part of a run: versions, threads, device, settings of torch."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "default dtype": str(torch.get_default_dtype()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn benchmark": torch.backends.cudnn.benchmark,
    }


def unlike(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns a note that bits may differ, if anything that changes them does."""
    found = [
        f"{name} {stored.get(name)} in the checkpoint, {value} here"
        for name, value in here.items()
        if stored.get(name) != value
    ]
    return [f"bits may differ from those of the run that was not interrupted: {'; '.join(found)}"] if found else []


def check_run(run: Run, plugins: Sequence[Plugin], sections: Mapping[str, Any]) -> None:
    """Compares configuration, table, data, modules and plugins.

    Raises:
        CheckpointError: With every difference, one a line.
    """
    stored, here = sections["run"]["identity"], identity(run)
    # a field that came after the checkpoint was written had its default then
    config = {name: field.default for name, field in RunConfig.model_fields.items()} | stored["config"]
    wrong = [
        f"RunConfig.{name}: {config[name]!r} in the checkpoint, {value!r} here"
        for name, value in here["config"].items()
        if name not in _FREE and config[name] != value
    ]
    wrong += [
        f"data: {name} {stored['data'].get(name)} in the checkpoint, {here['data'].get(name)} here"
        for name in dict.fromkeys((*stored["data"], *here["data"]))
        if stored["data"].get(name) != here["data"].get(name)
    ]
    wrong += _table_differences(stored["arcs"], here["arcs"])
    modules = modules_of(run)
    for name in ("network", "criterion", "compute_loss"):
        if (name in sections) != (name in modules):
            wrong.append(
                f"Components.{name}: a module with state {'in the checkpoint' if name in sections else 'here'} only"
            )
        elif name in modules:
            wrong += _module_differences(name, sections[name], modules[name])
    here_too = {plugin.name for plugin in plugins}
    wrong += [
        f"plugins: {name} (a {stored['class']}) changes the run and is in the checkpoint only"
        for name, stored in sections["plugins"].items()
        if name not in here_too and stored["state"] and not stored["observes"]
    ]
    wrong += [
        f"plugins: {plugin.name} has a state in the checkpoint, and no load_state_dict that would take it back"
        for plugin in plugins
        if type(plugin).load_state_dict is Plugin.load_state_dict
        and sections["plugins"].get(plugin.name, {}).get("state")
    ]
    _refuse(wrong)


def check_optimizers(run: Run, section: Mapping[str, Any], asked: Sequence[Mapping[str, Any]]) -> None:
    """Compares the optimizers that were built: classes, options as they were built with, parameters in their order.

    Args:
        run: The run.
        section: What a checkpoint holds of optimizers.
        asked: The options that they were built with, which a schedule may have changed since.

    Raises:
        CheckpointError: With every difference, one a line.
    """
    names, optimizers = parameter_names(run), run.runtime.optimizers
    stored, parameters, described_now = section["states"], optimizers.names(names), optimizers.describe()
    if len(stored) != len(run.optimizers):
        _refuse([f"Components.optimizer: {len(stored)} in the checkpoint, {len(run.optimizers)} here"])
    wrong = shape_differences("held by the optimizers", section["held"], held_parameters(run))
    for number, (optimizer, one, options) in enumerate(zip(run.optimizers, stored, asked, strict=True)):
        where = f"optimizers[{number}]"
        if kind(optimizer) != one["class"]:
            wrong.append(f"{where}: a {one['class']} in the checkpoint, a {kind(optimizer)} here")
            continue
        held = parameters[number]
        stored_groups: list[list[str]] = one["parameters"]
        built = len(options["groups"])
        added = stored_groups[built:] if len(held) == built else []  # during the run, and here not yet
        if held != stored_groups[: len(stored_groups) - len(added)]:
            wrong.append(f"{where}: {_first_difference(stored_groups, held)}")
        absent = {name for group in added for name in group} - set(names.values())
        if absent:
            wrong.append(f"{where}: {', '.join(sorted(absent))} of a group added during the run is not here")
        for group, (then, now) in enumerate(zip(options["groups"], described_now[number]["groups"], strict=False)):
            wrong += [
                f"{where}, group {group}: {name} {then.get(name)!r} in the checkpoint, {now.get(name)!r} here"
                for name in dict.fromkeys((*then, *now))
                if then.get(name) != now.get(name)
            ]
    _refuse(wrong)


def _refuse(wrong: list[str]) -> None:
    if wrong:
        listed = "\n".join(f"  {line}" for line in wrong)
        raise CheckpointError(
            "this is not the run that the checkpoint is of; nothing was changed:\n"
            f"{listed}\nBuild the engine as it was built then, or begin a new run from the weights with load_weights."
        )


def _table_differences(stored: Sequence[Sequence[Any]], here: Sequence[Sequence[Any]]) -> list[str]:
    one, other = ([Arc(*row) for row in rows] for rows in (stored, here))
    wrong = [f"table: the arc {_arc(arc)} is in the checkpoint only" for arc in one if arc not in other]
    wrong += [f"table: the arc {_arc(arc)} is here only" for arc in other if arc not in one]
    if not wrong and one != other:
        wrong.append("table: the arcs are tried in another order; give the plugins in the order that they had")
    return wrong


def _arc(arc: Arc) -> str:
    return f"{arc.source} -> {arc.dest}{f' if {arc.guard}' if arc.guard else ''}"


def changed_options(run: Run, options: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns a note for each submodule whose options changed during the run and are not so here.

    What changed them did it from a handler, and nobody but its plugin knows how.

    Args:
        run: The run, resumed, with its plugins open.
        options: What the parts of each module were when the checkpoint was taken.
    """
    return [
        f"{_named(name, part)} was {stored} when the checkpoint was taken and is {told(here)} here: bits may differ "
        "unless what changed it does so again; let its plugin do it in open(), too"
        for name, module in modules_of(run).items()
        for part, here in parts_of(module).items()
        if (stored := options[name].get(part, told(here))) != told(here)
    ]


def _module_differences(name: str, stored: Mapping[str, Any], module: nn.Module) -> list[str]:
    """Tells in which tensors and submodules two modules differ: an activation has no tensors that would show it.

    A buffer may be missing here that was made by the run. The options of a submodule may be those that it began with,
    or those that it has now, its class is the one that it has now.
    """
    here = described(module)
    first: Mapping[str, Any] = stored.get("first") or {"parts": stored["parts"], "awaited": ()}
    awaited = set(first["awaited"]) & set(here["awaited"])
    tensors = {key: tensor for key, tensor in stored["tensors"].items() if key not in awaited}
    wrong = shape_differences(name, tensors, tensors_of(module))
    told_of: list[Mapping[str, str]] = [stored["parts"], here["parts"], first["parts"]]
    for part in dict.fromkeys((*stored["parts"], *here["parts"])):
        one, other, began = (parts.get(part, "none") for parts in told_of)
        if other != one and (other != began or _class(other) != _class(one)):
            was = f" ({began} when the run began)" if began != one else ""
            wrong.append(f"{_named(name, part)}: {one} in the checkpoint{was}, {other} here")
    return wrong


def _named(name: str, part: str) -> str:
    return ".".join(filter(None, (name, part)))


def _class(told: str) -> str:
    return told.partition("(")[0]


def _first_difference(stored: Sequence[Sequence[str]], here: Sequence[Sequence[str]]) -> str:
    if len(stored) != len(here):
        return f"{len(stored)} parameter groups in the checkpoint, {len(here)} here"
    for number, (one, other) in enumerate(zip(stored, here, strict=True)):
        for place, (name, now) in enumerate(zip(one, other, strict=False)):
            if name != now:
                return f"parameter {place} of group {number} is {name} in the checkpoint, {now} here"
        if len(one) != len(other):
            return f"group {number} has {len(one)} parameters in the checkpoint, {len(other)} here"
    return "the parameters differ"
