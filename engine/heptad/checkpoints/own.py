"""Which parts of a run's sections are a rank's own: `capture` says so in a snapshot, and all else is stored once.

What all ranks have alike under ddp, rank 0 stores for all: parameters, optimizers, plugins, the place in the table.
What may differ, each rank stores: its generators, batches and losses, the gradients of its open window, its log.
Buffers differ too (those of BatchNorm do after every step): rank 0's stand with its weights, where `load_weights` finds
them, and every other rank stores its own, whether they differ or not: to find that out would cost a digest and an
exchange, and buffers are small. So do plugins that name parts of their state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from heptad.checkpoints.modules import modules_of
from heptad.checkpoints.together import together
from heptad.plugin.contract import Plugin
from heptad.run.run import Run

GRADIENTS = ("optimizers", "gradients")

_PLACES = (
    ("run", "position", "placed"),
    ("run", "position", "window"),
    ("run", "position", "loss"),
    ("run", "position", "batch"),
    ("run", "position", "kept"),
    ("run", "position", "redo"),
    ("run", "position", "events"),
    ("run", "position", "epoch_loss"),
    ("run", "position", "asked"),
    ("run", "position", "agreed"),
    ("run", "data"),
    ("run", "values"),
    ("run", "detached"),
    ("run", "random"),
    GRADIENTS,
)
"""Of every run."""


def own_places(run: Run, plugins: Iterable[Plugin], sections: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the keys that lead to what is this rank's own in the sections of a run."""
    places: list[tuple[str, ...]] = [one for one in _PLACES if one != GRADIENTS or not run._runtime.shards.any]
    if run._runtime.shards.any:
        # FSDP2 has averaged the gradients of what ranks share; those of what each holds whole it has not
        gradients: Mapping[str, Tensor] = sections["optimizers"]["gradients"]
        part = run._runtime.shards.part
        places += ((*GRADIENTS, name) for name, gradient in gradients.items() if part(gradient) is None)
    ranks = together(run._runtime.peers)
    for plugin in plugins if ranks.others else ():
        if plugin.own_state and plugin.name in sections["plugins"]:
            path = ("plugins", plugin.name)
            if plugin.own_state is True or plugin.on_error == "detach":  # rank 0 may have detached it
                places.append(path)
            elif ranks.rank:
                places += ((*path, "state", *keys) for keys in plugin.own_state)
    if ranks.rank:
        for name, module in modules_of(run).items():
            places += ((name, "tensors", buffer) for buffer, _ in module.named_buffers(remove_duplicate=False))
            places.append((name, "extra"))
    return places
